// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
#include "retrieval/cuda/gpu.h"

#include <stdlib.h>

#include "retrieval/cuda/memory.h"

enum {
  MAJOR_MIN = 8,
  CHUNKS_FIRST = 64, /* places in a new table of chunks */
};

int gpu_failed(struct error *error, cudaError_t status, const char *what) {
  cudaGetLastError(); /* so that the next call does not report it again */
  return error_set(error, status == cudaErrorMemoryAllocation ? ERR_MEMORY : ERR_IO, "GPU: %s: %s", what,
                   cudaGetErrorString(status));
}

/* --- the GPU ----------------------------------------------------------------------------------------------------- */

static int find_device(int device, struct cudaDeviceProp *properties, struct error *error) {
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
  if (device < 0 || device >= count)
    return error_set(error, ERR_NOT_SUPPORTED, "no GPU number %d: there are %d", device, count);
  status = cudaGetDeviceProperties(properties, device);
  if (status != cudaSuccess)
    return gpu_failed(error, status, "cannot ask for its properties");
  if (properties->major < MAJOR_MIN || !properties->cooperativeLaunch)
    return error_set(error, ERR_NOT_SUPPORTED, "%s: compute capability %d.%d, need at least %d.0", properties->name,
                     properties->major, properties->minor, MAJOR_MIN);
  return 0;
}

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

int gpu_create(struct gpu **result, int device, struct error *error) {
  struct cudaDeviceProp properties = {0};
  *result = NULL;
  int failed = find_device(device, &properties, error);
  if (failed)
    return failed;
  struct gpu *gpu = calloc(1, sizeof *gpu);
  if (!gpu)
    return error_set(error, ERR_MEMORY, "out of memory for a GPU (%zu bytes)", sizeof *gpu);
  gpu->device = device;
  cudaError_t status = cudaSetDevice(device);
  if (status == cudaSuccess)
    status = create_pool(gpu);
  if (status == cudaSuccess)
    status = create_stages(gpu);
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
  free(gpu);
}

void gpu_info(const struct gpu *gpu, struct gpu_info *info) { *info = gpu->info; }

/* --- columns ----------------------------------------------------------------------------------------------------- */

struct gpu_columns {
  struct gpu *gpu;
  uint8_t **chunks;       /* of the GPU's memory, a copy of `table` */
  const uint8_t **table;  /* in the GPU's memory */
  float *hints;           /* likewise */
  uint32_t chunk_count, chunks_max;
  uint32_t count;         /* records */
};

int gpu_columns_create(struct gpu *gpu, struct gpu_columns **columns, struct error *error) {
  *columns = calloc(1, sizeof **columns);
  if (!*columns)
    return error_set(error, ERR_MEMORY, "out of memory for columns (%zu bytes)", sizeof **columns);
  (*columns)->gpu = gpu;
  return 0;
}

void gpu_columns_destroy(struct gpu_columns *columns, void *stream) {
  if (!columns)
    return;
  cudaSetDevice(columns->gpu->device);
  for (uint32_t i = 0; i < columns->chunk_count; i++)
    cudaFreeAsync(columns->chunks[i], stream);
  if (columns->table)
    cudaFreeAsync((void *)columns->table, stream);
  if (columns->hints)
    cudaFreeAsync(columns->hints, stream);
  free(columns->chunks);
  free(columns);
}

uint32_t gpu_columns_count(const struct gpu_columns *columns) { return columns->count; }

static uint32_t chunks_for(uint64_t count) { return (uint32_t)((count + GPU_CHUNK - 1) / GPU_CHUNK); }

static uint32_t table_for(uint32_t chunks) {
  uint32_t size = CHUNKS_FIRST;
  while (size < chunks)
    size *= 2;
  return size;
}

uint64_t gpu_columns_bytes(uint32_t count) {
  uint64_t chunks = chunks_for(count);
  return chunks ? chunks * GPU_CHUNK_BYTES + table_for((uint32_t)chunks) * sizeof(uint8_t *) : 0;
}

/* Makes the tables long enough; scans that were started before go on reading the old one. */
static int grow_table(struct gpu_columns *columns, uint32_t chunks, cudaStream_t stream, struct error *error) {
  if (chunks <= columns->chunks_max)
    return 0;
  uint32_t size = table_for(chunks);
  uint8_t **grown = realloc(columns->chunks, size * sizeof *grown);
  if (!grown)
    return error_set(error, ERR_MEMORY, "out of memory for columns (%zu bytes)", size * sizeof *grown);
  columns->chunks = grown;
  void *table = NULL;
  cudaError_t status = cudaMallocFromPoolAsync(&table, size * sizeof *grown, columns->gpu->pool, stream);
  if (status == cudaSuccess && columns->chunk_count)
    status = cudaMemcpyAsync(table, columns->table, columns->chunk_count * sizeof *grown, cudaMemcpyDeviceToDevice,
                             stream);
  if (status != cudaSuccess) {
    if (table)
      cudaFreeAsync(table, stream);
    return gpu_failed(error, status, "no memory for a table of columns");
  }
  if (columns->table)
    cudaFreeAsync((void *)columns->table, stream);
  columns->table = table;
  columns->chunks_max = size;
  return 0;
}

