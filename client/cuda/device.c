// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// A device's memory, streams and tables. What is computed there is in work.c.
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "client/cuda/memory.h"
#include "client/cuda/plan.h"
#include "client/tuning.h"
#include "proto/codebook.h"

enum { HOT_KEYS_MAX = COLDKV_HOT + HOT_TILE + COLDKV_BLOCK_MAX };

_Static_assert((int)CUDA_RING == (int)HOT_RING && (int)CUDA_SINKS == (int)COLDKV_SINKS &&
                   (int)CUDA_BLOCK_MAX == (int)COLDKV_BLOCK_MAX && (int)CUDA_D_MAX == (int)LIMIT_HEAD_DIM_MAX &&
                   (int)CUDA_RECORD == (int)RECORD_BYTES && (int)CUDA_CRC_TABLE == (int)PLAN_CRC_TABLE &&
                   (int)CUDA_SEAL_WORDS == (int)PLAN_SEAL_TABLE && (int)CUDA_F32 == (int)COLDKV_F32 &&
                   (int)CUDA_F16 == (int)COLDKV_F16 && (int)CUDA_BF16 == (int)COLDKV_BF16 &&
                   8 * 4 == RECORD_K_MAG_BYTES,
               "launch.h repeats what kernels cannot include");

/* --- memory ------------------------------------------------------------------------------------------------------- */

static void release(struct device *device, struct device_memory *memory) {
  uint64_t *sum = memory->pinned ? &device->pinned_bytes : &device->device_bytes;
  if (memory->pinned)
    cudaFreeHost(memory->at);
  else
    cudaFree(memory->at);
  *sum -= memory->bytes;
  memory->at = NULL;
  memory->bytes = 0;
}

cudaError_t device_reserve(struct device *device, struct device_memory *memory, size_t bytes, bool round) {
  if (bytes <= memory->bytes)
    return cudaSuccess;
  cudaError_t status = memory->at ? cudaDeviceSynchronize() : cudaSuccess; /* growing: not in a steady state */
  if (status != cudaSuccess)
    return status;
  release(device, memory);
  size_t wanted = 4096;
  while (round && wanted < bytes)
    wanted *= 2;
  wanted = round ? wanted : bytes;
  status = memory->pinned ? cudaHostAlloc(&memory->at, wanted, cudaHostAllocDefault) : cudaMalloc(&memory->at, wanted);
  if (status != cudaSuccess) {
    memory->at = NULL;
    return status;
  }
  memory->bytes = wanted;
  *(memory->pinned ? &device->pinned_bytes : &device->device_bytes) += wanted;
  return cudaSuccess;
}

/* The same, all zero. */
static cudaError_t reserve_zeros(struct device *device, struct device_memory *memory, size_t bytes) {
  cudaError_t status = device_reserve(device, memory, bytes, false);
  return status == cudaSuccess ? cudaMemsetAsync(memory->at, 0, memory->bytes, device->own) : status;
}

struct cuda_hot device_hot(const struct device *device, uint32_t layer) {
  const struct cuda_shape *s = &device->shape;
  size_t layer_bytes = (size_t)s->heads * CUDA_RING * s->d * device->element, all = s->layers * layer_bytes;
  size_t sink_bytes = (size_t)s->heads * CUDA_SINKS * s->d * device->element, sinks = s->layers * sink_bytes;
  uint8_t *ring = device->ring.at, *sink = device->sinks.at;
  return (struct cuda_hot){
      .keys = ring + layer * layer_bytes,
      .rotated = ring + all + layer * layer_bytes,
      .values = ring + 2 * all + layer * layer_bytes,
      .sink_keys = sink + layer * sink_bytes,
      .sink_values = sink + sinks + layer * sink_bytes,
  };
}

static uint32_t tiles_max(const struct device *device) { return device->shape.group; }

cudaError_t device_reserve_slots(struct device *device, uint32_t k) {
  const struct cuda_shape *s = &device->shape;
  uint32_t rows = CUDA_SINKS + k + CUDA_RING + CUDA_BLOCK_MAX;
  size_t partial = plan_partial_max(CUDA_BLOCK_MAX, s->heads, s->group, CUDA_SINKS + k, HOT_KEYS_MAX, s->d,
                                    device->processors);
  cudaError_t status = device_reserve(device, &device->partial, partial * sizeof(float), false);
  if (status == cudaSuccess)
    status = device_reserve(device, &device->table, (size_t)rows * 2 * CUDA_PAIRS_MAX * sizeof(float), false);
  struct cuda_rows_job job = {.counted = 1, .count = rows, .pairs = s->pairs, .rows = device->table.at};
  memcpy(job.freqs, device->freqs, sizeof job.freqs);
  if (status == cudaSuccess)
    status = cuda_rows_launch(&job, device->own);
  if (status == cudaSuccess)
    status = cudaStreamSynchronize(device->own); /* any stream may read it from here on */
  if (status == cudaSuccess)
    device->k_max = k;
  return status;
}

