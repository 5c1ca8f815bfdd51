// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// A segment: opened alone in many shapes, and as part of a conversation that is read and searched. What is accepted
// gives records that hold their CRC, or an error; a header packs to what it was read from; nothing outside the file is
// read.
//
// Input: shape (1 byte), flags (1 byte), bytes cut off the end (2 bytes), then patches: place (4 bytes), length (1),
// XOR bytes. Flags: 1 seals the pages touched and the table, 2 seals the header, 4 cuts.
#include "tests/fuzz/fuzz.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "proto/crc32c.h"
#include "retrieval/lookup.h"
#include "store/path.h"
#include "store/segment_write.h"
#include "tests/fuzz/fuzz_store.h"

enum { SEAL_PAGES = 1, SEAL_HEADER = 2, CUT = 4, SHAPES = 8, PATCHES_MAX = 64 };

/* A good segment in a file, and what its bytes were. */
struct base {
  char path[PATH_BYTES];
  int fd;
  uint8_t *good;
  uint32_t pages, table_pages;
  bool sealed; /* by a conversation of the archive */
};

static struct base bases[SHAPES];
static struct archive *archive;
static struct model *model;

/* --- the good ones ------------------------------------------------------------------------------------------------ */

static uint8_t *source_bytes; /* the columns of every block, which the writer keeps pointers to */

static void source(const void *context, uint32_t layer, uint32_t head, struct record_columns *columns) {
  const struct segment_header *header = context;
  uint8_t record[RECORD_BYTES];
  uint8_t *at = source_bytes + (size_t)(layer * header->kv_heads + head) * header->count * RECORD_BYTES;
  static const unsigned widths[6] = {16, 2, 32, 48, 2, 4};
  const uint8_t **members[6] = {&columns->signature, &columns->k_scale, &columns->k_mag,
                                &columns->v_code, &columns->v_scale, &columns->crc};
  for (unsigned field = 0, from = 0; field < 6; from += widths[field++]) {
    *members[field] = at;
    for (uint32_t i = 0; i < header->count; i++, at += widths[field]) {
      fuzz_record(record, layer, head, header->first + i);
      memcpy(at, record + from, widths[field]);
    }
  }
  columns->first = header->first;
  columns->count = header->count;
}

static void make_alone(struct base *base, unsigned shape) {
  static const uint32_t counts[] = {1, 2, 33, 600, 4096, 5};
  static const uint32_t layers[] = {1, 2, 1, 3, 1, 1}, heads[] = {1, 1, 2, 1, 1, 1};
  struct segment_header header = {.layers = layers[shape], .kv_heads = heads[shape], .head_dim = FUZZ_HEAD_DIM,
                                  .first = shape * 4096ULL, .count = counts[shape]};
  uint8_t *ids = calloc(header.count, 4);
  source_bytes = malloc((size_t)header.layers * header.kv_heads * header.count * RECORD_BYTES);
  FUZZ_REQUIRE(ids && source_bytes);
  bool sync_failed;
  struct error error = {0};
  memset(header.id, (int)shape + 1, sizeof header.id);
  snprintf(base->path, sizeof base->path, "%s/shape-%u.seg", fuzz_directory(), shape);
  FUZZ_REQUIRE(segment_write(&io_system, base->path, &header, ids, source, &header, &sync_failed, &error) == 0);
  free(ids);
  free(source_bytes);
}

/* The one segment of a conversation with a tail behind it. */
static void make_sealed(struct base *base) {
  struct conversation *conversation;
  struct conversation_entry entry;
  struct error error = {0};
  archive = fuzz_archive("segment", &model);
  FUZZ_REQUIRE(fuzz_open(archive, model, "c", &conversation, &error) == 0);
  fuzz_fill(conversation, LIMIT_SEGMENT_TOKENS + 10, 256, 3);
  FUZZ_REQUIRE(conversation_sync(conversation, &error) == 0 && conversation_wants_seal(conversation));
  FUZZ_REQUIRE(conversation_seal(conversation, &error) == 0);
  conversation_release(conversation);
  FUZZ_REQUIRE(conversation_describe(archive, FUZZ_UID, "c", &entry, &error) == 0 && entry.message.extents.count == 1);
  path_segment(base->path, archive_directory(archive), entry.extents[0].id.data);
  conversation_entry_finish(&entry);
  base->sealed = true;
}

static struct base *base_of(unsigned shape) {
  struct base *base = &bases[shape];
  if (base->good)
    return base;
  if (shape >= 6)
    make_sealed(base);
  else
    make_alone(base, shape);
  base->fd = open(base->path, O_RDWR | O_CLOEXEC);
  FUZZ_REQUIRE(base->fd >= 0);
  size_t size = (size_t)lseek(base->fd, 0, SEEK_END);
  base->good = malloc(size);
  FUZZ_REQUIRE(base->good && pread(base->fd, base->good, size, 0) == (ssize_t)size);
  base->pages = (uint32_t)(size / SEGMENT_PAGE_BYTES);
  base->table_pages = load_u32(base->good + 112);
  return base;
}

