// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
#include <stdlib.h>

#include "retrieval/cuda/memory.h"

enum { CHUNKS_FIRST = 64 /* places in a new table of chunks */ };

/* Pieces of equal size of the GPU's memory. */
struct chunk_list {
  uint8_t **chunks;      /* of the GPU's memory, a copy of `table` */
  const uint8_t **table; /* in the GPU's memory */
  uint32_t count, max;
};

struct gpu_columns {
  struct gpu *gpu;
  struct chunk_list scan, codes;
  float *hints;
  uint32_t count, code_count;     /* records */
};

int gpu_columns_create(struct gpu *gpu, struct gpu_columns **columns, struct error *error) {
  *columns = calloc(1, sizeof **columns);
  if (!*columns)
    return error_set(error, ERR_MEMORY, "out of memory for columns (%zu bytes)", sizeof **columns);
  (*columns)->gpu = gpu;
  return 0;
}

/* --- chunks ------------------------------------------------------------------------------------------------------ */

static void free_list(struct chunk_list *list, cudaStream_t stream) {
  for (uint32_t i = 0; i < list->count; i++)
    cudaFreeAsync(list->chunks[i], stream);
  if (list->table)
    cudaFreeAsync((void *)list->table, stream);
  free(list->chunks);
  *list = (struct chunk_list){.count = 0};
}

static uint32_t table_for(uint32_t chunks) {
  uint32_t size = CHUNKS_FIRST;
  while (size < chunks)
    size *= 2;
  return size;
}

/* What records in chunks of so many take. */
static uint64_t list_bytes(uint32_t count, uint32_t records, uint64_t chunk_bytes) {
  uint64_t chunks = ((uint64_t)count + records - 1) / records;
  return chunks ? chunks * chunk_bytes + table_for((uint32_t)chunks) * sizeof(uint8_t *) : 0;
}

uint64_t gpu_columns_bytes(uint32_t count) { return list_bytes(count, GPU_CHUNK, GPU_CHUNK_BYTES); }

uint64_t gpu_codes_bytes(uint32_t count) { return list_bytes(count, GPU_CODE_CHUNK, GPU_CODE_CHUNK_BYTES); }

/* Makes the tables long enough; scans that were started before go on reading the old one. */
static int grow_table(struct gpu *gpu, struct chunk_list *list, uint32_t chunks, cudaStream_t stream,
                      struct error *error) {
  if (chunks <= list->max)
    return 0;
  uint32_t size = table_for(chunks);
  uint8_t **grown = realloc(list->chunks, size * sizeof *grown);
  if (!grown)
    return error_set(error, ERR_MEMORY, "out of memory for columns (%zu bytes)", size * sizeof *grown);
  list->chunks = grown;
  void *table = NULL;
  cudaError_t status = cudaMallocFromPoolAsync(&table, size * sizeof *grown, gpu->pool, stream);
  if (status == cudaSuccess && list->count)
    status = cudaMemcpyAsync(table, list->table, list->count * sizeof *grown, cudaMemcpyDeviceToDevice, stream);
  if (status != cudaSuccess) {
    if (table)
      cudaFreeAsync(table, stream);
    return gpu_failed(error, status, "no memory for a table of columns");
  }
  if (list->table)
    cudaFreeAsync((void *)list->table, stream);
  list->table = table;
  list->max = size;
  return 0;
}

static int add_chunk(struct gpu *gpu, struct chunk_list *list, size_t chunk_bytes, cudaStream_t stream,
                     struct error *error) {
  int result = grow_table(gpu, list, list->count + 1, stream, error);
  if (result)
    return result;
  void *chunk = NULL;
  cudaError_t status = cudaMallocFromPoolAsync(&chunk, chunk_bytes, gpu->pool, stream);
  if (status != cudaSuccess)
    return gpu_failed(error, status, "no memory for columns");
  list->chunks[list->count] = chunk;
  status = cudaMemcpyAsync(list->table + list->count, &chunk, sizeof chunk, cudaMemcpyHostToDevice, stream);
  if (status != cudaSuccess) {
    cudaFreeAsync(chunk, stream);
    return gpu_failed(error, status, "cannot write a table of columns");
  }
  list->count++;
  return 0;
}

/* --- signatures and scales --------------------------------------------------------------------------------------- */

/* Scales that are not valid become NaN, which compares with nothing. */
static void copy_scales(uint16_t *to, const uint8_t *from, uint32_t count) {
  enum { INVALID = 0x7c00, NOT_A_NUMBER = 0x7e00 };
  memcpy(to, from, (size_t)count * RECORD_K_SCALE_BYTES);
  for (uint32_t i = 0; i < count; i++)
    to[i] = to[i] < INVALID ? to[i] : NOT_A_NUMBER;
}

/* Pinned memory that is free again, for an upload; NULL after an error. */
static struct gpu_stage *take_stage(struct gpu *gpu, cudaError_t *status) {
  atomic_store(&gpu->uploaded, true);
  struct gpu_stage *stage = &gpu->stages[gpu->next_stage++ % GPU_STAGES];
  *status = cudaEventSynchronize(stage->uploaded);
  return *status == cudaSuccess ? stage : NULL;
}

