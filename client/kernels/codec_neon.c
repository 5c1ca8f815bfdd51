// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// The codec with NEON: four registers are the 16 lanes that RECORD.md adds up in.
#include "client/kernels/codec_kernels.h"

#include "proto/cpu.h"

#if defined(__aarch64__)
#include <arm_neon.h>

/* --- rotation --------------------------------------------------------------------------------------------------- */

/* Stages of pairs inside two registers. */
static inline float32x4_t hadamard_4(float32x4_t x) {
  /* neighbours: (a + b, a - b) twice; the differences go back between the sums */
  float32x4_t even = vuzp1q_f32(x, x), odd = vuzp2q_f32(x, x);
  x = vzip1q_f32(vaddq_f32(even, odd), vsubq_f32(even, odd));
  /* two apart */
  float32x2_t low = vget_low_f32(x), high = vget_high_f32(x);
  return vcombine_f32(vadd_f32(low, high), vsub_f32(low, high));
}

/* Stages h = 4, 8 and so on over n coordinates in memory. */
static inline void cross_stages(float *x, uint32_t n) {
  for (uint32_t h = 4; h < n; h *= 2)
    for (uint32_t block = 0; block < n; block += 2 * h)
      for (uint32_t i = block; i < block + h; i += 4) {
        float32x4_t a = vld1q_f32(x + i), b = vld1q_f32(x + i + h);
        vst1q_f32(x + i, vaddq_f32(a, b));
        vst1q_f32(x + i + h, vsubq_f32(a, b));
      }
}

static inline void transform(float *x, const float *signs, uint32_t n) {
  for (uint32_t i = 0; i < n; i += 4)
    vst1q_f32(x + i, hadamard_4(vmulq_f32(vld1q_f32(x + i), vld1q_f32(signs + i))));
  cross_stages(x, n);
  for (uint32_t i = 0; i < n; i += 4)
    vst1q_f32(x + i, vmulq_n_f32(vld1q_f32(x + i), codec_norm(n)));
}

static inline void transform_back(float *x, const float *signs, uint32_t n) {
  for (uint32_t i = 0; i < n; i += 4)
    vst1q_f32(x + i, hadamard_4(vld1q_f32(x + i)));
  cross_stages(x, n);
  for (uint32_t i = 0; i < n; i += 4)
    vst1q_f32(x + i, vmulq_f32(vmulq_n_f32(vld1q_f32(x + i), codec_norm(n)), vld1q_f32(signs + i)));
}

static void rotate_neon(codec_signs signs, uint32_t head_dim, float *x) {
  if (head_dim == 128) {
    transform(x, signs[0], 128);
    return;
  }
  for (uint32_t p = 0; p < (head_dim == 64 ? 1 : 3); p++)
    transform(x + codec_window(head_dim, p), signs[p], CODEC_WINDOW);
}

static void rotate_back_neon(codec_signs signs, uint32_t head_dim, float *x) {
  if (head_dim == 128) {
    transform_back(x, signs[0], 128);
    return;
  }
  for (uint32_t p = head_dim == 64 ? 1 : 3; p-- > 0;)
    transform_back(x + codec_window(head_dim, p), signs[p], CODEC_WINDOW);
}

/* One bit per lane of eight that is all ones. */
static inline uint8_t bits_of_lanes(uint32x4_t low, uint32x4_t high) {
  static const uint16_t each[8] = {1, 2, 4, 8, 16, 32, 64, 128};
  uint16x8_t lanes = vcombine_u16(vmovn_u32(low), vmovn_u32(high));
  return (uint8_t)vaddvq_u16(vandq_u16(lanes, vld1q_u16(each)));
}

static void negative_neon(const float *x, uint32_t n, uint8_t *plane) {
  for (uint32_t i = 0; i < n; i += 8)
    plane[i / 8] = bits_of_lanes(vcltzq_f32(vld1q_f32(x + i)), vcltzq_f32(vld1q_f32(x + i + 4)));
}

/* --- quantization ----------------------------------------------------------------------------------------------- */

/* Number of thresholds below a: comparisons are -1 where they hold. */
static inline uint32x4_t classify(float32x4_t a, uint32_t bits) {
  const float *thresholds = codebooks[bits].thresholds;
  uint32x4_t index = vdupq_n_u32(0);
  for (uint32_t t = 0; t + 1 < 1u << bits; t++)
    index = vsubq_u32(index, vcgtq_f32(a, vld1q_dup_f32(thresholds + t)));
  return index;
}