/* --- patching ----------------------------------------------------------------------------------------------------- */

static void seal_page(uint8_t *bytes, const struct base *base, uint32_t page) {
  uint32_t first = 1 + base->table_pages;
  if (page >= first)
    store_u32(bytes + SEGMENT_PAGE_BYTES + 4 * (size_t)(page - first),
              segment_page_crc(base->good + 24, page, bytes + (size_t)page * SEGMENT_PAGE_BYTES));
}

static void seal_header(uint8_t *bytes, const struct base *base) {
  store_u32(bytes + 120, crc32c(0, bytes + SEGMENT_PAGE_BYTES, (size_t)base->table_pages * SEGMENT_PAGE_BYTES));
  store_u32(bytes + 4092, crc32c(0, bytes, 4092));
}

/* Patches the file; returns true when nothing was changed. */
static bool patch(const struct base *base, unsigned flags, uint32_t cut, struct fuzz_input input) {
  size_t size = (size_t)base->pages * SEGMENT_PAGE_BYTES;
  uint8_t *bytes = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, base->fd, 0);
  FUZZ_REQUIRE(bytes != MAP_FAILED);
  uint32_t touched[PATCHES_MAX], patches = 0;
  for (; input.size && patches < PATCHES_MAX; patches++) {
    size_t at = fuzz_take(&input, 4) % size;
    struct fuzz_input change = fuzz_take_bytes(&input, fuzz_take(&input, 1) % 65);
    touched[patches] = (uint32_t)(at / SEGMENT_PAGE_BYTES);
    for (size_t i = 0; i < change.size && at + i < size && (at + i) / SEGMENT_PAGE_BYTES == touched[patches]; i++)
      bytes[at + i] ^= change.data[i];
  }
  for (uint32_t i = 0; (flags & SEAL_PAGES) && i < patches; i++)
    seal_page(bytes, base, touched[i]);
  if (flags & SEAL_HEADER)
    seal_header(bytes, base);
  bool same = memcmp(bytes, base->good, size) == 0 && !(flags & CUT);
  munmap(bytes, size);
  if (flags & CUT)
    FUZZ_REQUIRE(ftruncate(base->fd, (off_t)(cut < size ? size - cut : 0)) == 0);
  return same;
}

static void restore(const struct base *base) {
  size_t size = (size_t)base->pages * SEGMENT_PAGE_BYTES;
  FUZZ_REQUIRE(pwrite(base->fd, base->good, size, 0) == (ssize_t)size);
}

/* --- reading ------------------------------------------------------------------------------------------------------ */

static void check_header(const struct segment_header *header) {
  uint8_t page[SEGMENT_PAGE_BYTES], again_page[SEGMENT_PAGE_BYTES];
  struct segment_header again;
  struct error error = {0};
  segment_header_pack(header, page);
  FUZZ_REQUIRE(segment_header_unpack(page, &again, "header", &error) == 0);
  segment_header_pack(&again, again_page);
  FUZZ_REQUIRE(memcmp(page, again_page, sizeof page) == 0);
  FUZZ_REQUIRE(header->count >= 1 && header->count <= LIMIT_SEGMENT_TOKENS);
  FUZZ_REQUIRE(header->layers * header->kv_heads <= LIMIT_BLOCKS_MAX);
}

/* A lookup over whatever the columns hold: winners hold their CRC. */
static void search(const struct record_columns *columns, uint32_t layer, uint32_t head) {
  enum { ROWS = 2, K = 8 };
  static float queries[ROWS * RECORD_SIGNATURE_BITS];
  static struct lookup_scratch *scratch;
  struct error error = {0};
  uint64_t tokens[ROWS * K];
  uint8_t records[ROWS * K][RECORD_BYTES];
  uint32_t index[ROWS * K];
  float scores[ROWS * K];
  if (!scratch) {
    FUZZ_REQUIRE(lookup_scratch_create(&scratch, &error) == 0);
    for (unsigned i = 0; i < ROWS * RECORD_SIGNATURE_BITS; i++)
      queries[i] = (float)((int)(i * 37 % 101) - 50);
  }
  const struct lookup_request request = {.head_dim = FUZZ_HEAD_DIM, .layer = layer, .head = head, .rows = ROWS, .k = K,
                                         .candidates = 16, .before = LIMIT_TOKEN_INDEX_MAX,
                                         .queries = (const uint8_t *)queries,
                                         .row_stride = RECORD_SIGNATURE_BITS * sizeof(float)};
  struct lookup_answer answer = {.tokens = tokens, .records = records[0], .index = index, .scores = scores};
  FUZZ_REQUIRE(lookup_run(scratch, &request, columns, 1, &answer, &error) == 0);
  FUZZ_REQUIRE(answer.count <= ROWS * K);
  for (uint32_t i = 0; i < answer.count; i++)
    FUZZ_REQUIRE(record_check(records[i], layer, head, tokens[i]) && (!i || tokens[i] > tokens[i - 1]));
  for (uint32_t i = 0; i < ROWS * K; i++)
    FUZZ_REQUIRE(index[i] < answer.count || index[i] == LOOKUP_NONE);
}

