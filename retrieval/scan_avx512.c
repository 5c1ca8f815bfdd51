// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// The scan with AVX-512 (F, BW, DQ, VL), 64 records at a time.
//
// Weighted: the signatures of 64 records are turned into 32 vectors, one per nibble, with a byte per record; then one
// shuffle looks up in `query.opposed` what that nibble adds for all of them. Turning costs as much as one row, and
// all rows share it. After F. Andre, A.-M. Kermarrec, N. Le Scouarnec, "Cache locality is not enough:
// high-performance nearest neighbor search with product quantization fast scan", VLDB 9 (2015).
#include "retrieval/kernels_x86.h"

#if defined(__x86_64__)
#include <immintrin.h>

enum { GROUP = 64, RUN = GROUP / SCAN_STREAMS /* neighbouring records of a group */ };

/* What all rows share of one group of records. */
struct group {
  __m512i nibbles[QUERY_NIBBLES]; /* byte 16 l + i of each is of record 4 i + l */
  __m512 scales[SCAN_STREAMS];
  __mmask16 valid[SCAN_STREAMS]; /* scales */
};

/* The two halves of a round: in every 16-byte lane, interleaves elements of vectors i and i + 8. Four rounds
 * transpose the 16 x 16 bytes that 16 vectors hold in one lane. */
TARGET_AVX512 static void interleave(const __m512i in[16], __m512i out[16]) {
  for (int i = 0; i < 8; i++) {
    out[2 * i] = _mm512_unpacklo_epi8(in[i], in[i + 8]);
    out[2 * i + 1] = _mm512_unpackhi_epi8(in[i], in[i + 8]);
  }
}

/* Loads the runs that begin at record 0 of each stream; a stream has `stream` records. */
TARGET_AVX512 static inline void load_group(const uint8_t *signature, const uint8_t *k_scale, uint32_t stream,
                                            struct group *group) {
  __m512i a[16], b[16];
  for (uint32_t i = 0; i < 16; i++)
    a[i] = _mm512_loadu_si512(signature + (size_t)(i / 4 * stream + i % 4 * 4) * RECORD_SIGNATURE_BYTES);
  interleave(a, b);
  interleave(b, a);
  interleave(a, b);
  interleave(b, a);
  const __m512i low = _mm512_set1_epi8(15);
  for (int i = 0; i < 16; i++) {
    group->nibbles[2 * i] = _mm512_and_si512(a[i], low);
    group->nibbles[2 * i + 1] = _mm512_and_si512(_mm512_srli_epi16(a[i], 4), low);
  }
  for (uint32_t i = 0; i < SCAN_STREAMS; i++) {
    const uint8_t *at = k_scale + (size_t)(i * stream) * RECORD_K_SCALE_BYTES;
    __m256i scales = _mm256_loadu_si256((const __m256i *)at);
    group->scales[i] = _mm512_cvtph_ps(scales);
    group->valid[i] = _mm256_cmplt_epu16_mask(scales, _mm256_set1_epi16(0x7c00));
  }
}

/* Loads what is left over at the end of a block as a group of one stream; places without a record have no valid
 * scale. */
TARGET_AVX512 static inline void load_rest(const struct scan_block *block, uint32_t at, struct group *group) {
  uint32_t rest = block->count - at;
  uint8_t signatures[GROUP * RECORD_SIGNATURE_BYTES] = {0}, scales[GROUP * RECORD_K_SCALE_BYTES] = {0};
  memcpy(signatures, block->signature + (size_t)at * RECORD_SIGNATURE_BYTES, rest * RECORD_SIGNATURE_BYTES);
  memcpy(scales, block->k_scale + (size_t)at * RECORD_K_SCALE_BYTES, rest * RECORD_K_SCALE_BYTES);
  load_group(signatures, scales, RUN, group);
  uint64_t there = (UINT64_C(1) << rest) - 1;
  for (uint32_t i = 0; i < SCAN_STREAMS; i++)
    group->valid[i] &= (__mmask16)(there >> RUN * i);
}

