// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// What daemon and library do alike with CUDA's runtime: find a device, and say what went wrong. Only for files that are
// built with CUDA.
#ifndef COLDKV_PROTO_CUDA_GPU_H
#define COLDKV_PROTO_CUDA_GPU_H

#include <cuda_runtime_api.h>
#include <stdint.h>

#include "proto/error.h"

enum { GPU_MAJOR_MIN = 8 }; /* compute capability */

/* Fills in the error and returns its negative code: ERR_MEMORY or ERR_IO. */
static inline int gpu_failed(struct error *error, cudaError_t status, const char *what) {
  cudaGetLastError(); /* so that the next call does not report it again */
  return error_set(error, status == cudaErrorMemoryAllocation ? ERR_MEMORY : ERR_IO, "GPU: %s: %s", what,
                   cudaGetErrorString(status));
}

/* Properties of a device that kernels were built for. ERR_NOT_SUPPORTED says why there is none. */
static inline int gpu_find(uint32_t number, struct cudaDeviceProp *properties, struct error *error) {
  int count = 0, driver = 0;
  if (cudaDriverGetVersion(&driver) != cudaSuccess || driver == 0) {
    cudaGetLastError();
    return error_set(error, ERR_NOT_SUPPORTED, "no GPU: no NVIDIA driver on this machine");
  }
  cudaError_t status = cudaGetDeviceCount(&count);
  if (status != cudaSuccess) {
    cudaGetLastError();
    return error_set(error, ERR_NOT_SUPPORTED, "no GPU: %s", cudaGetErrorString(status));
  }
  if (number >= (uint32_t)count)
    return error_set(error, ERR_NOT_SUPPORTED, "no GPU number %u: there are %d", number, count);
  status = cudaGetDeviceProperties(properties, (int)number);
  if (status != cudaSuccess)
    return gpu_failed(error, status, "cannot ask for its properties");
  if (properties->major < GPU_MAJOR_MIN)
    return error_set(error, ERR_NOT_SUPPORTED, "no GPU: %s has compute capability %d.%d, need at least %d.0",
                     properties->name, properties->major, properties->minor, GPU_MAJOR_MIN);
  return 0;
}

#endif
