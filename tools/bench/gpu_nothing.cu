// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// A kernel that does nothing, so that one can say what a launch alone takes.
#include "tools/bench/gpu_nothing.h"

namespace {

__global__ void nothing_kernel() {}

} // namespace

extern "C" cudaError_t gpu_nothing_launch(uint32_t blocks, uint32_t threads, cudaStream_t stream) {
  nothing_kernel<<<blocks, threads, 0, stream>>>();
  return cudaGetLastError();
}
