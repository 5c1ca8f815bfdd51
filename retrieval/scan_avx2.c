// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// The scan with AVX2, 32 records at a time; scan_avx512.c tells how it works.
#include "retrieval/kernels_x86.h"

#if defined(__x86_64__)
#include <immintrin.h>
#include <math.h>

enum { GROUP = 32 };

struct group {
  __m256i nibbles[QUERY_NIBBLES]; /* byte 16 l + i of each is of record 2 i + l */
  __m256 scales[4];
  __m256 invalid[4]; /* all ones where the scale is none, else 0 */
};

TARGET_AVX2 static inline void interleave(const __m256i in[16], __m256i out[16]) {
  for (int i = 0; i < 8; i++) {
    out[2 * i] = _mm256_unpacklo_epi8(in[i], in[i + 8]);
    out[2 * i + 1] = _mm256_unpackhi_epi8(in[i], in[i + 8]);
  }
}

TARGET_AVX2 static void load_group(const uint8_t *signature, const uint8_t *k_scale, struct group *group) {
  __m256i a[16], b[16];
  for (int i = 0; i < 16; i++)
    a[i] = _mm256_loadu_si256((const __m256i *)(signature + 32 * i));
  interleave(a, b);
  interleave(b, a);
  interleave(a, b);
  interleave(b, a);
  const __m256i low = _mm256_set1_epi8(15);
  for (int i = 0; i < 16; i++) {
    group->nibbles[2 * i] = _mm256_and_si256(a[i], low);
    group->nibbles[2 * i + 1] = _mm256_and_si256(_mm256_srli_epi16(a[i], 4), low);
  }
  for (int i = 0; i < 4; i++) {
    __m128i scales = _mm_loadu_si128((const __m128i *)(k_scale + 16 * i));
    group->scales[i] = _mm256_cvtph_ps(scales);
    __m256i wide = _mm256_cvtepu16_epi32(scales);
    group->invalid[i] = _mm256_castsi256_ps(_mm256_cmpgt_epi32(wide, _mm256_set1_epi32(0x7bff)));
  }
}

/* Sums of what opposes the query, 16 bits each, records 0-15 and 16-31. */
TARGET_AVX2 static inline void opposed_sums(const struct query *query, const struct group *group, __m256i *first,
                                            __m256i *second) {
  __m256i all = _mm256_setzero_si256(), odd = all;
  for (int j = 0; j < QUERY_NIBBLES; j += 8) {
    __m256i sum = _mm256_setzero_si256(); /* at most 8 x 28 */
    for (int i = j; i < j + 8; i++) {
      __m256i table = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)query->opposed[i]));
      sum = _mm256_add_epi8(sum, _mm256_shuffle_epi8(table, group->nibbles[i]));
    }
    all = _mm256_add_epi16(all, sum); /* even bytes, and 256 times the odd ones on top */
    odd = _mm256_add_epi16(odd, _mm256_srli_epi16(sum, 8));
  }
  __m256i even = _mm256_sub_epi16(all, _mm256_slli_epi16(odd, 8));
  /* word e of lane l of `even` is of record 4 e + l, of `odd` of record 4 e + 2 + l */
  __m256i low = _mm256_unpacklo_epi16(even, odd), high = _mm256_unpackhi_epi16(even, odd);
  /* word w of lane l of `low` is now of record 2 w + l, of `high` of record 16 + 2 w + l */
  const __m256i merge = _mm256_setr_epi8(0, 1, 8, 9, 2, 3, 10, 11, 4, 5, 12, 13, 6, 7, 14, 15, 0, 1, 8, 9, 2, 3, 10, 11,
                                         4, 5, 12, 13, 6, 7, 14, 15);
  *first = _mm256_shuffle_epi8(_mm256_permute4x64_epi64(low, 0xd8), merge);
  *second = _mm256_shuffle_epi8(_mm256_permute4x64_epi64(high, 0xd8), merge);
}

