// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
#ifndef COLDKV_TOOLS_BENCH_GPU_READ_H
#define COLDKV_TOOLS_BENCH_GPU_READ_H

#include <cuda_runtime_api.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum { GPU_READ_KINDS = 4 };

/* Enqueues a kernel that reads `bytes` (a multiple of 16) at `data`, in one of GPU_READ_KINDS ways. `sink`: a word of
 * GPU memory. */
cudaError_t gpu_read_launch(int kind, const void *data, size_t bytes, uint32_t processors, uint32_t *sink,
                            cudaStream_t stream);

#ifdef __cplusplus
}
#endif

#endif
