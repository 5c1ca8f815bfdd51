// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// The keys of a long conversation, exact and as records, and how much of the attention mass lookups find.
#ifndef COLDKV_TOOLS_BENCH_FAR_H
#define COLDKV_TOOLS_BENCH_FAR_H

#include "proto/messages.h"
#include "tools/demo/llama.h"

enum { FAR_K = 64, FAR_MODES = 2, FAR_BUDGETS = 6 };

/* Values of C; 0 is the default one. */
extern const uint32_t far_budgets[FAR_BUDGETS];

struct far;

/* For a conversation of `tokens` tokens. */
int far_create(struct far **far, const struct llama_config *config, uint32_t tokens, struct error *error);
void far_destroy(struct far *far); /* NULL is allowed */

/* Keeps the exact keys [n][kv_heads][head_dim] (before RoPE) of tokens first .. first + n - 1 of one layer. */
void far_keep(struct far *far, uint32_t layer, uint32_t first, uint32_t n, const float *k);

/* Encodes what was kept, once all is there. */
int far_encode(struct far *far, struct error *error);

/* Looks up the queries q [n][heads][head_dim] of the block at token `first` among the tokens that are then not in the
 * hot window, with every mode and C. */
int far_measure(struct far *far, uint32_t layer, uint32_t first, uint32_t n, const float *q, struct error *error);

struct far_result {
  double score[FAR_MODES][FAR_BUDGETS]; /* mean share, of what the 64 of the highest exact scores hold */
  double mass[FAR_MODES][FAR_BUDGETS];  /* mean share, of what any 64 could hold */
  double best;                          /* mean mass of the 64 of the highest exact scores, of 1 for all cold tokens */
  uint64_t rows;                        /* (layer, kv head, row) these are the means of */
};
struct far_result far_result(const struct far *far);

#endif
