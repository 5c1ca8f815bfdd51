// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// The inner loops of a lookup, as a table of functions that is filled once with the best for this processor. Every
// version of one function gives the same results, bit for bit; the ones that end in _c define them.
#ifndef COLDKV_RETRIEVAL_KERNELS_H
#define COLDKV_RETRIEVAL_KERNELS_H

#include "retrieval/query.h"
#include "retrieval/rescore.h"
#include "retrieval/select.h"

enum {
  SCAN_BLOCK = 1024, /* most records per call: their signatures, scales and scores stay in the nearest caches */
  SCAN_AHEAD = 4096, /* bytes that a scan prefetches ahead, past the end of its block too */
};

/* What a scan of one block leaves for one row: bit i % 64 of passed[i / 64] is set where record i passed the row's
 * threshold, and its score is in place i then. Other places, and other bits of the last word, say nothing and 0. */
struct scan_scores {
  uint64_t passed[SCAN_BLOCK / 64];
  float scores[SCAN_BLOCK];
};

struct scan_distances {
  uint64_t passed[SCAN_BLOCK / 64];
  uint8_t distances[SCAN_BLOCK];
};

/* Scores `count` records for each of `rows` queries: the sum of +-q4 by the signature bits, times the scale. A record
 * passes whose scale is valid and whose score is above thresholds[row]. */
typedef void scan_weighted_fn(const struct query *queries, uint32_t rows, const uint8_t *signature,
                              const uint8_t *k_scale, uint32_t count, const float *thresholds,
                              struct scan_scores *results);

/* Hamming distances of `count` signatures to the signs of each query, 0 to 128. Those below thresholds[row] pass,
 * whatever their scale. */
typedef void scan_hamming_fn(const struct query *queries, uint32_t rows, const uint8_t *signature, uint32_t count,
                             const uint32_t *thresholds, struct scan_distances *results);

/* The weighted scan and what follows it in one: puts every record with a valid scale and a rank below the threshold of
 * selects[row] into it, where there is room for `count` more. `ordinal` is that of the first record. */
typedef void scan_take_fn(const struct query *queries, uint32_t rows, const uint8_t *signature, const uint8_t *k_scale,
                          uint32_t count, uint32_t ordinal, struct select *selects);

/* Asks for `bytes` bytes from `ahead` bytes after p: nothing is read, so it may be past the end of the column. */
static inline void scan_prefetch(const uint8_t *p, uint32_t ahead, uint32_t bytes) {
  for (uint32_t i = 0; i < bytes; i += 64)
    __builtin_prefetch((const void *)((uintptr_t)p + ahead + i));
}

struct lookup_kernels {
  const char *name;
  query_prepare_fn *prepare;
  scan_weighted_fn *weighted;
  scan_hamming_fn *hamming;
  scan_take_fn *take; /* NULL where nothing is won by it: scan_put then does the second half */
  rescore_fn *rescore;
};

scan_weighted_fn scan_weighted_c;
scan_hamming_fn scan_hamming_c;
/* Puts the records of a block that passed, `ordinal` being the first one's, into a row's select, which has room. */
void scan_put(struct select *select, const struct scan_scores *result, uint32_t count, uint32_t ordinal);

/* Fills the table with the best that a processor with these cpu_flags() runs. */
void lookup_kernels_init(struct lookup_kernels *kernels, unsigned flags);

/* The table for this machine. Safe from any thread. */
const struct lookup_kernels *lookup_kernels(void);

#endif
