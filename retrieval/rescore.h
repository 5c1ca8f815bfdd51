// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// Rescoring: a query of 12 bits against the whole key code.
#ifndef COLDKV_RETRIEVAL_RESCORE_H
#define COLDKV_RETRIEVAL_RESCORE_H

#include <stdint.h>

#include "proto/record.h"

/* A head_dim's key code: index bits per coordinate, and the levels as integers. */
struct rescore_code {
  uint32_t head_dim;
  uint32_t whole;        /* index bits of every coordinate */
  uint32_t partial;      /* the first so many have one more */
  int16_t levels[2][16]; /* round-half-even(1024 level) by index: of `whole` bits, of one more (or 0) */
};

/* Fills in the code of a valid head_dim. */
void rescore_code_init(struct rescore_code *code, uint32_t head_dim);

/* Sum over the coordinates of q12 times the signed level; at most 128 x 2047 x 3339 in size. */
typedef int32_t rescore_fn(const struct rescore_code *code, const int16_t *q12, const uint8_t *signature,
                           const uint8_t *k_mag);

rescore_fn rescore_c;

#endif
