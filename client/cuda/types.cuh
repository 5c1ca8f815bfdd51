// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// Numbers of the three types as f32 and back, one at a time and eight.
#ifndef COLDKV_CLIENT_CUDA_TYPES_CUH
#define COLDKV_CLIENT_CUDA_TYPES_CUH

#include "client/cuda/launch.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <string.h>

namespace {

/* Enqueues a kernel with these arguments. */
template <typename... A>
cudaError_t enqueue(void (*kernel)(A...), dim3 grid, uint32_t threads, cudaStream_t stream, const A &...arguments) {
  void *pointers[] = {const_cast<void *>(static_cast<const void *>(&arguments))...};
  return cudaLaunchKernel(kernel, grid, dim3(threads), pointers, 0, stream);
}

__device__ __forceinline__ float widen(float x) { return x; }
__device__ __forceinline__ float widen(__half x) { return __half2float(x); }
__device__ __forceinline__ float widen(__nv_bfloat16 x) { return __bfloat162float(x); }

__device__ __forceinline__ void narrow(float x, float &to) { to = x; }
__device__ __forceinline__ void narrow(float x, __half &to) { to = __float2half_rn(x); }
__device__ __forceinline__ void narrow(float x, __nv_bfloat16 &to) { to = __float2bfloat16_rn(x); }

/* A number of an array of the caller's, whose type is known at run time only: as it lies in memory, and then as f32, so
 * that nothing has to wait in between. */
__device__ __forceinline__ uint32_t load_raw(const void *data, uint32_t type, size_t i) {
  return type == CUDA_F32 ? static_cast<const uint32_t *>(data)[i] : static_cast<const uint16_t *>(data)[i];
}
__device__ __forceinline__ float widen_raw(uint32_t raw, uint32_t type) {
  uint16_t low = static_cast<uint16_t>(raw);
  return type == CUDA_F32   ? __uint_as_float(raw)
         : type == CUDA_F16 ? widen(*reinterpret_cast<const __half *>(&low))
                            : __uint_as_float(raw << 16);
}
__device__ __forceinline__ float load_any(const void *data, uint32_t type, size_t i) {
  return widen_raw(load_raw(data, type, i), type);
}

__device__ __forceinline__ void store_any(void *data, uint32_t type, size_t i, float x) {
  switch (type) {
  case CUDA_F32: static_cast<float *>(data)[i] = x; break;
  case CUDA_F16: narrow(x, static_cast<__half *>(data)[i]); break;
  default: narrow(x, static_cast<__nv_bfloat16 *>(data)[i]); break;
  }
}

/* Eight numbers as they lie in memory, 16-byte aligned. */
template <typename T> struct Eight {
  uint4 words[sizeof(T) / 2];

  __device__ __forceinline__ void load(const T *from) {
#pragma unroll
    for (int i = 0; i < int(sizeof(T) / 2); i++)
      words[i] = reinterpret_cast<const uint4 *>(from)[i];
  }
  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int i = 0; i < int(sizeof(T) / 2); i++)
      words[i] = make_uint4(0, 0, 0, 0);
  }
  __device__ __forceinline__ void widen_to(float *x) const {
    T numbers[8];
    memcpy(numbers, words, sizeof numbers);
#pragma unroll
    for (int i = 0; i < 8; i++)
      x[i] = widen(numbers[i]);
  }
};

/* The two coordinates of a pair. */
__device__ __forceinline__ uint32_t pair_first(const cuda_shape &shape, uint32_t p) { return shape.half ? p : 2 * p; }
__device__ __forceinline__ uint32_t pair_second(const cuda_shape &shape, uint32_t p) {
  return shape.half ? p + shape.pairs : 2 * p + 1;
}

/* Multiplies the pairs of x[d] by the row's factors (direction 1) or their conjugates (-1): `lanes` threads together,
 * each with its own pairs. The caller synchronizes. */
__device__ __forceinline__ void rotate_pairs(const cuda_shape &shape, const float *row, float direction, float *x,
                                             uint32_t lane, uint32_t lanes) {
  for (uint32_t p = lane; p < shape.pairs; p += lanes) {
    uint32_t i = pair_first(shape, p), j = pair_second(shape, p);
    float c = row[p], s = direction * row[shape.pairs + p], a = x[i], b = x[j];
    x[i] = a * c - b * s;
    x[j] = a * s + b * c;
  }
}

__device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
  for (int h = 16; h; h /= 2)
    x += __shfl_xor_sync(0xffffffffu, x, h);
  return x;
}

__device__ __forceinline__ void report(cuda_found *found, uint64_t token) {
  if (found->found)
    return;
  found->token = token;
  __threadfence_system();
  found->found = 1;
}

} // namespace

#endif
