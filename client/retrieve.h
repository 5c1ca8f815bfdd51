// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// Slots: the retrieved tokens of a block in one layer, decoded.
#ifndef COLDKV_CLIENT_RETRIEVE_H
#define COLDKV_CLIENT_RETRIEVE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "proto/error.h"

struct coldkv_conv;

/* The union of all rows' slots of one kv head, in ascending token order once a lookup is finished. */
struct slot_union {
  uint64_t *tokens;
  uint8_t *records; /* [count][104], as they came */
  float *keys;      /* [count][d], before RoPE */
  float *values;    /* [count][d] */
  uint8_t *chosen;  /* [count][104], in place of keys and values: for a device to decode */
  uint32_t *order;  /* scratch: places in the order they came -> final places */
  uint32_t count, capacity;
};

struct retrieved {
  uint32_t rows, heads, k;
  struct slot_union *unions; /* [heads] */
  uint32_t *index;           /* [rows][heads][k]: ascending places in the union, UINT32_MAX behind the last */
  size_t index_capacity;
  /* the same as coldkv_slots wants it, [heads] */
  uint32_t *counts;
  const uint64_t **tokens;
  const float **keys, **values;
};

/* -ERR_MEMORY. */
int retrieved_init(struct retrieved *retrieved, uint32_t heads, struct error *error);
void retrieved_finish(struct retrieved *retrieved);

/* Slots of one row and kv head: how many, and their places in the union. */
uint32_t retrieved_row(const struct retrieved *retrieved, uint32_t row, uint32_t head, const uint32_t **places);

/* Where the queries of a lookup come from. */
struct query_source {
  const float *q;      /* [rows][kv_heads * group][d] before RoPE; NULL: the device computes them, and has begun */
  bool keep_records;   /* slots are wanted as records */
};

/* Looks up the slots of the open block in one layer. Without an answer in time there are none, which is counted and no
 * error. -ERR_NOT_FINITE, -ERR_MEMORY, -ERR_IO of the device. */
int retrieve_run(struct coldkv_conv *conv, uint32_t layer, const struct query_source *source, struct error *error);

/* True when the open block looks up at all: only then does retrieve_run want queries. */
bool retrieve_wanted(const struct coldkv_conv *conv);

/* Sends a lookup of one layer for queries f32 [kv_heads][128] and drops its answer. Returns 1 when it cannot be sent
 * now. */
int retrieve_ahead(struct coldkv_conv *conv, uint32_t layer, const float *queries);

/* The query of one row and kv head, for group query vectors [d] before RoPE. -ERR_NOT_FINITE. */
int retrieve_query(const struct coldkv_conv *conv, const float *expected, const float *q, float *out);

#endif
