// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
#include "store/segment.h"

#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "proto/crc32c.h"
#include "store/mapped_fault.h"

/* What is known of a run of pages: 0 nothing yet, 1 all good, otherwise 2 + the number of the first bad page. */
enum { PAGES_UNKNOWN = 0, PAGES_GOOD = 1, PAGES_BAD = 2 };

struct segment {
  const struct io *io;
  atomic_uint refs;
  char *path;
  const uint8_t *bytes;
  size_t size;
  struct mapped_file mapped;
  struct segment_header header;
  int fd;          /* kept for reads that do not go through the mapping, or -1 */
  atomic_bool bad; /* a bad page was found */
  _Atomic(_Atomic uint64_t *) kept; /* where the scan region is counted, once it is kept */
  _Atomic uint32_t ids_state;
  _Atomic uint32_t layer_state[]; /* [layers] */
};

static const uint8_t *page_at(const struct segment *segment, uint32_t page) {
  return segment->bytes + (size_t)page * SEGMENT_PAGE_BYTES;
}

static int check_table(struct segment *segment, struct error *error) {
  const struct segment_header *header = &segment->header;
  mapped_guard_begin();
  uint32_t crc = crc32c(0, page_at(segment, 1), (size_t)header->table_pages * SEGMENT_PAGE_BYTES);
  mapped_guard_end();
  int result = segment_check_readable(segment, NULL, error);
  if (result || crc == header->table_crc)
    return result;
  return error_set(error, ERR_CORRUPT, "%s: the table of page CRCs fails its CRC; restore the file from a backup",
                   segment->path);
}

/* Reads header and size through the open file, so that nothing is mapped that the file does not have. */
static int read_header(const struct io *io, int fd, const char *path, struct segment_header *header,
                       struct error *error) {
  uint8_t page[SEGMENT_PAGE_BYTES];
  struct stat status;
  int result = io_read_all(io, fd, page, sizeof page, 0, path, error);
  if (!result)
    result = segment_header_unpack(page, header, path, error);
  if (result)
    return result;
  if (io->fstat(fd, &status))
    return error_set_errno(error, errno, "cannot stat %s", path);
  if ((uint64_t)status.st_size != (uint64_t)header->pages * SEGMENT_PAGE_BYTES)
    return error_set(error, ERR_CORRUPT, "%s has %lld bytes, wanted %llu; restore it from a backup", path,
                     (long long)status.st_size, (unsigned long long)header->pages * SEGMENT_PAGE_BYTES);
  return 0;
}

static struct segment *segment_allocate(const struct io *io, const char *path, const struct segment_header *header) {
  struct segment *segment = calloc(1, sizeof *segment + header->layers * sizeof segment->layer_state[0]);
  if (!segment)
    return NULL;
  segment->path = strdup(path);
  if (!segment->path) {
    free(segment);
    return NULL;
  }
  segment->io = io;
  segment->fd = -1;
  atomic_init(&segment->refs, 1);
  segment->header = *header;
  segment->size = (size_t)header->pages * SEGMENT_PAGE_BYTES;
  return segment;
}

static int map_file(const struct io *io, int fd, const char *path, struct segment **out, struct error *error) {
  struct segment_header header;
  int result = read_header(io, fd, path, &header, error);
  if (result)
    return result;
  struct segment *segment = segment_allocate(io, path, &header);
  if (!segment)
    return error_set(error, ERR_MEMORY, "out of memory for %s", path);
  void *bytes = io->mmap(NULL, segment->size, PROT_READ, MAP_SHARED, fd, 0);
  if (bytes == MAP_FAILED) {
    result = error_set_errno(error, errno, "cannot map %s (see vm.max_map_count if many segments are open)", path);
  } else {
    segment->bytes = bytes;
    mapped_file_register(&segment->mapped, bytes, segment->size);
    result = check_table(segment, error);
  }
  if (result) {
    segment_unref(segment);
    return result;
  }
  *out = segment;
  return 0;
}

