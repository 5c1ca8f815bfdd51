// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// The scalar reference: every operation stands here in the order that RECORD.md fixes, which is what makes the bytes
// the same everywhere. Reordering a sum, or letting the compiler fuse a multiply and an add, changes the format.
#include "client/kernels/codec_kernels.h"

#include <assert.h>

/* Walsh-Hadamard transform of n coordinates in natural order, then one multiply that makes it orthogonal. */
static void hadamard(float *x, uint32_t n) {
  for (uint32_t h = 1; h < n; h *= 2)
    for (uint32_t block = 0; block < n; block += 2 * h)
      for (uint32_t i = block; i < block + h; i++) {
        float a = x[i], b = x[i + h];
        x[i] = a + b;
        x[i + h] = a - b;
      }
  for (uint32_t i = 0; i < n; i++)
    x[i] *= codec_norm(n);
}

static void flip(float *x, const float *signs, uint32_t n) {
  for (uint32_t i = 0; i < n; i++)
    x[i] *= signs[i];
}

static void rotate_c(codec_signs signs, uint32_t head_dim, float *x) {
  if (codec_single_pass(head_dim)) {
    flip(x, signs[0], head_dim);
    hadamard(x, head_dim);
    return;
  }
  for (uint32_t p = 0; p < 3; p++) {
    float *window = x + codec_window(head_dim, p);
    flip(window, signs[p], CODEC_WINDOW);
    hadamard(window, CODEC_WINDOW);
  }
}

static void rotate_back_c(codec_signs signs, uint32_t head_dim, float *x) {
  if (codec_single_pass(head_dim)) {
    hadamard(x, head_dim);
    flip(x, signs[0], head_dim);
    return;
  }
  for (uint32_t p = 3; p-- > 0;) {
    float *window = x + codec_window(head_dim, p);
    hadamard(window, CODEC_WINDOW);
    flip(window, signs[p], CODEC_WINDOW);
  }
}

static void negative_c(const float *x, uint32_t n, uint8_t *plane) {
  memset(plane, 0, n / 8);
  for (uint32_t i = 0; i < n; i++)
    plane[i / 8] |= (uint8_t)((x[i] < 0) << i % 8);
}

/* Adds up the 16 lanes as a fixed tree: i and i + 8, then 4, 2, 1 apart. */
static float sum_lanes(float lanes[CODEC_LANES]) {
  for (uint32_t h = CODEC_LANES / 2; h > 0; h /= 2)
    for (uint32_t i = 0; i < h; i++)
      lanes[i] += lanes[i + h];
  return lanes[0];
}

static uint32_t bits_at(struct codec_split split, uint32_t i) { return split.whole + (i < split.partial); }

static int quantize_c(const float *y, uint32_t head_dim, struct codec_split split, uint8_t *planes, uint16_t *scale) {
  float lanes[CODEC_LANES] = {0}, products[CODEC_LANES] = {0}, squares[CODEC_LANES] = {0};
  for (uint32_t i = 0; i < head_dim; i++)
    lanes[i % CODEC_LANES] += y[i] * y[i];
  memset(planes, 0, codec_plane_bytes(head_dim, split));
  *scale = 0;
  float inverse = codec_inverse_rms(sum_lanes(lanes), head_dim);
  if (inverse <= 0)
    return inverse < 0 ? -ERR_NOT_FINITE : 0;
  for (uint32_t i = 0; i < head_dim; i++) {
    uint32_t bits = bits_at(split, i), index = 0;
    assert(bits <= CODEBOOK_BITS_MAX);
    float magnitude = fabsf(y[i]), a = magnitude * inverse;
    for (uint32_t t = 0; t + 1 < 1u << bits; t++)
      index += a > codebooks[bits].thresholds[t];
    float level = codebooks[bits].levels[index];
    products[i % CODEC_LANES] += magnitude * level;
    squares[i % CODEC_LANES] += level * level;
    for (uint32_t b = 0; b < bits; b++)
      planes[b * (head_dim / 8) + i / 8] |= (uint8_t)((index >> b & 1) << i % 8);
  }
  return codec_put_scale(sum_lanes(products), sum_lanes(squares), scale);
}

static void values_c(const uint8_t *signs, const uint8_t *planes, uint32_t head_dim, struct codec_split split,
                     float scale, float *y) {
  for (uint32_t i = 0; i < head_dim; i++) {
    uint32_t bits = bits_at(split, i), index = 0;
    for (uint32_t b = 0; b < bits; b++)
      index |= (uint32_t)(planes[b * (head_dim / 8) + i / 8] >> i % 8 & 1) << b;
    float value = codebooks[bits].levels[index] * scale;
    y[i] = signs[i / 8] >> i % 8 & 1 ? -value : value;
  }
}

void codec_init_c(struct codec_kernels *kernels) {
  *kernels = (struct codec_kernels){
      .name = "c",
      .rotate = rotate_c,
      .rotate_back = rotate_back_c,
      .negative = negative_c,
      .quantize = quantize_c,
      .values = values_c,
  };
}
