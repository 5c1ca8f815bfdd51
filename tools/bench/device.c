// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// Kernels of client/cuda, timed one by one with device events. Layers take turns, which are more than the caches hold.
#include "tools/bench/device.h"

#ifdef COLDKV_CUDA
#include <stdlib.h>
#include <string.h>

#include "client/cuda/launch.h"
#include "client/cuda/plan.h"
#include "proto/codebook.h"
#include "proto/record.h"
#include "tools/bench/gpu_nothing.h"
#include "tools/bench/measure.h"

enum {
  LAYERS = 96, /* three Llama 3.1 8B, so that they are more than its caches hold */
  LAYERS_ENCODED = 32,
  HEADS = 8,
  GROUP = 4,
  D = 128,
  SLOTS = 64,
  HOT = 256,
  FIRST = 4096 + HOT - 1, /* of the attending token: it sees HOT keys of the window */
  HANDOVER = 64,          /* tokens */
  TURNS = 400,
  TURNS_QUICK = 40,
  WARM = 20,
  ELEMENT = sizeof(uint16_t),
};

#define RING_BYTES ((size_t)HEADS * CUDA_RING * D * ELEMENT) /* of a layer */

struct bench {
  uint8_t *keys, *rotated, *values, *sinks, *slots; /* GPU memory */
  uint8_t *records, *pinned;
  float *means, *rows, *partial;
  uint32_t *crc, *index, *arrived;
  uint16_t *q, *out;
  struct cuda_found *found;
  cudaStream_t stream;
  cudaEvent_t begin, end;
  uint32_t turns, processors;
  double samples[TURNS];
};

static const struct cuda_shape shape = {.layers = LAYERS_ENCODED, .heads = HEADS, .group = GROUP, .d = D,
                                        .pairs = D / 2, .half = 1, .type = CUDA_F16};

/* --- memory ------------------------------------------------------------------------------------------------------- */

/* GPU memory with noise of about one, as fp16. */
static cudaError_t noisy(uint8_t **to, size_t bytes, uint64_t *state) {
  enum { PIECE = 1 << 22 };
  uint16_t *noise = malloc(PIECE);
  cudaError_t status = noise ? cudaMalloc((void **)to, bytes) : cudaErrorMemoryAllocation;
  for (size_t i = 0; noise && i < PIECE / sizeof *noise; i++)
    noise[i] = f16_from_f32(noise_gauss(state));
  for (size_t at = 0; at < bytes && status == cudaSuccess; at += PIECE) /* from another place on each time */
    status = cudaMemcpy(*to + at, noise, bytes - at < PIECE ? bytes - at : PIECE, cudaMemcpyHostToDevice);
  free(noise);
  return status;
}

static cudaError_t zeros(void **to, size_t bytes) {
  cudaError_t status = cudaMalloc(to, bytes);
  return status == cudaSuccess ? cudaMemset(*to, 0, bytes) : status;
}

static cudaError_t tables(struct bench *b) {
  static uint32_t table[PLAN_CRC_TABLE + PLAN_SEAL_TABLE], index[SLOTS * HEADS + 2 * HEADS + 1];
  plan_crc_table(table);
  plan_seal_table(table + PLAN_CRC_TABLE);
  for (uint32_t i = 0; i < SLOTS * HEADS; i++)
    index[i] = i % SLOTS;
  for (uint32_t i = 0; i <= HEADS; i++)
    index[SLOTS * HEADS + i] = i * SLOTS; /* starts */
  for (uint32_t i = 0; i < HEADS; i++)
    index[SLOTS * HEADS + HEADS + 1 + i] = SLOTS; /* counts */
  cudaError_t status = cudaMalloc((void **)&b->crc, sizeof table);
  if (status == cudaSuccess)
    status = cudaMemcpy(b->crc, table, sizeof table, cudaMemcpyHostToDevice);
  if (status == cudaSuccess)
    status = cudaMalloc((void **)&b->index, sizeof index);
  return status == cudaSuccess ? cudaMemcpy(b->index, index, sizeof index, cudaMemcpyHostToDevice) : status;
}

