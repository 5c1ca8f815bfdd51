// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// The scan with AVX-512 (F, BW, DQ, VL), 64 records at a time.
//
// Weighted: the signatures of 64 records are turned into 32 vectors, one per nibble, with a byte per record; then one
// shuffle looks up in `query.opposed` what that nibble adds for all of them. Turning costs as much as one row, and
// all rows share it. After F. Andre, A.-M. Kermarrec, N. Le Scouarnec, "Cache locality is not enough:
// high-performance nearest neighbor search with product quantization fast scan", VLDB 9 (2015).
#include "retrieval/scan_avx512.h"

#if defined(__x86_64__)

struct nibbles {
  __m512i nibbles[QUERY_NIBBLES]; /* byte 16 l + i of each is of record 4 i + l */
};

/* The two halves of a round: in every 16-byte lane, interleaves elements of vectors i and i + 8. Four rounds
 * transpose the 16 x 16 bytes that 16 vectors hold in one lane. */
TARGET_AVX512 static void interleave(const __m512i in[16], __m512i out[16]) {
  for (int i = 0; i < 8; i++) {
    out[2 * i] = _mm512_unpacklo_epi8(in[i], in[i + 8]);
    out[2 * i + 1] = _mm512_unpackhi_epi8(in[i], in[i + 8]);
  }
}

TARGET_AVX512 static inline void load_nibbles(struct group_place place, struct nibbles *group) {
  __m512i a[16], b[16];
  for (uint32_t i = 0; i < 16; i++)
    a[i] = group_load(place, i);
  interleave(a, b);
  interleave(b, a);
  interleave(a, b);
  interleave(b, a);
  const __m512i low = _mm512_set1_epi8(15);
  for (int i = 0; i < 16; i++) {
    group->nibbles[2 * i] = _mm512_and_si512(a[i], low);
    group->nibbles[2 * i + 1] = _mm512_and_si512(_mm512_srli_epi16(a[i], 4), low);
  }
}

/* Sums of what opposes the query, 16 bits each, records 0-31 and 32-63. */
TARGET_AVX512 static inline void sum_nibbles(const struct query *query, const struct nibbles *group, __m512i *first,
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

DEFINE_SCAN_WEIGHTED(scan_weighted_avx512, TARGET_AVX512, struct nibbles, load_nibbles, sum_nibbles)

/* Bits per 64-bit word, by table. */
TARGET_AVX512 static inline __m512i count_bits_avx512(__m512i x) {
  const __m512i table = _mm512_broadcast_i32x4(_mm_set_epi8(4, 3, 3, 2, 3, 2, 2, 1, 3, 2, 2, 1, 2, 1, 1, 0));
  const __m512i low = _mm512_set1_epi8(15);
  __m512i bytes = _mm512_add_epi8(_mm512_shuffle_epi8(table, _mm512_and_si512(x, low)),
                                  _mm512_shuffle_epi8(table, _mm512_and_si512(_mm512_srli_epi16(x, 4), low)));
  return _mm512_sad_epu8(bytes, _mm512_setzero_si512());
}

DEFINE_SCAN_HAMMING(scan_hamming_avx512, TARGET_AVX512, count_bits_avx512)

void scan_init_avx512(struct lookup_kernels *kernels, unsigned flags) {
  if (!(flags & CPU_AVX512))
    return;
  kernels->name = "avx512";
  kernels->weighted = scan_weighted_avx512;
  kernels->hamming = scan_hamming_avx512;
  kernels->take = scan_weighted_avx512_take;
}
#endif