TARGET_AVX2 static inline void put_scores(__m128i sums, const struct group *group, int i, float *scores) {
  __m256 products = _mm256_mul_ps(_mm256_cvtepi32_ps(_mm256_cvtepi16_epi32(sums)), group->scales[i]);
  _mm256_storeu_ps(scores + 8 * i, _mm256_blendv_ps(products, _mm256_set1_ps(-INFINITY), group->invalid[i]));
}

TARGET_AVX2 static inline void score_group(const struct query *query, const struct group *group, float *scores) {
  __m256i first, second, total = _mm256_set1_epi16((int16_t)query->magnitude_sum);
  opposed_sums(query, group, &first, &second);
  first = _mm256_sub_epi16(total, _mm256_add_epi16(first, first));
  second = _mm256_sub_epi16(total, _mm256_add_epi16(second, second));
  put_scores(_mm256_castsi256_si128(first), group, 0, scores);
  put_scores(_mm256_extracti128_si256(first, 1), group, 1, scores);
  put_scores(_mm256_castsi256_si128(second), group, 2, scores);
  put_scores(_mm256_extracti128_si256(second, 1), group, 3, scores);
}

TARGET_AVX2 static void scan_weighted_avx2(const struct query *queries, uint32_t rows, const uint8_t *signature,
                                           const uint8_t *k_scale, uint32_t count, float *scores) {
  struct group group;
  uint32_t at = 0;
  for (; at + GROUP <= count; at += GROUP) {
    const uint8_t *signatures = signature + (size_t)at * RECORD_SIGNATURE_BYTES;
    const uint8_t *scales = k_scale + (size_t)at * RECORD_K_SCALE_BYTES;
    scan_prefetch(signatures, SCAN_AHEAD, GROUP * RECORD_SIGNATURE_BYTES);
    scan_prefetch(scales, SCAN_AHEAD / 4, GROUP * RECORD_K_SCALE_BYTES);
    load_group(signatures, scales, &group);
    for (uint32_t r = 0; r < rows; r++)
      score_group(&queries[r], &group, scores + r * SCAN_BLOCK + at);
  }
  if (at == count)
    return;
  uint32_t rest = count - at;
  uint8_t signatures[GROUP * RECORD_SIGNATURE_BYTES] = {0}, scales[GROUP * RECORD_K_SCALE_BYTES] = {0};
  memcpy(signatures, signature + (size_t)at * RECORD_SIGNATURE_BYTES, rest * RECORD_SIGNATURE_BYTES);
  memcpy(scales, k_scale + (size_t)at * RECORD_K_SCALE_BYTES, rest * RECORD_K_SCALE_BYTES);
  load_group(signatures, scales, &group);
  for (uint32_t r = 0; r < rows; r++) {
    float padded[GROUP];
    score_group(&queries[r], &group, padded);
    memcpy(scores + r * SCAN_BLOCK + at, padded, rest * sizeof *scores);
  }
}

/* --- Hamming distances ------------------------------------------------------------------------------------------- */

/* Bits per 64-bit word. Source: W. Mula, N. Kurz, D. Lemire, "Faster population counts using AVX2 instructions",
 * Computer Journal 61 (2018), section 3. */
TARGET_AVX2 static inline __m256i count_bits(__m256i x) {
  const __m256i table =
      _mm256_broadcastsi128_si256(_mm_set_epi8(4, 3, 3, 2, 3, 2, 2, 1, 3, 2, 2, 1, 2, 1, 1, 0));
  const __m256i low = _mm256_set1_epi8(15);
  __m256i bytes = _mm256_add_epi8(_mm256_shuffle_epi8(table, _mm256_and_si256(x, low)),
                                  _mm256_shuffle_epi8(table, _mm256_and_si256(_mm256_srli_epi16(x, 4), low)));
  return _mm256_sad_epu8(bytes, _mm256_setzero_si256());
}

