// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// The codec with AVX2: two registers are the 16 lanes that RECORD.md adds up in.
#include "client/kernels/codec_kernels.h"

#include "proto/cpu.h"

#if defined(__x86_64__)
#include <immintrin.h>

#define TARGET __attribute__((target("avx2")))

/* --- rotation --------------------------------------------------------------------------------------------------- */

/* Stages of pairs inside a register: (a + b, a - b) as partner + (x, negated in the places of b). */
TARGET static inline __m256 hadamard_8(__m256 x) {
  const __m256 minus1 = _mm256_setr_ps(0.0f, -0.0f, 0.0f, -0.0f, 0.0f, -0.0f, 0.0f, -0.0f);
  const __m256 minus2 = _mm256_setr_ps(0.0f, 0.0f, -0.0f, -0.0f, 0.0f, 0.0f, -0.0f, -0.0f);
  const __m256 minus4 = _mm256_setr_ps(0.0f, 0.0f, 0.0f, 0.0f, -0.0f, -0.0f, -0.0f, -0.0f);
  x = _mm256_add_ps(_mm256_permute_ps(x, 0xb1), _mm256_xor_ps(x, minus1));
  x = _mm256_add_ps(_mm256_permute_ps(x, 0x4e), _mm256_xor_ps(x, minus2));
  return _mm256_add_ps(_mm256_permute2f128_ps(x, x, 0x01), _mm256_xor_ps(x, minus4));
}

/* Stages h = 8, 16 and so on over n coordinates in memory. */
TARGET static inline void cross_stages(float *x, uint32_t n) {
  for (uint32_t h = 8; h < n; h *= 2)
    for (uint32_t block = 0; block < n; block += 2 * h)
      for (uint32_t i = block; i < block + h; i += 8) {
        __m256 a = _mm256_loadu_ps(x + i), b = _mm256_loadu_ps(x + i + h);
        _mm256_storeu_ps(x + i, _mm256_add_ps(a, b));
        _mm256_storeu_ps(x + i + h, _mm256_sub_ps(a, b));
      }
}

TARGET static inline void transform(float *x, const float *signs, uint32_t n) {
  for (uint32_t i = 0; i < n; i += 8)
    _mm256_storeu_ps(x + i, hadamard_8(_mm256_mul_ps(_mm256_loadu_ps(x + i), _mm256_loadu_ps(signs + i))));
  cross_stages(x, n);
  for (uint32_t i = 0; i < n; i += 8)
    _mm256_storeu_ps(x + i, _mm256_mul_ps(_mm256_loadu_ps(x + i), _mm256_set1_ps(codec_norm(n))));
}

TARGET static inline void transform_back(float *x, const float *signs, uint32_t n) {
  for (uint32_t i = 0; i < n; i += 8)
    _mm256_storeu_ps(x + i, hadamard_8(_mm256_loadu_ps(x + i)));
  cross_stages(x, n);
  for (uint32_t i = 0; i < n; i += 8) {
    __m256 normed = _mm256_mul_ps(_mm256_loadu_ps(x + i), _mm256_set1_ps(codec_norm(n)));
    _mm256_storeu_ps(x + i, _mm256_mul_ps(normed, _mm256_loadu_ps(signs + i)));
  }
}

TARGET static void rotate_avx2(codec_signs signs, uint32_t head_dim, float *x) {
  if (head_dim == 128) {
    transform(x, signs[0], 128);
    return;
  }
  for (uint32_t p = 0; p < (head_dim == 64 ? 1 : 3); p++)
    transform(x + codec_window(head_dim, p), signs[p], CODEC_WINDOW);
}

TARGET static void rotate_back_avx2(codec_signs signs, uint32_t head_dim, float *x) {
  if (head_dim == 128) {
    transform_back(x, signs[0], 128);
    return;
  }
  for (uint32_t p = head_dim == 64 ? 1 : 3; p-- > 0;)
    transform_back(x + codec_window(head_dim, p), signs[p], CODEC_WINDOW);
}

TARGET static void negative_avx2(const float *x, uint32_t n, uint8_t *plane) {
  for (uint32_t i = 0; i < n; i += 8) {
    __m256 below = _mm256_cmp_ps(_mm256_loadu_ps(x + i), _mm256_setzero_ps(), _CMP_LT_OQ);
    plane[i / 8] = (uint8_t)_mm256_movemask_ps(below);
  }
}

/* --- quantization ----------------------------------------------------------------------------------------------- */

/* Number of thresholds below a: comparisons are -1 where they hold. */
TARGET static inline __m256i classify(__m256 a, uint32_t bits) {
  const float *thresholds = codebooks[bits].thresholds;
  __m256i index = _mm256_setzero_si256();
  for (uint32_t t = 0; t + 1 < 1u << bits; t++) {
    __m256 above = _mm256_cmp_ps(a, _mm256_broadcast_ss(thresholds + t), _CMP_GT_OQ);
    index = _mm256_sub_epi32(index, _mm256_castps_si256(above));
  }
  return index;
}

