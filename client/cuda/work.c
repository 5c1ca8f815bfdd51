// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// The calls of a block, as kernels and copies in a stream.
#include <string.h>

#include "client/cuda/memory.h"
#include "client/cuda/plan.h"
#include "client/tuning.h"

int device_begin(struct device *device, const struct device_block *block, uint32_t k, struct error *error) {
  struct device_call call;
  device->block = *block;
  device->rows_made = false;
  device->slots = (struct device_slots){0};
  if (k <= device->k_max && device->table.at)
    return 0;
  cudaError_t status = device_enter(device, device->own, &call);
  if (status == cudaSuccess)
    status = device_reserve_slots(device, k);
  return device_leave(device, &call, status, "cannot begin a block", error);
}

/* Rotations of the block's rows: by their own index, and by the positions that q and k came with. */
static float *own_rows(const struct device *device) { return device->rows.at; }
static float *given_rows(const struct device *device) {
  return device->block.rotated ? own_rows(device) + CUDA_BLOCK_MAX * 2 * CUDA_PAIRS_MAX : NULL;
}

/* Makes them in the stream of the block's first call. */
static cudaError_t make_rows(struct device *device, cudaStream_t stream) {
  const struct device_block *block = &device->block;
  if (device->rows_made)
    return cudaSuccess;
  struct cuda_rows_job job = {.counted = 1, .first = (int64_t)block->first, .count = block->count,
                              .pairs = device->shape.pairs, .rows = own_rows(device)};
  memcpy(job.freqs, device->freqs, sizeof job.freqs);
  cudaError_t status = cuda_rows_launch(&job, stream);
  if (status == cudaSuccess && block->rotated) {
    job.counted = 0;
    job.rows = given_rows(device);
    memcpy(job.positions, block->positions, sizeof job.positions);
    status = cuda_rows_launch(&job, stream);
  }
  device->rows_made = status == cudaSuccess;
  return status;
}

int device_put(struct device *device, uint32_t layer, const void *k, const void *v, const struct device_place *place,
               struct error *error) {
  struct device_call call;
  struct cuda_put_job job = {.shape = device->shape, .hot = device_hot(device, layer), .k = k, .v = v,
                             .type = (uint32_t)place->type, .count = device->block.count,
                             .first = device->block.first, .rows = own_rows(device), .unrotate = given_rows(device),
                             .norm_max = VECTOR_NORM_MAX, .found = device_found(device)};
  cudaError_t status = device_enter(device, place->stream, &call);
  if (status == cudaSuccess)
    status = make_rows(device, call.stream);
  if (status == cudaSuccess)
    status = cuda_put_launch(&job, call.stream);
  return device_leave(device, &call, status, "cannot take keys and values", error);
}

/* --- queries ------------------------------------------------------------------------------------------------------ */

int device_query_start(struct device *device, const void *q, uint32_t rows, const float *expected,
                       const struct device_place *place, struct error *error) {
  struct device_call call;
  struct cuda_query_job job = {.shape = device->shape, .codec = device->codec, .q = q, .type = (uint32_t)place->type,
                               .rows = rows, .first = device->block.first, .unrotate = given_rows(device),
                               .norm_max = QUERY_NORM_MAX, .found = device_found(device),
                               .queries = device->queries.at};
  memcpy(job.expected, expected, 2 * (size_t)device->shape.pairs * sizeof(float));
  cudaError_t status = device_enter(device, place->stream, &call);
  if (status == cudaSuccess)
    status = make_rows(device, call.stream);
  if (status == cudaSuccess)
    status = cuda_query_launch(&job, call.stream);
  if (status == cudaSuccess)
    status = cudaEventRecord(device->asked, call.stream);
  return device_leave(device, &call, status, "cannot compute queries", error);
}

int device_query_wait(struct device *device, const float **queries, struct error *error) {
  uint64_t token;
  cudaError_t status = cudaEventSynchronize(device->asked);
  *queries = device->queries.at;
  if (status != cudaSuccess)
    return gpu_failed(error, status, "the queries of a lookup");
  if (device_check(device, &token))
    return error_set(error, ERR_NOT_FINITE, "q, k or v of the block that begins at token %llu is not finite, or too "
                     "long", (unsigned long long)token);
  return 0;
}