static cudaError_t create(struct bench *b) {
  uint64_t state = 5;
  int device = 0, processors = 0;
  size_t records = (size_t)LAYERS_ENCODED * HEADS * CUDA_RING * RECORD_BYTES;
  cudaError_t status = cudaGetDevice(&device);
  cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device);
  b->processors = (uint32_t)processors;
  uint8_t **noise[] = {&b->keys, &b->rotated, &b->values, &b->sinks, &b->slots, (uint8_t **)&b->q};
  size_t sizes[] = {LAYERS * RING_BYTES, LAYERS * RING_BYTES, LAYERS * RING_BYTES,
                    (size_t)2 * LAYERS * HEADS * CUDA_SINKS * D * ELEMENT,
                    (size_t)2 * LAYERS * HEADS * SLOTS * D * ELEMENT, (size_t)LAYERS * HEADS * GROUP * D * ELEMENT};
  for (size_t i = 0; i < sizeof sizes / sizeof *sizes && status == cudaSuccess; i++)
    status = noisy(noise[i], sizes[i], &state);
  void **clear[] = {(void **)&b->records, (void **)&b->means, (void **)&b->rows, (void **)&b->partial,
                    (void **)&b->arrived, (void **)&b->out};
  size_t clear_sizes[] = {records, (size_t)2 * LAYERS_ENCODED * HEADS * D * sizeof(float),
                          (size_t)1024 * D * sizeof(float),
                          plan_partial_max(1, HEADS, GROUP, CUDA_SINKS + SLOTS, HOT, D, b->processors) * sizeof(float),
                          HEADS * sizeof(uint32_t), (size_t)HEADS * GROUP * D * ELEMENT};
  for (size_t i = 0; i < sizeof clear_sizes / sizeof *clear_sizes && status == cudaSuccess; i++)
    status = zeros(clear[i], clear_sizes[i]);
  if (status == cudaSuccess)
    status = tables(b);
  if (status == cudaSuccess)
    status = cudaHostAlloc((void **)&b->pinned, (size_t)HANDOVER * LAYERS_ENCODED * HEADS * RECORD_BYTES, 0);
  if (status == cudaSuccess)
    status = cudaHostAlloc((void **)&b->found, sizeof *b->found, 0);
  if (status == cudaSuccess)
    memset((void *)b->found, 0, sizeof *b->found);
  if (status == cudaSuccess)
    status = cudaStreamCreateWithFlags(&b->stream, cudaStreamNonBlocking);
  if (status == cudaSuccess)
    status = cudaEventCreate(&b->begin);
  if (status == cudaSuccess)
    status = cudaEventCreate(&b->end);
  return status == cudaSuccess ? cudaDeviceSynchronize() : status;
}

static void destroy(struct bench *b) {
  void *all[] = {b->keys, b->rotated, b->values, b->sinks, b->slots, b->records, b->means, b->rows, b->partial,
                 b->crc, b->index, b->arrived, b->q, b->out};
  for (size_t i = 0; i < sizeof all / sizeof *all; i++)
    cudaFree(all[i]);
  cudaFreeHost(b->pinned);
  cudaFreeHost((void *)b->found);
  if (b->begin)
    cudaEventDestroy(b->begin);
  if (b->end)
    cudaEventDestroy(b->end);
  if (b->stream)
    cudaStreamDestroy(b->stream);
}

/* --- what is timed ------------------------------------------------------------------------------------------------ */

typedef cudaError_t work_fn(struct bench *b, uint32_t turn);

static cudaError_t nothing(struct bench *b, uint32_t turn) {
  (void)turn;
  return gpu_nothing_launch(96, 256, b->stream);
}

static void fill_split(struct cuda_split *split, uint32_t bits) {
  *split = (struct cuda_split){.whole = bits};
  memcpy(split->levels[0], codebooks[bits].levels, (1u << bits) * sizeof(float));
  memcpy(split->thresholds[0], codebooks[bits].thresholds, ((1u << bits) - 1) * sizeof(float));
}

