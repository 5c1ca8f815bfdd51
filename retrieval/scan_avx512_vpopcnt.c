// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// The scan with AVX-512 where the processor counts bits (VPOPCNTDQ), 64 records at a time.
//
// Weighted: the bits of a signature that differ from the query's signs are counted under each of the three bit planes
// of |q4|. For a few rows that is less work than turning signatures into nibbles; many rows have that work in common.
#include "retrieval/scan_avx512.h"

#if defined(__x86_64__)

enum { MANY_ROWS = 4 };

struct records {
  __m512i vectors[16]; /* of four records */
};

TARGET_AVX512_VPOPCNT static inline void load_records(struct group_place place, struct records *records) {
  for (uint32_t i = 0; i < 16; i++)
    records->vectors[i] = group_load(place, i);
}

TARGET_AVX512_VPOPCNT static inline __m512i two_words(const uint64_t words[2]) {
  return _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)words));
}

/* Sums take up to 10 bits. Four of them share a word, so far apart that all of it lies in the 52 bits that
 * vpmadd52luq multiplies and adds in one instruction. */
enum { SUM_BITS = 13 };

/* What opposes the query in each 64-bit word of four vectors: that of vector i at bit SUM_BITS * i. */
TARGET_AVX512_VPOPCNT static inline __m512i oppose(const struct query *query, const __m512i vectors[4]) {
  enum { DIFFERS_AND = 0x28 }; /* (a ^ b) & c for vpternlog */
  const __m512i sign = two_words(query->sign);
  __m512i all = _mm512_setzero_si512();
  for (int i = 0; i < 4; i++)
    for (int plane = 0; plane < 3; plane++) {
      __m512i differs = _mm512_ternarylogic_epi64(vectors[i], sign, two_words(query->magnitude[plane]), DIFFERS_AND);
      __m512i weight = _mm512_set1_epi64((int64_t)1 << (SUM_BITS * i + plane));
      all = _mm512_madd52lo_epu64(all, _mm512_popcnt_epi64(differs), weight);
    }
  return all;
}

/* Adds the two words of each record of eight vectors, given as two results of oppose(), and puts them in order. */
TARGET_AVX512_VPOPCNT static inline __m512i order_sums(__m512i low, __m512i high) {
  enum { AT1 = SUM_BITS, AT2 = 2 * SUM_BITS, AT3 = 3 * SUM_BITS };
  const __m512i bytes = _mm512_set1_epi64(
      (int64_t)(UINT64_C(8) << 8 | (uint64_t)AT1 << 16 | (uint64_t)(AT1 + 8) << 24 | (uint64_t)AT2 << 32 |
                (uint64_t)(AT2 + 8) << 40 | (uint64_t)AT3 << 48 | (uint64_t)(AT3 + 8) << 56));
  __m512i sums = _mm512_add_epi64(_mm512_unpacklo_epi64(low, high), _mm512_unpackhi_epi64(low, high));
  sums = _mm512_and_si512(_mm512_multishift_epi64_epi8(bytes, sums), _mm512_set1_epi16((1 << SUM_BITS) - 1));
  /* word i of lane l is of record 4 i + l */
  const __m512i order = _mm512_set_epi16(31, 23, 15, 7, 30, 22, 14, 6, 29, 21, 13, 5, 28, 20, 12, 4, 27, 19, 11, 3, 26,
                                         18, 10, 2, 25, 17, 9, 1, 24, 16, 8, 0);
  return _mm512_permutexvar_epi16(order, sums);
}

TARGET_AVX512_VPOPCNT static inline void sum_planes(const struct query *query, const struct records *records,
                                                    __m512i *first, __m512i *second) {
  *first = order_sums(oppose(query, records->vectors), oppose(query, records->vectors + 4));
  *second = order_sums(oppose(query, records->vectors + 8), oppose(query, records->vectors + 12));
}

DEFINE_SCAN_WEIGHTED(scan_weighted_vpopcnt, TARGET_AVX512_VPOPCNT, struct records, load_records, sum_planes)

static void scan_weighted_rows(const struct query *queries, uint32_t rows, const struct scan_block *block,
                               const float *thresholds, struct scan_scores *results) {
  scan_weighted_fn *scan = rows < MANY_ROWS ? scan_weighted_vpopcnt : scan_weighted_avx512;
  scan(queries, rows, block, thresholds, results);
}

static void scan_take_rows(const struct query *queries, uint32_t rows, const struct scan_block *block,
                           struct select *selects) {
  scan_take_fn *take = rows < MANY_ROWS ? scan_weighted_vpopcnt_take : scan_weighted_avx512_take;
  take(queries, rows, block, selects);
}

TARGET_AVX512_VPOPCNT static inline __m512i count_bits_vpopcnt(__m512i x) { return _mm512_popcnt_epi64(x); }

DEFINE_SCAN_HAMMING(scan_hamming_vpopcnt, TARGET_AVX512_VPOPCNT, count_bits_vpopcnt)

void scan_init_avx512_vpopcnt(struct lookup_kernels *kernels, unsigned flags) {
  if (!(flags & CPU_AVX512_VPOPCNT))
    return;
  kernels->name = "avx512_vpopcnt";
  kernels->weighted = scan_weighted_rows;
  kernels->hamming = scan_hamming_vpopcnt;
  kernels->take = scan_take_rows;
}
#endif
