// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// The scan with NEON, 16 records at a time; scan_avx512.c tells how it works.
#include "retrieval/kernels_neon.h"

#if defined(__aarch64__)
#include <arm_neon.h>

enum { GROUP = 16 };

/* What all rows share of one group of records. */
struct group {
  uint8x16_t nibbles[QUERY_NIBBLES]; /* byte i of each is of record i */
  float32x4_t scales[4];
  uint16_t valid; /* scales */
};

/* One round of four that transpose 16 x 16 bytes. */
static inline void interleave(const uint8x16_t in[16], uint8x16_t out[16]) {
  for (int i = 0; i < 8; i++) {
    out[2 * i] = vzip1q_u8(in[i], in[i + 8]);
    out[2 * i + 1] = vzip2q_u8(in[i], in[i + 8]);
  }
}

/* One bit per byte that is all ones. */
static inline uint16_t bits_of_bytes(uint8x16_t mask) {
  static const uint8_t each[16] = {1, 2, 4, 8, 16, 32, 64, 128, 1, 2, 4, 8, 16, 32, 64, 128};
  uint8x16_t bits = vandq_u8(mask, vld1q_u8(each));
  return (uint16_t)(vaddv_u8(vget_low_u8(bits)) | vaddv_u8(vget_high_u8(bits)) << 8);
}

static inline uint8x16_t narrow(const uint32x4_t masks[4]) {
  uint16x8_t low = vcombine_u16(vmovn_u32(masks[0]), vmovn_u32(masks[1]));
  uint16x8_t high = vcombine_u16(vmovn_u32(masks[2]), vmovn_u32(masks[3]));
  return vcombine_u8(vmovn_u16(low), vmovn_u16(high));
}

static inline void load_group(const uint8_t *signature, const uint8_t *k_scale, struct group *group) {
  uint8x16_t a[16], b[16];
  for (int i = 0; i < 16; i++)
    a[i] = vld1q_u8(signature + 16 * i);
  interleave(a, b);
  interleave(b, a);
  interleave(a, b);
  interleave(b, a);
  for (int i = 0; i < 16; i++) {
    group->nibbles[2 * i] = vandq_u8(a[i], vdupq_n_u8(15));
    group->nibbles[2 * i + 1] = vshrq_n_u8(a[i], 4);
  }
  uint16x8_t halves[2] = {vreinterpretq_u16_u8(vld1q_u8(k_scale)), vreinterpretq_u16_u8(vld1q_u8(k_scale + 16))};
  uint8x8_t valid[2];
  for (int i = 0; i < 2; i++) {
    float16x8_t scales = vreinterpretq_f16_u16(halves[i]);
    group->scales[2 * i] = vcvt_f32_f16(vget_low_f16(scales));
    group->scales[2 * i + 1] = vcvt_high_f32_f16(scales);
    valid[i] = vmovn_u16(vcltq_u16(halves[i], vdupq_n_u16(0x7c00)));
  }
  group->valid = bits_of_bytes(vcombine_u8(valid[0], valid[1]));
}

/* Scores 16 records; returns which pass. */
static inline uint16_t score_group(const struct query *query, const struct group *group, float threshold,
                                   float *scores) {
  uint16x8_t low = vdupq_n_u16(0), high = low; /* sums of what opposes the query */
  for (int j = 0; j < QUERY_NIBBLES; j += 8) {
    uint8x16_t sum = vdupq_n_u8(0); /* at most 8 x 28 */
    for (int i = j; i < j + 8; i++)
      sum = vaddq_u8(sum, vqtbl1q_u8(vld1q_u8(query->opposed[i]), group->nibbles[i]));
    low = vaddw_u8(low, vget_low_u8(sum));
    high = vaddw_high_u8(high, sum);
  }
  int16x8_t total = vdupq_n_s16((int16_t)query->magnitude_sum);
  int16x8_t sums[2] = {vsubq_s16(total, vreinterpretq_s16_u16(vshlq_n_u16(low, 1))),
                       vsubq_s16(total, vreinterpretq_s16_u16(vshlq_n_u16(high, 1)))};
  uint32x4_t passed[4];
  for (int i = 0; i < 4; i++) {
    int32x4_t sum = i % 2 ? vmovl_high_s16(sums[i / 2]) : vmovl_s16(vget_low_s16(sums[i / 2]));
    float32x4_t products = vmulq_f32(vcvtq_f32_s32(sum), group->scales[i]);
    vst1q_f32(scores + 4 * i, products);
    passed[i] = vcgtq_f32(products, vdupq_n_f32(threshold));
  }
  return bits_of_bytes(narrow(passed)) & group->valid;
}

