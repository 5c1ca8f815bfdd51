// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "retrieval/kernels.h"
#include "tests/retrieval/check.h"

enum { ROWS = 8 };

static struct lookup_kernels c, other;

/* Columns that are exactly as long as their records, so that a sanitizer sees a read past the end. */
struct columns {
  uint8_t *signature, *k_scale;
};

static void *allocate(size_t size) {
  void *memory = malloc(size ? size : 1);
  if (!memory)
    abort();
  return memory;
}

/* kind 0: random; 1: all bits equal; 2: like the signs of the query; scales of every kind there is. */
static struct columns columns_make(struct random *random, uint32_t count, int kind, const struct query *query) {
  struct columns columns = {allocate((size_t)count * 16), allocate((size_t)count * 2)};
  random_fill(random, columns.signature, (size_t)count * 16);
  for (uint32_t i = 0; i < count; i++) {
    uint8_t *signature = columns.signature + (size_t)i * 16;
    if (kind == 1)
      memset(signature, random_u64(random) & 1 ? 0xff : 0, 16);
    if (kind == 2)
      for (int b = 0; b < 16; b++)
        signature[b] = (uint8_t)(((const uint8_t *)query->sign)[b] ^ (random_below(random, 4) ? 0 : 0xff));
    store_u16(columns.k_scale + (size_t)i * 2, (uint16_t)random_u64(random)); /* subnormal, infinite, NaN, negative */
  }
  return columns;
}

static struct scan_block block_of(const struct columns *columns, uint32_t count, uint32_t ordinal) {
  return (struct scan_block){columns->signature, columns->k_scale, columns->signature,
                             columns->k_scale,   count,            ordinal};
}

static void columns_free(struct columns columns) {
  free(columns.signature);
  free(columns.k_scale);
}

static void make_row(struct random *random, int kind, uint8_t row[512]) {
  for (int i = 0; i < 128; i++) {
    float q = (float)((int)random_below(random, 2001) - 1000) * 0.37f;
    switch (kind) {
    case 1:
      q = random_u64(random) & 1 ? 1.0f : -1.0f; /* all of them 7 or -7 */
      break;
    case 2:
      q = i % 2 ? 0.0f : -0.0f;
      break;
    case 3:
      q = (float)((int)random_below(random, 29) - 14) / 2; /* halves: ties of the rounding */
      break;
    case 4:
      q = i == 77 ? 3e38f : 0x1p-149f;
      break;
    case 5:
      q = (float)((int)random_below(random, 8189) - 4094) / 2;
      break;
    case 6:
      q = i == 3 ? -0x1p-149f : -0.0f;
      break;
    default:
      break;
    }
    store_u32(row + 4 * i, 0);
    memcpy(row + 4 * i, &q, sizeof q);
  }
  if (kind == 3 || kind == 5) { /* the largest, so that the halves come out exactly */
    float q = kind == 3 ? 7.0f : 2047.0f;
    memcpy(row + 4 * 9, &q, sizeof q);
  }
}

static void make_queries(struct random *random, struct query *queries, uint32_t rows) {
  uint8_t row[512];
  for (uint32_t r = 0; r < rows; r++) {
    make_row(random, (int)random_below(random, 7), row);
    if (!query_prepare_c(&queries[r], 128, row))
      abort();
  }
}

static void check_prepare(const char *level) {
  struct random random = {1};
  uint8_t bytes[513];
  for (int round = 0; round < 400; round++) {
    struct query wanted, got;
    uint8_t *row = bytes + round % 2;
    uint32_t d = 64 + 8 * (uint32_t)random_below(&random, 9);
    make_row(&random, round % 7, row);
    memset(&wanted, 0, sizeof wanted);
    memset(&got, 0, sizeof got);
    bool right = c.prepare(&wanted, d, row) && other.prepare(&got, d, row) && memcmp(&wanted, &got, sizeof got) == 0;
    check_report("prepare", level, right);
  }
  static const float bad[] = {NAN, INFINITY, -INFINITY};
  for (int i = 0; i < 128; i++)
    for (int b = 0; b < 3; b++) {
      struct query query;
      make_row(&random, 0, bytes);
      memcpy(bytes + 4 * i, &bad[b], sizeof bad[b]);
      check_report("prepare", level, !other.prepare(&query, 64, bytes));
    }
}

