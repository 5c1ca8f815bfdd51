// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
#include "client/codec.h"

#include <assert.h>
#include <pthread.h>

#include "client/codec_fp.h"
#include "client/kernels/codec_kernels.h"
#include "proto/cpu.h"

#define SEED_EXTRA UINT64_C(0xd1b54a32d192ed03)

static struct codec_kernels kernels;
static pthread_once_t kernels_once = PTHREAD_ONCE_INIT;

static void init_kernels(void) { codec_kernels_init(&kernels, cpu_flags()); }

/* --- the rotation ----------------------------------------------------------------------------------------------- */

/* splitmix64. Source: G. Steele, D. Lea, C. Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014. */
static uint64_t splitmix64(uint64_t *state) {
  *state += UINT64_C(0x9e3779b97f4a7c15);
  uint64_t z = *state;
  z = (z ^ z >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
  z = (z ^ z >> 27) * UINT64_C(0x94d049bb133111eb);
  return z ^ z >> 31;
}

/* Draws the sign masks of one rotation; what they do not cover stays +1. */
static void draw_signs(float signs[3][LIMIT_HEAD_DIM_MAX], uint32_t head_dim, uint64_t seed) {
  uint32_t passes = codec_single_pass(head_dim) ? 1 : 3, width = codec_single_pass(head_dim) ? head_dim : CODEC_WINDOW;
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
  pthread_once(&kernels_once, init_kernels);
  codec->head_dim = head_dim;
  draw_signs(codec->signs, head_dim, seed);
  draw_signs(codec->extra_signs, head_dim, seed ^ SEED_EXTRA);
  return 0;
}

void codec_rotate(const struct codec *codec, const float *x, float *y) {
  if (y != x)
    memcpy(y, x, codec->head_dim * sizeof *y);
  kernels.rotate(codec->signs, codec->head_dim, y);
}

void codec_rotate_back(const struct codec *codec, const float *y, float *x) {
  if (x != y)
    memcpy(x, y, codec->head_dim * sizeof *x);
  kernels.rotate_back(codec->signs, codec->head_dim, x);
}

void codec_query(const struct codec *codec, const float *q, float out[RECORD_SIGNATURE_BITS]) {
  uint32_t d = codec->head_dim;
  codec_rotate(codec, q, out);
  if (d == RECORD_SIGNATURE_BITS)
    return;
  float z[LIMIT_HEAD_DIM_MAX]; /* the first 128 - d rows of the second rotation */
  memcpy(z, out, d * sizeof *z);
  kernels.rotate(codec->extra_signs, d, z);
  memcpy(out + d, z, (RECORD_SIGNATURE_BITS - d) * sizeof *out);
}

/* --- records ---------------------------------------------------------------------------------------------------- */

static struct codec_split key_split(uint32_t head_dim) {
  assert(head_dim >= LIMIT_HEAD_DIM_MIN && head_dim <= LIMIT_HEAD_DIM_MAX); /* codec_init let it pass */
  return (struct codec_split){RECORD_K_MAG_BITS / head_dim, RECORD_K_MAG_BITS % head_dim};
}

static struct codec_split value_split(uint32_t head_dim) {
  assert(head_dim >= LIMIT_HEAD_DIM_MIN && head_dim <= LIMIT_HEAD_DIM_MAX);
  return (struct codec_split){RECORD_V_CODE_BITS / head_dim - 1, RECORD_V_CODE_BITS % head_dim};
}

static int encode_key(const struct codec *codec, const float *k, const float *mean, uint8_t *record) {
  uint32_t d = codec->head_dim;
  struct codec_split split = key_split(d);
  float y[RECORD_SIGNATURE_BITS];
  for (uint32_t i = 0; i < d; i++)
    y[i] = k[i] - mean[i];
  codec_query(codec, y, y);
  uint16_t scale;
  int result = kernels.quantize(y, d, split, record + RECORD_K_MAG, &scale);
  if (result)
    return result;
  kernels.negative(y, RECORD_SIGNATURE_BITS, record + RECORD_SIGNATURE);
  store_u16(record + RECORD_K_SCALE, scale);
  return 0;
}

static int encode_value(const struct codec *codec, const float *v, const float *mean, uint8_t *record) {
  uint32_t d = codec->head_dim;
  struct codec_split split = value_split(d);
  float w[LIMIT_HEAD_DIM_MAX];
  for (uint32_t i = 0; i < d; i++)
    w[i] = v[i] - mean[i];
  kernels.rotate(codec->signs, d, w);
  uint16_t scale;
  int result = kernels.quantize(w, d, split, record + RECORD_V_CODE + d / 8, &scale);
  if (result)
    return result;
  kernels.negative(w, d, record + RECORD_V_CODE);
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

static void decode(const struct codec *codec, const uint8_t *signs, const uint8_t *planes, struct codec_split split,
                   const uint8_t *scale, const float *mean, float *x) {
  kernels.values(signs, planes, codec->head_dim, split, f32_from_f16(load_u16(scale)), x);
  kernels.rotate_back(codec->signs, codec->head_dim, x);
  for (uint32_t i = 0; i < codec->head_dim; i++)
    x[i] += mean[i];
}

void codec_decode(const struct codec *codec, const uint8_t record[RECORD_BYTES], const float *mean_k,
                  const float *mean_v, float *k, float *v) {
  uint32_t d = codec->head_dim;
  struct fp_environment environment = fp_enter();
  if (k)
    decode(codec, record + RECORD_SIGNATURE, record + RECORD_K_MAG, key_split(d), record + RECORD_K_SCALE, mean_k, k);
  if (v)
    decode(codec, record + RECORD_V_CODE, record + RECORD_V_CODE + d / 8, value_split(d), record + RECORD_V_SCALE,
           mean_v, v);
  fp_leave(environment);
}

const char *codec_kernel_name(void) {
  pthread_once(&kernels_once, init_kernels);
  return kernels.name;
}
