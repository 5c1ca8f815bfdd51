// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
#ifndef COLDKV_TOOLS_BENCH_GPU_NOTHING_H
#define COLDKV_TOOLS_BENCH_GPU_NOTHING_H

#include <cuda_runtime_api.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

cudaError_t gpu_nothing_launch(uint32_t blocks, uint32_t threads, cudaStream_t stream);

#ifdef __cplusplus
}
#endif

#endif