/* All whose size does not depend on what comes. */
static cudaError_t allocate(struct device *device) {
  const struct cuda_shape *s = &device->shape;
  size_t places = (size_t)s->layers * s->heads, vector = s->d * device->element;
  uint32_t table[PLAN_CRC_TABLE + PLAN_SEAL_TABLE];
  plan_crc_table(table);
  plan_seal_table(table + PLAN_CRC_TABLE);
  device->found.pinned = device->queries.pinned = device->records.pinned = device->upload.pinned = true;
  cudaError_t status = reserve_zeros(device, &device->ring, 3 * places * CUDA_RING * vector);
  if (status == cudaSuccess)
    status = reserve_zeros(device, &device->sinks, 2 * places * CUDA_SINKS * vector);
  if (status == cudaSuccess)
    status = device_reserve(device, &device->rows, 2 * CUDA_BLOCK_MAX * 2 * CUDA_PAIRS_MAX * sizeof(float), false);
  if (status == cudaSuccess)
    status = device_reserve(device, &device->means, 2 * places * s->d * sizeof(float), false);
  if (status == cudaSuccess)
    status = device_reserve(device, &device->crc, sizeof table, false);
  if (status == cudaSuccess)
    status = cudaMemcpyAsync(device->crc.at, table, sizeof table, cudaMemcpyHostToDevice, device->own);
  if (status == cudaSuccess)
    status = reserve_zeros(device, &device->arrived,
                           (size_t)CUDA_BLOCK_MAX * s->heads * tiles_max(device) * sizeof(uint32_t));
  if (status == cudaSuccess)
    status = device_reserve(device, &device->coded, DEVICE_ENCODE_MAX * places * RECORD_BYTES, false);
  if (status == cudaSuccess)
    status = device_reserve(device, &device->records, DEVICE_ENCODE_MAX * places * RECORD_BYTES, false);
  if (status == cudaSuccess)
    status = device_reserve(device, &device->queries,
                            (size_t)CUDA_BLOCK_MAX * s->heads * RECORD_SIGNATURE_BITS * sizeof(float), false);
  if (status == cudaSuccess)
    status = device_reserve(device, &device->found, sizeof(struct cuda_found), false);
  if (status == cudaSuccess)
    memset(device->found.at, 0, sizeof(struct cuda_found));
  return status == cudaSuccess ? cudaStreamSynchronize(device->own) : status;
}

/* --- making one --------------------------------------------------------------------------------------------------- */

static cudaError_t create_streams(struct device *device) {
  cudaEvent_t *const events[] = {&device->last, &device->asked, &device->taken, &device->encoded};
  cudaError_t status = cudaStreamCreateWithFlags(&device->own, cudaStreamNonBlocking);
  if (status == cudaSuccess)
    status = cudaStreamCreateWithFlags(&device->encoder, cudaStreamNonBlocking);
  for (size_t i = 0; i < sizeof events / sizeof *events && status == cudaSuccess; i++)
    status = cudaEventCreateWithFlags(events[i], cudaEventDisableTiming);
  return status;
}

static void fill_split(struct cuda_split *split, uint32_t bits, uint32_t d, uint32_t sign) {
  *split = (struct cuda_split){.whole = bits / d - sign, .partial = bits % d};
  for (uint32_t more = 0; more < 2 && split->whole + more <= CODEBOOK_BITS_MAX; more++) {
    const struct codebook *book = &codebooks[split->whole + more];
    uint32_t levels = 1u << (split->whole + more);
    memcpy(split->levels[more], book->levels, levels * sizeof(float));
    memcpy(split->thresholds[more], book->thresholds, (levels - 1) * sizeof(float));
  }
}

static void fill(struct device *device, const struct device_shape *shape) {
  device->shape = (struct cuda_shape){.layers = shape->layers, .heads = shape->heads, .group = shape->group,
                                      .d = shape->head_dim, .pairs = shape->rope->pairs,
                                      .half = shape->rope->layout == ROPE_HALF, .type = shape->hot_type};
  memcpy(device->freqs, shape->rope->freqs, shape->rope->pairs * sizeof(double));
  device->softmax_scale = shape->softmax_scale;
  device->element = shape->hot_type == COLDKV_F32 ? sizeof(float) : sizeof(uint16_t);
  fill_split(&device->key, RECORD_K_MAG_BITS, shape->head_dim, 0);
  fill_split(&device->value, RECORD_V_CODE_BITS, shape->head_dim, 1);
}

int device_create(struct device **result, uint32_t number, const struct device_shape *shape, struct error *error) {
  struct cudaDeviceProp properties = {0};
  int before = 0;
  *result = NULL;
  int failed = gpu_find(number, &properties, error);
  if (failed)
    return failed;
  struct device *device = calloc(1, sizeof *device);
  if (!device)
    return error_set(error, ERR_MEMORY, "out of memory for a device (%zu bytes)", sizeof *device);
  device->number = (int)number;
  device->owner = getpid();
  device->processors = (uint32_t)properties.multiProcessorCount;
  fill(device, shape);
  cudaGetDevice(&before);
  cudaError_t status = cudaSetDevice(device->number);
  if (status == cudaSuccess)
    status = create_streams(device);
  if (status == cudaSuccess)
    status = allocate(device);
  cudaSetDevice(before);
  if (status != cudaSuccess) {
    device_destroy(device);
    return gpu_failed(error, status, "cannot keep a hot window");
  }
  *result = device;
  return 0;
}