/* Sums of what opposes the query, 16 bits each, records 0-31 and 32-63. */
TARGET_AVX512 static inline void opposed_sums(const struct query *query, const struct group *group, __m512i *first,
                                              __m512i *second) {
  __m512i all = _mm512_setzero_si512(), odd = all;
  for (int j = 0; j < QUERY_NIBBLES; j += 8) {
    __m512i sum = _mm512_setzero_si512(); /* at most 8 x 28 */
    for (int i = j; i < j + 8; i++) {
      __m512i table = _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)query->opposed[i]));
      sum = _mm512_add_epi8(sum, _mm512_shuffle_epi8(table, group->nibbles[i]));
    }
    all = _mm512_add_epi16(all, sum); /* even bytes, and 256 times the odd ones on top */
    odd = _mm512_add_epi16(odd, _mm512_srli_epi16(sum, 8));
  }
  __m512i even = _mm512_sub_epi16(all, _mm512_slli_epi16(odd, 8));
  /* word 8 l + e of `even` is of record 8 e + l, of `odd` of record 8 e + 4 + l: collect four records in a row */
  const __m512i order = _mm512_set_epi16(31, 23, 15, 7, 27, 19, 11, 3, 30, 22, 14, 6, 26, 18, 10, 2, 29, 21, 13, 5, 25,
                                         17, 9, 1, 28, 20, 12, 4, 24, 16, 8, 0);
  even = _mm512_permutexvar_epi16(order, even);
  odd = _mm512_permutexvar_epi16(order, odd);
  *first = _mm512_unpacklo_epi64(even, odd);
  *second = _mm512_unpackhi_epi64(even, odd);
}

/* Scores of the four runs of a group. */
TARGET_AVX512 static inline void score_group(const struct query *query, const struct group *group,
                                             __m512 scores[SCAN_STREAMS]) {
  __m512i first, second, total = _mm512_set1_epi16((int16_t)query->magnitude_sum);
  opposed_sums(query, group, &first, &second);
  first = _mm512_sub_epi16(total, _mm512_add_epi16(first, first));
  second = _mm512_sub_epi16(total, _mm512_add_epi16(second, second));
  __m256i sums[SCAN_STREAMS] = {_mm512_castsi512_si256(first), _mm512_extracti64x4_epi64(first, 1),
                                _mm512_castsi512_si256(second), _mm512_extracti64x4_epi64(second, 1)};
  for (int i = 0; i < SCAN_STREAMS; i++)
    scores[i] = _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_cvtepi16_epi32(sums[i])), group->scales[i]);
}

/* Writes scores and bits of a group whose runs begin with records at, at + stream and so on. */
TARGET_AVX512 static inline void put_scores(const struct query *query, const struct group *group, float threshold,
                                            uint32_t at, uint32_t stream, struct scan_scores *result) {
  __m512 limit = _mm512_set1_ps(threshold), scores[SCAN_STREAMS];
  score_group(query, group, scores);
  for (uint32_t i = 0; i < SCAN_STREAMS; i++, at += stream) {
    _mm512_storeu_ps(result->scores + at, scores[i]);
    store_u16((uint8_t *)result->passed + at / 8,
              _mm512_mask_cmp_ps_mask(group->valid[i], scores[i], limit, _CMP_GT_OQ));
  }
}

