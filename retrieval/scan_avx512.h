// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// What both AVX-512 scans share: how groups of 64 records lie in a block, and what becomes of their sums and distances.
#ifndef COLDKV_RETRIEVAL_SCAN_AVX512_H
#define COLDKV_RETRIEVAL_SCAN_AVX512_H

#include "retrieval/kernels_x86.h"

#if defined(__x86_64__)
#include <immintrin.h>

enum {
  GROUP = 64,
  STREAMS = 8,
  RUN = GROUP / STREAMS, /* neighbouring records of a group */
  PAIRS = STREAMS / 2,   /* runs of two streams have 16 scores, which fill a vector */
};

/* Signatures and scales where the runs of a group begin: `stream` records apart. */
struct group_place {
  const uint8_t *signature, *k_scale;
  uint32_t stream;
};

/* What is left over at the end of a block, as a group of one stream. */
struct group_rest {
  uint8_t signature[GROUP * RECORD_SIGNATURE_BYTES], k_scale[GROUP * RECORD_K_SCALE_BYTES];
};

static inline struct group_place group_at(const struct scan_block *block, uint32_t at, uint32_t stream) {
  return (struct group_place){block->signature + (size_t)at * RECORD_SIGNATURE_BYTES,
                              block->k_scale + (size_t)at * RECORD_K_SCALE_BYTES, stream};
}

/* Places without a record get a scale that is not valid. */
static inline struct group_place group_rest(const struct scan_block *block, uint32_t at, struct group_rest *rest) {
  uint32_t count = block->count - at;
  memset(rest->signature, 0, sizeof rest->signature);
  memset(rest->k_scale, 0xff, sizeof rest->k_scale);
  memcpy(rest->signature, block->signature + (size_t)at * RECORD_SIGNATURE_BYTES, count * RECORD_SIGNATURE_BYTES);
  memcpy(rest->k_scale, block->k_scale + (size_t)at * RECORD_K_SCALE_BYTES, count * RECORD_K_SCALE_BYTES);
  return (struct group_place){rest->signature, rest->k_scale, RUN};
}

/* Loads 4 records: vector i of 16 holds records 4 i to 4 i + 3 of the group. */
TARGET_AVX512 static inline __m512i group_load(struct group_place place, uint32_t i) {
  return _mm512_loadu_si512(place.signature + (size_t)(i / 2 * place.stream + i % 2 * 4) * RECORD_SIGNATURE_BYTES);
}

/* --- scores ------------------------------------------------------------------------------------------------------ */

struct group_scales {
  __m512 scales[PAIRS];
  __mmask16 valid[PAIRS];
};

TARGET_AVX512 static inline void load_scales(struct group_place place, struct group_scales *scales) {
  for (uint32_t i = 0; i < PAIRS; i++) {
    const uint8_t *at = place.k_scale + (size_t)(2 * i * place.stream) * RECORD_K_SCALE_BYTES;
    const uint8_t *next = at + (size_t)place.stream * RECORD_K_SCALE_BYTES;
    __m256i two = _mm256_set_m128i(_mm_loadu_si128((const __m128i *)next), _mm_loadu_si128((const __m128i *)at));
    scales->scales[i] = _mm512_cvtph_ps(two);
    scales->valid[i] = _mm256_cmplt_epu16_mask(two, _mm256_set1_epi16(0x7c00));
  }
}

/* Scores of a group, two runs in each vector, from the sums of what opposes the query: 16 bits each, records 0-31 and
 * 32-63. */
TARGET_AVX512 static inline void score_group(const struct query *query, __m512i first, __m512i second,
                                             const struct group_scales *scales, __m512 scores[PAIRS]) {
  __m512i total = _mm512_set1_epi16((int16_t)query->magnitude_sum);
  first = _mm512_sub_epi16(total, _mm512_add_epi16(first, first));
  second = _mm512_sub_epi16(total, _mm512_add_epi16(second, second));
  __m256i sums[PAIRS] = {_mm512_castsi512_si256(first), _mm512_extracti64x4_epi64(first, 1),
                         _mm512_castsi512_si256(second), _mm512_extracti64x4_epi64(second, 1)};
  for (int i = 0; i < PAIRS; i++)
    scores[i] = _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_cvtepi16_epi32(sums[i])), scales->scales[i]);
}

/* Writes scores and bits of a group whose runs begin with records at, at + stream and so on. */
TARGET_AVX512 static inline void put_scores(const __m512 scores[PAIRS], const struct group_scales *scales,
                                            float threshold, uint32_t at, uint32_t stream,
                                            struct scan_scores *result) {
  __m512 limit = _mm512_set1_ps(threshold);
  uint8_t *bits = (uint8_t *)result->passed;
  for (uint32_t i = 0; i < PAIRS; i++, at += 2 * stream) {
    __mmask16 passed = _mm512_mask_cmp_ps_mask(scales->valid[i], scores[i], limit, _CMP_GT_OQ);
    _mm256_storeu_ps(result->scores + at, _mm512_castps512_ps256(scores[i]));
    _mm256_storeu_ps(result->scores + at + stream, _mm512_extractf32x8_ps(scores[i], 1));
    bits[at / 8] = (uint8_t)passed;
    bits[(at + stream) / 8] = (uint8_t)(passed >> RUN);
  }
}