static size_t scan_bytes(const struct segment *segment) {
  return (size_t)segment->header.layers * segment->header.kv_heads * SEGMENT_SCAN_PAGES * SEGMENT_PAGE_BYTES;
}

/* Lookups read key codes and values here and there, so that reading ahead of them only fills memory. */
static void expect_random_reads(const struct segment *segment) {
  size_t from = (size_t)segment_page(segment, SEGMENT_RESCORE, 0, 0) * SEGMENT_PAGE_BYTES;
  madvise((void *)(uintptr_t)(segment->bytes + from), segment->size - from, MADV_RANDOM);
  if (segment->fd >= 0)
    posix_fadvise(segment->fd, 0, 0, POSIX_FADV_RANDOM);
}

int segment_open(const struct io *io, const char *path, struct segment **segment, struct error *error) {
  int fd = io_open(io, path, O_RDONLY, error);
  if (fd < 0)
    return fd;
  int result = map_file(io, fd, path, segment, error);
  if (!result && fd < sysconf(_SC_OPEN_MAX) / 2) /* the other half is for connections and logs */
    (*segment)->fd = fd;
  else
    io->close(fd);
  if (!result)
    expect_random_reads(*segment);
  return result;
}

int segment_fd(const struct segment *segment) { return segment->fd; }

uint64_t segment_offset(const struct segment *segment, const void *address) {
  return (uint64_t)((const uint8_t *)address - segment->bytes);
}

void *segment_address(const struct segment *segment) { return (void *)(uintptr_t)segment->bytes; }

size_t segment_size(const struct segment *segment) { return segment->size; }

void segment_keep(struct segment *segment, _Atomic uint64_t *kept, uint64_t budget_bytes) {
  size_t size = scan_bytes(segment);
  _Atomic uint64_t *nowhere = NULL;
  if (atomic_load(&segment->kept) || atomic_load(kept) + size > budget_bytes ||
      !atomic_compare_exchange_strong(&segment->kept, &nowhere, kept))
    return;
  atomic_fetch_add(kept, size);
  void *region = (void *)(uintptr_t)page_at(segment, segment_page(segment, SEGMENT_SCAN, 0, 0));
#ifdef MADV_POPULATE_READ
  if (mlock(region, size) == 0 || madvise(region, size, MADV_POPULATE_READ) == 0)
    return;
#else
  if (mlock(region, size) == 0)
    return;
#endif
  madvise(region, size, MADV_WILLNEED); /* a kernel before 5.14, or an error that the first lookup will name */
}

struct segment *segment_ref(struct segment *segment) {
  atomic_fetch_add_explicit(&segment->refs, 1, memory_order_relaxed);
  return segment;
}

void segment_unref(struct segment *segment) {
  if (!segment || atomic_fetch_sub_explicit(&segment->refs, 1, memory_order_acq_rel) != 1)
    return;
  _Atomic uint64_t *kept = atomic_load(&segment->kept);
  if (kept)
    atomic_fetch_sub(kept, scan_bytes(segment));
  if (segment->bytes) {
    mapped_file_forget(&segment->mapped);
    segment->io->munmap((void *)(uintptr_t)segment->bytes, segment->size);
  }
  if (segment->fd >= 0)
    segment->io->close(segment->fd);
  free(segment->path);
  free(segment);
}

const struct segment_header *segment_header(const struct segment *segment) { return &segment->header; }

const char *segment_path(const struct segment *segment) { return segment->path; }

const uint8_t *segment_ids(const struct segment *segment) {
  return page_at(segment, segment_page(segment, SEGMENT_IDS, 0, 0));
}

uint32_t segment_page(const struct segment *segment, enum segment_region region, uint32_t layer, uint32_t head) {
  return segment_place(segment->header.layers, segment->header.kv_heads, region, layer, head);
}

enum segment_region segment_page_region(const struct segment *segment, uint32_t page) {
  enum segment_region region = SEGMENT_VALUE;
  while (region != SEGMENT_HEADER && page < segment_page(segment, region, 0, 0))
    region--;
  return region;
}