TARGET static inline __m256 look_up(__m256i index, uint32_t bits) {
  const float *levels = codebooks[bits].levels;
  if (bits == 2)
    return _mm256_permutevar8x32_ps(_mm256_broadcast_ps((const __m128 *)(const void *)levels), index);
  if (bits == 3)
    return _mm256_permutevar8x32_ps(_mm256_loadu_ps(levels), index);
  return _mm256_i32gather_ps(levels, index, sizeof *levels);
}

/* The fixed tree over 16 lanes, of which `low` holds the first eight. */
TARGET static inline float sum_lanes(__m256 low, __m256 high) {
  __m256 eight = _mm256_add_ps(low, high);
  __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  four = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(four, _mm_movehdup_ps(four)));
}

/* The bits of 8 indices, one byte per plane. */
TARGET static inline void put_bits(__m256i index, uint32_t bits, uint8_t collected[][16], uint32_t byte) {
  for (uint32_t b = 0; b < bits; b++) /* the bit moves to the sign */
    collected[b][byte] =
        (uint8_t)_mm256_movemask_ps(_mm256_castsi256_ps(_mm256_slli_epi32(index, (int)(31 - b))));
}

TARGET static int quantize_avx2(const float *y, uint32_t head_dim, struct codec_split split, uint8_t *planes,
                                uint16_t *scale) {
  __m256 sums[2] = {_mm256_setzero_ps(), _mm256_setzero_ps()}, products[2] = {sums[0], sums[0]};
  __m256 squares[2] = {sums[0], sums[0]};
  for (uint32_t i = 0; i < head_dim / 8; i++) {
    __m256 v = _mm256_loadu_ps(y + 8 * i);
    sums[i % 2] = _mm256_add_ps(sums[i % 2], _mm256_mul_ps(v, v));
  }
  memset(planes, 0, codec_plane_bytes(head_dim, split));
  *scale = 0;
  float inverse = codec_inverse_rms(sum_lanes(sums[0], sums[1]), head_dim);
  if (inverse <= 0)
    return inverse < 0 ? -ERR_NOT_FINITE : 0;
  uint8_t collected[CODEBOOK_BITS_MAX + 1][16];
  for (uint32_t i = 0; i < head_dim / 8; i++) {
    uint32_t bits = split.whole + (8 * i < split.partial);
    __m256 magnitude = _mm256_andnot_ps(_mm256_set1_ps(-0.0f), _mm256_loadu_ps(y + 8 * i));
    __m256i index = classify(_mm256_mul_ps(magnitude, _mm256_set1_ps(inverse)), bits);
    __m256 level = look_up(index, bits);
    products[i % 2] = _mm256_add_ps(products[i % 2], _mm256_mul_ps(magnitude, level));
    squares[i % 2] = _mm256_add_ps(squares[i % 2], _mm256_mul_ps(level, level));
    put_bits(index, bits, collected, i);
  }
  codec_put_planes((const uint8_t(*)[16])collected, head_dim, split, planes);
  return codec_put_scale(sum_lanes(products[0], products[1]), sum_lanes(squares[0], squares[1]), scale);
}

/* --- decoding --------------------------------------------------------------------------------------------------- */

/* All ones in the lanes whose bit is set. */
TARGET static inline __m256i lanes_of_bits(uint8_t bits) {
  const __m256i each = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
  return _mm256_cmpeq_epi32(_mm256_and_si256(_mm256_set1_epi32(bits), each), each);
}

TARGET static void values_avx2(const uint8_t *signs, const uint8_t *planes, uint32_t head_dim,
                               struct codec_split split, float scale, float *y) {
  for (uint32_t i = 0; i < head_dim / 8; i++) {
    uint32_t bits = split.whole + (8 * i < split.partial);
    __m256i index = _mm256_setzero_si256();
    for (uint32_t b = 0; b < bits; b++) {
      __m256i set = lanes_of_bits(planes[b * (head_dim / 8) + i]);
      index = _mm256_or_si256(index, _mm256_and_si256(set, _mm256_set1_epi32(1 << b)));
    }
    __m256 value = _mm256_mul_ps(look_up(index, bits), _mm256_set1_ps(scale));
    __m256i sign = _mm256_and_si256(lanes_of_bits(signs[i]), _mm256_set1_epi32(INT32_MIN));
    _mm256_storeu_ps(y + 8 * i, _mm256_xor_ps(value, _mm256_castsi256_ps(sign)));
  }
}

void codec_init_avx2(struct codec_kernels *kernels, unsigned flags) {
  if (!(flags & CPU_AVX2))
    return;
  kernels->name = "avx2";
  kernels->rotate = rotate_avx2;
  kernels->rotate_back = rotate_back_avx2;
  kernels->negative = negative_avx2;
  kernels->quantize = quantize_avx2;
  kernels->values = values_avx2;
}
#endif