static void check_alone(const struct base *base, bool same) {
  struct segment *segment = NULL;
  struct error error = {0};
  int result = segment_open(&io_system, base->path, &segment, &error);
  FUZZ_REQUIRE(!same || !result);
  if (result) {
    FUZZ_REQUIRE(result < 0 && error.text[0]);
    return;
  }
  const struct segment_header *header = segment_header(segment);
  check_header(header);
  uint32_t bad = 0;
  for (uint32_t page = 1 + header->table_pages; page < header->pages; page++)
    bad += segment_check_page(segment, page, &error) != 0;
  FUZZ_REQUIRE(!same || !bad);
  FUZZ_REQUIRE(segment_check_ids(segment, NULL, &error) == 0 || bad);
  for (uint32_t block = 0; block < header->layers * header->kv_heads; block++) {
    uint32_t layer = block / header->kv_heads, head = block % header->kv_heads;
    struct record_columns columns;
    uint8_t record[RECORD_BYTES];
    int checked = segment_check_layer(segment, layer, NULL, &error);
    FUZZ_REQUIRE(checked == 0 || bad);
    segment_columns(segment, layer, head, &columns);
    FUZZ_REQUIRE(columns.first == header->first && columns.count == header->count);
    for (uint32_t i = 0; i < columns.count; i += 1 + i / 16) {
      record_gather(&columns, i, record);
      FUZZ_REQUIRE(!same || record_check(record, layer, head, columns.first + i));
    }
    search(&columns, layer, head);
  }
  segment_unref(segment);
}

static void check_sealed(bool same) {
  struct conversation *conversation;
  struct error error = {0};
  int result = fuzz_open(archive, model, "c", &conversation, &error);
  FUZZ_REQUIRE(result <= 0 && (!result || error.text[0]) && (!same || !result));
  if (result)
    return;
  FUZZ_REQUIRE(conversation_count(conversation) == LIMIT_SEGMENT_TOKENS + 10);
  uint64_t good = fuzz_read_all(conversation);
  FUZZ_REQUIRE(!same || good == (uint64_t)FUZZ_BLOCKS * (LIMIT_SEGMENT_TOKENS + 10));
  conversation_release(conversation);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  struct fuzz_input input = {data, size};
  unsigned shape = (unsigned)fuzz_take(&input, 1) % 7, flags = (unsigned)fuzz_take(&input, 1);
  uint32_t cut = (uint32_t)fuzz_take(&input, 2);
  struct base *base = base_of(shape);
  bool same = patch(base, flags, cut, input);
  if (base->sealed)
    check_sealed(same);
  else
    check_alone(base, same);
  if (!same)
    restore(base);
  return 0;
}

/* --- seeds -------------------------------------------------------------------------------------------------------- */

static void seed(unsigned shape, unsigned flags, uint32_t cut, uint32_t place, uint8_t change) {
  struct fuzz_output output = {0};
  char name[64];
  fuzz_put_number(&output, shape, 1);
  fuzz_put_number(&output, flags, 1);
  fuzz_put_number(&output, cut, 2);
  fuzz_put_number(&output, place, 4);
  fuzz_put_number(&output, 1, 1);
  fuzz_put_number(&output, change, 1);
  snprintf(name, sizeof name, "shape%u-%u-%u-%u", shape, flags, cut, place);
  fuzz_put_done(&output, name);
}

void fuzz_seeds(void) {
  static const uint32_t header_places[] = {0, 8, 12, 16, 20, 24, 40, 72, 76, 80, 84, 88, 96, 100, 112, 116, 120, 200};
  for (size_t i = 0; i < sizeof header_places / sizeof header_places[0]; i++)
    seed((unsigned)(i % 6), SEAL_HEADER, 0, header_places[i], 1);
  for (unsigned shape = 0; shape < 7; shape++) {
    seed(shape, 0, 0, 0, 0);
    seed(shape, SEAL_PAGES | SEAL_HEADER, 0, 7 * SEGMENT_PAGE_BYTES, 0x80);
    seed(shape, 0, 0, 9 * SEGMENT_PAGE_BYTES + 5, 1);
    seed(shape, CUT, 1, 0, 0);
    seed(shape, SEAL_PAGES | SEAL_HEADER, 0, 150 * SEGMENT_PAGE_BYTES + 3, 2);
  }
}
