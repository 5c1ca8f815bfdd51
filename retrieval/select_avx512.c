// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// What selection does with many keys, eight at a time.
#include "retrieval/kernels_x86.h"

#if defined(__x86_64__)
#include <immintrin.h>

enum { KEYS = 8 };

static inline __mmask8 first_keys(uint32_t count) { return (__mmask8)((1u << count) - 1); }

/* Whole vectors are written, also past what was taken: no further than what was read. */
TARGET_AVX512 static uint32_t take_avx512(const uint64_t *keys, uint32_t count, uint64_t low, uint64_t span,
                                          uint64_t *out) {
  const __m512i lows = _mm512_set1_epi64((int64_t)low), spans = _mm512_set1_epi64((int64_t)span);
  uint32_t n = 0, i = 0;
  for (; i + KEYS <= count; i += KEYS) {
    __m512i these = _mm512_loadu_si512(keys + i);
    __mmask8 taken = _mm512_cmple_epu64_mask(_mm512_sub_epi64(these, lows), spans);
    _mm512_storeu_si512(out + n, _mm512_maskz_compress_epi64(taken, these));
    n += (uint32_t)_mm_popcnt_u32(taken);
  }
  __mmask8 rest = first_keys(count - i);
  __m512i these = _mm512_maskz_loadu_epi64(rest, keys + i);
  __mmask8 taken = _mm512_mask_cmple_epu64_mask(rest, _mm512_sub_epi64(these, lows), spans);
  uint32_t more = (uint32_t)_mm_popcnt_u32(taken);
  _mm512_mask_storeu_epi64(out + n, first_keys(more), _mm512_maskz_compress_epi64(taken, these));
  return n + more;
}

TARGET_AVX512 static uint32_t count_avx512(const uint64_t *keys, uint32_t count, uint64_t end) {
  const __m512i ends = _mm512_set1_epi64((int64_t)end);
  uint32_t below = 0, i = 0;
  for (; i + KEYS <= count; i += KEYS)
    below += (uint32_t)_mm_popcnt_u32(_mm512_cmplt_epu64_mask(_mm512_loadu_si512(keys + i), ends));
  __mmask8 rest = first_keys(count - i);
  __m512i these = _mm512_maskz_loadu_epi64(rest, keys + i);
  return below + (uint32_t)_mm_popcnt_u32(_mm512_mask_cmplt_epu64_mask(rest, these, ends));
}

TARGET_AVX512 static void range_avx512(const uint64_t *keys, uint32_t count, uint64_t *low, uint64_t *high) {
  __m512i lows = _mm512_set1_epi64(-1), highs = _mm512_setzero_si512();
  uint32_t i = 0;
  for (; i + KEYS <= count; i += KEYS) {
    __m512i these = _mm512_loadu_si512(keys + i);
    lows = _mm512_min_epu64(lows, these);
    highs = _mm512_max_epu64(highs, these);
  }
  __mmask8 rest = first_keys(count - i);
  __m512i these = _mm512_maskz_loadu_epi64(rest, keys + i);
  *low = _mm512_reduce_min_epu64(_mm512_mask_min_epu64(lows, rest, lows, these));
  *high = _mm512_reduce_max_epu64(_mm512_max_epu64(highs, these));
}

void select_init_avx512(struct lookup_kernels *kernels, unsigned flags) {
  if (!(flags & CPU_AVX512))
    return;
  kernels->take_keys = take_avx512;
  kernels->count_keys = count_avx512;
  kernels->range_keys = range_avx512;
}
#endif
