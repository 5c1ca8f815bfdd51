// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// coldkv-bench fetch: what a lookup waits for when the key codes of its candidates and the values of its winners are on
// disk and not in memory: page fault by page fault, with reads that go out together, and what the disk itself gives.
#include "store/fetch.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "tools/bench/columns.h"
#include "tools/bench/direct.h"
#include "tools/bench/measure.h"
#include "tools/bench/peer.h"
#include "tools/bench/read.h"
#include "tools/bench/segments.h"

enum {
  KV_HEADS = 2,
  HEAD_DIM = 128,
  TOKENS = 1 << 20,
  TOKENS_QUICK = 1 << 18,
  FRAME = LIMIT_APPEND_TOKENS_MAX,
  CANDIDATES = 1024,
  WINNER_EVERY = 16, /* 64 of them */
  PAGES_MAX = CANDIDATES + 6 * CANDIDATES / WINNER_EVERY,
  ROUNDS = 15,
  ROUNDS_QUICK = 5,
  PAGE = SEGMENT_PAGE_BYTES,
};

enum way { FAULTS, ADVISED, BATCHED, DIRECT, WAYS };

/* One byte range of a part. */
struct piece {
  uint32_t part;
  const uint8_t *address;
  size_t size;
};

struct bench {
  struct archive *archive;
  struct model *model;
  struct conversation *conversation;
  struct view *view;
  struct shape shape;
  struct record_columns *columns[KV_HEADS]; /* [parts] */
  struct segments segments;                 /* the same files, for their paths */
  int *files, *direct;                      /* [parts]: buffered, and past the page cache (-1: not to be had) */
  uint32_t tokens, parts;
  char scratch[PATH_MAX];
  uint64_t state;
  struct piece codes[CANDIDATES], values[3 * CANDIDATES / WINNER_EVERY];
  uint32_t code_count, value_count;
  struct fetch *fetches[WAYS];
  double seconds[WAYS][ROUNDS], rate[WAYS][ROUNDS];
  double resident; /* share of the pages that were in memory although they had been dropped */
};

/* --- the archive -------------------------------------------------------------------------------------------------- */

static int append_all(struct bench *bench, struct error *error) {
  static uint8_t records[FRAME * KV_HEADS * RECORD_BYTES];
  static uint32_t ids[FRAME];
  int result = 0;
  for (uint64_t first = 0; first <= bench->tokens && !result; first += FRAME) { /* one frame more closes the last log */
    bool wrote;
    for (uint32_t i = 0; i < FRAME * KV_HEADS; i++)
      random_record(&bench->state, 0, i % KV_HEADS, first + i / KV_HEADS, records + (size_t)i * RECORD_BYTES);
    const struct msg_append append = {.first = first, .ids = span_of(ids, sizeof ids),
                                      .records = span_of(records, sizeof records)};
    result = conversation_append(bench->conversation, &append, &wrote, error);
    while (!result && conversation_wants_seal(bench->conversation))
      result = conversation_seal(bench->conversation, error);
  }
  return result ? result : conversation_sync(bench->conversation, error);
}

static int fill(struct bench *bench, struct error *error) {
  char data[PATH_MAX + 16];
  const struct archive_options options = {0};
  struct msg_open open;
  bool created;
  snprintf(data, sizeof data, "%s/data", bench->scratch);
  int result = shape_init(&bench->shape, 1, KV_HEADS, HEAD_DIM, error);
  if (!result)
    result = archive_open(&bench->archive, data, &options, error);
  if (!result)
    result = model_freeze(bench->archive, (uint32_t)geteuid(), &bench->shape.model, &bench->model, error);
  if (result)
    return result;
  message_init(&message_open, &open);
  open.name = span_str("bench");
  open.fingerprint = bench->shape.model.fingerprint;
  open.geometry = bench->shape.model.geometry;
  open.model = model_description(bench->model)->id;
  open.create = open.write = 1;
  result = conversation_open(bench->archive, (uint32_t)geteuid(), &open, &bench->conversation, &created, error);
  if (!result)
    result = conversation_load(bench->conversation, error);
  if (!result)
    result = append_all(bench, error);
  return result ? result : segments_open(&bench->segments, data, error);
}

