// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// Rotary position embedding, angles in double, and the mean of rotations over expected distances.
// Source: J. Su et al., "RoFormer: Enhanced Transformer with Rotary Position Embedding", arXiv:2104.09864.
#ifndef COLDKV_CLIENT_ROPE_H
#define COLDKV_CLIENT_ROPE_H

#include <stdint.h>

#include "proto/messages.h"

enum { ROPE_PAIRS_MAX = LIMIT_HEAD_DIM_MAX / 2, ROPE_ROW_MAX = 2 * ROPE_PAIRS_MAX };

/* A row is a complex factor per pair of coordinates: real parts [pairs], then imaginary parts [pairs]. A rotation by
 * position p has the factors exp(j p freq). */
struct rope {
  enum rope_layout layout;
  uint32_t head_dim, dims, pairs; /* dims = 2 pairs coordinates are rotated, the first ones */
  double freqs[ROPE_PAIRS_MAX];   /* radians per position */
  uint32_t row_count;
  float *rows;     /* [row_count][2 pairs], made when first asked for */
  uint8_t *filled; /* [row_count] */
};

/* Prepares a rope whose first `row_count` positions are kept once computed. freqs is [dims / 2]. -ERR_MEMORY. */
int rope_init(struct rope *rope, enum rope_layout layout, uint32_t head_dim, uint32_t dims, const double *freqs,
              uint32_t row_count, struct error *error);
void rope_finish(struct rope *rope);

/* Fills one row [2 pairs] with the rotation by `position`. */
void rope_angles(const struct rope *rope, int64_t position, float *row);

/* The rotation by `position`: a kept row, or `scratch` [ROPE_ROW_MAX] filled in. */
const float *rope_row(struct rope *rope, uint64_t position, float *scratch);

/* The mean over D in [first, end) of the rotation by D, end > first. Multiplying a query by it gives a dot product with
 * a key that is the mean of the dot products at those distances. */
void rope_mean(const struct rope *rope, uint64_t first, uint64_t end, float *row);

/* y = x [head_dim], every pair multiplied by the row's factor (direction 1) or its conjugate (-1), then by scale. x and
 * y do not overlap. */
void rope_apply(const struct rope *rope, const float *row, float direction, float scale, const float *restrict x,
                float *restrict y);

#endif