/* Puts records into the chunk that has room for all of them, at `at`. */
static cudaError_t fill_chunk(struct gpu *gpu, uint8_t *chunk, uint32_t at, const uint8_t *signature,
                              const uint8_t *k_scale, uint32_t count, cudaStream_t stream) {
  uint8_t *signatures = chunk + (size_t)at * RECORD_SIGNATURE_BYTES;
  uint8_t *scales = chunk + GPU_CHUNK_SCALES + (size_t)at * RECORD_K_SCALE_BYTES;
  size_t signature_bytes = (size_t)count * RECORD_SIGNATURE_BYTES, scale_bytes = (size_t)count * RECORD_K_SCALE_BYTES;
  cudaError_t status;
  struct gpu_stage *stage = take_stage(gpu, &status);
  if (!stage)
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
  if (count && !columns->hints)
    status = gpu_hints_take(&columns->gpu->hints, &columns->hints);
  int result = status == cudaSuccess ? 0 : gpu_failed(error, status, "no memory for hints");
  for (uint32_t done = 0, n; done < count && !result; done += n) {
    uint32_t end = columns->count + done, at = end % GPU_CHUNK;
    n = count - done < GPU_CHUNK - at ? count - done : GPU_CHUNK - at;
    if (end / GPU_CHUNK >= columns->scan.count)
      result = add_chunk(columns->gpu, &columns->scan, GPU_CHUNK_BYTES, stream, error);
    if (result)
      break;
    status = fill_chunk(columns->gpu, columns->scan.chunks[end / GPU_CHUNK], at,
                        signature + (size_t)done * RECORD_SIGNATURE_BYTES,
                        k_scale + (size_t)done * RECORD_K_SCALE_BYTES, n, stream);
    if (status != cudaSuccess)
      result = gpu_failed(error, status, "cannot copy signatures");
  }
  if (!result)
    columns->count += count;
  return result;
}

/* --- key codes --------------------------------------------------------------------------------------------------- */

static cudaError_t fill_codes(struct gpu *gpu, uint8_t *to, const uint8_t *k_mag, uint32_t count, cudaStream_t stream) {
  size_t bytes = (size_t)count * RECORD_K_MAG_BYTES;
  cudaError_t status;
  struct gpu_stage *stage = take_stage(gpu, &status);
  if (!stage)
    return status;
  memcpy(stage->bytes, k_mag, bytes);
  status = cudaMemcpyAsync(to, stage->bytes, bytes, cudaMemcpyHostToDevice, stream);
  cudaError_t recorded = cudaEventRecord(stage->uploaded, stream);
  return status == cudaSuccess ? recorded : status;
}

int gpu_columns_append_codes(struct gpu_columns *columns, const uint8_t *k_mag, uint32_t count, void *stream,
                             struct error *error) {
  if (count > UINT32_MAX - columns->code_count)
    return error_set(error, ERR_LIMIT, "more than %u key codes in one column on the GPU", UINT32_MAX);
  cudaError_t status = cudaSetDevice(columns->gpu->device);
  if (status != cudaSuccess)
    return gpu_failed(error, status, "cannot be used");
  for (uint32_t done = 0, n; done < count; done += n) {
    uint32_t end = columns->code_count + done, at = end % GPU_CODE_CHUNK;
    n = count - done < GPU_CODE_CHUNK - at ? count - done : GPU_CODE_CHUNK - at;
    int result = 0;
    if (end / GPU_CODE_CHUNK >= columns->codes.count)
      result = add_chunk(columns->gpu, &columns->codes, GPU_CODE_CHUNK_BYTES, stream, error);
    if (result)
      return result;
    status = fill_codes(columns->gpu, columns->codes.chunks[end / GPU_CODE_CHUNK] + (size_t)at * RECORD_K_MAG_BYTES,
                        k_mag + (size_t)done * RECORD_K_MAG_BYTES, n, stream);
    if (status != cudaSuccess)
      return gpu_failed(error, status, "cannot copy key codes");
  }
  columns->code_count += count;
  return 0;
}

void gpu_columns_drop_codes(struct gpu_columns *columns, void *stream) {
  cudaSetDevice(columns->gpu->device);
  free_list(&columns->codes, stream);
  columns->code_count = 0;
}

/* --- what is there ----------------------------------------------------------------------------------------------- */

void gpu_columns_destroy(struct gpu_columns *columns, void *stream) {
  if (!columns)
    return;
  cudaSetDevice(columns->gpu->device);
  free_list(&columns->scan, stream);
  free_list(&columns->codes, stream);
  gpu_hints_give_back(&columns->gpu->hints, columns->hints);
  free(columns);
}

uint32_t gpu_columns_count(const struct gpu_columns *columns) { return columns->count; }

uint32_t gpu_columns_codes(const struct gpu_columns *columns) { return columns->code_count; }

float *gpu_columns_hints(const struct gpu_columns *columns) { return columns->hints; }

const uint8_t *const *gpu_columns_table(const struct gpu_columns *columns) {
  return (const uint8_t *const *)columns->scan.table;
}

const uint8_t *const *gpu_columns_code_table(const struct gpu_columns *columns) {
  return (const uint8_t *const *)columns->codes.table;
}
