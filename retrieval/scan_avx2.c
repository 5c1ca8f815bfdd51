// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// The scan with AVX2, 32 records at a time; scan_avx512.c tells how it works.
#include "retrieval/kernels_x86.h"

#if defined(__x86_64__)
#include <immintrin.h>

enum { GROUP = 32 };

struct group {
  __m256i nibbles[QUERY_NIBBLES]; /* byte 16 l + i of each is of record 2 i + l */
  __m256 scales[4];
  uint32_t valid; /* scales */
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
  group->valid = 0;
  for (int i = 0; i < 4; i++) {
    __m128i scales = _mm_loadu_si128((const __m128i *)(k_scale + 16 * i));
    group->scales[i] = _mm256_cvtph_ps(scales);
    __m256i invalid = _mm256_cmpgt_epi32(_mm256_cvtepu16_epi32(scales), _mm256_set1_epi32(0x7bff));
    group->valid |= (~(uint32_t)_mm256_movemask_ps(_mm256_castsi256_ps(invalid)) & 0xff) << 8 * i;
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

/* Scores 8 records; returns which pass. */
TARGET_AVX2 static inline uint32_t put_scores(__m128i sums, __m256 scales, __m256 limit, float *scores) {
  __m256 products = _mm256_mul_ps(_mm256_cvtepi32_ps(_mm256_cvtepi16_epi32(sums)), scales);
  _mm256_storeu_ps(scores, products);
  return (uint32_t)_mm256_movemask_ps(_mm256_cmp_ps(products, limit, _CMP_GT_OQ));
}

/* Scores 32 records; returns which pass. */
TARGET_AVX2 static inline uint32_t score_group(const struct query *query, const struct group *group, float threshold,
                                               float *scores) {
  __m256i first, second, total = _mm256_set1_epi16((int16_t)query->magnitude_sum);
  __m256 limit = _mm256_set1_ps(threshold);
  opposed_sums(query, group, &first, &second);
  first = _mm256_sub_epi16(total, _mm256_add_epi16(first, first));
  second = _mm256_sub_epi16(total, _mm256_add_epi16(second, second));
  uint32_t passed = put_scores(_mm256_castsi256_si128(first), group->scales[0], limit, scores);
  passed |= put_scores(_mm256_extracti128_si256(first, 1), group->scales[1], limit, scores + 8) << 8;
  passed |= put_scores(_mm256_castsi256_si128(second), group->scales[2], limit, scores + 16) << 16;
  passed |= put_scores(_mm256_extracti128_si256(second, 1), group->scales[3], limit, scores + 24) << 24;
  return passed & group->valid;
}

/* Sets the bits of records at .. at + 31. */
static inline void put_passed(uint64_t *passed, uint32_t at, uint32_t bits) {
  passed[at / 64] = at % 64 ? passed[at / 64] | (uint64_t)bits << 32 : bits;
}

TARGET_AVX2 static void scan_weighted_avx2(const struct query *queries, uint32_t rows, const uint8_t *signature,
                                           const uint8_t *k_scale, uint32_t count, const float *thresholds,
                                           struct scan_scores *results) {
  struct group group;
  for (uint32_t at = 0; at < count; at += GROUP) {
    const uint8_t *signatures = signature + (size_t)at * RECORD_SIGNATURE_BYTES;
    const uint8_t *scales = k_scale + (size_t)at * RECORD_K_SCALE_BYTES;
    scan_prefetch(signatures, SCAN_AHEAD, GROUP * RECORD_SIGNATURE_BYTES);
    scan_prefetch(scales, SCAN_AHEAD / 4, GROUP * RECORD_K_SCALE_BYTES);
    if (count - at >= GROUP) {
      load_group(signatures, scales, &group);
    } else { /* `scores` has room for a whole group, the columns have not */
      uint8_t padded[GROUP * RECORD_SIGNATURE_BYTES] = {0}, padded_scales[GROUP * RECORD_K_SCALE_BYTES] = {0};
      memcpy(padded, signatures, (count - at) * RECORD_SIGNATURE_BYTES);
      memcpy(padded_scales, scales, (count - at) * RECORD_K_SCALE_BYTES);
      load_group(padded, padded_scales, &group);
      group.valid &= (1u << (count - at)) - 1;
    }
    for (uint32_t r = 0; r < rows; r++)
      put_passed(results[r].passed, at, score_group(&queries[r], &group, thresholds[r], results[r].scores + at));
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
  __m256i sums = _mm256_add_epi8(_mm256_unpacklo_epi64(counts[0], counts[1]),
                                 _mm256_unpackhi_epi64(counts[0], counts[1]));
  /* byte j of lane l is of record 2 j + l */
  __m128i even = _mm256_castsi256_si128(sums), odd = _mm256_extracti128_si256(sums, 1);
  return _mm256_set_m128i(_mm_unpackhi_epi8(even, odd), _mm_unpacklo_epi8(even, odd));
}

TARGET_AVX2 static void scan_hamming_avx2(const struct query *queries, uint32_t rows, const uint8_t *signature,
                                          uint32_t count, const uint32_t *thresholds, struct scan_distances *results) {
  for (uint32_t r = 0; r < rows; r++) {
    __m256i sign = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)queries[r].sign));
    /* d < threshold as d <= most, which unsigned bytes can be compared for; nothing passes a threshold of 0 */
    uint32_t all = thresholds[r] ? UINT32_MAX : 0;
    __m256i most = _mm256_set1_epi8((char)(thresholds[r] < 256 ? thresholds[r] - 1 : 255));
    for (uint32_t at = 0; at < count; at += GROUP) {
      const uint8_t *signatures = signature + (size_t)at * RECORD_SIGNATURE_BYTES;
      uint8_t padded[GROUP * RECORD_SIGNATURE_BYTES];
      uint32_t wanted = all;
      scan_prefetch(signatures, SCAN_AHEAD, GROUP * RECORD_SIGNATURE_BYTES);
      if (count - at < GROUP) {
        memset(padded, 0, sizeof padded);
        memcpy(padded, signatures, (count - at) * RECORD_SIGNATURE_BYTES);
        signatures = padded;
        wanted &= (1u << (count - at)) - 1;
      }
      __m256i found = distances_of(sign, signatures);
      _mm256_storeu_si256((__m256i *)(results[r].distances + at), found);
      __m256i passed = _mm256_cmpeq_epi8(_mm256_min_epu8(found, most), found);
      put_passed(results[r].passed, at, (uint32_t)_mm256_movemask_epi8(passed) & wanted);
    }
  }
}

void scan_init_avx2(struct lookup_kernels *kernels, unsigned flags) {
  if (!(flags & CPU_AVX2))
    return;
  kernels->name = "avx2";
  kernels->weighted = scan_weighted_avx2;
  kernels->hamming = scan_hamming_avx2;
}
#endif
