// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// The codec with AVX-512 (F, BW, DQ, VL): one register is the 16 lanes that RECORD.md adds up in.
#include "client/kernels/codec_kernels.h"

#include "proto/cpu.h"

#if defined(__x86_64__)
#include <immintrin.h>

#define TARGET __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl")))

enum { VECTORS_MAX = LIMIT_HEAD_DIM_MAX / 16 };

/* --- rotation --------------------------------------------------------------------------------------------------- */

/* Stage of pairs inside a register: lanes with bit h of their number are b of (a + b, a - b). */
#define BUTTERFLY(X, PARTNER, MASK)                                                                                    \
  do {                                                                                                                 \
    __m512 partner = PARTNER;                                                                                          \
    X = _mm512_mask_sub_ps(_mm512_add_ps(X, partner), MASK, partner, X);                                               \
  } while (0)

TARGET static inline __m512 hadamard_16(__m512 x) {
  BUTTERFLY(x, _mm512_permute_ps(x, 0xb1), 0xaaaa);
  BUTTERFLY(x, _mm512_permute_ps(x, 0x4e), 0xcccc);
  BUTTERFLY(x, _mm512_shuffle_f32x4(x, x, 0xb1), 0xf0f0);
  BUTTERFLY(x, _mm512_shuffle_f32x4(x, x, 0x4e), 0xff00);
  return x;
}

/* n = 16 vectors; signs are multiplied in before or after. */
TARGET static inline void transform(float *x, const float *signs, int vectors, bool signs_first) {
  __m512 v[VECTORS_MAX], norm = _mm512_set1_ps(codec_norm(16 * (uint32_t)vectors));
  for (int i = 0; i < vectors; i++) {
    v[i] = _mm512_loadu_ps(x + 16 * i);
    if (signs_first)
      v[i] = _mm512_mul_ps(v[i], _mm512_loadu_ps(signs + 16 * i));
    v[i] = hadamard_16(v[i]);
  }
  for (int h = 1; h < vectors; h *= 2)
    for (int i = 0; i < vectors; i++)
      if (!(i & h)) {
        __m512 a = v[i], b = v[i + h];
        v[i] = _mm512_add_ps(a, b);
        v[i + h] = _mm512_sub_ps(a, b);
      }
  for (int i = 0; i < vectors; i++) {
    v[i] = _mm512_mul_ps(v[i], norm);
    if (!signs_first)
      v[i] = _mm512_mul_ps(v[i], _mm512_loadu_ps(signs + 16 * i));
    _mm512_storeu_ps(x + 16 * i, v[i]);
  }
}

TARGET static void rotate_avx512(codec_signs signs, uint32_t head_dim, float *x) {
  if (head_dim == 128) {
    transform(x, signs[0], 8, true);
    return;
  }
  for (uint32_t p = 0; p < (head_dim == 64 ? 1 : 3); p++)
    transform(x + codec_window(head_dim, p), signs[p], 4, true);
}

TARGET static void rotate_back_avx512(codec_signs signs, uint32_t head_dim, float *x) {
  if (head_dim == 128) {
    transform(x, signs[0], 8, false);
    return;
  }
  for (uint32_t p = head_dim == 64 ? 1 : 3; p-- > 0;)
    transform(x + codec_window(head_dim, p), signs[p], 4, false);
}

TARGET static void negative_avx512(const float *x, uint32_t n, uint8_t *plane) {
  uint32_t i = 0;
  for (; i + 16 <= n; i += 16)
    store_u16(plane + i / 8, _mm512_cmp_ps_mask(_mm512_loadu_ps(x + i), _mm512_setzero_ps(), _CMP_LT_OQ));
  if (i < n)
    plane[i / 8] = _mm256_cmp_ps_mask(_mm256_loadu_ps(x + i), _mm256_setzero_ps(), _CMP_LT_OQ);
}

/* --- quantization ----------------------------------------------------------------------------------------------- */

/* Lanes of vector v whose coordinates are below n. */
static inline uint16_t lanes_below(uint32_t n, uint32_t v) {
  return n >= 16 * v + 16 ? 0xffff : n > 16 * v ? 0xff : 0; /* n is a multiple of 8 */
}

/* A codebook in registers: entries 0-15 and 16-31. */
struct tables {
  __m512 levels[2], thresholds[2];
  uint32_t bits;
};

TARGET static inline struct tables load_tables(uint32_t bits) {
  const struct codebook *book = &codebooks[bits];
  uint32_t levels = UINT32_MAX >> (32 - (1u << bits)), thresholds = levels >> 1;
  return (struct tables){
      .levels = {_mm512_maskz_loadu_ps((__mmask16)levels, book->levels),
                 _mm512_maskz_loadu_ps((__mmask16)(levels >> 16), book->levels + 16 * (bits > 4))},
      .thresholds = {_mm512_maskz_loadu_ps((__mmask16)thresholds, book->thresholds),
                     _mm512_maskz_loadu_ps((__mmask16)(thresholds >> 16), book->thresholds + 16 * (bits > 4))},
      .bits = bits,
  };
}

TARGET static inline __m512 look_up(const __m512 table[2], __m512i index, uint32_t bits) {
  return bits > 4 ? _mm512_permutex2var_ps(table[0], index, table[1]) : _mm512_permutexvar_ps(index, table[0]);
}

