// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// The rotations of RECORD.md as one warp computes them, in shared memory, for any d; and the sums in 16 lanes. Every
// operation is rounded on its own: compile with -fmad=false.
#ifndef COLDKV_CLIENT_CUDA_CODEC_CUH
#define COLDKV_CLIENT_CUDA_CODEC_CUH

#include "client/cuda/types.cuh"

namespace {

enum { WINDOW = 64, SUM_LANES = 16, ALL = 0xffffffff };

__device__ __forceinline__ float norm_of(uint32_t n) { return n == 128 ? 0x1.6a09e6p-4f : 0.125f; }
__device__ __forceinline__ bool single_pass(uint32_t d) { return d == 64 || d == 128; }
__device__ __forceinline__ bool negated(const uint32_t *signs, uint32_t i) { return signs[i / 32] >> i % 32 & 1; }

__device__ inline void flip(float *x, const uint32_t *signs, uint32_t n, uint32_t lane) {
  for (uint32_t i = lane; i < n; i += 32)
    x[i] = negated(signs, i) ? -x[i] : x[i];
  __syncwarp();
}

__device__ inline void hadamard(float *x, uint32_t n, uint32_t lane) {
  for (uint32_t h = 1; h < n; h *= 2) {
    for (uint32_t p = lane; p < n / 2; p += 32) {
      uint32_t i = p / h * 2 * h + p % h;
      float a = x[i], b = x[i + h];
      x[i] = a + b;
      x[i + h] = a - b;
    }
    __syncwarp();
  }
  for (uint32_t i = lane; i < n; i += 32)
    x[i] *= norm_of(n);
  __syncwarp();
}

/* x = R x. */
__device__ inline void rotate(const uint32_t (*signs)[4], uint32_t d, float *x, uint32_t lane) {
  if (single_pass(d)) {
    flip(x, signs[0], d, lane);
    hadamard(x, d, lane);
    return;
  }
  for (uint32_t p = 0; p < 3; p++) {
    float *window = p == 1 ? x + d - WINDOW : x;
    flip(window, signs[p], WINDOW, lane);
    hadamard(window, WINDOW, lane);
  }
}

__device__ inline void rotate_back(const uint32_t (*signs)[4], uint32_t d, float *x, uint32_t lane) {
  if (single_pass(d)) {
    hadamard(x, d, lane);
    flip(x, signs[0], d, lane);
    return;
  }
  for (uint32_t p = 3; p-- > 0;) {
    float *window = p == 1 ? x + d - WINDOW : x;
    hadamard(window, WINDOW, lane);
    flip(window, signs[p], WINDOW, lane);
  }
}

/* The tree over the lanes 0..15 and, apart from them, 16..31; every thread gets its half's sum. */
__device__ __forceinline__ float lane_tree(float x) {
#pragma unroll
  for (int h = SUM_LANES / 2; h; h /= 2)
    x += __shfl_xor_sync(ALL, x, h);
  return x;
}

/* Sum of x[d] in lanes. */
__device__ inline float lane_sum(const float *x, uint32_t d, uint32_t lane) {
  float sum = 0;
  for (uint32_t i = lane % SUM_LANES; i < d; i += SUM_LANES)
    sum += x[i];
  return lane_tree(sum);
}

/* 1/RMS: 0 when the vector counts as zero, negative when it is not finite. */
__device__ __forceinline__ float inverse_rms(float sum, uint32_t d, float &rms) {
  float mean_square = sum / static_cast<float>(d);
  rms = sqrtf(mean_square);
  if (!(mean_square <= 3.402823466e38f))
    return -1.0f;
  return mean_square == 0 ? 0.0f : 1.0f / rms;
}
__device__ __forceinline__ float inverse_rms(float sum, uint32_t d) {
  float rms;
  return inverse_rms(sum, d, rms);
}

} // namespace

#endif
