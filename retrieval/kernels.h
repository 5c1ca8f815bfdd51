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

enum { SCAN_BLOCK = 2048 /* most records of a block: what is made of them stays in the nearest caches */ };

/* Neighbouring records of one part. A scan fetches what `next_signature` and `next_k_scale` point to, as many records
 * again, while it works: the block after this one, or this one where none follows. Nothing is read there. */
struct scan_block {
  const uint8_t *signature, *k_scale;
  const uint8_t *next_signature, *next_k_scale;
  uint32_t count;   /* at most SCAN_BLOCK */
  uint32_t ordinal; /* of the first record */
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

/* Scores a block for each of `rows` queries: the sum of +-q4 by the signature bits, times the scale. A record passes
 * whose scale is valid and whose score is above thresholds[row]. */
typedef void scan_weighted_fn(const struct query *queries, uint32_t rows, const struct scan_block *block,
                              const float *thresholds, struct scan_scores *results);

/* Hamming distances of a block's signatures to the signs of each query, 0 to 128. Those below thresholds[row] pass,
 * whatever their scale. */
typedef void scan_hamming_fn(const struct query *queries, uint32_t rows, const struct scan_block *block,
                             const uint32_t *thresholds, struct scan_distances *results);

/* The weighted scan and what follows it in one: puts every record with a valid scale and a rank below the threshold of
 * selects[row] into it, in any order; there is room for as many as the block has. */
typedef void scan_take_fn(const struct query *queries, uint32_t rows, const struct scan_block *block,
                          struct select *selects);

/* Copies those of `count` keys that are `low` or at most `span` above it (modulo 2^64) to `out`, in their order, and
 * returns how many; `out` has room for `count`, or is `keys`. */
typedef uint32_t select_take_fn(const uint64_t *keys, uint32_t count, uint64_t low, uint64_t span, uint64_t *out);
/* How many keys are below `end`. */
typedef uint32_t select_count_fn(const uint64_t *keys, uint32_t count, uint64_t end);
/* The least and the highest of at least one key. */
typedef void select_range_fn(const uint64_t *keys, uint32_t count, uint64_t *low, uint64_t *high);

struct lookup_kernels {
  const char *name;
  query_prepare_fn *prepare;
  scan_weighted_fn *weighted;
  scan_hamming_fn *hamming;
  scan_take_fn *take; /* NULL where nothing is won by it: scan_put then does the second half */
  rescore_fn *rescore;
  select_take_fn *take_keys;
  select_count_fn *count_keys;
  select_range_fn *range_keys;
};

scan_weighted_fn scan_weighted_c;
scan_hamming_fn scan_hamming_c;
select_take_fn select_take_c;
select_count_fn select_count_c;
select_range_fn select_range_c;
/* Puts the records of a block that passed into a row's select, which has room. */
void scan_put(struct select *select, const struct scan_block *block, const struct scan_scores *result);

/* Fills the table with the best that a processor with these cpu_flags() runs. */
void lookup_kernels_init(struct lookup_kernels *kernels, unsigned flags);

/* The table for this machine. Safe from any thread. */
const struct lookup_kernels *lookup_kernels(void);

#endif