/* --- slots -------------------------------------------------------------------------------------------------------- */

static size_t aligned(size_t bytes) { return (bytes + 15) / 16 * 16; }

/* Where things stand in the upload. */
static void lay_out(struct device_slots *slots, const struct retrieved *r) {
  *slots = (struct device_slots){.k = r->k};
  for (uint32_t head = 0; head < r->heads; head++)
    slots->all += r->unions[head].count;
  slots->counts = aligned((r->heads + 1) * sizeof(uint32_t));
  slots->index = slots->counts + aligned((size_t)r->rows * r->heads * sizeof(uint32_t));
  slots->tokens = slots->index + aligned((size_t)r->rows * r->heads * r->k * sizeof(uint32_t));
  slots->records = slots->tokens + aligned(slots->all * sizeof(uint64_t));
  slots->bytes = slots->records + aligned((size_t)slots->all * RECORD_BYTES);
}

/* Writes the upload. */
static void fill_upload(struct device_slots *slots, const struct retrieved *r, bool packed, uint8_t *to) {
  uint32_t *starts = (uint32_t *)(void *)to, *counts = (uint32_t *)(void *)(to + slots->counts);
  uint32_t at = 0, whole = 0;
  for (uint32_t head = 0; head < r->heads; head++) {
    const struct slot_union *u = &r->unions[head];
    starts[head] = at;
    if (u->count) {
      memcpy(to + slots->tokens + at * sizeof(uint64_t), u->tokens, u->count * sizeof(uint64_t));
      memcpy(to + slots->records + (size_t)at * RECORD_BYTES, u->chosen, (size_t)u->count * RECORD_BYTES);
    }
    at += u->count;
    for (uint32_t row = 0; row < r->rows; row++) {
      const uint32_t *places;
      uint32_t count = retrieved_row(r, row, head, &places);
      counts[row * r->heads + head] = count;
      slots->most = count > slots->most ? count : slots->most;
      whole += r->rows == 1 && count == u->count;
    }
  }
  starts[r->heads] = at;
  memcpy(to + slots->index, r->index, (size_t)r->rows * r->heads * r->k * sizeof(uint32_t));
  /* a single row has its whole union: then a slot's place there is its place in the row */
  slots->rotate = !packed ? CUDA_ROTATE_INDEX : whole == r->heads ? CUDA_ROTATE_PLACE : CUDA_ROTATE_NOT;
}

static cudaError_t decode(struct device *device, uint32_t layer, cudaStream_t stream) {
  const struct device_slots *slots = &device->slots;
  const uint8_t *raw = device->raw.at;
  size_t means = (size_t)layer * device->shape.heads * device->shape.d;
  size_t all_means = (size_t)device->shape.layers * device->shape.heads * device->shape.d;
  struct cuda_decode_job job = {
      .shape = device->shape,
      .codec = device->codec,
      .key = device->key,
      .value = device->value,
      .records = raw + slots->records,
      .tokens = (const uint64_t *)(const void *)(raw + slots->tokens),
      .starts = (const uint32_t *)(const void *)raw,
      .mean_k = (const float *)device->means.at + means,
      .mean_v = (const float *)device->means.at + all_means + means,
      .keys = device->vectors.at,
      .values = (uint8_t *)device->vectors.at + (size_t)slots->all * device->shape.d * device->element,
      .all = slots->all,
      .rotate = slots->rotate,
  };
  memcpy(job.freqs, device->freqs, sizeof job.freqs);
  return cuda_decode_launch(&job, stream);
}

