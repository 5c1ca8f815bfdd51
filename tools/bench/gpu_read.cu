// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// What reading the memory of a GPU takes: loops that only read, so that one can say how far a scan is from them.
#include "tools/bench/gpu_read.h"

namespace {

/* Every thread reads LOADS times 16 bytes at a time and keeps their exclusive or. */
template <int LOADS>
__global__ void __launch_bounds__(512) read_kernel(const uint4 *data, size_t count, uint32_t *sink) {
  uint4 sum = make_uint4(0, 0, 0, 0);
  size_t threads = static_cast<size_t>(gridDim.x) * blockDim.x;
  size_t first = blockIdx.x * static_cast<size_t>(blockDim.x) + threadIdx.x;
  for (size_t at = first; at < count; at += LOADS * threads) {
    uint4 words[LOADS];
#pragma unroll
    for (int i = 0; i < LOADS; i++)
      words[i] = at + i * threads < count ? __ldcs(data + at + i * threads) : make_uint4(0, 0, 0, 0);
#pragma unroll
    for (int i = 0; i < LOADS; i++) {
      sum.x ^= words[i].x;
      sum.y ^= words[i].y;
      sum.z ^= words[i].z;
      sum.w ^= words[i].w;
    }
  }
  if ((sum.x ^ sum.y ^ sum.z ^ sum.w) == 0x12345678u) /* never known beforehand */
    atomicAdd(sink, 1);
}

} // namespace

extern "C" cudaError_t gpu_read_launch(int kind, const void *data, size_t bytes, uint32_t processors, uint32_t *sink,
                                       cudaStream_t stream) {
  const uint4 *words = static_cast<const uint4 *>(data);
  size_t count = bytes / sizeof *words;
  switch (kind) {
  case 0: read_kernel<4><<<2 * processors, 512, 0, stream>>>(words, count, sink); break;
  case 1: read_kernel<4><<<4 * processors, 512, 0, stream>>>(words, count, sink); break;
  case 2: read_kernel<8><<<4 * processors, 512, 0, stream>>>(words, count, sink); break;
  default: /* as many threads as there are words to read at once: none goes round */
    read_kernel<4><<<static_cast<uint32_t>((count + 2047) / 2048), 512, 0, stream>>>(words, count, sink);
    break;
  }
  return cudaGetLastError();
}