static cudaError_t encode(struct bench *b, uint32_t turn, uint32_t tokens) {
  size_t part = turn % (LAYERS / LAYERS_ENCODED) * (size_t)LAYERS_ENCODED * RING_BYTES;
  struct cuda_encode_job job = {.shape = shape, .keys = b->keys + part, .values = b->values + part, .mean_k = b->means,
                                .mean_v = b->means + (size_t)LAYERS_ENCODED * HEADS * D, .crc_table = b->crc,
                                .first = (uint64_t)turn * tokens, .count = tokens, .records = b->records,
                                .found = b->found};
  job.codec = (struct cuda_codec){.signs = {{0x9e3779b9, 0x7f4a7c15, 0xbf58476d, 0x1ce4e5b9}}};
  fill_split(&job.key, RECORD_K_MAG_BITS / D);
  fill_split(&job.value, RECORD_V_CODE_BITS / D - 1);
  return cuda_encode_launch(&job, b->processors, b->stream);
}

static cudaError_t encode_ring(struct bench *b, uint32_t turn) { return encode(b, turn, CUDA_RING); }
static cudaError_t encode_some(struct bench *b, uint32_t turn) { return encode(b, turn, HANDOVER); }

static cudaError_t encode_home(struct bench *b, uint32_t turn) {
  cudaError_t status = encode_some(b, turn);
  return status == cudaSuccess ? cudaMemcpyAsync(b->pinned, b->records,
                                                 (size_t)HANDOVER * LAYERS_ENCODED * HEADS * RECORD_BYTES,
                                                 cudaMemcpyDeviceToHost, b->stream)
                               : status;
}

static cudaError_t attend(struct bench *b, uint32_t turn) {
  size_t layer = turn % LAYERS, sinks = (size_t)HEADS * CUDA_SINKS * D * ELEMENT;
  size_t slots = (size_t)HEADS * SLOTS * D * ELEMENT;
  struct plan_attend plan = plan_attend(1, HEADS, GROUP, CUDA_SINKS + SLOTS, HOT, b->processors);
  struct cuda_attend_job job = {
      .shape = shape,
      .plan = {plan.keys, plan.far_splits, plan.hot_splits, plan.tile, plan.tiles},
      .hot = {.rotated = b->rotated + layer * RING_BYTES, .values = b->values + layer * RING_BYTES,
              .sink_keys = b->sinks + 2 * layer * sinks, .sink_values = b->sinks + (2 * layer + 1) * sinks},
      .q = b->q + layer * HEADS * GROUP * D,
      .out = b->out,
      .type = CUDA_F16,
      .count = 1,
      .first = FIRST,
      .hot_start = FIRST + 1 - HOT,
      .sinks = CUDA_SINKS,
      .k = SLOTS,
      .packed = 1,
      .slot_keys = b->slots + 2 * layer * slots,
      .slot_values = b->slots + (2 * layer + 1) * slots,
      .starts = b->index + SLOTS * HEADS,
      .index = b->index,
      .slot_counts = b->index + SLOTS * HEADS + HEADS + 1,
      .slots_rotated = 1,
      .rows = b->rows,
      .table = b->rows,
      .scale = 0.1f,
      .partial = b->partial,
      .arrived = b->arrived,
  };
  return cuda_attend_launch(&job, b->stream);
}

/* Median seconds of one piece of work between two events. */
static double timed(struct bench *b, work_fn *work, struct error *error) {
  uint32_t count = 0;
  cudaError_t status = cudaSuccess;
  for (uint32_t i = 0; i < b->turns + WARM && status == cudaSuccess; i++) {
    float ms = 0;
    cudaEventRecord(b->begin, b->stream);
    status = work(b, i);
    cudaEventRecord(b->end, b->stream);
    if (status == cudaSuccess)
      status = cudaEventSynchronize(b->end);
    cudaEventElapsedTime(&ms, b->begin, b->end);
    if (i >= WARM)
      b->samples[count++] = (double)ms * 1e-3;
  }
  if (status != cudaSuccess)
    error_set(error, ERR_IO, "GPU: %s", cudaGetErrorString(status));
  return median(b->samples, count);
}