/* Number of thresholds below a, by halving. */
TARGET static inline __m512i classify(__m512 a, const struct tables *tables) {
  __m512i index = _mm512_setzero_si512();
  for (uint32_t step = 1u << (tables->bits - 1); step; step /= 2) {
    __m512i middle = _mm512_add_epi32(index, _mm512_set1_epi32((int32_t)step - 1));
    __mmask16 above = _mm512_cmp_ps_mask(a, look_up(tables->thresholds, middle, tables->bits), _CMP_GT_OQ);
    index = _mm512_mask_add_epi32(index, above, index, _mm512_set1_epi32((int32_t)step));
  }
  return index;
}

/* The fixed tree over 16 lanes. */
TARGET static inline float sum_lanes(__m512 lanes) {
  __m256 eight = _mm256_add_ps(_mm512_castps512_ps256(lanes), _mm512_extractf32x8_ps(lanes, 1));
  __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  four = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(four, _mm_movehdup_ps(four)));
}

TARGET static int quantize_avx512(const float *y, uint32_t head_dim, struct codec_split split, uint8_t *planes,
                                  uint16_t *scale) {
  __m512 v[VECTORS_MAX], sum = _mm512_setzero_ps(), products = sum, squares = sum;
  uint32_t vectors = (head_dim + 15) / 16;
  for (uint32_t i = 0; i < vectors; i++) {
    v[i] = _mm512_maskz_loadu_ps(lanes_below(head_dim, i), y + 16 * i);
    sum = _mm512_add_ps(sum, _mm512_mul_ps(v[i], v[i]));
  }
  memset(planes, 0, codec_plane_bytes(head_dim, split));
  *scale = 0;
  float inverse = codec_inverse_rms(sum_lanes(sum), head_dim);
  if (inverse <= 0)
    return inverse < 0 ? -ERR_NOT_FINITE : 0;
  struct tables tables = load_tables(split.whole), more = load_tables(split.partial ? split.whole + 1 : split.whole);
  uint8_t collected[CODEBOOK_BITS_MAX + 1][16];
  for (uint32_t i = 0; i < vectors; i++) {
    __m512 magnitude = _mm512_abs_ps(v[i]), a = _mm512_mul_ps(magnitude, _mm512_set1_ps(inverse));
    __m512i index = classify(a, &tables);
    __m512 level = look_up(tables.levels, index, tables.bits);
    __mmask16 partial = lanes_below(split.partial, i), all = lanes_below(head_dim, i);
    if (partial) {
      index = _mm512_mask_mov_epi32(index, partial, classify(a, &more));
      level = _mm512_mask_mov_ps(level, partial, look_up(more.levels, index, more.bits));
    }
    products = _mm512_mask_add_ps(products, all, products, _mm512_mul_ps(magnitude, level));
    squares = _mm512_mask_add_ps(squares, all, squares, _mm512_mul_ps(level, level));
    for (uint32_t b = 0; b <= split.whole; b++)
      store_u16(collected[b] + 2 * i, _mm512_test_epi32_mask(index, _mm512_set1_epi32(1 << b)));
  }
  codec_put_planes((const uint8_t(*)[16])collected, head_dim, split, planes);
  return codec_put_scale(sum_lanes(products), sum_lanes(squares), scale);
}

/* --- decoding --------------------------------------------------------------------------------------------------- */

/* 16 bits of a plane that has `bits` of them, from coordinate 16 i on. */
static inline uint16_t plane_lanes(const uint8_t *plane, uint32_t bits, uint32_t i) {
  return bits >= 16 * i + 16 ? load_u16(plane + 2 * i) : bits > 16 * i ? plane[2 * i] : 0;
}

TARGET static void values_avx512(const uint8_t *signs, const uint8_t *planes, uint32_t head_dim,
                                 struct codec_split split, float scale, float *y) {
  struct tables tables = load_tables(split.whole), more = load_tables(split.partial ? split.whole + 1 : split.whole);
  for (uint32_t i = 0; 16 * i < head_dim; i++) {
    __m512i index = _mm512_setzero_si512();
    for (uint32_t b = 0; b <= split.whole; b++) {
      uint16_t set = plane_lanes(planes + b * (head_dim / 8), b < split.whole ? head_dim : split.partial, i);
      index = _mm512_mask_add_epi32(index, set, index, _mm512_set1_epi32(1 << b));
    }
    __mmask16 partial = lanes_below(split.partial, i);
    __m512 level = look_up(tables.levels, index, tables.bits);
    level = _mm512_mask_mov_ps(level, partial, look_up(more.levels, index, more.bits));
    __m512 value = _mm512_mul_ps(level, _mm512_set1_ps(scale));
    __mmask16 negative = plane_lanes(signs, head_dim, i);
    value = _mm512_mask_xor_ps(value, negative, value, _mm512_set1_ps(-0.0f));
    _mm512_mask_storeu_ps(y + 16 * i, lanes_below(head_dim, i), value);
  }
}

void codec_init_avx512(struct codec_kernels *kernels, unsigned flags) {
  if (!(flags & CPU_AVX512))
    return;
  kernels->name = "avx512";
  kernels->rotate = rotate_avx512;
  kernels->rotate_back = rotate_back_avx512;
  kernels->negative = negative_avx512;
  kernels->quantize = quantize_avx512;
  kernels->values = values_avx512;
}
#endif