/* Sets the bits of records at .. at + 15. */
static inline void put_passed(uint64_t *passed, uint32_t at, uint16_t bits) {
  passed[at / 64] = at % 64 ? passed[at / 64] | (uint64_t)bits << at % 64 : bits;
}

/* Fetch of the next block what the group at record `at` is of this. */
static inline void fetch_signatures(const struct scan_block *block, uint32_t at) {
  for (uint32_t byte = 0; byte < GROUP * RECORD_SIGNATURE_BYTES; byte += 64)
    __builtin_prefetch(block->next_signature + (size_t)at * RECORD_SIGNATURE_BYTES + byte);
}

static inline void fetch_scales(const struct scan_block *block, uint32_t at) {
  if (at % 32 == 0)
    __builtin_prefetch(block->next_k_scale + (size_t)at * RECORD_K_SCALE_BYTES);
}

static void scan_weighted_neon(const struct query *queries, uint32_t rows, const struct scan_block *block,
                               const float *thresholds, struct scan_scores *results) {
  struct group group;
  for (uint32_t at = 0; at < block->count; at += GROUP) {
    const uint8_t *signatures = block->signature + (size_t)at * RECORD_SIGNATURE_BYTES;
    const uint8_t *scales = block->k_scale + (size_t)at * RECORD_K_SCALE_BYTES;
    uint32_t rest = block->count - at;
    fetch_signatures(block, at);
    fetch_scales(block, at);
    if (rest >= GROUP) {
      load_group(signatures, scales, &group);
    } else { /* `scores` has room for a whole group, the columns have not */
      uint8_t padded[GROUP * RECORD_SIGNATURE_BYTES] = {0}, padded_scales[GROUP * RECORD_K_SCALE_BYTES] = {0};
      memcpy(padded, signatures, rest * RECORD_SIGNATURE_BYTES);
      memcpy(padded_scales, scales, rest * RECORD_K_SCALE_BYTES);
      load_group(padded, padded_scales, &group);
      group.valid &= (uint16_t)((1u << rest) - 1);
    }
    for (uint32_t r = 0; r < rows; r++)
      put_passed(results[r].passed, at, score_group(&queries[r], &group, thresholds[r], results[r].scores + at));
  }
}

/* Distances of 16 records, in order: neighbours are added up four times. */
static inline uint8x16_t distances_of(uint8x16_t sign, const uint8_t *signature) {
  uint8x16_t counts[16];
  for (int i = 0; i < 16; i++)
    counts[i] = vcntq_u8(veorq_u8(sign, vld1q_u8(signature + 16 * i)));
  for (int n = 8; n > 0; n /= 2)
    for (int i = 0; i < n; i++)
      counts[i] = vpaddq_u8(counts[2 * i], counts[2 * i + 1]);
  return counts[0];
}

static void scan_hamming_neon(const struct query *queries, uint32_t rows, const struct scan_block *block,
                              const uint32_t *thresholds, struct scan_distances *results) {
  for (uint32_t at = 0; at < block->count; at += GROUP) {
    const uint8_t *signatures = block->signature + (size_t)at * RECORD_SIGNATURE_BYTES;
    uint8_t padded[GROUP * RECORD_SIGNATURE_BYTES];
    uint32_t rest = block->count - at, wanted = UINT32_MAX;
    fetch_signatures(block, at);
    if (rest < GROUP) {
      memset(padded, 0, sizeof padded);
      memcpy(padded, signatures, rest * RECORD_SIGNATURE_BYTES);
      signatures = padded;
      wanted = (1u << rest) - 1;
    }
    for (uint32_t r = 0; r < rows; r++) {
      uint8x16_t limit = vdupq_n_u8((uint8_t)(thresholds[r] < 255 ? thresholds[r] : 255));
      uint8x16_t found = distances_of(vreinterpretq_u8_u64(vld1q_u64(queries[r].sign)), signatures);
      vst1q_u8(results[r].distances + at, found);
      put_passed(results[r].passed, at, (uint16_t)(bits_of_bytes(vcltq_u8(found, limit)) & wanted));
    }
  }
}

void scan_init_neon(struct lookup_kernels *kernels, unsigned flags) {
  if (!(flags & CPU_NEON))
    return;
  kernels->name = "neon";
  kernels->weighted = scan_weighted_neon;
  kernels->hamming = scan_hamming_neon;
}
#endif