static int make_hints(struct gpu_columns *columns, cudaStream_t stream, struct error *error) {
  size_t size = GPU_HINTS * sizeof *columns->hints;
  if (columns->hints)
    return 0;
  cudaError_t status = cudaMallocFromPoolAsync((void **)&columns->hints, size, columns->gpu->pool, stream);
  if (status == cudaSuccess)
    status = cudaMemsetAsync(columns->hints, 0, size, stream);
  return status == cudaSuccess ? 0 : gpu_failed(error, status, "no memory for hints");
}

static int add_chunk(struct gpu_columns *columns, cudaStream_t stream, struct error *error) {
  int result = make_hints(columns, stream, error);
  if (!result)
    result = grow_table(columns, columns->chunk_count + 1, stream, error);
  if (result)
    return result;
  void *chunk = NULL;
  cudaError_t status = cudaMallocFromPoolAsync(&chunk, GPU_CHUNK_BYTES, columns->gpu->pool, stream);
  if (status != cudaSuccess)
    return gpu_failed(error, status, "no memory for signatures");
  columns->chunks[columns->chunk_count] = chunk;
  status = cudaMemcpyAsync(columns->table + columns->chunk_count, &chunk, sizeof chunk, cudaMemcpyHostToDevice, stream);
  if (status != cudaSuccess) {
    cudaFreeAsync(chunk, stream);
    return gpu_failed(error, status, "cannot write a table of columns");
  }
  columns->chunk_count++;
  return 0;
}

/* Scales that are not valid become NaN, which compares with nothing. */
static void copy_scales(uint16_t *to, const uint8_t *from, uint32_t count) {
  enum { INVALID = 0x7c00, NOT_A_NUMBER = 0x7e00 };
  memcpy(to, from, (size_t)count * RECORD_K_SCALE_BYTES);
  for (uint32_t i = 0; i < count; i++)
    to[i] = to[i] < INVALID ? to[i] : NOT_A_NUMBER;
}

/* Puts records into the chunk that has room for all of them, at `at`. */
static cudaError_t fill_chunk(struct gpu *gpu, uint8_t *chunk, uint32_t at, const uint8_t *signature,
                              const uint8_t *k_scale, uint32_t count, cudaStream_t stream) {
  struct gpu_stage *stage = &gpu->stages[gpu->next_stage++ % GPU_STAGES];
  uint8_t *signatures = chunk + (size_t)at * RECORD_SIGNATURE_BYTES;
  uint8_t *scales = chunk + GPU_CHUNK_SCALES + (size_t)at * RECORD_K_SCALE_BYTES;
  size_t signature_bytes = (size_t)count * RECORD_SIGNATURE_BYTES, scale_bytes = (size_t)count * RECORD_K_SCALE_BYTES;
  cudaError_t status = cudaEventSynchronize(stage->uploaded);
  if (status != cudaSuccess)
    return status;
  memcpy(stage->bytes, signature, signature_bytes);
  copy_scales((uint16_t *)(void *)(stage->bytes + signature_bytes), k_scale, count);
  status = cudaMemcpyAsync(signatures, stage->bytes, signature_bytes, cudaMemcpyHostToDevice, stream);
  if (status == cudaSuccess)
    status = cudaMemcpyAsync(scales, stage->bytes + signature_bytes, scale_bytes, cudaMemcpyHostToDevice, stream);
  cudaError_t recorded = cudaEventRecord(stage->uploaded, stream);
  return status == cudaSuccess ? recorded : status;
}

int gpu_columns_append(struct gpu_columns *columns, const uint8_t *signature, const uint8_t *k_scale, uint32_t count,
                       void *stream, struct error *error) {
  if (count > UINT32_MAX - columns->count)
    return error_set(error, ERR_LIMIT, "more than %u records in one column on the GPU", UINT32_MAX);
  cudaError_t status = cudaSetDevice(columns->gpu->device);
  if (status != cudaSuccess)
    return gpu_failed(error, status, "cannot be used");
  for (uint32_t done = 0, n; done < count; done += n) {
    uint32_t end = columns->count + done, at = end % GPU_CHUNK;
    n = count - done < GPU_CHUNK - at ? count - done : GPU_CHUNK - at;
    int result = end / GPU_CHUNK < columns->chunk_count ? 0 : add_chunk(columns, stream, error);
    if (result)
      return result;
    status = fill_chunk(columns->gpu, columns->chunks[end / GPU_CHUNK], at,
                        signature + (size_t)done * RECORD_SIGNATURE_BYTES,
                        k_scale + (size_t)done * RECORD_K_SCALE_BYTES, n, stream);
    if (status != cudaSuccess)
      return gpu_failed(error, status, "cannot copy signatures");
  }
  columns->count += count;
  return 0;
}

float *gpu_columns_hints(const struct gpu_columns *columns) { return columns->hints; }

const uint8_t *const *gpu_columns_table(const struct gpu_columns *columns) {
  return (const uint8_t *const *)columns->table;
}