void segment_columns(const struct segment *segment, uint32_t layer, uint32_t head, struct record_columns *columns) {
  const uint8_t *scan = page_at(segment, segment_page(segment, SEGMENT_SCAN, layer, head));
  const uint8_t *value = page_at(segment, segment_page(segment, SEGMENT_VALUE, layer, head));
  columns->signature = scan;
  columns->k_scale = scan + (size_t)RECORD_SIGNATURE_BYTES * SEGMENT_PAGE_BYTES;
  columns->k_mag = page_at(segment, segment_page(segment, SEGMENT_RESCORE, layer, head));
  columns->v_code = value;
  columns->v_scale = value + (size_t)RECORD_V_CODE_BYTES * SEGMENT_PAGE_BYTES;
  columns->crc = value + (size_t)(RECORD_V_CODE_BYTES + RECORD_V_SCALE_BYTES) * SEGMENT_PAGE_BYTES;
  columns->first = segment->header.first;
  columns->count = segment->header.count;
}

/* 0, or -ERR_IO when the disk could not give a page. */
static int unreadable(const struct segment *segment, struct error *error) {
  uint64_t failed = mapped_file_failed(&segment->mapped);
  if (!failed)
    return 0;
  uint32_t page = (uint32_t)((failed - 1) / SEGMENT_PAGE_BYTES);
  return error_set(error, ERR_IO,
                   "%s: page %u (%s) cannot be read: the disk failed, or the file was cut short; check the disk, "
                   "restore the file from a backup and open the conversation again",
                   segment->path, page, segment_region_name(segment_page_region(segment, page)));
}

int segment_check_readable(struct segment *segment, bool *fresh, struct error *error) {
  int result = unreadable(segment, error);
  bool before = result && atomic_exchange(&segment->bad, true);
  if (fresh)
    *fresh = result && !before;
  return result;
}

static bool page_good(const struct segment *segment, uint32_t page) {
  uint32_t checked = page - 1 - segment->header.table_pages;
  mapped_guard_begin();
  uint32_t wanted = load_u32(page_at(segment, 1) + (size_t)checked * 4);
  bool good = segment_page_crc(segment->header.id, page, page_at(segment, page)) == wanted;
  mapped_guard_end();
  return good;
}

static int bad_page(const struct segment *segment, uint32_t page, struct error *error) {
  return error_set(error, ERR_CORRUPT, "%s: page %u (%s) fails its CRC; restore the file from a backup", segment->path,
                   page, segment_region_name(segment_page_region(segment, page)));
}

int segment_check_page(const struct segment *segment, uint32_t page, struct error *error) {
  if (page <= segment->header.table_pages || page >= segment->header.pages)
    return error_set(error, ERR_RANGE, "%s has no page %u with a CRC of its own", segment->path, page);
  bool good = page_good(segment, page);
  int result = unreadable(segment, error);
  return result || good ? result : bad_page(segment, page, error);
}

uint32_t segment_bad_page(const struct segment *segment, uint32_t layer) {
  uint64_t failed = mapped_file_failed(&segment->mapped);
  uint32_t known = atomic_load(layer == SEGMENT_NO_LAYER ? &segment->ids_state : &segment->layer_state[layer]);
  return failed ? (uint32_t)((failed - 1) / SEGMENT_PAGE_BYTES) : known >= PAGES_BAD ? known - PAGES_BAD : 0;
}

/* Place of a page within its column, and the column's width. */
static uint32_t column_of(const struct segment *segment, uint32_t page, uint32_t *width) {
  const struct {
    enum segment_region region;
    uint32_t pages, widths[3];
  } regions[] = {{SEGMENT_IDS, SEGMENT_IDS_PAGES, {4}},
                 {SEGMENT_SCAN, SEGMENT_SCAN_PAGES, {RECORD_SIGNATURE_BYTES, RECORD_K_SCALE_BYTES}},
                 {SEGMENT_RESCORE, SEGMENT_RESCORE_PAGES, {RECORD_K_MAG_BYTES}},
                 {SEGMENT_VALUE, SEGMENT_VALUE_PAGES, {RECORD_V_CODE_BYTES, RECORD_V_SCALE_BYTES, RECORD_CRC_BYTES}}};
  enum segment_region region = segment_page_region(segment, page);
  const uint32_t *widths = regions[region - SEGMENT_IDS].widths;
  uint32_t at = (page - segment_page(segment, region, 0, 0)) % regions[region - SEGMENT_IDS].pages;
  for (*width = *widths; at >= *width; *width = *++widths)
    at -= *width;
  return at;
}