/* Levels of indices, byte by byte out of tables of 64. */
static inline float32x4_t look_up(uint32x4_t index, uint32_t bits) {
  const uint8_t *levels = (const uint8_t *)codebooks[bits].levels;
  /* byte b of lane i is byte 4 index + b of the table */
  uint8x16_t bytes = vreinterpretq_u8_u32(vmlaq_n_u32(vdupq_n_u32(0x03020100), index, 0x04040404));
  if (bits == 2)
    return vreinterpretq_f32_u8(vqtbl1q_u8(vld1q_u8(levels), bytes));
  if (bits == 3)
    return vreinterpretq_f32_u8(vqtbl2q_u8(vld1q_u8_x2(levels), bytes));
  uint8x16_t found = vqtbl4q_u8(vld1q_u8_x4(levels), bytes);
  if (bits == 5) /* indices from 16 on: out of the first table's range, and in the second's */
    found = vqtbx4q_u8(found, vld1q_u8_x4(levels + 64), vsubq_u8(bytes, vdupq_n_u8(64)));
  return vreinterpretq_f32_u8(found);
}

/* The fixed tree over 16 lanes. */
static inline float sum_lanes(const float32x4_t lanes[4]) {
  float32x4_t low = vaddq_f32(lanes[0], lanes[2]), high = vaddq_f32(lanes[1], lanes[3]);
  float32x4_t four = vaddq_f32(low, high);
  float32x2_t two = vadd_f32(vget_low_f32(four), vget_high_f32(four));
  return vget_lane_f32(two, 0) + vget_lane_f32(two, 1);
}

static int quantize_neon(const float *y, uint32_t head_dim, struct codec_split split, uint8_t *planes,
                         uint16_t *scale) {
  float32x4_t zero = vdupq_n_f32(0), sums[4] = {zero, zero, zero, zero};
  float32x4_t products[4] = {zero, zero, zero, zero}, squares[4] = {zero, zero, zero, zero};
  for (uint32_t i = 0; i < head_dim / 4; i++) {
    float32x4_t v = vld1q_f32(y + 4 * i);
    sums[i % 4] = vaddq_f32(sums[i % 4], vmulq_f32(v, v));
  }
  memset(planes, 0, codec_plane_bytes(head_dim, split));
  *scale = 0;
  float inverse = codec_inverse_rms(sum_lanes(sums), head_dim);
  if (inverse <= 0)
    return inverse < 0 ? -ERR_NOT_FINITE : 0;
  uint8_t collected[CODEBOOK_BITS_MAX + 1][16];
  for (uint32_t i = 0; i < head_dim / 8; i++) {
    uint32_t bits = split.whole + (8 * i < split.partial);
    uint32x4_t index[2];
    for (uint32_t half = 0; half < 2; half++) {
      uint32_t lane = (2 * i + half) % 4;
      float32x4_t magnitude = vabsq_f32(vld1q_f32(y + 8 * i + 4 * half));
      index[half] = classify(vmulq_n_f32(magnitude, inverse), bits);
      float32x4_t level = look_up(index[half], bits);
      products[lane] = vaddq_f32(products[lane], vmulq_f32(magnitude, level));
      squares[lane] = vaddq_f32(squares[lane], vmulq_f32(level, level));
    }
    for (uint32_t b = 0; b < bits; b++) {
      uint32x4_t bit = vdupq_n_u32(1u << b);
      collected[b][i] = bits_of_lanes(vtstq_u32(index[0], bit), vtstq_u32(index[1], bit));
    }
  }
  codec_put_planes((const uint8_t(*)[16])collected, head_dim, split, planes);
  return codec_put_scale(sum_lanes(products), sum_lanes(squares), scale);
}

/* --- decoding --------------------------------------------------------------------------------------------------- */

/* All ones in the lanes whose bit is set: bits 0-3 or 4-7 of a byte. */
static inline uint32x4_t lanes_of_bits(uint8_t bits, uint32_t half) {
  static const uint32_t each[8] = {1, 2, 4, 8, 16, 32, 64, 128};
  return vtstq_u32(vdupq_n_u32(bits), vld1q_u32(each + 4 * half));
}

static void values_neon(const uint8_t *signs, const uint8_t *planes, uint32_t head_dim, struct codec_split split,
                        float scale, float *y) {
  for (uint32_t i = 0; i < head_dim / 4; i++) {
    uint32_t byte = i / 2, half = i % 2, bits = split.whole + (4 * i < split.partial);
    uint32x4_t index = vdupq_n_u32(0);
    for (uint32_t b = 0; b < bits; b++) {
      uint32x4_t set = lanes_of_bits(planes[b * (head_dim / 8) + byte], half);
      index = vorrq_u32(index, vandq_u32(set, vdupq_n_u32(1u << b)));
    }
    float32x4_t value = vmulq_n_f32(look_up(index, bits), scale);
    uint32x4_t sign = vandq_u32(lanes_of_bits(signs[byte], half), vdupq_n_u32(0x80000000u));
    vst1q_f32(y + 4 * i, vreinterpretq_f32_u32(veorq_u32(vreinterpretq_u32_f32(value), sign)));
  }
}

void codec_init_neon(struct codec_kernels *kernels, unsigned flags) {
  if (!(flags & CPU_NEON))
    return;
  kernels->name = "neon";
  kernels->rotate = rotate_neon;
  kernels->rotate_back = rotate_back_neon;
  kernels->negative = negative_neon;
  kernels->quantize = quantize_neon;
  kernels->values = values_neon;
}
#endif
