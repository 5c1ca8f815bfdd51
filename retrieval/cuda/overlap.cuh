// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// Launches that begin while the one before in the stream ends (programmatic dependent launch, from compute capability
// 9.0 on): when all blocks of that have admitted them or ended, each block where there is room. What they read before
// wait_for_previous() must have been there when the launch before began.
// Cooperative launches do not begin early (driver 580). Where all launches are in one stream and no other process has
// blocks on the GPU at the same time, they are not needed either for blocks that wait for each other: when a launch
// begins, all blocks of the one before are running, and they end without it.
#ifndef COLDKV_RETRIEVAL_CUDA_OVERLAP_CUH
#define COLDKV_RETRIEVAL_CUDA_OVERLAP_CUH

#include <cuda_runtime_api.h>

#include <stdint.h>

namespace {

/* Waits for the end of the launch before, and for what it has written. */
__device__ __forceinline__ void wait_for_previous() {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
  cudaGridDependencySynchronize();
#endif
}

/* By any thread of every block: lets the next launch begin where blocks of this one end. */
__device__ __forceinline__ void admit_next() {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
  cudaTriggerProgrammaticLaunchCompletion();
#endif
}

/* How a launch begins: behind the one before, behind it and cooperative, or while it ends. */
enum Begin { BEGIN_BEHIND, BEGIN_TOGETHER, BEGIN_OVERLAPPING };

template <typename ARGUMENT>
cudaError_t launch(void (*kernel)(ARGUMENT), uint32_t blocks, uint32_t threads, const ARGUMENT &argument, Begin begin,
                   cudaStream_t stream) {
  cudaLaunchAttribute attribute = {};
  if (begin == BEGIN_TOGETHER) {
    attribute.id = cudaLaunchAttributeCooperative;
    attribute.val.cooperative = 1;
  } else {
    attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attribute.val.programmaticStreamSerializationAllowed = 1;
  }
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(blocks);
  config.blockDim = dim3(threads);
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = begin == BEGIN_BEHIND ? 0 : 1;
  return cudaLaunchKernelEx(&config, kernel, argument);
}

} // namespace

#endif