/* Writes the keys of the scores in `mask` to keys[0 ..], and over up to SELECT_SLACK more; returns where they end.
 * There is no branch in it: few records pass, in places that nothing predicts. */
TARGET_AVX512 static inline uint64_t *put_keys(uint64_t *keys, __m512 scores, __mmask16 mask, __m512i ordinals) {
  const __m512i low = _mm512_set_epi32(23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  const __m512i high = _mm512_set_epi32(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8);
  /* select_rank: minus zero becomes zero, then all bits but the sign are inverted where that is not set */
  __m512i bits = _mm512_castps_si512(_mm512_add_ps(scores, _mm512_setzero_ps()));
  __m512i ranks = _mm512_xor_si512(
      bits, _mm512_andnot_si512(_mm512_srai_epi32(bits, 31), _mm512_set1_epi32(INT32_MAX)));
  ranks = _mm512_maskz_compress_epi32(mask, ranks);
  ordinals = _mm512_maskz_compress_epi32(mask, ordinals);
  _mm512_storeu_si512(keys, _mm512_permutex2var_epi32(ordinals, low, ranks));
  _mm512_storeu_si512(keys + 8, _mm512_permutex2var_epi32(ordinals, high, ranks));
  return keys + _mm_popcnt_u32(mask);
}

/* Puts what passes of a group whose runs begin with ordinals at, at + stream and so on. */
TARGET_AVX512 static inline void take_scores(const __m512 scores[PAIRS], const struct group_scales *scales, uint32_t at,
                                             uint32_t stream, struct select *select) {
  __m512 limit = _mm512_set1_ps(select_limit(select->threshold));
  __mmask16 passed[PAIRS], any = 0;
  for (uint32_t i = 0; i < PAIRS; i++) {
    passed[i] = _mm512_mask_cmp_ps_mask(scales->valid[i], scores[i], limit, _CMP_GT_OQ);
    any |= passed[i];
  }
  if (!any) /* more and more often, as the threshold gets tighter */
    return;
  __m512i ordinals = _mm512_set_epi32(7, 6, 5, 4, 3, 2, 1, 0, 7, 6, 5, 4, 3, 2, 1, 0);
  ordinals = _mm512_add_epi32(ordinals, _mm512_set1_epi32((int32_t)at));
  ordinals = _mm512_mask_add_epi32(ordinals, 0xff00, ordinals, _mm512_set1_epi32((int32_t)stream));
  uint64_t *keys = select->keys + select->count;
  for (uint32_t i = 0; i < PAIRS; i++) {
    keys = put_keys(keys, scores[i], passed[i], ordinals);
    ordinals = _mm512_add_epi32(ordinals, _mm512_set1_epi32((int32_t)(2 * stream)));
  }
  select->count = (uint32_t)(keys - select->keys);
}

scan_weighted_fn scan_weighted_avx512, scan_weighted_vpopcnt;
scan_take_fn scan_weighted_avx512_take, scan_weighted_vpopcnt_take;

/* A weighted scan and one that takes, of a SHARED that is loaded once for all rows: void LOAD(place, &shared), and
 * void SUM(query, &shared, &first, &second) for score_group. */
#define DEFINE_SCAN_WEIGHTED(NAME, TARGET, SHARED, LOAD, SUM)                                                          \
  TARGET static inline void NAME##_group(const struct query *queries, uint32_t rows, struct group_place place,         \
                                         const float *thresholds, uint32_t at, struct scan_scores *results) {          \
    SHARED shared;                                                                                                     \
    struct group_scales scales;                                                                                        \
    LOAD(place, &shared);                                                                                              \
    load_scales(place, &scales);                                                                                       \
    for (uint32_t r = 0; r < rows; r++) {                                                                              \
      __m512 scores[PAIRS];                                                                                            \
      __m512i first, second;                                                                                           \
      SUM(&queries[r], &shared, &first, &second);                                                                      \
      score_group(&queries[r], first, second, &scales, scores);                                                        \
      put_scores(scores, &scales, thresholds[r], at, place.stream, &results[r]);                                       \
    }                                                                                                                  \
  }                                                                                                                    \
                                                                                                                       \
  TARGET void NAME(const struct query *queries, uint32_t rows, const struct scan_block *block,                         \
                   const float *thresholds, struct scan_scores *results) {                                             \
    uint32_t stream = scan_stream(block, GROUP, RUN), rest = STREAMS * stream;                                         \
    struct group_rest copy;                                                                                            \
    for (uint32_t at = 0; at < stream; at += RUN) {                                                                    \
      scan_fetch_signatures(block, at, STREAMS, stream, RUN);                                                          \
      scan_fetch_scales(block, at, STREAMS, stream);                                                                   \
      NAME##_group(queries, rows, group_at(block, at, stream), thresholds, at, results);                               \
    }                                                                                                                  \
    if (rest < block->count) /* `scores` has room for a whole group */                                                 \
      NAME##_group(queries, rows, group_rest(block, rest, &copy), thresholds, rest, results);                          \
  }                                                                                                                    \
                                                                                                                       \
  TARGET static inline void NAME##_take_group(const struct query *queries, uint32_t rows, struct group_place place,    \
                                              uint32_t ordinal, struct select *selects) {                              \
    SHARED shared;                                                                                                     \
    struct group_scales scales;                                                                                        \
    LOAD(place, &shared);                                                                                              \
    load_scales(place, &scales);                                                                                       \
    for (uint32_t r = 0; r < rows; r++) {                                                                              \
      __m512 scores[PAIRS];                                                                                            \
      __m512i first, second;                                                                                           \
      SUM(&queries[r], &shared, &first, &second);                                                                      \
      score_group(&queries[r], first, second, &scales, scores);                                                        \
      take_scores(scores, &scales, ordinal, place.stream, &selects[r]);                                                \
    }                                                                                                                  \
  }                                                                                                                    \
                                                                                                                       \
  TARGET void NAME##_take(const struct query *queries, uint32_t rows, const struct scan_block *block,                  \
                          struct select *selects) {                                                                    \
    uint32_t stream = scan_stream(block, GROUP, RUN), rest = STREAMS * stream;                                         \
    struct group_rest copy;                                                                                            \
    for (uint32_t at = 0; at < stream; at += RUN) {                                                                    \
      scan_fetch_signatures(block, at, STREAMS, stream, RUN);                                                          \
      scan_fetch_scales(block, at, STREAMS, stream);                                                                   \
      NAME##_take_group(queries, rows, group_at(block, at, stream), block->ordinal + at, selects);                     \
    }                                                                                                                  \
    if (rest < block->count)                                                                                           \
      NAME##_take_group(queries, rows, group_rest(block, rest, &copy), block->ordinal + rest, selects);                \
  }