/* Columns and files of every segment. */
static int look(struct bench *bench, struct error *error) {
  int result = view_acquire(bench->conversation, &bench->view, error);
  bench->parts = bench->tokens / LIMIT_SEGMENT_TOKENS;
  if (!result && bench->segments.count != bench->parts)
    result = error_set(error, ERR_INTERNAL, "%u segments were sealed, not %u", bench->segments.count, bench->parts);
  bench->files = malloc(bench->parts * sizeof *bench->files);
  bench->direct = malloc(bench->parts * sizeof *bench->direct);
  for (uint32_t h = 0; h < KV_HEADS; h++)
    bench->columns[h] = malloc(bench->parts * sizeof *bench->columns[h]);
  if (!result && (!bench->files || !bench->direct || !bench->columns[0] || !bench->columns[1]))
    result = error_set(error, ERR_MEMORY, "no memory for %u segments", bench->parts);
  for (uint32_t p = 0; p < bench->parts && !result; p++) {
    const char *path = segment_path(bench->segments.items[p]);
    bench->files[p] = open(path, O_RDONLY | O_CLOEXEC);
    bench->direct[p] = open(path, O_RDONLY | O_CLOEXEC | O_DIRECT);
    if (bench->files[p] < 0)
      result = error_set_errno(error, errno, "%s: cannot be opened", path);
    for (uint32_t h = 0; h < KV_HEADS && !result; h++)
      result = view_columns(bench->view, p, 0, h, &bench->columns[h][p], error);
  }
  return result;
}

static void clean_up(struct bench *bench) {
  for (int way = 0; way < WAYS; way++)
    fetch_destroy(bench->fetches[way]);
  for (uint32_t p = 0; p < bench->segments.count && bench->files && bench->direct; p++) {
    close(bench->files[p]);
    close(bench->direct[p]);
  }
  segments_close(&bench->segments);
  if (bench->view)
    view_release(bench->view);
  if (bench->conversation)
    conversation_release(bench->conversation);
  model_release(bench->model);
  archive_close(bench->archive);
  shape_finish(&bench->shape);
  scratch_remove(bench->scratch);
  for (uint32_t h = 0; h < KV_HEADS; h++)
    free(bench->columns[h]);
  free(bench->files);
  free(bench->direct);
  free(bench);
}

/* --- one lookup's worth of cold pages ----------------------------------------------------------------------------- */

static int ascending(const void *a, const void *b) {
  uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
  return (x > y) - (x < y);
}

/* Draws candidates of one kv head, and winners among them. */
static void draw(struct bench *bench, uint32_t head) {
  uint32_t tokens[CANDIDATES];
  for (uint32_t i = 0; i < CANDIDATES; i++)
    tokens[i] = (uint32_t)(noise_u64(&bench->state) % bench->tokens);
  qsort(tokens, CANDIDATES, sizeof *tokens, ascending);
  bench->code_count = bench->value_count = 0;
  for (uint32_t i = 0; i < CANDIDATES; i++) {
    uint32_t part = tokens[i] / LIMIT_SEGMENT_TOKENS;
    size_t entry = tokens[i] % LIMIT_SEGMENT_TOKENS;
    const struct record_columns *c = &bench->columns[head][part];
    struct piece *values = &bench->values[bench->value_count];
    bench->codes[bench->code_count++] =
        (struct piece){part, c->k_mag + entry * RECORD_K_MAG_BYTES, RECORD_K_MAG_BYTES};
    if (i % WINNER_EVERY)
      continue;
    values[0] = (struct piece){part, c->v_code + entry * RECORD_V_CODE_BYTES, RECORD_V_CODE_BYTES};
    values[1] = (struct piece){part, c->v_scale + entry * RECORD_V_SCALE_BYTES, RECORD_V_SCALE_BYTES};
    values[2] = (struct piece){part, c->crc + entry * RECORD_CRC_BYTES, RECORD_CRC_BYTES};
    bench->value_count += 3;
  }
}