TARGET_AVX512 static void scan_weighted_avx512(const struct query *queries, uint32_t rows,
                                               const struct scan_block *block, const float *thresholds,
                                               struct scan_scores *results) {
  struct group group;
  uint32_t stream = scan_stream(block, GROUP), rest = SCAN_STREAMS * stream;
  for (uint32_t at = 0; at < stream; at += RUN) {
    scan_fetch(block, at, stream, GROUP);
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

/* Writes the keys of the scores in `mask` to keys[0 ..], and over up to SELECT_SLACK more; returns where they end.
 * There is no branch in it: few records pass, in places that nothing predicts. */
TARGET_AVX512 static inline uint64_t *put_keys(uint64_t *keys, __m512 scores, __mmask16 mask, uint32_t ordinal) {
  const __m512i low = _mm512_set_epi32(23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  const __m512i high = _mm512_set_epi32(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8);
  const __m512i steps = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
  /* select_rank: minus zero becomes zero, then all bits but the sign are inverted where that is not set */
  __m512i bits = _mm512_castps_si512(_mm512_add_ps(scores, _mm512_setzero_ps()));
  __m512i ranks = _mm512_xor_si512(
      bits, _mm512_andnot_si512(_mm512_srai_epi32(bits, 31), _mm512_set1_epi32(INT32_MAX)));
  __m512i ordinals = _mm512_add_epi32(steps, _mm512_set1_epi32((int32_t)ordinal));
  ranks = _mm512_maskz_compress_epi32(mask, ranks);
  ordinals = _mm512_maskz_compress_epi32(mask, ordinals);
  _mm512_storeu_si512(keys, _mm512_permutex2var_epi32(ordinals, low, ranks));
  _mm512_storeu_si512(keys + 8, _mm512_permutex2var_epi32(ordinals, high, ranks));
  return keys + _mm_popcnt_u32(mask);
}

/* Puts what passes of a group whose runs begin with ordinals at, at + stream and so on. */
TARGET_AVX512 static inline void take_group(const struct query *query, const struct group *group, uint32_t at,
                                            uint32_t stream, struct select *select) {
  __m512 limit = _mm512_set1_ps(select_limit(select->threshold)), scores[SCAN_STREAMS];
  score_group(query, group, scores);
  uint64_t *keys = select->keys + select->count;
  for (uint32_t i = 0; i < SCAN_STREAMS; i++) {
    __mmask16 passed = _mm512_mask_cmp_ps_mask(group->valid[i], scores[i], limit, _CMP_GT_OQ);
    keys = put_keys(keys, scores[i], passed, at + i * stream);
  }
  select->count = (uint32_t)(keys - select->keys);
}

TARGET_AVX512 static void scan_take_avx512(const struct query *queries, uint32_t rows, const struct scan_block *block,
                                           struct select *selects) {
  struct group group;
  uint32_t stream = scan_stream(block, GROUP), rest = SCAN_STREAMS * stream;
  for (uint32_t at = 0; at < stream; at += RUN) {
    scan_fetch(block, at, stream, GROUP);
    load_group(block->signature + (size_t)at * RECORD_SIGNATURE_BYTES,
               block->k_scale + (size_t)at * RECORD_K_SCALE_BYTES, stream, &group);
    for (uint32_t r = 0; r < rows; r++)
      take_group(&queries[r], &group, block->ordinal + at, stream, &selects[r]);
  }
  if (rest == block->count)
    return;
  load_rest(block, rest, &group);
  for (uint32_t r = 0; r < rows; r++)
    take_group(&queries[r], &group, block->ordinal + rest, RUN, &selects[r]);
}

/* --- Hamming distances ------------------------------------------------------------------------------------------- */

/* Bits per 64-bit word, by table where the processor cannot count them. */
TARGET_AVX512 static inline __m512i count_bits_avx512(__m512i x) {
  const __m512i table = _mm512_broadcast_i32x4(_mm_set_epi8(4, 3, 3, 2, 3, 2, 2, 1, 3, 2, 2, 1, 2, 1, 1, 0));
  const __m512i low = _mm512_set1_epi8(15);
  __m512i bytes = _mm512_add_epi8(_mm512_shuffle_epi8(table, _mm512_and_si512(x, low)),
                                  _mm512_shuffle_epi8(table, _mm512_and_si512(_mm512_srli_epi16(x, 4), low)));
  return _mm512_sad_epu8(bytes, _mm512_setzero_si512());
}

TARGET_AVX512_VPOPCNT static inline __m512i count_bits_vpopcnt(__m512i x) { return _mm512_popcnt_epi64(x); }

/* From counts[0] and counts[1], whose byte b of each word belongs to vector 8 h + b of the group: adds the two words
 * of each record and puts 64 distances in order. */
TARGET_AVX512 static inline __m512i order_distances(__m512i low, __m512i high) {
  __m512i sums = _mm512_add_epi8(_mm512_unpacklo_epi64(low, high), _mm512_unpackhi_epi64(low, high));
  /* byte j of lane l is of record 4 j + l */
  const __m512i words = _mm512_set_epi32(15, 11, 7, 3, 14, 10, 6, 2, 13, 9, 5, 1, 12, 8, 4, 0);
  const __m512i bytes =
      _mm512_broadcast_i32x4(_mm_set_epi8(15, 11, 7, 3, 14, 10, 6, 2, 13, 9, 5, 1, 12, 8, 4, 0));
  return _mm512_shuffle_epi8(_mm512_permutexvar_epi32(words, sums), bytes);
}

/* Writes distances and bits of a group as put_scores does. */
TARGET_AVX512 static inline void put_distances(__m512i found, uint32_t threshold, uint64_t there, uint32_t at,
                                               uint32_t stream, struct scan_distances *result) {
  __m512i limit = _mm512_set1_epi8((char)(threshold < 255 ? threshold : 255));
  uint64_t passed = _mm512_cmplt_epu8_mask(found, limit) & there;
  __m128i runs[SCAN_STREAMS] = {_mm512_castsi512_si128(found), _mm512_extracti32x4_epi32(found, 1),
                                _mm512_extracti32x4_epi32(found, 2), _mm512_extracti32x4_epi32(found, 3)};
  for (uint32_t i = 0; i < SCAN_STREAMS; i++, at += stream) {
    _mm_storeu_si128((__m128i *)(result->distances + at), runs[i]);
    store_u16((uint8_t *)result->passed + at / 8, (uint16_t)(passed >> RUN * i));
  }
}

/* One body for both ways to count bits; NAME and TARGET make functions of each. */
#define DEFINE_SCAN_HAMMING(NAME, TARGET, COUNT_BITS)                                                                  \
  TARGET static inline void NAME##_group(const struct query *queries, uint32_t rows, const uint8_t *signature,         \
                                         const uint32_t *thresholds, uint64_t there, uint32_t at, uint32_t stream,     \
                                         struct scan_distances *results) {                                             \
    __m512i records[16];                                                                                               \
    for (uint32_t i = 0; i < 16; i++)                                                                                  \
      records[i] = _mm512_loadu_si512(signature + (size_t)(i / 4 * stream + i % 4 * 4) * RECORD_SIGNATURE_BYTES);      \
    for (uint32_t r = 0; r < rows; r++) {                                                                              \
      __m512i sign = _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)queries[r].sign));                        \
      __m512i counts[2] = {_mm512_setzero_si512(), _mm512_setzero_si512()};                                            \
      for (unsigned i = 0; i < 16; i++) {                                                                              \
        __m512i bits = COUNT_BITS(_mm512_xor_si512(sign, records[i]));                                                 \
        counts[i / 8] = _mm512_or_si512(counts[i / 8], _mm512_slli_epi64(bits, 8 * (i % 8)));                          \
      }                                                                                                                \
      put_distances(order_distances(counts[0], counts[1]), thresholds[r], there, at, stream, &results[r]);             \
    }                                                                                                                  \
  }                                                                                                                    \
                                                                                                                       \
  TARGET static void NAME(const struct query *queries, uint32_t rows, const struct scan_block *block,                  \
                          const uint32_t *thresholds, struct scan_distances *results) {                                \
    uint32_t stream = scan_stream(block, GROUP), at = SCAN_STREAMS * stream, rest = block->count - at;                 \
    for (uint32_t i = 0; i < stream; i += RUN) {                                                                       \
      scan_fetch(block, i, stream, GROUP);                                                                             \
      NAME##_group(queries, rows, block->signature + (size_t)i * RECORD_SIGNATURE_BYTES, thresholds, UINT64_MAX, i,    \
                   stream, results);                                                                                   \
    }                                                                                                                  \
    if (rest == 0)                                                                                                     \
      return;                                                                                                          \
    uint8_t padded[GROUP * RECORD_SIGNATURE_BYTES] = {0};                                                              \
    memcpy(padded, block->signature + (size_t)at * RECORD_SIGNATURE_BYTES, rest * RECORD_SIGNATURE_BYTES);             \
    NAME##_group(queries, rows, padded, thresholds, (UINT64_C(1) << rest) - 1, at, RUN, results);                      \
  }

DEFINE_SCAN_HAMMING(scan_hamming_avx512, TARGET_AVX512, count_bits_avx512)
DEFINE_SCAN_HAMMING(scan_hamming_vpopcnt, TARGET_AVX512_VPOPCNT, count_bits_vpopcnt)

void scan_init_avx512(struct lookup_kernels *kernels, unsigned flags) {
  if (!(flags & CPU_AVX512))
    return;
  kernels->name = "avx512";
  kernels->weighted = scan_weighted_avx512;
  kernels->hamming = scan_hamming_avx512;
  kernels->take = scan_take_avx512;
  if (flags & CPU_AVX512_VPOPCNT) {
    kernels->name = "avx512_vpopcnt";
    kernels->hamming = scan_hamming_vpopcnt;
  }
}
#endif