/* Bits of the block's records must agree, and so must the scores of those that passed. */
static bool same_scores(const struct scan_scores *wanted, const struct scan_scores *got, uint32_t count) {
  bool same = true;
  for (uint32_t w = 0; 64 * w < count; w++)
    same &= wanted->passed[w] == got->passed[w];
  for (uint32_t i = 0; i < count; i++)
    if (wanted->passed[i / 64] >> i % 64 & 1)
      same &= memcmp(&wanted->scores[i], &got->scores[i], sizeof got->scores[i]) == 0;
  return same;
}

static bool same_distances(const struct scan_distances *wanted, const struct scan_distances *got, uint32_t count) {
  bool same = true;
  for (uint32_t w = 0; 64 * w < count; w++)
    same &= wanted->passed[w] == got->passed[w];
  for (uint32_t i = 0; i < count; i++)
    if (wanted->passed[i / 64] >> i % 64 & 1)
      same &= wanted->distances[i] == got->distances[i];
  return same;
}

static void check_weighted(struct random *random, const char *level, uint32_t count, int kind) {
  static const float limits[] = {-INFINITY, INFINITY, 0, -0.0f, 3, -5, 1e3f};
  struct query queries[ROWS];
  struct scan_scores *wanted = allocate(ROWS * sizeof *wanted), *got = allocate(ROWS * sizeof *got);
  float thresholds[ROWS];
  uint32_t rows = 1 + (uint32_t)random_below(random, ROWS);
  make_queries(random, queries, rows);
  struct columns columns = columns_make(random, count, kind, queries);
  memset(wanted, 0x55, ROWS * sizeof *wanted);
  memset(got, 0xaa, ROWS * sizeof *got);
  for (uint32_t r = 0; r < rows; r++)
    thresholds[r] = limits[random_below(random, sizeof limits / sizeof *limits)];
  if (kind == 0)
    thresholds[0] = -INFINITY;
  const struct scan_block block = block_of(&columns, count, 0);
  c.weighted(queries, rows, &block, thresholds, wanted);
  other.weighted(queries, rows, &block, thresholds, got);
  for (uint32_t r = 0; r < rows; r++)
    check_report("weighted", level, same_scores(&wanted[r], &got[r], count));
  columns_free(columns);
  free(wanted);
  free(got);
}

/* Selects that were filled some way, alike in both. */
static void check_take(struct random *random, const char *level, uint32_t count, int kind) {
  static const float limits[] = {INFINITY, 0, 3, -5, 1e3f};
  if (!other.take)
    return;
  struct query queries[ROWS];
  struct scan_scores *results = allocate(ROWS * sizeof *results);
  uint32_t rows = 1 + (uint32_t)random_below(random, ROWS), capacity = select_capacity(1, SCAN_BLOCK);
  uint64_t *keys = allocate(2 * ROWS * capacity * sizeof *keys);
  struct select wanted[ROWS], got[ROWS];
  float thresholds[ROWS];
  make_queries(random, queries, rows);
  struct columns columns = columns_make(random, count, kind, queries);
  for (uint32_t r = 0; r < rows; r++) {
    select_init(&wanted[r], keys + 2 * r * capacity, 1, SCAN_BLOCK);
    select_init(&got[r], keys + (2 * r + 1) * capacity, 1, SCAN_BLOCK);
    if (random_below(random, 3))
      wanted[r].threshold = select_rank(limits[random_below(random, 5)]) + (uint32_t)random_below(random, 2);
    wanted[r].count = got[r].count = (uint32_t)random_below(random, 3);
    got[r].threshold = wanted[r].threshold;
    thresholds[r] = select_limit(wanted[r].threshold);
  }
  uint32_t ordinal = (uint32_t)random_u64(random) & 0x7fffffff;
  const struct scan_block block = block_of(&columns, count, ordinal);
  c.weighted(queries, rows, &block, thresholds, results);
  other.take(queries, rows, &block, got);
  for (uint32_t r = 0; r < rows; r++) {
    uint32_t first = wanted[r].count;
    scan_put(&wanted[r], &block, &results[r]);
    bool right = wanted[r].count == got[r].count;
    if (right) /* in any order */
      select_sort(got[r].keys + first, got[r].count - first);
    select_sort(wanted[r].keys + first, wanted[r].count - first);
    for (uint32_t i = first; right && i < wanted[r].count; i++)
      right = wanted[r].keys[i] == got[r].keys[i] && select_key_rank(got[r].keys[i]) < got[r].threshold;
    check_report("take", level, right);
  }
  columns_free(columns);
  free(results);
  free(keys);
}