int device_take(struct device *device, uint32_t layer, const struct retrieved *retrieved,
                const struct device_place *place, struct error *error) {
  struct device_call call;
  struct device_slots *slots = &device->slots;
  lay_out(slots, retrieved);
  if (!slots->all)
    return 0;
  cudaError_t status = device_enter(device, place->stream, &call);
  if (status == cudaSuccess)
    status = cudaEventSynchronize(device->taken); /* long past: the copy of the layer before */
  if (status == cudaSuccess)
    status = device_reserve(device, &device->upload, slots->bytes, true);
  if (status == cudaSuccess)
    status = device_reserve(device, &device->raw, slots->bytes, true);
  if (status == cudaSuccess)
    status = device_reserve(device, &device->vectors, 2 * (size_t)slots->all * device->shape.d * device->element, true);
  if (status == cudaSuccess && slots->k > device->k_max)
    status = device_reserve_slots(device, slots->k);
  if (status == cudaSuccess) {
    fill_upload(slots, retrieved, device->block.packed, device->upload.at);
    status = cudaMemcpyAsync(device->raw.at, device->upload.at, slots->bytes, cudaMemcpyHostToDevice, call.stream);
  }
  if (status == cudaSuccess)
    status = cudaEventRecord(device->taken, call.stream);
  if (status == cudaSuccess)
    status = decode(device, layer, call.stream);
  return device_leave(device, &call, status, "cannot take slots", error);
}

/* --- attention ---------------------------------------------------------------------------------------------------- */

static struct cuda_attend_job attend_job(const struct device *device, uint32_t layer) {
  const struct device_block *block = &device->block;
  const struct device_slots *slots = &device->slots;
  const uint8_t *raw = device->raw.at;
  struct cuda_attend_job job = {
      .shape = device->shape,
      .hot = device_hot(device, layer),
      .count = block->count,
      .first = block->first,
      .hot_start = block->hot_start,
      .sinks = block->hot_start ? CUDA_SINKS : 0,
      .packed = block->packed,
      .rows = own_rows(device),
      .unrotate = given_rows(device),
      .table = device->table.at,
      .scale = device->softmax_scale * 1.44269504f,
      .partial = device->partial.at,
      .arrived = device->arrived.at,
  };
  if (slots->all) {
    job.k = slots->k;
    job.slot_keys = device->vectors.at;
    job.slot_values = (const uint8_t *)device->vectors.at + (size_t)slots->all * device->shape.d * device->element;
    job.starts = (const uint32_t *)(const void *)raw;
    job.slot_counts = (const uint32_t *)(const void *)(raw + slots->counts);
    job.index = (const uint32_t *)(const void *)(raw + slots->index);
    job.slots_rotated = slots->rotate != CUDA_ROTATE_NOT;
  }
  return job;
}

int device_attend(struct device *device, uint32_t layer, const void *q, void *out, const struct device_place *place,
                  struct error *error) {
  struct device_call call;
  struct cuda_attend_job job = attend_job(device, layer);
  const struct cuda_shape *s = &device->shape;
  uint32_t far = job.sinks ? job.sinks + device->slots.most : 0;
  uint32_t hot = (uint32_t)(job.first + job.count - job.hot_start);
  struct plan_attend plan = plan_attend(job.count, s->heads, s->group, far, hot, device->processors);
  job.plan = (struct cuda_plan){plan.keys, plan.far_splits, plan.hot_splits, plan.tile, plan.tiles};
  job.q = q;
  job.out = out;
  job.type = (uint32_t)place->type;
  cudaError_t status = device_enter(device, place->stream, &call);
  if (status == cudaSuccess)
    status = make_rows(device, call.stream);
  if (status == cudaSuccess)
    status = device_reserve(device, &device->partial,
                            plan_partial(&plan, job.count, s->heads, s->d) * sizeof(float), false);
  job.partial = device->partial.at;
  if (status == cudaSuccess)
    status = cuda_attend_launch(&job, call.stream);
  return device_leave(device, &call, status, "cannot attend", error);
}

/* --- encoding ----------------------------------------------------------------------------------------------------- */

/* On its own stream, behind all calls so far. Later ones do not touch these tokens' places before they are handed
 * over. */
