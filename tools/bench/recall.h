// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// How good what coldkv returns is, measured against exact keys and values: what share of the attention mass the
// returned tokens hold, and how near decoded keys and values are to real ones.
#ifndef COLDKV_TOOLS_BENCH_RECALL_H
#define COLDKV_TOOLS_BENCH_RECALL_H

#include "client/coldkv.h"
#include "tools/demo/llama.h"

struct recall;

/* For conversations of `tokens` tokens at most. Measures over all conversations until recall_result. */
int recall_create(struct recall **recall, const struct llama_config *config, uint32_t tokens, struct error *error);
void recall_destroy(struct recall *recall); /* NULL is allowed */

/* A new conversation begins: forgets keys and values, keeps the measures. */
void recall_restart(struct recall *recall);

/* Keeps the exact keys and values [n][kv_heads][head_dim] of tokens first .. first + n - 1 of one layer. */
void recall_keep(struct recall *recall, uint32_t layer, uint32_t first, uint32_t n, const float *k, const float *v);

/* Measures what coldkv_retrieve returned for the queries q [rows][heads][head_dim] of the block at token `first`. */
void recall_measure(struct recall *recall, uint32_t layer, uint32_t first, const float *q,
                    const struct coldkv_slots *slots);

struct recall_result {
  double mass;         /* mean share of what the exact best would hold */
  double cos_k, cos_v; /* mean cosines of decoded and real vectors, over distinct records */
  uint64_t rows;       /* (layer, kv head, row) that mass is the mean of */
  uint64_t records;    /* that the cosines are the means of */
};
struct recall_result recall_result(const struct recall *recall);

#endif