/* Drops all columns from this process and from the page cache; a page that is mapped keeps its neighbours in memory. */
static void drop(struct bench *bench) {
  for (uint32_t p = 0; p < bench->parts; p++) {
    for (uint32_t h = 0; h < KV_HEADS; h++) {
      const struct record_columns *c = &bench->columns[h][p];
      madvise((void *)(uintptr_t)c->signature, (size_t)SEGMENT_SCAN_PAGES * PAGE, MADV_DONTNEED);
      madvise((void *)(uintptr_t)c->k_mag, (size_t)SEGMENT_RESCORE_PAGES * PAGE, MADV_DONTNEED);
      madvise((void *)(uintptr_t)c->v_code, (size_t)SEGMENT_VALUE_PAGES * PAGE, MADV_DONTNEED);
    }
    posix_fadvise(bench->files[p], 0, 0, POSIX_FADV_DONTNEED);
  }
}

/* The different pages of the pieces, in their order; pieces may end on a second page. */
static uint32_t pages_of(const struct piece *pieces, uint32_t count, struct piece *pages) {
  uint32_t found = 0;
  for (uint32_t i = 0; i < count; i++) {
    const uint8_t *page = (const uint8_t *)((uintptr_t)pieces[i].address & ~(uintptr_t)(PAGE - 1));
    for (; page < pieces[i].address + pieces[i].size; page += PAGE) {
      bool known = false;
      for (uint32_t j = found; j > 0 && !known && j + 8 > found; j--)
        known = pages[j - 1].address == page;
      if (!known)
        pages[found++] = (struct piece){pieces[i].part, page, PAGE};
    }
  }
  return found;
}

static uint32_t all_pages(const struct bench *bench, struct piece pages[PAGES_MAX]) {
  uint32_t count = pages_of(bench->codes, bench->code_count, pages);
  return count + pages_of(bench->values, bench->value_count, pages + count);
}

/* Share of the pages that are in memory. */
static double share_resident(const struct piece *pages, uint32_t count) {
  uint32_t resident = 0;
  for (uint32_t i = 0; i < count; i++) {
    unsigned char state = 0;
    resident += !mincore((void *)(uintptr_t)pages[i].address, PAGE, &state) && (state & 1);
  }
  return (double)resident / count;
}

static volatile uint32_t touched;

static void touch(const struct piece *pieces, uint32_t count) {
  uint32_t sum = 0;
  for (uint32_t i = 0; i < count; i++)
    sum += (uint32_t)pieces[i].address[0] + pieces[i].address[pieces[i].size - 1];
  touched += sum;
}

static void fetch_all(struct bench *bench, struct fetch *fetch, const struct piece *pieces, uint32_t count) {
  for (uint32_t i = 0; i < count; i++)
    fetch_want(fetch, bench->view, pieces[i].part, pieces[i].address, pieces[i].size);
  fetch_run(fetch);
  touch(pieces, count);
}

static int read_direct(struct bench *bench, const struct piece *pages, uint32_t count, double *seconds,
                       struct error *error) {
  struct direct_page direct[PAGES_MAX];
  for (uint32_t i = 0; i < count; i++) {
    const uint8_t *base = bench->columns[0][pages[i].part].signature;
    off_t start = (off_t)segment_page(bench->segments.items[pages[i].part], SEGMENT_SCAN, 0, 0) * PAGE;
    direct[i] = (struct direct_page){bench->direct[pages[i].part], start + (pages[i].address - base)};
    if (direct[i].fd < 0)
      return error_set(error, ERR_NOT_SUPPORTED, "this file system has no O_DIRECT");
  }
  return direct_read(direct, count, seconds, error);
}

/* --- rounds ------------------------------------------------------------------------------------------------------- */

