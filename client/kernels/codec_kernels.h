// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// The inner loops of the codec, as a table of functions that is filled once with the best for this processor. All
// versions give the same bytes: RECORD.md fixes every operation and the order of every sum.
#ifndef COLDKV_CLIENT_KERNELS_CODEC_KERNELS_H
#define COLDKV_CLIENT_KERNELS_CODEC_KERNELS_H

#include <float.h>
#include <math.h>

#include "proto/codebook.h"
#include "proto/error.h"
#include "proto/record.h"

enum { CODEC_LANES = 16, CODEC_WINDOW = 64 /* coordinates of one pass, where head_dim is not 64 or 128 */ };

/* Index bits of coordinate i: `whole`, and one more below `partial`. Both multiples of 8 coordinates. */
struct codec_split {
  uint32_t whole, partial;
};

/* Sign masks of one rotation, +1 or -1, pass by pass. */
typedef const float codec_signs[3][LIMIT_HEAD_DIM_MAX];

/* x = R x, or its transpose. */
typedef void codec_rotate_fn(codec_signs signs, uint32_t head_dim, float *x);

/* One bit per coordinate of n, a multiple of 8: set where x is negative; zero of either sign is not. */
typedef void codec_negative_fn(const float *x, uint32_t n, uint8_t *plane);

/* Writes the index planes of y[head_dim] and the scale. Returns 0, or -ERR_NOT_FINITE when y or the scale is not. */
typedef int codec_quantize_fn(const float *y, uint32_t head_dim, struct codec_split split, uint8_t *planes,
                              uint16_t *scale);

/* Reads signs and index planes back: y[i] = +-level scale. */
typedef void codec_values_fn(const uint8_t *signs, const uint8_t *planes, uint32_t head_dim, struct codec_split split,
                             float scale, float *y);

struct codec_kernels {
  const char *name;
  codec_rotate_fn *rotate, *rotate_back;
  codec_negative_fn *negative;
  codec_quantize_fn *quantize;
  codec_values_fn *values;
};

/* Fills the table with the best that a processor with these cpu_flags() runs. */
void codec_kernels_init(struct codec_kernels *kernels, unsigned flags);

void codec_init_c(struct codec_kernels *kernels);
void codec_init_avx2(struct codec_kernels *kernels, unsigned flags);
void codec_init_avx512(struct codec_kernels *kernels, unsigned flags);
void codec_init_neon(struct codec_kernels *kernels, unsigned flags);

/* --- what all versions share ------------------------------------------------------------------------------------ */

/* One pass over all coordinates instead of three over windows. */
static inline bool codec_single_pass(uint32_t head_dim) { return head_dim == 64 || head_dim == 128; }

/* First coordinate of the window of pass p. */
static inline uint32_t codec_window(uint32_t head_dim, uint32_t p) { return p == 1 ? head_dim - CODEC_WINDOW : 0; }

/* 1/sqrt(n) for n = 64 or 128. */
static inline float codec_norm(uint32_t n) { return n == 128 ? 0x1.6a09e6p-4f : 0.125f; }

/* 1/RMS from the sum of squares: 0 when the vector counts as zero, negative when it is not finite. */
static inline float codec_inverse_rms(float sum, uint32_t head_dim) {
  float mean_square = sum / (float)head_dim;
  if (!(mean_square <= FLT_MAX))
    return -1.0f;
  return mean_square == 0 ? 0.0f : 1.0f / sqrtf(mean_square);
}

/* Rounds the scale to fp16. */
static inline int codec_put_scale(float products, float squares, uint16_t *scale) {
  *scale = f16_from_f32(products / squares);
  return record_scale_valid(*scale) ? 0 : -ERR_NOT_FINITE;
}

/* Bytes of all index planes. */
static inline uint32_t codec_plane_bytes(uint32_t head_dim, struct codec_split split) {
  return (head_dim * split.whole + split.partial) / 8;
}

/* Copies planes of up to 128 bits each from where a version collected them to where they belong. */
static inline void codec_put_planes(const uint8_t collected[][16], uint32_t head_dim, struct codec_split split,
                                    uint8_t *planes) {
  for (uint32_t p = 0; p < split.whole; p++, planes += head_dim / 8)
    memcpy(planes, collected[p], head_dim / 8);
  memcpy(planes, collected[split.whole], split.partial / 8);
}

#endif
