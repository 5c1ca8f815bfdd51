// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// Rescoring with AVX2 and AVX-512: levels by table look-up on the index bits, then products of 16 bits added up in
// pairs.
#include "retrieval/kernels_x86.h"

#if defined(__x86_64__)
#include <immintrin.h>

/* Planes may be read up to this far past k_mag, so the bytes are copied first where that is more than there is. */
enum { K_MAG_PADDED = RECORD_K_MAG_BYTES + 16 };

/* --- AVX-512: 32 coordinates at a time -------------------------------------------------------------------------- */

/* Lanes of coordinates 32 g and up that are below n. */
static inline uint32_t lanes_below(uint32_t n, uint32_t g) {
  uint32_t before = 32 * g;
  return n >= before + 32 ? UINT32_MAX : n > before ? (UINT32_C(1) << (n - before)) - 1 : 0;
}

TARGET_AVX512 static inline __m512i products_avx512(__m512i levels, const int16_t *q12, uint32_t signs) {
  __m512i q = _mm512_loadu_si512(q12);
  return _mm512_madd_epi16(levels, _mm512_mask_sub_epi16(q, signs, _mm512_setzero_si512(), q));
}

TARGET_AVX512 static int32_t rescore_avx512(const struct rescore_code *code, const int16_t *q12,
                                            const uint8_t *signature, const uint8_t *k_mag) {
  const __m512i table = _mm512_loadu_si512(code->levels), one = _mm512_set1_epi16(1);
  __m512i sum = _mm512_setzero_si512();
  if (code->head_dim == 128) { /* two planes, nothing partial */
    for (uint32_t g = 0; g < 4; g++) {
      __m512i index = _mm512_maskz_mov_epi16(load_u32(k_mag + 4 * g), one);
      index = _mm512_mask_add_epi16(index, load_u32(k_mag + 16 + 4 * g), index, _mm512_set1_epi16(2));
      __m512i levels = _mm512_permutexvar_epi16(index, table);
      sum = _mm512_add_epi32(sum, products_avx512(levels, q12 + 32 * g, load_u32(signature + 4 * g)));
    }
    return _mm512_reduce_add_epi32(sum);
  }
  uint8_t planes[K_MAG_PADDED] = {0};
  memcpy(planes, k_mag, RECORD_K_MAG_BYTES);
  uint32_t plane_bytes = code->head_dim / 8;
  for (uint32_t g = 0; 32 * g < code->head_dim; g++) {
    uint32_t more = lanes_below(code->partial, g);
    __m512i index = _mm512_maskz_mov_epi16(more, _mm512_set1_epi16(16)); /* where the table of one more bit begins */
    for (uint32_t p = 0; p <= code->whole; p++) {
      uint32_t bits = load_u32(planes + p * plane_bytes + 4 * g) & (p < code->whole ? UINT32_MAX : more);
      index = _mm512_mask_add_epi16(index, bits, index, _mm512_set1_epi16((int16_t)(1 << p)));
    }
    /* past head_dim the levels mean nothing, but q12 is 0 there */
    __m512i levels = _mm512_permutexvar_epi16(index, table);
    sum = _mm512_add_epi32(sum, products_avx512(levels, q12 + 32 * g, load_u32(signature + 4 * g)));
  }
  return _mm512_reduce_add_epi32(sum);
}

/* --- AVX2: 16 coordinates at a time ----------------------------------------------------------------------------- */

/* All ones in the 16-bit lanes whose bit is set. */
TARGET_AVX2 static inline __m256i lanes_of_bits(uint16_t bits) {
  const __m256i each = _mm256_set_epi16(INT16_MIN, 1 << 14, 1 << 13, 1 << 12, 1 << 11, 1 << 10, 1 << 9, 1 << 8, 1 << 7,
                                        1 << 6, 1 << 5, 1 << 4, 1 << 3, 1 << 2, 1 << 1, 1);
  return _mm256_cmpeq_epi16(_mm256_and_si256(_mm256_set1_epi16((int16_t)bits), each), each);
}

TARGET_AVX2 static inline __m256i products_avx2(__m256i levels, const int16_t *q12, __m256i negative) {
  __m256i q = _mm256_loadu_si256((const __m256i *)q12);
  return _mm256_madd_epi16(levels, _mm256_sub_epi16(_mm256_xor_si256(q, negative), negative));
}

TARGET_AVX2 static inline int32_t sum_lanes_avx2(__m256i sum) {
  __m128i half = _mm_add_epi32(_mm256_castsi256_si128(sum), _mm256_extracti128_si256(sum, 1));
  half = _mm_add_epi32(half, _mm_shuffle_epi32(half, 0x4e));
  return _mm_cvtsi128_si32(_mm_add_epi32(half, _mm_shuffle_epi32(half, 0xb1)));
}

/* levels[more][index] for 16 indices below 16: low and high bytes are looked up on their own. */
struct level_bytes {
  __m256i low[2], high[2];
};

