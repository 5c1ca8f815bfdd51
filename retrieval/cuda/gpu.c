// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
#include "retrieval/cuda/gpu.h"

#include <stdlib.h>

#include "retrieval/cuda/memory.h"

/* A pool that keeps what is given back, since the system takes long to give it. */
static cudaError_t create_pool(struct gpu *gpu) {
  uint64_t keep = UINT64_MAX;
  struct cudaMemPoolProps properties = {
      .allocType = cudaMemAllocationTypePinned,
      .location = {.type = cudaMemLocationTypeDevice, .id = gpu->device},
  };
  cudaError_t status = cudaMemPoolCreate(&gpu->pool, &properties);
  return status == cudaSuccess ? cudaMemPoolSetAttribute(gpu->pool, cudaMemPoolAttrReleaseThreshold, &keep) : status;
}

static cudaError_t create_stages(struct gpu *gpu) {
  cudaError_t status = cudaSuccess;
  for (uint32_t i = 0; i < GPU_STAGES && status == cudaSuccess; i++) {
    status = cudaMallocHost((void **)&gpu->stages[i].bytes, GPU_CHUNK_BYTES);
    if (status == cudaSuccess)
      status = cudaEventCreateWithFlags(&gpu->stages[i].uploaded, cudaEventDisableTiming);
  }
  return status;
}

/* Launches that overlap are not cooperative: nothing but their order in one stream sees to it that all blocks of a scan
 * come to run. That is not enough where several processes have blocks on the GPU at the same time. */
static bool can_overlap(const struct gpu *gpu, const struct cudaDeviceProp *properties) {
  int shared = 1;
  return properties->major >= 9 && cudaDeviceGetAttribute(&shared, cudaDevAttrMpsEnabled, gpu->device) == cudaSuccess &&
         !shared;
}

int gpu_create(struct gpu **result, int device, struct error *error) {
  struct cudaDeviceProp properties = {0};
  *result = NULL;
  int failed = gpu_find((uint32_t)device, &properties, error);
  if (failed)
    return failed;
  if (!properties.cooperativeLaunch)
    return error_set(error, ERR_NOT_SUPPORTED, "no GPU: %s has no cooperative launches", properties.name);
  struct gpu *gpu = calloc(1, sizeof *gpu);
  if (!gpu)
    return error_set(error, ERR_MEMORY, "out of memory for a GPU (%zu bytes)", sizeof *gpu);
  gpu->device = device;
  cudaError_t status = cudaSetDevice(device);
  if (status == cudaSuccess)
    status = create_pool(gpu);
  if (status == cudaSuccess)
    status = create_stages(gpu);
  gpu->overlaps = can_overlap(gpu, &properties);
  if (status == cudaSuccess)
    gpu->blocks = gpu_scan_blocks((uint32_t)properties.multiProcessorCount);
  if (status == cudaSuccess && gpu->blocks == 0) {
    status = cudaGetLastError();
    status = status == cudaSuccess ? cudaErrorNoKernelImageForDevice : status;
  }
  if (status != cudaSuccess) {
    gpu_destroy(gpu);
    return gpu_failed(error, status, "cannot be used");
  }
  gpu->info = (struct gpu_info){
      .major = (uint32_t)properties.major,
      .minor = (uint32_t)properties.minor,
      .processors = (uint32_t)properties.multiProcessorCount,
      .memory_bytes = properties.totalGlobalMem,
      .l2_bytes = (uint64_t)properties.l2CacheSize,
  };
  memcpy(gpu->info.name, properties.name, sizeof gpu->info.name - 1);
  *result = gpu;
  return 0;
}

void gpu_destroy(struct gpu *gpu) {
  if (!gpu)
    return;
  cudaSetDevice(gpu->device);
  cudaDeviceSynchronize();
  for (uint32_t i = 0; i < GPU_STAGES; i++) {
    cudaFreeHost(gpu->stages[i].bytes);
    if (gpu->stages[i].uploaded)
      cudaEventDestroy(gpu->stages[i].uploaded);
  }
  if (gpu->pool)
    cudaMemPoolDestroy(gpu->pool);
  gpu_hints_free(&gpu->hints);
  free(gpu);
}

void gpu_info(const struct gpu *gpu, struct gpu_info *info) { *info = gpu->info; }