/* Distances of 32 records, in order. */
TARGET_AVX2 static inline __m256i distances_of(__m256i sign, const uint8_t *signature) {
  __m256i counts[2] = {_mm256_setzero_si256(), _mm256_setzero_si256()};
  for (unsigned i = 0; i < 16; i++) { /* two records; their counts go to byte i % 8 of their words */
    __m256i both = _mm256_loadu_si256((const __m256i *)(signature + 32 * i));
    __m256i bits = count_bits(_mm256_xor_si256(sign, both));
    counts[i / 8] = _mm256_or_si256(counts[i / 8], _mm256_slli_epi64(bits, (int)(8 * (i % 8))));
  }
  __m256i sums = _mm256_add_epi8(_mm256_unpacklo_epi64(counts[0], counts[1]), _mm256_unpackhi_epi64(counts[0], counts[1]));
  /* byte j of lane l is of record 2 j + l */
  __m128i even = _mm256_castsi256_si128(sums), odd = _mm256_extracti128_si256(sums, 1);
  return _mm256_set_m128i(_mm_unpackhi_epi8(even, odd), _mm_unpacklo_epi8(even, odd));
}

TARGET_AVX2 static void scan_hamming_avx2(const struct query *queries, uint32_t rows, const uint8_t *signature,
                                          uint32_t count, uint8_t *distances) {
  for (uint32_t r = 0; r < rows; r++, distances += SCAN_BLOCK) {
    __m256i sign = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)queries[r].sign));
    uint32_t at = 0;
    for (; at + GROUP <= count; at += GROUP) {
      const uint8_t *signatures = signature + (size_t)at * RECORD_SIGNATURE_BYTES;
      scan_prefetch(signatures, SCAN_AHEAD, GROUP * RECORD_SIGNATURE_BYTES);
      _mm256_storeu_si256((__m256i *)(distances + at), distances_of(sign, signatures));
    }
    if (at == count)
      continue;
    uint8_t padded[GROUP * RECORD_SIGNATURE_BYTES] = {0}, found[GROUP];
    memcpy(padded, signature + (size_t)at * RECORD_SIGNATURE_BYTES, (count - at) * RECORD_SIGNATURE_BYTES);
    _mm256_storeu_si256((__m256i *)found, distances_of(sign, padded));
    memcpy(distances + at, found, count - at);
  }
}

/* --- what passes the threshold ----------------------------------------------------------------------------------- */

/* Writes the places of the bits of `mask`; returns how many there are now. */
TARGET_AVX2 static inline uint32_t put_places(uint32_t mask, uint32_t at, uint32_t *found, uint32_t n) {
  for (; mask; mask &= mask - 1)
    found[n++] = at + (uint32_t)__builtin_ctz(mask);
  return n;
}

TARGET_AVX2 static uint32_t scan_above_avx2(const float *scores, uint32_t count, float threshold, uint32_t *found) {
  const __m256 limit = _mm256_set1_ps(threshold);
  uint32_t n = 0, at = 0;
  for (; at + 8 <= count; at += 8) {
    __m256 above = _mm256_cmp_ps(_mm256_loadu_ps(scores + at), limit, _CMP_GT_OQ);
    n = put_places((uint32_t)_mm256_movemask_ps(above), at, found, n);
  }
  for (; at < count; at++)
    n = put_places(scores[at] > threshold, at, found, n);
  return n;
}

TARGET_AVX2 static uint32_t scan_below_avx2(const uint8_t *distances, uint32_t count, uint32_t threshold,
                                            uint32_t *found) {
  if (threshold == 0)
    return 0;
  const __m256i limit = _mm256_set1_epi8((char)(threshold < 256 ? threshold - 1 : 255)); /* d <= limit */
  uint32_t n = 0, at = 0;
  for (; at + 32 <= count; at += 32) {
    __m256i d = _mm256_loadu_si256((const __m256i *)(distances + at));
    __m256i below = _mm256_cmpeq_epi8(_mm256_min_epu8(d, limit), d);
    n = put_places((uint32_t)_mm256_movemask_epi8(below), at, found, n);
  }
  for (; at < count; at++)
    n = put_places(distances[at] < threshold, at, found, n);
  return n;
}

void scan_init_avx2(struct lookup_kernels *kernels, unsigned flags) {
  if (!(flags & CPU_AVX2))
    return;
  kernels->name = "avx2";
  kernels->weighted = scan_weighted_avx2;
  kernels->hamming = scan_hamming_avx2;
  kernels->above = scan_above_avx2;
  kernels->below = scan_below_avx2;
}
#endif
