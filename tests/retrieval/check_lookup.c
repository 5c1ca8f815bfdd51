// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "retrieval/kernels.h"
#include "retrieval/lookup.h"
#include "tests/retrieval/check.h"

enum { TOKENS = 1 << 20, SEGMENT = LIMIT_SEGMENT_TOKENS, PARTS = TOKENS / SEGMENT, K = 64, ROWS = 64 };

struct bench {
  struct lookup_scratch *scratch;
  struct lookup_request request;
  struct record_columns parts[PARTS];
  struct lookup_answer answer;
};

static float queries[ROWS][128];

static void *allocate(size_t size) {
  void *memory = malloc(size);
  if (!memory)
    abort();
  return memory;
}

/* Segments as they are mapped: columns of whole pages, one block after the other. */
static void make_parts(struct bench *bench) {
  struct random random = {4};
  uint8_t *memory = allocate(RECORD_BLOCK_BYTES * PARTS);
  for (int p = 0; p < PARTS; p++) {
    struct record_columns *part = &bench->parts[p];
    uint8_t *at = memory + (size_t)p * RECORD_BLOCK_BYTES;
    *part = (struct record_columns){at, at + 16 * SEGMENT, at + 18 * SEGMENT, at + 50 * SEGMENT, at + 98 * SEGMENT,
                                    at + 100 * SEGMENT, (uint64_t)p * SEGMENT, SEGMENT};
    random_fill(&random, at, RECORD_BLOCK_BYTES);
    for (uint32_t i = 0; i < SEGMENT; i++) {
      uint8_t record[RECORD_BYTES];
      store_u16(at + 16 * SEGMENT + 2 * i, (uint16_t)(0x3a00 + random_below(&random, 0x400)));
      store_u16(at + 98 * SEGMENT + 2 * i, 0x3c00);
      record_gather(part, i, record);
      record_seal(record, 0, 0, part->first + i);
      memcpy(at + 100 * SEGMENT + 4 * i, record + RECORD_CRC, RECORD_CRC_BYTES);
    }
  }
}

static void run(void *context) {
  struct bench *bench = context;
  struct error error;
  if (lookup_run(bench->scratch, &bench->request, bench->parts, PARTS, &bench->answer, &error))
    abort();
}

/* The scan of the same records, and nothing else. */
static void scan_only(void *context) {
  static struct scan_scores scores[16];
  static struct scan_distances distances[16];
  static struct query prepared[16];
  static const uint32_t nearest[16];
  static float highest[16];
  struct bench *bench = context;
  const struct lookup_kernels *kernels = lookup_kernels();
  for (uint32_t first = 0; first < bench->request.rows; first += 16) {
    uint32_t rows = bench->request.rows - first < 16 ? bench->request.rows - first : 16;
    for (uint32_t r = 0; r < rows; r++) {
      kernels->prepare(&prepared[r], 128, (const uint8_t *)queries[first + r]);
      highest[r] = 1e9f;
    }
    for (int p = 0; p < PARTS; p++)
      for (uint32_t at = 0; at < SEGMENT; at += SCAN_BLOCK) {
        uint32_t next = at + SCAN_BLOCK == SEGMENT ? 0 : at + SCAN_BLOCK;
        const struct record_columns *part = &bench->parts[p], *after = part + (next == 0 && p + 1 < PARTS);
        const struct scan_block block = {part->signature + 16 * at,    part->k_scale + 2 * at,
                                         after->signature + 16 * next, after->k_scale + 2 * next,
                                         SCAN_BLOCK,                   0};
        if (bench->request.mode == LOOKUP_HAMMING)
          kernels->hamming(prepared, rows, &block, nearest, distances);
        else
          kernels->weighted(prepared, rows, &block, highest, scores);
      }
  }
}

void check_lookup(void) {
  static struct bench bench;
  struct random random = {5};
  make_parts(&bench);
  for (int r = 0; r < ROWS; r++)
    for (int i = 0; i < 128; i++)
      queries[r][i] = (float)((int)random_below(&random, 2001) - 1000);
  if (lookup_scratch_create(&bench.scratch, NULL))
    abort();
  bench.answer = (struct lookup_answer){.tokens = allocate(ROWS * K * 8), .records = allocate(ROWS * K * RECORD_BYTES),
                                        .index = allocate(ROWS * K * 4), .scores = allocate(ROWS * K * 4)};
  printf("lookup of %d tokens, k %d: time per row and token\n", TOKENS, K);
  for (uint32_t rows = 1; rows <= ROWS; rows *= 8)
    for (int mode = LOOKUP_WEIGHTED; mode <= LOOKUP_HAMMING; mode++) {
      bench.request = (struct lookup_request){.mode = (enum lookup_mode)mode, .head_dim = 128, .rows = rows, .k = K,
                                              .before = UINT64_MAX, .queries = (const uint8_t *)queries,
                                              .row_stride = sizeof queries[0]};
      const char *mode_name = mode == LOOKUP_HAMMING ? "hamming" : "weighted";
      char name[64];
      double bytes = mode == LOOKUP_HAMMING ? 16 : 18;
      snprintf(name, sizeof name, "scan %s, rows %u", mode_name, rows);
      check_time(name, lookup_kernel_name(), scan_only, &bench, (double)TOKENS * rows, bytes);
      snprintf(name, sizeof name, "lookup %s, rows %u", mode_name, rows);
      check_time(name, lookup_kernel_name(), run, &bench, (double)TOKENS * rows, bytes);
    }
}