void segment_page_tokens(const struct segment *segment, uint32_t page, uint64_t *first, uint32_t *count) {
  uint32_t width, tokens = segment->header.count;
  *first = segment->header.first;
  *count = tokens;
  if (segment_page_region(segment, page) < SEGMENT_IDS)
    return;
  uint32_t at = column_of(segment, page, &width);
  uint32_t from = at * SEGMENT_PAGE_BYTES / width, end = ((at + 1) * SEGMENT_PAGE_BYTES + width - 1) / width;
  from = from < tokens ? from : tokens;
  end = end < tokens ? end : tokens;
  *first += from;
  *count = end - from;
}

bool segment_proves(const struct segment *segment, uint32_t layer, uint32_t head, uint32_t i) {
  const uint32_t value = segment_page(segment, SEGMENT_VALUE, layer, head);
  const struct {
    uint32_t page, width;
  } columns[] = {
      {segment_page(segment, SEGMENT_SCAN, layer, head), RECORD_SIGNATURE_BYTES},
      {segment_page(segment, SEGMENT_RESCORE, layer, head), RECORD_K_MAG_BYTES},
      {value, RECORD_V_CODE_BYTES},
      {value + RECORD_V_CODE_BYTES + RECORD_V_SCALE_BYTES, RECORD_CRC_BYTES},
  };
  for (size_t c = 0; c < sizeof columns / sizeof columns[0]; c++)
    if (segment_check_page(segment, columns[c].page + i * columns[c].width / SEGMENT_PAGE_BYTES, NULL) == 0)
      return true;
  return false;
}

/* Checks pages first .. first + count - 1 once; several threads may do so at the same time and find the same. */
static int check_run(struct segment *segment, _Atomic uint32_t *state, uint32_t first, uint32_t count, bool *fresh,
                     struct error *error) {
  if (fresh)
    *fresh = false;
  uint32_t known = atomic_load_explicit(state, memory_order_acquire);
  bool first_time = known == PAGES_UNKNOWN;
  if (first_time) {
    known = PAGES_GOOD;
    for (uint32_t page = first; page < first + count && known == PAGES_GOOD; page++)
      if (!page_good(segment, page))
        known = PAGES_BAD + page;
  }
  /* zeros in the place of an unreadable page say nothing about the bytes on disk */
  int result = segment_check_readable(segment, fresh, error);
  if (result)
    return result;
  if (first_time) /* threads that look at the same segments would else take its cache line from each other */
    atomic_store_explicit(state, known, memory_order_release);
  if (known == PAGES_GOOD)
    return 0;
  bool before = atomic_exchange(&segment->bad, true);
  if (fresh)
    *fresh = !before;
  return bad_page(segment, known - PAGES_BAD, error);
}

int segment_check_layer(struct segment *segment, uint32_t layer, bool *fresh, struct error *error) {
  if (layer >= segment->header.layers)
    return error_set(error, ERR_RANGE, "%s has no layer %u", segment->path, layer);
  return check_run(segment, &segment->layer_state[layer], segment_page(segment, SEGMENT_SCAN, layer, 0),
                   segment->header.kv_heads * SEGMENT_SCAN_PAGES, fresh, error);
}

int segment_check_ids(struct segment *segment, bool *fresh, struct error *error) {
  return check_run(segment, &segment->ids_state, segment_page(segment, SEGMENT_IDS, 0, 0), SEGMENT_IDS_PAGES, fresh,
                   error);
}