/* --- distances --------------------------------------------------------------------------------------------------- */

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
  uint64_t runs[STREAMS];
  _mm512_storeu_si512(runs, found);
  for (uint32_t i = 0; i < STREAMS; i++, at += stream) {
    store_u64(result->distances + at, runs[i]);
    ((uint8_t *)result->passed)[at / 8] = (uint8_t)(passed >> RUN * i);
  }
}

/* A Hamming scan, by how bits are counted in 64-bit words. */
#define DEFINE_SCAN_HAMMING(NAME, TARGET, COUNT_BITS)                                                                  \
  TARGET static inline void NAME##_group(const struct query *queries, uint32_t rows, struct group_place place,         \
                                         const uint32_t *thresholds, uint64_t there, uint32_t at,                      \
                                         struct scan_distances *results) {                                             \
    __m512i records[16];                                                                                               \
    for (uint32_t i = 0; i < 16; i++)                                                                                  \
      records[i] = group_load(place, i);                                                                               \
    for (uint32_t r = 0; r < rows; r++) {                                                                              \
      __m512i sign = _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)queries[r].sign));                        \
      __m512i counts[2] = {_mm512_setzero_si512(), _mm512_setzero_si512()};                                            \
      for (unsigned i = 0; i < 16; i++) {                                                                              \
        __m512i bits = COUNT_BITS(_mm512_xor_si512(sign, records[i]));                                                 \
        counts[i / 8] = _mm512_or_si512(counts[i / 8], _mm512_slli_epi64(bits, 8 * (i % 8)));                          \
      }                                                                                                                \
      __m512i found = order_distances(counts[0], counts[1]);                                                           \
      put_distances(found, thresholds[r], there, at, place.stream, &results[r]);                                       \
    }                                                                                                                  \
  }                                                                                                                    \
                                                                                                                       \
  TARGET static void NAME(const struct query *queries, uint32_t rows, const struct scan_block *block,                  \
                          const uint32_t *thresholds, struct scan_distances *results) {                                \
    uint32_t stream = scan_stream(block, GROUP, RUN), rest = STREAMS * stream;                                         \
    uint64_t there = (UINT64_C(1) << (block->count - rest)) - 1;                                                       \
    struct group_rest copy;                                                                                            \
    for (uint32_t at = 0; at < stream; at += RUN) {                                                                    \
      scan_fetch_signatures(block, at, STREAMS, stream, RUN);                                                          \
      NAME##_group(queries, rows, group_at(block, at, stream), thresholds, UINT64_MAX, at, results);                   \
    }                                                                                                                  \
    if (rest < block->count)                                                                                           \
      NAME##_group(queries, rows, group_rest(block, rest, &copy), thresholds, there, rest, results);                   \
  }

#endif
#endif
