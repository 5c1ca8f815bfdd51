// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// Attention over sinks, slots and the hot window in one launch. A block takes some keys of a row and up to four query
// heads of one kv head; half a warp takes a key, eight coordinates a thread. As on the processor, the hot window's keys
// stay rotated to their own index, and past the trained window sinks and slots meet a query of their own, rotated to
// its packed position.
#include "client/cuda/attend_add.cuh"

namespace {

/* Sums over the 16 lanes of a half; lane l is left with the sum of x[l / (16 / N)]. */
template <int N> __device__ __forceinline__ float sum_lanes(float (&x)[N], uint32_t lane) {
  int left = N;
#pragma unroll
  for (uint32_t h = 8; h; h /= 2) {
    if (left == 1) {
      x[0] += __shfl_xor_sync(ALL, x[0], h);
      continue;
    }
    left /= 2;
    bool upper = lane & h;
#pragma unroll
    for (int j = 0; j < N / 2; j++)
      if (j < left) {
        float give = upper ? x[j] : x[j + left], keep = upper ? x[j + left] : x[j];
        x[j] = keep + __shfl_xor_sync(ALL, give, h);
      }
  }
  return x[0];
}

/* Rotates a slot's key by its place in the row, in the half's own shared memory. */
__device__ __forceinline__ void rotate_slot(const cuda_attend_job &job, uint32_t at, bool slot, float *key, float *x,
                                            uint32_t lane) {
#pragma unroll
  for (int c = 0; c < 8; c++)
    x[lane * 8 + c] = key[c];
  __syncwarp();
  if (slot)
    rotate_pairs(job.shape, job.table + static_cast<size_t>(CUDA_SINKS + at - job.sinks) * 2 * job.shape.pairs, 1, x,
                 lane, 16);
  __syncwarp();
#pragma unroll
  for (int c = 0; c < 8; c++)
    key[c] = x[lane * 8 + c];
  __syncwarp();
}

template <typename T, int Q, bool ROTATE>
__device__ __forceinline__ void take(const cuda_attend_job &job, const Share &share, const Batch<T> &batch,
                                     uint32_t base, const float (*query)[8], float *x, Found<Q> &found, uint32_t half,
                                     uint32_t lane) {
  using D = Dots<Q>;
  float dots[D::COUNT] = {};
#pragma unroll
  for (int i = 0; i < KEYS; i++) {
    uint32_t at = base + i * HALVES + half;
    float key[8];
    batch.keys[i].widen_to(key);
    if (ROTATE && share.far)
      rotate_slot(job, at, at >= job.sinks && at < share.end, key, x, lane);
#pragma unroll
    for (int q = 0; q < Q; q++)
#pragma unroll
      for (int c = 0; c < 8; c++)
        dots[i * Q + q] += query[q][c] * key[c];
  }
  float score = sum_lanes<D::COUNT>(dots, lane);
  uint32_t mine = lane / (Q * D::LANES);
  if (base + mine * HALVES + half >= share.end)
    score = -INFINITY;
  float top = fmaxf(found.top, score);
#pragma unroll
  for (int h = Q * D::LANES; h <= 16; h *= 2)
    top = fmaxf(top, __shfl_xor_sync(ALL, top, h));
  float before = power(found.top - base_of(top)), weight = power(score - base_of(top));
  found.sum = found.sum * before + weight;
  found.top = top;
  if (base > share.begin) {
#pragma unroll
    for (int q = 0; q < Q; q++) {
      float less = __shfl_sync(ALL, before, q * D::LANES);
#pragma unroll
      for (int c = 0; c < 8; c++)
        found.values[q * 8 + c] *= less;
    }
  }
#pragma unroll
  for (int i = 0; i < KEYS; i++) {
    float value[8];
    batch.values[i].widen_to(value);
#pragma unroll
    for (int q = 0; q < Q; q++) {
      float part = __shfl_sync(ALL, weight, threadIdx.x % 32 - lane + (i * Q + q) * D::LANES);
#pragma unroll
      for (int c = 0; c < 8; c++)
        found.values[q * 8 + c] += part * value[c];
    }
  }
}

__device__ __forceinline__ void put_out(const cuda_attend_job &job, const Share &share, uint32_t q, uint32_t c,
                                        const Part &part) {
  uint32_t at = ((share.row * job.shape.heads + share.head) * job.shape.group + share.query + q) * job.shape.d + c;
  float scale = 1 / part.weight.y;
  if (q >= share.queries || c >= job.shape.d)
    return;
  store_any(job.out, job.type, at, part.value.x * scale);
  store_any(job.out, job.type, at + 1, part.value.y * scale);
}

template <typename T, int Q, bool ROTATE>
__global__ void __launch_bounds__(THREADS) attend_kernel(const __grid_constant__ cuda_attend_job job) {
  __shared__ Shared<Q> shared;
  uint32_t half = threadIdx.x / 16, lane = threadIdx.x % 16, splits = gridDim.x;
  Share share(job);
  Query asked;
  Found<Q> found = {-INFINITY, 0, {}};
  float query[Q][8];
  uint32_t base = share.begin;
  do { /* also with nothing to take, since the others wait for it */
    Batch<T> batch;
    bool begins = base == share.begin;
    batch.find(job, share, base, half, lane);
    if (begins) {
      asked.load(job, share);
      share.end_at(job);
    }
    if (share.far)
      batch.load_far(job, share, base, half, lane);
    if (begins) {
      asked.load_rotation(job, share);
      asked.make(job, shared.queries, Q);
      __syncthreads();
#pragma unroll
      for (int q = 0; q < Q; q++)
#pragma unroll
        for (int c = 0; c < 8; c++)
          query[q][c] = shared.queries[q][c / 4 * PAIRS + lane * 4 + c % 4];
    }
    take<T, Q, ROTATE>(job, share, batch, base, query, shared.slots[half], found, half, lane);
    base += STEP;
  } while (base < share.end);
  if (ROTATE)
    __syncthreads(); /* shared.slots is done with */
  add_halves<Q>(found, shared, half, lane);
  __syncthreads();
  uint32_t q = threadIdx.x / PAIRS, pair = threadIdx.x % PAIRS;
  Part part = {};
  if (q < Q)
    part = add_warps<Q>(shared, q, pair);
  bool whole = splits == 1 || add_grid<Q>(job, share, shared, q, pair, splits, part);
  if (whole && q < Q)
    put_out(job, share, q, coordinate(2 * pair), part);
}

/* --- launches ----------------------------------------------------------------------------------------------------- */

template <typename T, int Q, bool ROTATE> cudaError_t launch(const cuda_attend_job &job, cudaStream_t stream) {
  dim3 grid(job.plan.far_splits + job.plan.hot_splits, job.shape.heads, job.count * job.plan.tiles);
  return enqueue(attend_kernel<T, Q, ROTATE>, grid, THREADS, stream, job);
}

template <typename T> cudaError_t launch_type(const cuda_attend_job *job, cudaStream_t stream) {
  bool rotate = job->slot_counts && job->packed && !job->slots_rotated; /* slots by their place in the row */
  if (job->plan.tile == 1)
    return rotate ? launch<T, 1, true>(*job, stream) : launch<T, 1, false>(*job, stream);
  return rotate ? launch<T, 4, true>(*job, stream) : launch<T, 4, false>(*job, stream);
}

} // namespace

extern "C" cudaError_t cuda_attend_launch(const struct cuda_attend_job *job, cudaStream_t stream) {
  switch (job->shape.type) {
  case CUDA_F32: return launch_type<float>(job, stream);
  case CUDA_F16: return launch_type<__half>(job, stream);
  default: return launch_type<__nv_bfloat16>(job, stream);
  }
}
