// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// The scan with AVX2, 32 records at a time; scan_avx512.c tells how it works.
#include "retrieval/kernels_x86.h"

#if defined(__x86_64__)
#include <immintrin.h>

enum { GROUP = 32, STREAMS = 4, RUN = GROUP / STREAMS /* neighbouring records of a group */ };

struct group {
  __m256i nibbles[QUERY_NIBBLES]; /* byte 16 l + i of each is of record 2 i + l */
  __m256 scales[STREAMS];
  uint8_t valid[STREAMS]; /* scales */
};

TARGET_AVX2 static inline void interleave(const __m256i in[16], __m256i out[16]) {
  for (int i = 0; i < 8; i++) {
    out[2 * i] = _mm256_unpacklo_epi8(in[i], in[i + 8]);
    out[2 * i + 1] = _mm256_unpackhi_epi8(in[i], in[i + 8]);
  }
}

/* Loads the runs that begin at record 0 of each stream; a stream has `stream` records. */
TARGET_AVX2 static void load_group(const uint8_t *signature, const uint8_t *k_scale, uint32_t stream,
                                   struct group *group) {
  __m256i a[16], b[16];
  for (uint32_t i = 0; i < 16; i++) {
    const uint8_t *at = signature + (size_t)(i / 4 * stream + i % 4 * 2) * RECORD_SIGNATURE_BYTES;
    a[i] = _mm256_loadu_si256((const __m256i *)at);
  }
  interleave(a, b);
  interleave(b, a);
  interleave(a, b);
  interleave(b, a);
  const __m256i low = _mm256_set1_epi8(15);
  for (int i = 0; i < 16; i++) {
    group->nibbles[2 * i] = _mm256_and_si256(a[i], low);
    group->nibbles[2 * i + 1] = _mm256_and_si256(_mm256_srli_epi16(a[i], 4), low);
  }
  for (uint32_t i = 0; i < STREAMS; i++) {
    const uint8_t *at = k_scale + (size_t)(i * stream) * RECORD_K_SCALE_BYTES;
    __m128i scales = _mm_loadu_si128((const __m128i *)at);
    group->scales[i] = _mm256_cvtph_ps(scales);
    __m256i invalid = _mm256_cmpgt_epi32(_mm256_cvtepu16_epi32(scales), _mm256_set1_epi32(0x7bff));
    group->valid[i] = (uint8_t)~_mm256_movemask_ps(_mm256_castsi256_ps(invalid));
  }
}

/* Loads what is left over at the end of a block as a group of one stream; places without a record have no valid
 * scale. */