static void check_hamming(struct random *random, const char *level, uint32_t count, int kind) {
  static const uint32_t limits[] = {0, 1, 40, 64, 100, 128, 129, 255, 256, 0xff800000u};
  struct query queries[ROWS];
  struct scan_distances *wanted = allocate(ROWS * sizeof *wanted), *got = allocate(ROWS * sizeof *got);
  uint32_t thresholds[ROWS], rows = 1 + (uint32_t)random_below(random, ROWS);
  make_queries(random, queries, rows);
  struct columns columns = columns_make(random, count, kind, queries);
  memset(wanted, 0x55, ROWS * sizeof *wanted);
  memset(got, 0xaa, ROWS * sizeof *got);
  for (uint32_t r = 0; r < rows; r++)
    thresholds[r] = limits[random_below(random, sizeof limits / sizeof *limits)];
  if (kind == 0)
    thresholds[0] = 256;
  const struct scan_block block = block_of(&columns, count, 0);
  c.hamming(queries, rows, &block, thresholds, wanted);
  other.hamming(queries, rows, &block, thresholds, got);
  for (uint32_t r = 0; r < rows; r++)
    check_report("hamming", level, same_distances(&wanted[r], &got[r], count));
  columns_free(columns);
  free(wanted);
  free(got);
}

/* --- times ------------------------------------------------------------------------------------------------------- */

enum { BENCH_SMALL = 1 << 14 /* fits L2 */, BENCH_LARGE = 1 << 23 /* 151 MB */ };

struct bench {
  struct query queries[ROWS];
  struct columns columns;
  uint32_t count, rows;
};

static struct scan_block bench_block(const struct bench *bench, uint32_t at) {
  uint32_t next = at + SCAN_BLOCK < bench->count ? at + SCAN_BLOCK : at;
  return (struct scan_block){
      .signature = bench->columns.signature + (size_t)at * 16,
      .k_scale = bench->columns.k_scale + (size_t)at * 2,
      .next_signature = bench->columns.signature + (size_t)next * 16,
      .next_k_scale = bench->columns.k_scale + (size_t)next * 2,
      .count = SCAN_BLOCK,
      .ordinal = at,
  };
}

static void bench_weighted(void *context) {
  static struct scan_scores results[ROWS];
  struct bench *bench = context;
  float thresholds[ROWS];
  for (int r = 0; r < ROWS; r++)
    thresholds[r] = INFINITY;
  for (uint32_t at = 0; at < bench->count; at += SCAN_BLOCK) {
    struct scan_block block = bench_block(bench, at);
    other.weighted(bench->queries, bench->rows, &block, thresholds, results);
  }
}

