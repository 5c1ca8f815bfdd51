// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// The parts of `coldkv-bench scan`.
#ifndef COLDKV_TOOLS_BENCH_SCAN_H
#define COLDKV_TOOLS_BENCH_SCAN_H

#include "retrieval/kernels.h"
#include "tools/bench/bench.h"

enum { SCAN_ROWS_MAX = 8 };

/* Signatures and scales of random records, and queries with limits that about one record in 16384 passes: what a
 * lookup's threshold comes to. */
struct scan_data {
  uint32_t count;
  uint8_t *signature, *k_scale;
  struct query queries[SCAN_ROWS_MAX];
  float above[SCAN_ROWS_MAX];
  uint32_t below[SCAN_ROWS_MAX];
};

/* Run the kernels over one part, block by block as a lookup does it; `after` is the part that comes next, or NULL. */
void scan_weighted(const struct scan_data *data, const struct record_columns *part, const struct record_columns *after,
                   uint32_t rows);
void scan_hamming(const struct scan_data *data, const struct record_columns *part, const struct record_columns *after,
                  uint32_t rows);

/* A whole lookup over the scan alone, and two threads over one. `other`: the processor of the second thread, or -1. */
int scan_lookups(const struct scan_data *data, const struct bench_options *options, int other,
                 struct bench_output *output, struct error *error);

/* FAISS IndexBinaryFlat over the same signatures, in turns with scans that keep the best 64. */
int scan_against_faiss(const struct scan_data *data, const struct bench_options *options,
                       struct bench_output *output, struct error *error);

#endif