/* Median seconds of one of many that follow each other without a pause. */
static double in_a_row(struct bench *b, work_fn *work, struct error *error) {
  enum { ROW = LAYERS };
  uint32_t count = 0;
  cudaError_t status = cudaSuccess;
  for (uint32_t i = 0; i < b->turns / 10 + 2 && status == cudaSuccess; i++) {
    float ms = 0;
    cudaEventRecord(b->begin, b->stream);
    for (uint32_t j = 0; j < ROW && status == cudaSuccess; j++)
      status = work(b, j);
    cudaEventRecord(b->end, b->stream);
    if (status == cudaSuccess)
      status = cudaEventSynchronize(b->end);
    cudaEventElapsedTime(&ms, b->begin, b->end);
    if (i >= 2)
      b->samples[count++] = (double)ms * 1e-3 / ROW;
  }
  if (status != cudaSuccess)
    error_set(error, ERR_IO, "GPU: %s", cudaGetErrorString(status));
  return median(b->samples, count);
}

static int print(struct bench *b, double rate, struct bench_output *output, struct error *error) {
  double records = (double)LAYERS_ENCODED * HEADS * CUDA_RING, moved = 2.0 * D * ELEMENT + RECORD_BYTES;
  double keys = (double)(CUDA_SINKS + SLOTS + HOT) * HEADS * D * ELEMENT * 2;
  double traffic = keys + 2.0 * HEADS * GROUP * D * ELEMENT;
  error->code = 0;
  double ring = timed(b, encode_ring, error), some = timed(b, encode_some, error), home = timed(b, encode_home, error);
  bench_figure(output, "encode_us", ring * 1e6, "131,072 records of fp16 keys and values of 128: 80.7 MB moved");
  bench_figure(output, "encode_over_read", records * moved / ring / rate, "wanted: at least 0.5");
  double ring_row = in_a_row(b, encode_ring, error);
  bench_figure(output, "encode_row_us", ring_row * 1e6, "the same one after the other, as in a long prefill, each");
  bench_figure(output, "encode_row_over_read", records * moved / ring_row / rate, "");
  bench_figure(output, "encode_handover_us", some * 1e6, "64 tokens of 32 layers x 8 kv heads");
  bench_figure(output, "encode_home_us", home * 1e6, "the same, with the copy of the records to the host");
  double empty = timed(b, nothing, error), one = timed(b, attend, error), bound = empty + traffic / rate;
  bench_figure(output, "empty_us", empty * 1e6, "a kernel that does nothing");
  bench_figure(output, "attend_us", one * 1e6, "32 query and 8 kv heads of 128, 4 + 64 + 256 keys, fp16");
  bench_figure(output, "attend_over_bound", one / bound,
               "bound: the empty kernel, and reading keys and values once; wanted: at most 2");
  double empty_row = in_a_row(b, nothing, error), row = in_a_row(b, attend, error);
  bench_figure(output, "empty_row_us", empty_row * 1e6, "empty kernels one after the other, each");
  bench_figure(output, "attend_row_us", row * 1e6, "attentions one after the other, each");
  return -error->code;
}

int bench_device(bool quick, double read_rate, struct bench_output *output, struct error *error) {
  static struct bench b;
  b = (struct bench){.turns = quick ? TURNS_QUICK : TURNS};
  cudaError_t status = create(&b);
  int result = status == cudaSuccess ? print(&b, read_rate, output, error)
                                     : error_set(error, ERR_MEMORY, "GPU: %s", cudaGetErrorString(status));
  destroy(&b);
  return result;
}
#else
int bench_device(bool quick, double read_rate, struct bench_output *output, struct error *error) {
  (void)quick;
  (void)read_rate;
  (void)output;
  return error_set(error, ERR_NOT_SUPPORTED, "no GPU: built without CUDA");
}
#endif