TARGET_AVX2 static void load_rest(const struct scan_block *block, uint32_t at, struct group *group) {
  uint32_t rest = block->count - at, there = (1u << rest) - 1;
  uint8_t signatures[GROUP * RECORD_SIGNATURE_BYTES] = {0}, scales[GROUP * RECORD_K_SCALE_BYTES] = {0};
  memcpy(signatures, block->signature + (size_t)at * RECORD_SIGNATURE_BYTES, rest * RECORD_SIGNATURE_BYTES);
  memcpy(scales, block->k_scale + (size_t)at * RECORD_K_SCALE_BYTES, rest * RECORD_K_SCALE_BYTES);
  load_group(signatures, scales, RUN, group);
  for (uint32_t i = 0; i < STREAMS; i++)
    group->valid[i] &= (uint8_t)(there >> RUN * i);
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

/* Writes scores and bits of a group whose runs begin with records at, at + stream and so on. */
TARGET_AVX2 static inline void put_scores(const struct query *query, const struct group *group, float threshold,
                                          uint32_t at, uint32_t stream, struct scan_scores *result) {
  __m256i first, second, total = _mm256_set1_epi16((int16_t)query->magnitude_sum);
  __m256 limit = _mm256_set1_ps(threshold);
  opposed_sums(query, group, &first, &second);
  first = _mm256_sub_epi16(total, _mm256_add_epi16(first, first));
  second = _mm256_sub_epi16(total, _mm256_add_epi16(second, second));
  __m128i sums[STREAMS] = {_mm256_castsi256_si128(first), _mm256_extracti128_si256(first, 1),
                                _mm256_castsi256_si128(second), _mm256_extracti128_si256(second, 1)};
  uint8_t *passed = (uint8_t *)result->passed;
  for (uint32_t i = 0; i < STREAMS; i++, at += stream) {
    __m256 scores = _mm256_mul_ps(_mm256_cvtepi32_ps(_mm256_cvtepi16_epi32(sums[i])), group->scales[i]);
    _mm256_storeu_ps(result->scores + at, scores);
    passed[at / 8] = group->valid[i] & (uint8_t)_mm256_movemask_ps(_mm256_cmp_ps(scores, limit, _CMP_GT_OQ));
  }
}

/* The last group may end in the middle of a word of bits. */
static inline void clear_last_word(uint64_t *passed, uint32_t count) {
  if (count % 64)
    passed[count / 64] = 0;
}

TARGET_AVX2 static void scan_weighted_avx2(const struct query *queries, uint32_t rows, const struct scan_block *block,
                                           const float *thresholds, struct scan_scores *results) {
  struct group group;
  uint32_t stream = scan_stream(block, GROUP, RUN), rest = STREAMS * stream;
  for (uint32_t r = 0; r < rows; r++)
    clear_last_word(results[r].passed, block->count);
  for (uint32_t at = 0; at < stream; at += RUN) {
    scan_fetch_signatures(block, at, STREAMS, stream, RUN);
    scan_fetch_scales(block, at, STREAMS, stream);
    load_group(block->signature + (size_t)at * RECORD_SIGNATURE_BYTES,
               block->k_scale + (size_t)at * RECORD_K_SCALE_BYTES, stream, &group);
    for (uint32_t r = 0; r < rows; r++)
      put_scores(&queries[r], &group, thresholds[r], at, stream, &results[r]);
  }
  if (rest == block->count)
    return;
  load_rest(block, rest, &group); /* `scores` has room for a whole group */
  for (uint32_t r = 0; r < rows; r++)
    put_scores(&queries[r], &group, thresholds[r], rest, RUN, &results[r]);
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

/* Distances of 32 records, two in each vector, in order. */
TARGET_AVX2 static inline __m256i distances_of(__m256i sign, const __m256i records[16]) {
  __m256i counts[2] = {_mm256_setzero_si256(), _mm256_setzero_si256()};
  for (unsigned i = 0; i < 16; i++) { /* two records; their counts go to byte i % 8 of their words */
    __m256i bits = count_bits(_mm256_xor_si256(sign, records[i]));
    counts[i / 8] = _mm256_or_si256(counts[i / 8], _mm256_slli_epi64(bits, (int)(8 * (i % 8))));
  }
  __m256i sums = _mm256_add_epi8(_mm256_unpacklo_epi64(counts[0], counts[1]),
                                 _mm256_unpackhi_epi64(counts[0], counts[1]));
  /* byte j of lane l is of record 2 j + l */
  __m128i even = _mm256_castsi256_si128(sums), odd = _mm256_extracti128_si256(sums, 1);
  return _mm256_set_m128i(_mm_unpackhi_epi8(even, odd), _mm_unpacklo_epi8(even, odd));
}

/* Writes distances and bits of a group as put_scores does. */
TARGET_AVX2 static inline void put_distances(__m256i found, uint32_t threshold, uint32_t there, uint32_t at,
                                             uint32_t stream, struct scan_distances *result) {
  /* d < threshold as d <= most, which unsigned bytes can be compared for; nothing passes a threshold of 0 */
  __m256i most = _mm256_set1_epi8((char)(threshold < 256 ? threshold - 1 : 255));
  uint32_t passed = (uint32_t)_mm256_movemask_epi8(_mm256_cmpeq_epi8(_mm256_min_epu8(found, most), found));
  uint64_t runs[STREAMS];
  passed &= threshold ? there : 0;
  _mm256_storeu_si256((__m256i *)runs, found);
  for (uint32_t i = 0; i < STREAMS; i++, at += stream) {
    store_u64(result->distances + at, runs[i]);
    ((uint8_t *)result->passed)[at / 8] = (uint8_t)(passed >> RUN * i);
  }
}

TARGET_AVX2 static void hamming_group(const struct query *queries, uint32_t rows, const uint8_t *signature,
                                      const uint32_t *thresholds, uint32_t there, uint32_t at, uint32_t stream,
                                      struct scan_distances *results) {
  __m256i records[16];
  for (uint32_t i = 0; i < 16; i++) {
    const uint8_t *two = signature + (size_t)(i / 4 * stream + i % 4 * 2) * RECORD_SIGNATURE_BYTES;
    records[i] = _mm256_loadu_si256((const __m256i *)two);
  }
  for (uint32_t r = 0; r < rows; r++) {
    __m256i sign = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)queries[r].sign));
    put_distances(distances_of(sign, records), thresholds[r], there, at, stream, &results[r]);
  }
}

TARGET_AVX2 static void scan_hamming_avx2(const struct query *queries, uint32_t rows, const struct scan_block *block,
                                          const uint32_t *thresholds, struct scan_distances *results) {
  uint32_t stream = scan_stream(block, GROUP, RUN), at = STREAMS * stream, rest = block->count - at;
  for (uint32_t r = 0; r < rows; r++)
    clear_last_word(results[r].passed, block->count);
  for (uint32_t i = 0; i < stream; i += RUN) {
    scan_fetch_signatures(block, i, STREAMS, stream, RUN);
    hamming_group(queries, rows, block->signature + (size_t)i * RECORD_SIGNATURE_BYTES, thresholds, UINT32_MAX, i,
                  stream, results);
  }
  if (rest == 0)
    return;
  uint8_t padded[GROUP * RECORD_SIGNATURE_BYTES] = {0};
  memcpy(padded, block->signature + (size_t)at * RECORD_SIGNATURE_BYTES, rest * RECORD_SIGNATURE_BYTES);
  hamming_group(queries, rows, padded, thresholds, (1u << rest) - 1, at, RUN, results);
}

void scan_init_avx2(struct lookup_kernels *kernels, unsigned flags) {
  if (!(flags & CPU_AVX2))
    return;
  kernels->name = "avx2";
  kernels->weighted = scan_weighted_avx2;
  kernels->hamming = scan_hamming_avx2;
}
#endif