static int run_round(struct bench *bench, uint32_t round, struct error *error) {
  static struct piece pages[PAGES_MAX];
  for (int way = 0; way < WAYS; way++) {
    draw(bench, round % KV_HEADS);
    uint32_t count = all_pages(bench, pages);
    drop(bench);
    bench->resident = fmax(bench->resident, share_resident(pages, count));
    double seconds = NAN, start = now_s();
    if (way == DIRECT) {
      int result = read_direct(bench, pages, count, &seconds, error);
      if (result && result != -ERR_NOT_SUPPORTED)
        return result;
    } else {
      fetch_begin(bench->fetches[way]);
      fetch_all(bench, bench->fetches[way], bench->codes, bench->code_count);
      fetch_all(bench, bench->fetches[way], bench->values, bench->value_count);
      seconds = now_s() - start;
    }
    bench->seconds[way][round] = seconds;
    bench->rate[way][round] = count / seconds;
  }
  return 0;
}

static void print(struct bench *bench, uint32_t rounds, double read_rate, struct bench_output *output) {
  static const char *const names[WAYS][3] = {
      {"faults_ms", "faults_pages_per_s", "one page fault after another"},
      {"advised_ms", "advised_pages_per_s", "announced by madvise, page by page"},
      {"batched_ms", "batched_pages_per_s", "the store's batched reads"},
      {"direct_ms", "direct_pages_per_s", "O_DIRECT reads of such pages at depth 64"},
  };
  double faults = ratio_median(bench->rate[BATCHED], bench->rate[FAULTS], rounds);
  double direct = ratio_median(bench->rate[BATCHED], bench->rate[DIRECT], rounds);
  bench_text(output, "kernel", fetch_method_name(fetch_best()), "how the store reads cold pages here");
  bench_integer(output, "tokens", bench->tokens, "N, of one layer and two kv heads");
  bench_integer(output, "candidates", CANDIDATES, "whose key codes are read, and the values of 64 of them");
  bench_integer(output, "bytes", (uint64_t)(PAGE * bench->rate[BATCHED][0] * bench->seconds[BATCHED][0] + 0.5),
                "of the different pages that one such lookup reads");
  bench_integer(output, "rounds", rounds, "in which all ways took turns; medians count");
  bench_figure(output, "resident", bench->resident, "largest share of pages that could not be dropped before");
  for (int way = 0; way < WAYS; way++) {
    bench_figure(output, names[way][0], 1e3 * median(bench->seconds[way], rounds), "ms a lookup");
    bench_figure(output, names[way][1], median(bench->rate[way], rounds), names[way][2]);
  }
  bench_figure(output, "batched_over_read", PAGE * median(bench->rate[BATCHED], rounds) / read_rate, "of read_gb_s");
  bench_figure(output, "batched_over_faults", faults, "wanted: at least 2");
  bench_figure(output, "batched_over_direct", direct, "wanted: at least 0.7");
}

int bench_fetch(const struct bench_options *options, struct bench_output *output, struct error *error) {
  static const enum fetch_method methods_of[DIRECT] = {FETCH_NONE, FETCH_ADVISE, FETCH_IO_URING};
  uint32_t rounds = options->quick ? ROUNDS_QUICK : ROUNDS;
  struct bench *bench = calloc(1, sizeof *bench);
  if (!bench)
    return error_set(error, ERR_MEMORY, "no memory for times");
  bench->tokens = options->quick ? TOKENS_QUICK : TOKENS;
  bench->state = 11;
  bench_machine(output, "fetch", "cold key codes and values brought in from disk");
  double read_rate;
  int result = read_measure(output, &read_rate, error);
  if (!result)
    result = scratch_create(bench->scratch, error);
  if (!result)
    result = fill(bench, error);
  if (!result)
    result = look(bench, error);
  for (int way = 0; way < DIRECT && !result; way++)
    result = fetch_create(&bench->fetches[way], methods_of[way] == FETCH_IO_URING ? fetch_best() : methods_of[way],
                          error);
  for (uint32_t i = 0; i < rounds && !result; i++)
    result = run_round(bench, i, error);
  if (!result)
    print(bench, rounds, read_rate, output);
  clean_up(bench);
  return result;
}
