// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// Rescoring and query quantization with NEON.
#include "retrieval/kernels_neon.h"

#if defined(__aarch64__)
#include <arm_neon.h>
#include <math.h>

/* All ones in the bytes whose bit is set. */
static inline uint8x8_t bytes_of_bits(uint8_t bits) {
  static const uint8_t each[8] = {1, 2, 4, 8, 16, 32, 64, 128};
  return vtst_u8(vdup_n_u8(bits), vld1_u8(each));
}

/* Eight coordinates at a time, which have one byte of each plane; levels are looked up as low and high bytes. */
static int32_t rescore_neon(const struct rescore_code *code, const int16_t *q12, const uint8_t *signature,
                            const uint8_t *k_mag) {
  const uint8x16x2_t levels[2] = {vld2q_u8((const uint8_t *)code->levels[0]),
                                  vld2q_u8((const uint8_t *)code->levels[1])};
  uint32_t plane_bytes = code->head_dim / 8;
  int32x4_t sum = vdupq_n_s32(0);
  for (uint32_t byte = 0; byte < plane_bytes; byte++) {
    uint32_t more = 8 * byte < code->partial;
    uint8x8_t index = vdup_n_u8(0);
    for (uint32_t p = 0; p < code->whole + more; p++)
      index = vorr_u8(index, vand_u8(bytes_of_bits(k_mag[p * plane_bytes + byte]), vdup_n_u8((uint8_t)(1u << p))));
    uint16x8_t low = vmovl_u8(vqtbl1_u8(levels[more].val[0], index));
    uint16x8_t high = vshll_n_u8(vqtbl1_u8(levels[more].val[1], index), 8);
    int16x8_t level = vreinterpretq_s16_u16(vorrq_u16(low, high));
    int16x8_t negative = vmovl_s8(vreinterpret_s8_u8(bytes_of_bits(signature[byte])));
    int16x8_t q = vsubq_s16(veorq_s16(vld1q_s16(q12 + 8 * byte), negative), negative);
    sum = vmlal_s16(sum, vget_low_s16(level), vget_low_s16(q));
    sum = vmlal_high_s16(sum, level, q);
  }
  return vaddvq_s32(sum);
}

/* Largest |q[i]| of the first n, a multiple of 4; infinite when one of them is not finite. */
static float largest_neon(const uint8_t *row, uint32_t n) {
  float32x4_t max = vdupq_n_f32(0);
  uint32x4_t good = vdupq_n_u32(UINT32_MAX);
  for (uint32_t i = 0; i < n; i += 4) {
    float32x4_t magnitude = vabsq_f32(vreinterpretq_f32_u8(vld1q_u8(row + i * sizeof(float))));
    good = vandq_u32(good, vcltq_f32(magnitude, vdupq_n_f32(INFINITY)));
    max = vmaxq_f32(max, magnitude);
  }
  return vminvq_u32(good) ? vmaxvq_f32(max) : INFINITY;
}

/* round-half-even(levels q / max) of four numbers. */
static inline int16x4_t quantize_neon(float32x4_t q, float64x2_t max, float64x2_t levels) {
  int64x2_t low = vcvtnq_s64_f64(vdivq_f64(vmulq_f64(levels, vcvt_f64_f32(vget_low_f32(q))), max));
  int64x2_t high = vcvtnq_s64_f64(vdivq_f64(vmulq_f64(levels, vcvt_high_f64_f32(q)), max));
  return vmovn_s32(vcombine_s32(vmovn_s64(low), vmovn_s64(high)));
}

static bool query_prepare_neon(struct query *query, uint32_t head_dim, const uint8_t *row) {
  float max4 = largest_neon(row, QUERY_FLOATS), max12 = largest_neon(row, head_dim);
  if (max4 == INFINITY)
    return false;
  const float64x2_t divisor4 = vdupq_n_f64(max4 > 0 ? (double)max4 : 1.0), levels4 = vdupq_n_f64(QUERY_Q4_MAX);
  const float64x2_t divisor12 = vdupq_n_f64(max12 > 0 ? (double)max12 : 1.0), levels12 = vdupq_n_f64(QUERY_Q12_MAX);
  int8_t q4[QUERY_FLOATS];
  uint8_t signs[RECORD_SIGNATURE_BYTES];
  memset(query->q12, 0, sizeof query->q12);
  for (uint32_t i = 0; i < QUERY_FLOATS; i += 8) {
    float32x4_t low = vreinterpretq_f32_u8(vld1q_u8(row + i * sizeof(float)));
    float32x4_t high = vreinterpretq_f32_u8(vld1q_u8(row + (i + 4) * sizeof(float)));
    static const uint8_t each[8] = {1, 2, 4, 8, 16, 32, 64, 128};
    uint8x8_t negative = vmovn_u16(vcombine_u16(vmovn_u32(vcltzq_f32(low)), vmovn_u32(vcltzq_f32(high))));
    signs[i / 8] = vaddv_u8(vand_u8(negative, vld1_u8(each)));
    vst1_s8(q4 + i, vmovn_s16(vcombine_s16(quantize_neon(low, divisor4, levels4),
                                           quantize_neon(high, divisor4, levels4))));
    if (i < head_dim)
      vst1q_s16(query->q12 + i, vcombine_s16(quantize_neon(low, divisor12, levels12),
                                             quantize_neon(high, divisor12, levels12)));
  }
  memcpy(query->sign, signs, sizeof query->sign);
  query_fill(query, q4);
  return true;
}

void rescore_init_neon(struct lookup_kernels *kernels, unsigned flags) {
  if (!(flags & CPU_NEON))
    return;
  kernels->rescore = rescore_neon;
  kernels->prepare = query_prepare_neon;
}
#endif
