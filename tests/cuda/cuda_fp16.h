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

#endif
#endif