TARGET_AVX2 static inline void split_levels(const struct rescore_code *code, struct level_bytes *bytes) {
  const __m128i even = _mm_set_epi8(-1, -1, -1, -1, -1, -1, -1, -1, 14, 12, 10, 8, 6, 4, 2, 0);
  const __m128i odd = _mm_set_epi8(-1, -1, -1, -1, -1, -1, -1, -1, 15, 13, 11, 9, 7, 5, 3, 1);
  for (int more = 0; more < 2; more++) {
    __m128i first = _mm_loadu_si128((const __m128i *)code->levels[more]);
    __m128i second = _mm_loadu_si128((const __m128i *)(code->levels[more] + 8));
    bytes->low[more] = _mm256_broadcastsi128_si256(
        _mm_unpacklo_epi64(_mm_shuffle_epi8(first, even), _mm_shuffle_epi8(second, even)));
    bytes->high[more] = _mm256_broadcastsi128_si256(
        _mm_unpacklo_epi64(_mm_shuffle_epi8(first, odd), _mm_shuffle_epi8(second, odd)));
  }
}

TARGET_AVX2 static inline __m256i look_up(const struct level_bytes *bytes, int more, __m256i index) {
  __m256i high = _mm256_shuffle_epi8(bytes->high[more], index); /* in the low byte of each lane */
  __m256i low = _mm256_shuffle_epi8(bytes->low[more], index);
  const __m256i low_byte = _mm256_set1_epi16(0xff);
  return _mm256_or_si256(_mm256_and_si256(low, low_byte), _mm256_slli_epi16(high, 8));
}

/* Two planes: the level is linear in the two bits and their product. */
TARGET_AVX2 static int32_t rescore_128_avx2(const struct rescore_code *code, const int16_t *q12,
                                            const uint8_t *signature, const uint8_t *k_mag) {
  const int16_t *levels = code->levels[0];
  const __m256i base = _mm256_set1_epi16(levels[0]), first = _mm256_set1_epi16((int16_t)(levels[1] - levels[0]));
  const __m256i second = _mm256_set1_epi16((int16_t)(levels[2] - levels[0]));
  const __m256i both = _mm256_set1_epi16((int16_t)(levels[3] - levels[2] - levels[1] + levels[0]));
  __m256i sum = _mm256_setzero_si256();
  for (uint32_t g = 0; g < 8; g++) {
    __m256i bit0 = lanes_of_bits(load_u16(k_mag + 2 * g)), bit1 = lanes_of_bits(load_u16(k_mag + 16 + 2 * g));
    __m256i level = _mm256_add_epi16(base, _mm256_and_si256(bit0, first));
    level = _mm256_add_epi16(level, _mm256_and_si256(bit1, _mm256_add_epi16(second, _mm256_and_si256(bit0, both))));
    __m256i negative = lanes_of_bits(load_u16(signature + 2 * g));
    sum = _mm256_add_epi32(sum, products_avx2(level, q12 + 16 * g, negative));
  }
  return sum_lanes_avx2(sum);
}

TARGET_AVX2 static int32_t rescore_avx2(const struct rescore_code *code, const int16_t *q12, const uint8_t *signature,
                                        const uint8_t *k_mag) {
  if (code->head_dim == 128)
    return rescore_128_avx2(code, q12, signature, k_mag);
  uint8_t planes[K_MAG_PADDED] = {0};
  memcpy(planes, k_mag, RECORD_K_MAG_BYTES);
  struct level_bytes bytes;
  split_levels(code, &bytes);
  uint32_t plane_bytes = code->head_dim / 8;
  __m256i sum = _mm256_setzero_si256();
  for (uint32_t g = 0; 16 * g < code->head_dim; g++) {
    uint32_t left = code->partial > 16 * g ? code->partial - 16 * g : 0;
    __m256i more = lanes_of_bits((uint16_t)(left >= 16 ? 0xffff : (1u << left) - 1));
    __m256i index = _mm256_setzero_si256();
    for (uint32_t p = 0; p <= code->whole; p++) {
      __m256i bits = lanes_of_bits(load_u16(planes + p * plane_bytes + 2 * g));
      bits = _mm256_and_si256(bits, _mm256_set1_epi16((int16_t)(1 << p)));
      index = _mm256_or_si256(index, p < code->whole ? bits : _mm256_and_si256(bits, more));
    }
    __m256i levels = _mm256_blendv_epi8(look_up(&bytes, 0, index), look_up(&bytes, 1, index), more);
    __m256i negative = lanes_of_bits(load_u16(signature + 2 * g));
    sum = _mm256_add_epi32(sum, products_avx2(levels, q12 + 16 * g, negative));
  }
  return sum_lanes_avx2(sum);
}

void rescore_init_x86(struct lookup_kernels *kernels, unsigned flags) {
  if (flags & CPU_AVX2)
    kernels->rescore = rescore_avx2;
  if (flags & CPU_AVX512)
    kernels->rescore = rescore_avx512;
}
#endif
