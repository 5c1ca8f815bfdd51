// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// The scalar reference: every operation stands here in the order that RECORD.md fixes, which is what makes the bytes the
// same everywhere. Reordering a sum, or letting the compiler fuse a multiply and an add, changes the format.
#include "client/codec.h"

#include <assert.h>
#include <float.h>
#include <math.h>

#include "client/codec_fp.h"
#include "proto/codebook.h"

enum { LANES = 16, WINDOW = 64 /* coordinates of one pass, where head_dim is not a power of two */ };

#define SEED_EXTRA UINT64_C(0xd1b54a32d192ed03)

/* splitmix64. Source: G. Steele, D. Lea, C. Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014. */
static uint64_t splitmix64(uint64_t *state) {
  *state += UINT64_C(0x9e3779b97f4a7c15);
  uint64_t z = *state;
  z = (z ^ z >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
  z = (z ^ z >> 27) * UINT64_C(0x94d049bb133111eb);
  return z ^ z >> 31;
}

static bool single_pass(uint32_t head_dim) { return head_dim == 64 || head_dim == 128; }

/* Draws the sign masks of one rotation; what they do not cover stays +1. */
static void draw_signs(float signs[3][LIMIT_HEAD_DIM_MAX], uint32_t head_dim, uint64_t seed) {
  uint32_t passes = single_pass(head_dim) ? 1 : 3, width = single_pass(head_dim) ? head_dim : WINDOW;
  for (uint32_t p = 0; p < 3; p++) {
    uint64_t word = 0;
    for (uint32_t i = 0; i < LIMIT_HEAD_DIM_MAX; i++) {
      bool drawn = p < passes && i < width;
      if (drawn && i % 64 == 0)
        word = splitmix64(&seed);
      signs[p][i] = drawn && (word >> i % 64 & 1) ? -1.0f : 1.0f;
    }
  }
}

int codec_init(struct codec *codec, uint32_t head_dim, uint64_t seed, struct error *error) {
  if (!record_head_dim_valid(head_dim))
    return error_set(error, ERR_BAD_PARAMS, "head_dim %u: this version encodes multiples of %u from %u to %u", head_dim,
                     LIMIT_HEAD_DIM_STEP, LIMIT_HEAD_DIM_MIN, LIMIT_HEAD_DIM_MAX);
  codec->head_dim = head_dim;
  draw_signs(codec->signs, head_dim, seed);
  draw_signs(codec->extra_signs, head_dim, seed ^ SEED_EXTRA);
  return 0;
}

/* --- rotation ---------------------------------------------------------------------------------------------------- */

/* Walsh-Hadamard transform of n coordinates in natural order, then one multiply that makes it orthogonal. */
static void hadamard(float *x, uint32_t n) {
  for (uint32_t h = 1; h < n; h *= 2)
    for (uint32_t block = 0; block < n; block += 2 * h)
      for (uint32_t i = block; i < block + h; i++) {
        float a = x[i], b = x[i + h];
        x[i] = a + b;
        x[i + h] = a - b;
      }
  float norm = n == 128 ? 0x1.6a09e6p-4f : 0.125f; /* 1/sqrt(n) */
  for (uint32_t i = 0; i < n; i++)
    x[i] *= norm;
}

static void flip(float *x, const float *signs, uint32_t n) {
  for (uint32_t i = 0; i < n; i++)
    x[i] *= signs[i];
}

static void rotate(const float signs[3][LIMIT_HEAD_DIM_MAX], uint32_t head_dim, float *x) {
  if (single_pass(head_dim)) {
    flip(x, signs[0], head_dim);
    hadamard(x, head_dim);
    return;
  }
  for (uint32_t p = 0; p < 3; p++) {
    float *window = x + (p == 1 ? head_dim - WINDOW : 0);
    flip(window, signs[p], WINDOW);
    hadamard(window, WINDOW);
  }
}

static void rotate_back(const float signs[3][LIMIT_HEAD_DIM_MAX], uint32_t head_dim, float *x) {
  if (single_pass(head_dim)) {
    hadamard(x, head_dim);
    flip(x, signs[0], head_dim);
    return;
  }
  for (uint32_t p = 3; p-- > 0;) {
    float *window = x + (p == 1 ? head_dim - WINDOW : 0);
    hadamard(window, WINDOW);
    flip(window, signs[p], WINDOW);
  }
}

void codec_rotate(const struct codec *codec, const float *x, float *y) {
  if (y != x)
    memcpy(y, x, codec->head_dim * sizeof *y);
  rotate(codec->signs, codec->head_dim, y);
}

void codec_rotate_back(const struct codec *codec, const float *y, float *x) {
  if (x != y)
    memcpy(x, y, codec->head_dim * sizeof *x);
  rotate_back(codec->signs, codec->head_dim, x);
}

/* The first 128 - d rows of the second rotation, applied to y. */
static void extra_projections(const struct codec *codec, const float *y, float *extra) {
  if (codec->head_dim == RECORD_SIGNATURE_BITS)
    return;
  float z[LIMIT_HEAD_DIM_MAX];
  memcpy(z, y, codec->head_dim * sizeof *z);
  rotate(codec->extra_signs, codec->head_dim, z);
  memcpy(extra, z, (RECORD_SIGNATURE_BITS - codec->head_dim) * sizeof *extra);
}

void codec_query(const struct codec *codec, const float *q, float out[RECORD_SIGNATURE_BITS]) {
  codec_rotate(codec, q, out);
  extra_projections(codec, out, out + codec->head_dim);
}

/* --- quantization ------------------------------------------------------------------------------------------------ */

/* Adds up the 16 lanes as a fixed tree: i and i + 8, then 4, 2, 1 apart. */
static float sum_lanes(float lanes[LANES]) {
  for (uint32_t h = LANES / 2; h > 0; h /= 2)
    for (uint32_t i = 0; i < h; i++)
      lanes[i] += lanes[i + h];
  return lanes[0];
}

/* Magnitude bits of coordinate i: `whole`, and one more below `partial`. */
struct split {
  uint32_t whole, partial;
};

static struct split key_split(uint32_t head_dim) {
  assert(head_dim >= LIMIT_HEAD_DIM_MIN && head_dim <= LIMIT_HEAD_DIM_MAX); /* codec_init let it pass */
  return (struct split){RECORD_K_MAG_BITS / head_dim, RECORD_K_MAG_BITS % head_dim};
}

static struct split value_split(uint32_t head_dim) {
  assert(head_dim >= LIMIT_HEAD_DIM_MIN && head_dim <= LIMIT_HEAD_DIM_MAX);
  return (struct split){RECORD_V_CODE_BITS / head_dim - 1, RECORD_V_CODE_BITS % head_dim};
}

static const struct codebook *codebook_at(struct split split, uint32_t i) {
  return &codebooks[split.whole + (i < split.partial)];
}

static uint32_t codebook_size(struct split split, uint32_t i) { return 1u << (split.whole + (i < split.partial)); }

/* Quantizes |y| to an index per coordinate and gives the scale that fits best in the least-squares sense. Returns
 * -ERR_NOT_FINITE when y, the sum of its squares or the scale is not finite. */
static int quantize(const float *y, uint32_t head_dim, struct split split, uint8_t *index, uint16_t *scale) {
  float lanes[LANES] = {0};
  for (uint32_t i = 0; i < head_dim; i++)
    lanes[i % LANES] += y[i] * y[i];
  float mean_square = sum_lanes(lanes) / (float)head_dim;
  if (!(mean_square <= FLT_MAX))
    return -ERR_NOT_FINITE;
  memset(index, 0, head_dim);
  *scale = 0;
  if (mean_square == 0)
    return 0;
  float inverse = 1.0f / sqrtf(mean_square);
  float products[LANES] = {0}, squares[LANES] = {0};
  for (uint32_t i = 0; i < head_dim; i++) {
    const struct codebook *book = codebook_at(split, i);
    float magnitude = fabsf(y[i]), a = magnitude * inverse;
    for (uint32_t t = 0; t + 1 < codebook_size(split, i); t++)
      index[i] += a > book->thresholds[t];
    float level = book->levels[index[i]];
    products[i % LANES] += magnitude * level;
    squares[i % LANES] += level * level;
  }
  *scale = f16_from_f32(sum_lanes(products) / sum_lanes(squares));
  return record_scale_valid(*scale) ? 0 : -ERR_NOT_FINITE;
}

/* --- bit planes -------------------------------------------------------------------------------------------------- */

/* One bit per coordinate: set where x is negative, so that minus zero counts as zero. */
static void put_signs(const float *x, uint32_t n, uint8_t *plane) {
  memset(plane, 0, n / 8);
  for (uint32_t i = 0; i < n; i++)
    plane[i / 8] |= (uint8_t)((x[i] < 0) << i % 8);
}

static void put_indices(const uint8_t *index, uint32_t head_dim, struct split split, uint8_t *planes) {
  for (uint32_t b = 0; b <= split.whole; b++) {
    uint32_t n = b < split.whole ? head_dim : split.partial;
    memset(planes, 0, n / 8);
    for (uint32_t i = 0; i < n; i++)
      planes[i / 8] |= (uint8_t)((index[i] >> b & 1) << i % 8);
    planes += n / 8;
  }
}

/* Reads planes back as signed multiples of the scale. */
static void take_values(const uint8_t *signs, const uint8_t *planes, uint32_t head_dim, struct split split, float scale,
                        float *y) {
  for (uint32_t i = 0; i < head_dim; i++) {
    uint32_t index = 0;
    for (uint32_t b = 0; b < split.whole + (i < split.partial); b++)
      index |= (uint32_t)(planes[b * (head_dim / 8) + i / 8] >> i % 8 & 1) << b;
    float value = codebook_at(split, i)->levels[index] * scale;
    y[i] = signs[i / 8] >> i % 8 & 1 ? -value : value;
  }
}

/* --- records ----------------------------------------------------------------------------------------------------- */

static int encode_key(const struct codec *codec, const float *k, const float *mean, uint8_t *record) {
  uint32_t d = codec->head_dim;
  float y[RECORD_SIGNATURE_BITS];
  for (uint32_t i = 0; i < d; i++)
    y[i] = k[i] - mean[i];
  codec_query(codec, y, y);
  uint8_t index[LIMIT_HEAD_DIM_MAX];
  uint16_t scale;
  int result = quantize(y, d, key_split(d), index, &scale);
  if (result)
    return result;
  put_signs(y, RECORD_SIGNATURE_BITS, record + RECORD_SIGNATURE);
  put_indices(index, d, key_split(d), record + RECORD_K_MAG);
  store_u16(record + RECORD_K_SCALE, scale);
  return 0;
}

static int encode_value(const struct codec *codec, const float *v, const float *mean, uint8_t *record) {
  uint32_t d = codec->head_dim;
  float w[LIMIT_HEAD_DIM_MAX];
  for (uint32_t i = 0; i < d; i++)
    w[i] = v[i] - mean[i];
  rotate(codec->signs, d, w);
  uint8_t index[LIMIT_HEAD_DIM_MAX];
  uint16_t scale;
  int result = quantize(w, d, value_split(d), index, &scale);
  if (result)
    return result;
  put_signs(w, d, record + RECORD_V_CODE);
  put_indices(index, d, value_split(d), record + RECORD_V_CODE + d / 8);
  store_u16(record + RECORD_V_SCALE, scale);
  return 0;
}

int codec_encode(const struct codec *codec, const float *k, const float *v, const float *mean_k, const float *mean_v,
                 uint32_t layer, uint32_t head, uint64_t token, uint8_t record[RECORD_BYTES]) {
  struct fp_environment environment = fp_enter();
  int result = encode_key(codec, k, mean_k, record);
  if (!result)
    result = encode_value(codec, v, mean_v, record);
  fp_leave(environment);
  if (!result)
    record_seal(record, layer, head, token);
  return result;
}

void codec_decode(const struct codec *codec, const uint8_t record[RECORD_BYTES], const float *mean_k,
                  const float *mean_v, float *k, float *v) {
  uint32_t d = codec->head_dim;
  struct fp_environment environment = fp_enter();
  if (k) {
    take_values(record + RECORD_SIGNATURE, record + RECORD_K_MAG, d, key_split(d),
                f32_from_f16(load_u16(record + RECORD_K_SCALE)), k);
    rotate_back(codec->signs, d, k);
    for (uint32_t i = 0; i < d; i++)
      k[i] += mean_k[i];
  }
  if (v) {
    take_values(record + RECORD_V_CODE, record + RECORD_V_CODE + d / 8, d, value_split(d),
                f32_from_f16(load_u16(record + RECORD_V_SCALE)), v);
    rotate_back(codec->signs, d, v);
    for (uint32_t i = 0; i < d; i++)
      v[i] += mean_v[i];
  }
  fp_leave(environment);
}
