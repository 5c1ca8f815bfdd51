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

/* Looks up the slots of the open block in one layer, for its queries [rows][kv_heads * group][d] before RoPE. Without
 * an answer in time there are none, which is counted and no error. -ERR_NOT_FINITE, -ERR_MEMORY. */
int retrieve_run(struct coldkv_conv *conv, uint32_t layer, const float *q, struct error *error);

#endif