void device_destroy(struct device *device) {
  if (!device)
    return;
  int before = 0;
  struct device_memory *const all[] = {
      &device->ring,    &device->sinks, &device->rows, &device->table,   &device->means,  &device->crc,
      &device->partial, &device->arrived, &device->coded, &device->raw,  &device->vectors, &device->copies,
      &device->found,   &device->queries, &device->records, &device->upload};
  if (device->owner == getpid() && cudaGetDevice(&before) == cudaSuccess) {
    cudaSetDevice(device->number);
    if (device->last)
      cudaEventSynchronize(device->last);
    cudaStreamSynchronize(device->encoder);
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
      release(device, all[i]);
    cudaEvent_t events[] = {device->last, device->asked, device->taken, device->encoded};
    for (size_t i = 0; i < sizeof events / sizeof *events; i++)
      if (events[i])
        cudaEventDestroy(events[i]);
    if (device->own)
      cudaStreamDestroy(device->own);
    if (device->encoder)
      cudaStreamDestroy(device->encoder);
    cudaSetDevice(before);
  }
  free(device);
}

struct device_bytes device_usage(const struct device *device) {
  return (struct device_bytes){.hot = device->ring.bytes + device->sinks.bytes, .device = device->device_bytes,
                               .pinned = device->pinned_bytes};
}

/* --- calls -------------------------------------------------------------------------------------------------------- */

cudaError_t device_enter(struct device *device, void *stream, struct device_call *call) {
  *call = (struct device_call){.stream = stream};
  cudaError_t status = cudaGetDevice(&call->before);
  if (status == cudaSuccess && call->before != device->number)
    status = cudaSetDevice(device->number);
  return status == cudaSuccess ? cudaStreamWaitEvent(stream, device->last, 0) : status;
}

int device_leave(struct device *device, const struct device_call *call, cudaError_t status, const char *what,
                 struct error *error) {
  if (status == cudaSuccess)
    status = cudaEventRecord(device->last, call->stream);
  int result = status == cudaSuccess ? 0 : gpu_failed(error, status, what);
  if (call->before != device->number)
    cudaSetDevice(call->before);
  return result;
}

static void sign_bits(const float signs[3][LIMIT_HEAD_DIM_MAX], uint32_t bits[3][4]) {
  memset(bits, 0, 3 * sizeof *bits);
  for (uint32_t p = 0; p < 3; p++)
    for (uint32_t i = 0; i < LIMIT_HEAD_DIM_MAX; i++)
      bits[p][i / 32] |= (uint32_t)(signs[p][i] < 0) << i % 32;
}

int device_freeze(struct device *device, const struct codec *codec, const float *mean_k, const float *mean_v,
                  struct error *error) {
  size_t bytes = (size_t)device->shape.layers * device->shape.heads * device->shape.d * sizeof(float);
  struct device_call call;
  sign_bits(codec->signs, device->codec.signs);
  sign_bits(codec->extra_signs, device->codec.extra);
  cudaError_t status = device_enter(device, device->own, &call);
  if (status == cudaSuccess)
    status = cudaMemcpyAsync(device->means.at, mean_k, bytes, cudaMemcpyHostToDevice, call.stream);
  if (status == cudaSuccess)
    status = cudaMemcpyAsync((uint8_t *)device->means.at + bytes, mean_v, bytes, cudaMemcpyHostToDevice, call.stream);
  if (status == cudaSuccess)
    status = cudaStreamSynchronize(call.stream);
  return device_leave(device, &call, status, "cannot take the means", error);
}

int device_means(struct device *device, uint64_t first, uint64_t end, float *means, struct error *error) {
  size_t count = (size_t)device->shape.layers * device->shape.heads * device->shape.d;
  struct cuda_hot hot = device_hot(device, 0);
  struct device_call call;
  float *made = device->means.at;
  cudaError_t status = device_enter(device, device->own, &call);
  if (status == cudaSuccess)
    status = cuda_means_launch(&device->shape, hot.keys, first, end, made, call.stream);
  if (status == cudaSuccess)
    status = cuda_means_launch(&device->shape, hot.values, first, end, made + count, call.stream);
  if (status == cudaSuccess)
    status = cudaMemcpyAsync(means, made, 2 * count * sizeof(float), cudaMemcpyDeviceToHost, call.stream);
  if (status == cudaSuccess)
    status = cudaStreamSynchronize(call.stream);
  return device_leave(device, &call, status, "cannot compute means", error);
}

int device_check(const struct device *device, uint64_t *token) {
  const struct cuda_found *found = device_found(device);
  *token = found->token;
  return found->found ? -ERR_NOT_FINITE : 0;
}

void device_forget(struct device *device) {
  cudaEventSynchronize(device->last);
  cudaEventSynchronize(device->encoded);
  device_found(device)->found = 0;
}
