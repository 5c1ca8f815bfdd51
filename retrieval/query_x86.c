// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// Query quantization with AVX2, four doubles at a time: divisions and roundings are what takes time.
#include "retrieval/kernels_x86.h"

#if defined(__x86_64__)
#include <immintrin.h>
#include <math.h>

/* Largest |q[i]| of the first n, a multiple of 8; infinite when one of them is not finite. */
TARGET_AVX2 static float largest_avx2(const uint8_t *row, uint32_t n) {
  const __m256 magnitude = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffffff)), infinity = _mm256_set1_ps(INFINITY);
  __m256 max = _mm256_setzero_ps(), bad = max;
  for (uint32_t i = 0; i < n; i += 8) {
    __m256 q = _mm256_and_ps(_mm256_loadu_ps((const float *)(const void *)(row + i * sizeof(float))), magnitude);
    bad = _mm256_or_ps(bad, _mm256_cmp_ps(q, infinity, _CMP_NLT_UQ));
    max = _mm256_max_ps(max, q);
  }
  if (_mm256_movemask_ps(bad))
    return INFINITY;
  __m128 half = _mm_max_ps(_mm256_castps256_ps128(max), _mm256_extractf128_ps(max, 1));
  half = _mm_max_ps(half, _mm_movehl_ps(half, half));
  return _mm_cvtss_f32(_mm_max_ss(half, _mm_movehdup_ps(half)));
}

/* round-half-even(levels q / max) of eight numbers, as 32-bit integers. */
TARGET_AVX2 static inline __m256i quantize_avx2(__m256 q, __m256d max, __m256d levels) {
  __m256d low = _mm256_div_pd(_mm256_mul_pd(levels, _mm256_cvtps_pd(_mm256_castps256_ps128(q))), max);
  __m256d high = _mm256_div_pd(_mm256_mul_pd(levels, _mm256_cvtps_pd(_mm256_extractf128_ps(q, 1))), max);
  /* the conversion rounds halves to even, as the environment of a daemon says */
  return _mm256_set_m128i(_mm256_cvtpd_epi32(high), _mm256_cvtpd_epi32(low));
}

TARGET_AVX2 static bool query_prepare_avx2(struct query *query, uint32_t head_dim, const uint8_t *row) {
  float max4 = largest_avx2(row, QUERY_FLOATS), max12 = largest_avx2(row, head_dim);
  if (max4 == INFINITY)
    return false;
  const __m256d divisor4 = _mm256_set1_pd(max4 > 0 ? (double)max4 : 1.0);
  const __m256d divisor12 = _mm256_set1_pd(max12 > 0 ? (double)max12 : 1.0);
  const __m256d levels4 = _mm256_set1_pd(QUERY_Q4_MAX), levels12 = _mm256_set1_pd(QUERY_Q12_MAX);
  int8_t q4[QUERY_FLOATS];
  uint8_t signs[RECORD_SIGNATURE_BYTES];
  memset(query->q12, 0, sizeof query->q12);
  for (uint32_t i = 0; i < QUERY_FLOATS; i += 8) {
    __m256 q = _mm256_loadu_ps((const float *)(const void *)(row + i * sizeof(float)));
    signs[i / 8] = (uint8_t)_mm256_movemask_ps(_mm256_cmp_ps(q, _mm256_setzero_ps(), _CMP_LT_OQ));
    __m256i wide = quantize_avx2(q, divisor4, levels4);
    __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(wide), _mm256_extracti128_si256(wide, 1));
    _mm_storel_epi64((__m128i *)(q4 + i), _mm_packs_epi16(words, words));
    if (i >= head_dim)
      continue;
    wide = quantize_avx2(q, divisor12, levels12);
    words = _mm_packs_epi32(_mm256_castsi256_si128(wide), _mm256_extracti128_si256(wide, 1));
    _mm_storeu_si128((__m128i *)(query->q12 + i), words);
  }
  memcpy(query->sign, signs, sizeof query->sign);
  query_fill(query, q4);
  return true;
}

void query_init_x86(struct lookup_kernels *kernels, unsigned flags) {
  if (flags & CPU_AVX2)
    kernels->prepare = query_prepare_avx2;
}
#endif
