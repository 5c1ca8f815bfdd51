// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// In place of the CUDA Toolkit's header of this name; see cuda_runtime_api.h. C++ only, as that is.
#ifndef COLDKV_TESTS_CUDA_FP16_H
#define COLDKV_TESTS_CUDA_FP16_H
#ifdef __cplusplus

#include <stdint.h>
#include <string.h>

struct __half {
  uint16_t bits;
};

inline __half __ushort_as_half(uint16_t bits) { return {bits}; }

inline float __half2float(__half half) {
  uint32_t exponent = half.bits >> 10 & 31, fraction = half.bits & 1023, bits;
  float size = static_cast<float>(fraction) * 0x1p-24f; /* of subnormals */
  bits = (exponent == 31 ? 255 : exponent + 112) << 23 | fraction << 13;
  if (exponent)
    memcpy(&size, &bits, sizeof size);
  return half.bits & 0x8000 ? -size : size;
}

/* To the nearest, to even in the middle. */
inline __half __float2half_rn(float x) {
  uint32_t bits, sign;
  memcpy(&bits, &x, sizeof bits);
  sign = bits >> 16 & 0x8000;
  bits &= 0x7fffffff;
  if (bits > 0x7f800000)
    return {0x7fff};
  if (bits >= 0x47800000) /* 65536 */
    return {static_cast<uint16_t>(sign | 0x7c00)};
  uint32_t exponent = bits >> 23, shift = exponent > 112 ? 13 : exponent > 101 ? 126 - exponent : 0;
  if (!shift)
    return {static_cast<uint16_t>(sign)};
  uint32_t number = exponent > 112 ? bits - (112u << 23) : (bits & 0x7fffff) | 0x800000;
  uint32_t rest = number & ((1u << shift) - 1), half = 1u << (shift - 1);
  number >>= shift;
  number += rest > half || (rest == half && (number & 1));
  return {static_cast<uint16_t>(sign | number)};
}

inline uint16_t __half_as_ushort(__half half) { return half.bits; }

#endif
#endif
