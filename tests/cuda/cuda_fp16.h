// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// In place of the CUDA Toolkit's header of this name; see cuda_runtime_api.h. C++ only, as that is.
#ifndef COLDKV_TESTS_CUDA_FP16_H
#define COLDKV_TESTS_CUDA_FP16_H
#ifdef __cplusplus

#include <math.h>
#include <stdint.h>

struct __half {
  uint16_t bits;
};

inline __half __ushort_as_half(uint16_t bits) { return {bits}; }

inline float __half2float(__half half) {
  int exponent = half.bits >> 10 & 31, fraction = half.bits & 1023;
  float size = exponent == 31 ? (fraction ? NAN : INFINITY)
               : exponent     ? ldexpf(static_cast<float>(1024 + fraction), exponent - 25)
                              : ldexpf(static_cast<float>(fraction), -24);
  return half.bits & 0x8000 ? -size : size;
}

#endif
#endif
