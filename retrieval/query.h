// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// A query row as integers: what the scan and the rescoring multiply with.
#ifndef COLDKV_RETRIEVAL_QUERY_H
#define COLDKV_RETRIEVAL_QUERY_H

#include <stdbool.h>
#include <stdint.h>

#include "proto/record.h"

enum {
  QUERY_FLOATS = RECORD_SIGNATURE_BITS, /* of a row on the wire */
  QUERY_Q4_MAX = 7,
  QUERY_Q12_MAX = 2047,
  QUERY_PLANES = 3,                    /* bits of |q4| */
  QUERY_NIBBLES = QUERY_FLOATS / 4,
};

/* Bit i of a plane is bit i % 64 of its word i / 64, as in a signature that is loaded as two words. */
struct query {
  uint64_t sign[2];                    /* q < 0 */
  uint64_t magnitude[QUERY_PLANES][2]; /* bits of |q4|, least significant plane first */
  /* By the four bits of nibble j of a signature, coordinates 4j .. 4j + 3: the sum of |q4| where signs differ, at most
   * 28. Sixteen bytes are what one shuffle instruction looks up in. */
  uint8_t opposed[QUERY_NIBBLES][16];
  int32_t magnitude_sum; /* of |q4| over all coordinates */
  int16_t q12[LIMIT_HEAD_DIM_MAX]; /* 0 from head_dim on */
};

/* Quantizes the 128 floats at `row` (little endian, any alignment). Returns false when one is NaN or infinite. */
typedef bool query_prepare_fn(struct query *query, uint32_t head_dim, const uint8_t *row);

query_prepare_fn query_prepare_c;

/* Fills in `magnitude`, `magnitude_sum` and `opposed`. For kernels. */
void query_fill(struct query *query, const int8_t q4[QUERY_FLOATS]);

#endif