int device_encode_start(struct device *device, uint64_t first, uint32_t count, struct error *error) {
  struct device_call call;
  struct cuda_hot hot = device_hot(device, 0);
  size_t means = (size_t)device->shape.layers * device->shape.heads * device->shape.d;
  size_t bytes = (size_t)count * device->shape.layers * device->shape.heads * RECORD_BYTES;
  struct cuda_encode_job job = {.shape = device->shape, .codec = device->codec, .key = device->key,
                                .value = device->value, .keys = hot.keys, .values = hot.values,
                                .mean_k = device->means.at, .mean_v = (const float *)device->means.at + means,
                                .crc_table = device->crc.at, .first = first, .count = count,
                                .records = device->coded.at,
                                .found = device_found(device)};
  cudaError_t status = device_enter(device, device->encoder, &call);
  if (status == cudaSuccess)
    status = cuda_encode_launch(&job, device->processors, call.stream);
  if (status == cudaSuccess)
    status = cudaMemcpyAsync(device->records.at, device->coded.at, bytes, cudaMemcpyDeviceToHost, call.stream);
  if (status == cudaSuccess)
    status = cudaEventRecord(device->encoded, call.stream);
  device->encoding = count;
  if (call.before != device->number)
    cudaSetDevice(call.before);
  return status == cudaSuccess ? 0 : gpu_failed(error, status, "cannot encode");
}

bool device_encode_ready(struct device *device) { return cudaEventQuery(device->encoded) != cudaErrorNotReady; }

int device_encode_wait(struct device *device, uint8_t *records, struct error *error) {
  uint64_t token;
  cudaError_t status = cudaEventSynchronize(device->encoded);
  if (status != cudaSuccess)
    return gpu_failed(error, status, "encoding failed");
  if (device_check(device, &token))
    return error_set(error, ERR_NOT_FINITE, "keys or values are not finite, or too long");
  memcpy(records, device->records.at,
         (size_t)device->encoding * device->shape.layers * device->shape.heads * RECORD_BYTES);
  return 0;
}

/* --- host arrays -------------------------------------------------------------------------------------------------- */

int device_upload(struct device *device, const float *q, const float *k, const float *v, uint32_t rows,
                  struct device_copies *copies, struct error *error) {
  const struct cuda_shape *s = &device->shape;
  size_t keys = (size_t)CUDA_BLOCK_MAX * s->heads * s->d, queries = keys * s->group;
  size_t keys_bytes = (size_t)rows * s->heads * s->d * sizeof(float);
  struct device_call call;
  cudaError_t status = device_enter(device, device->own, &call);
  if (status == cudaSuccess)
    status = device_reserve(device, &device->copies, (2 * keys + 2 * queries) * sizeof(float), false);
  float *at = device->copies.at;
  *copies = (struct device_copies){.place = {.type = COLDKV_F32, .stream = device->own}, .k = at, .v = at + keys,
                                   .q = at + 2 * keys, .out = at + 2 * keys + queries};
  if (status == cudaSuccess)
    status = cudaMemcpyAsync(copies->k, k, keys_bytes, cudaMemcpyHostToDevice, call.stream);
  if (status == cudaSuccess)
    status = cudaMemcpyAsync(copies->v, v, keys_bytes, cudaMemcpyHostToDevice, call.stream);
  if (status == cudaSuccess && q)
    status = cudaMemcpyAsync(copies->q, q, keys_bytes * s->group, cudaMemcpyHostToDevice, call.stream);
  return device_leave(device, &call, status, "cannot copy q, k and v", error);
}

int device_download(struct device *device, float *out, struct error *error) {
  const struct cuda_shape *s = &device->shape;
  size_t keys = (size_t)CUDA_BLOCK_MAX * s->heads * s->d, queries = keys * s->group;
  struct device_call call;
  cudaError_t status = device_enter(device, device->own, &call);
  if (status == cudaSuccess)
    status = cudaMemcpyAsync(out, (float *)device->copies.at + 2 * keys + queries,
                             (size_t)device->block.count * s->heads * s->group * s->d * sizeof(float),
                             cudaMemcpyDeviceToHost, call.stream);
  if (status == cudaSuccess)
    status = cudaStreamSynchronize(call.stream);
  return device_leave(device, &call, status, "cannot copy the attention's result", error);
}