/* With a threshold that nothing passes. */
static void bench_take(void *context) {
  static uint64_t keys[ROWS][2 * SCAN_BLOCK];
  struct bench *bench = context;
  struct select selects[ROWS];
  for (int r = 0; r < ROWS; r++)
    selects[r] = (struct select){.keys = keys[r], .threshold = select_rank(INFINITY)};
  for (uint32_t at = 0; at < bench->count; at += SCAN_BLOCK) {
    struct scan_block block = bench_block(bench, at);
    other.take(bench->queries, bench->rows, &block, selects);
  }
}

static void bench_hamming(void *context) {
  static struct scan_distances results[ROWS];
  static const uint32_t thresholds[ROWS];
  struct bench *bench = context;
  for (uint32_t at = 0; at < bench->count; at += SCAN_BLOCK) {
    struct scan_block block = bench_block(bench, at);
    other.hamming(bench->queries, bench->rows, &block, thresholds, results);
  }
}

static void bench_prepare(void *context) {
  static uint8_t row[512];
  struct bench *bench = context;
  other.prepare(bench->queries, 128, row);
}

/* What the memory gives when it is only read, as four streams like the scan. */
static void bench_read(void *context) {
  const struct bench *bench = context;
  static volatile uint64_t sink;
  uint64_t sum = 0;
  for (uint32_t at = 0; at < bench->count; at += SCAN_BLOCK) {
    struct scan_block block = bench_block(bench, at);
    for (size_t i = 0; i < SCAN_BLOCK * 16 / 4; i += 64)
      for (size_t stream = i; stream < SCAN_BLOCK * 16; stream += SCAN_BLOCK * 16 / 4) {
        __builtin_prefetch(block.next_signature + stream);
        for (size_t word = 0; word < 64; word += 8)
          sum ^= load_u64(block.signature + stream + word);
      }
  }
  sink = sum;
  (void)sink;
}

static void bench_all(const struct check_level *level) {
  static struct bench bench;
  struct random random = {9};
  for (int large = 0; large < 2; large++) {
    uint32_t count = large ? BENCH_LARGE : BENCH_SMALL;
    const char *where = large ? "memory" : "cache";
    char name[64];
    bench = (struct bench){.count = count};
    make_queries(&random, bench.queries, ROWS);
    bench.columns = columns_make(&random, count, 0, NULL);
    snprintf(name, sizeof name, "read, %s", where);
    check_time(name, "c", bench_read, &bench, count, 16);
    for (bench.rows = 1; bench.rows <= ROWS; bench.rows *= 8) {
      double units = (double)count * bench.rows;
      snprintf(name, sizeof name, "weighted, %s, rows %u", where, bench.rows);
      check_time(name, level->name, bench_weighted, &bench, units, 18);
      snprintf(name, sizeof name, "take, %s, rows %u", where, bench.rows);
      if (other.take)
        check_time(name, level->name, bench_take, &bench, units, 18);
      snprintf(name, sizeof name, "hamming, %s, rows %u", where, bench.rows);
      check_time(name, level->name, bench_hamming, &bench, units, 16);
    }
    columns_free(bench.columns);
  }
  check_time("prepare", level->name, bench_prepare, &bench, 1, 0);
}

void check_scan(const struct check_level *level) {
  lookup_kernels_init(&c, 0);
  lookup_kernels_init(&other, level->flags);
  struct random random = {2};
  check_prepare(level->name);
  for (uint32_t count = 0; count <= SCAN_BLOCK; count += count < 200 ? 1 : 103) {
    for (int kind = 0; kind < 3; kind++) {
      check_weighted(&random, level->name, count, kind);
      check_take(&random, level->name, count, kind);
      check_hamming(&random, level->name, count, kind);
    }
  }
  for (int kind = 0; kind < 3; kind++) {
    check_weighted(&random, level->name, SCAN_BLOCK, kind);
    check_take(&random, level->name, SCAN_BLOCK, kind);
  }
  if (check_bench())
    bench_all(level);
}
