// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// Attention over sinks, slots and the hot window in one launch. A block takes some keys of a row and up to four query
// heads of one kv head; half a warp takes a key, eight coordinates a thread. The last block of a row and kv head adds
// up what all of them found. As on the processor, the hot window's keys stay rotated to their own index, and past the
// trained window sinks and slots meet a query of their own, rotated to its packed position.
#include "client/cuda/types.cuh"

namespace {

enum { HALVES = 16, THREADS = 16 * HALVES, KEYS = 2 /* of a half at once */, STEP = HALVES * KEYS,
       SPLITS_MAX = 64, EARLY = 12 /* of the splits */, ALL = 0xffffffff };

/* 2^x, to 2 units in the last place. */
__device__ __forceinline__ float power(float x) {
#ifdef __CUDACC__
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  return exp2f(x);
#endif
}

/* What a block works on. */
struct Share {
  uint32_t row, head, query, queries; /* query heads of the group: the first, how many */
  uint32_t begin, end;                /* keys of the far or hot range */
  bool far;
  uint32_t slots;                     /* of the row */
};

__device__ __forceinline__ Share share_of(const cuda_attend_job &job) {
  Share share;
  share.head = blockIdx.y;
  share.row = blockIdx.z / job.plan.tiles;
  share.query = blockIdx.z % job.plan.tiles * job.plan.tile;
  share.queries = min(job.plan.tile, job.shape.group - share.query);
  share.far = blockIdx.x < job.plan.far_splits;
  share.slots = share.far && job.slot_counts ? job.slot_counts[share.row * job.shape.heads + share.head] : 0;
  uint32_t split = share.far ? blockIdx.x : blockIdx.x - job.plan.far_splits;
  uint32_t all = share.far ? job.sinks + share.slots
                           : static_cast<uint32_t>(job.first + share.row + 1 - job.hot_start);
  share.begin = min(all, split * job.plan.keys);
  share.end = min(all, share.begin + job.plan.keys);
  return share;
}

/* Some keys and values of a half, as they lie in memory. */
template <typename T> struct Batch {
  Eight<T> keys[KEYS], values[KEYS];

  __device__ __forceinline__ void take(int i, const void *key, const void *value, size_t at, bool there) {
    keys[i].clear();
    values[i].clear();
    if (there) {
      keys[i].load(static_cast<const T *>(key) + at);
      values[i].load(static_cast<const T *>(value) + at);
    }
  }

  __device__ __forceinline__ void load(const cuda_attend_job &job, const Share &share, uint32_t base, uint32_t half,
                                       uint32_t lane) {
    uint32_t d = job.shape.d, places[KEYS];
    if (!share.far) {
#pragma unroll
      for (int i = 0; i < KEYS; i++) {
        uint32_t at = base + i * HALVES + half, vector = share.head * CUDA_RING + (job.hot_start + at) % CUDA_RING;
        take(i, job.hot.rotated, job.hot.values, static_cast<size_t>(vector) * d + lane * 8,
             at < share.end && lane * 8 < d);
      }
      return;
    }
#pragma unroll
    for (int i = 0; i < KEYS; i++) { /* first the places, all at once, whether the row has so many or not */
      uint32_t slot = base + i * HALVES + half - job.sinks;
      bool there = base + i * HALVES + half >= job.sinks && slot < job.k;
      places[i] = there ? job.index[(share.row * job.shape.heads + share.head) * job.k + slot] : 0;
    }
    uint32_t start = job.k ? job.starts[share.head] : 0;
#pragma unroll
    for (int i = 0; i < KEYS; i++) {
      uint32_t at = base + i * HALVES + half;
      bool sink = at < job.sinks;
      uint32_t vector = sink ? share.head * CUDA_SINKS + at : start + places[i];
      take(i, sink ? job.hot.sink_keys : job.slot_keys, sink ? job.hot.sink_values : job.slot_values,
           static_cast<size_t>(vector) * d + lane * 8, at < share.end && lane * 8 < d);
    }
  }
};

/* The queries of the block in shared memory: before RoPE, then rotated for its keys and scaled. */
template <int Q>
__device__ __forceinline__ void make_queries(const cuda_attend_job &job, const Share &share,
                                             float (*queries)[CUDA_D_MAX]) {
  const cuda_shape &shape = job.shape;
  uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  size_t heads = static_cast<size_t>(shape.heads) * shape.group;
  const float *row = job.rows + static_cast<size_t>(share.row) * 2 * shape.pairs;
  if (share.far && job.packed)
    row = job.table + static_cast<size_t>(CUDA_SINKS + share.slots + job.first + share.row - job.hot_start) * 2 *
                          shape.pairs;
  if (warp < Q) { /* a warp a query: four warps */
    float *x = queries[warp], cosines[CUDA_PAIRS_MAX / 32], sines[CUDA_PAIRS_MAX / 32];
#pragma unroll
    for (uint32_t i = 0; i < CUDA_PAIRS_MAX / 32; i++) { /* on their way while the query is */
      uint32_t p = lane + 32 * i;
      cosines[i] = p < shape.pairs ? row[p] : 0;
      sines[i] = p < shape.pairs ? row[shape.pairs + p] : 0;
    }
    size_t from = (share.row * heads + share.head * shape.group + share.query + warp) * shape.d;
    for (uint32_t c = lane; c < CUDA_D_MAX; c += 32)
      x[c] = c < shape.d && warp < share.queries ? load_any(job.q, job.type, from + c) * job.scale : 0;
    __syncwarp();
    if (job.unrotate) {
      rotate_pairs(shape, job.unrotate + static_cast<size_t>(share.row) * 2 * shape.pairs, -1, x, lane, 32);
      __syncwarp();
    }
#pragma unroll
    for (uint32_t i = 0; i < CUDA_PAIRS_MAX / 32; i++) {
      uint32_t p = lane + 32 * i, first = pair_first(shape, p), second = pair_second(shape, p);
      if (p >= shape.pairs)
        break;
      float a = x[first], b = x[second];
      x[first] = a * cosines[i] - b * sines[i];
      x[second] = a * sines[i] + b * cosines[i];
    }
  }
  __syncthreads();
}

/* What a half has found for Q queries: running maximum, sum and weighted values, in powers of two. */
template <int Q> struct Found {
  float top[Q], sum[Q], values[Q][8];
};

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
  float scores[KEYS][Q];
#pragma unroll
  for (int i = 0; i < KEYS; i++) {
    uint32_t at = base + i * HALVES + half;
    float key[8];
    batch.keys[i].widen_to(key);
    if (ROTATE && share.far)
      rotate_slot(job, at, at >= job.sinks && at < share.end, key, x, lane);
#pragma unroll
    for (int q = 0; q < Q; q++) {
      float dot = 0;
#pragma unroll
      for (int c = 0; c < 8; c++)
        dot += query[q][c] * key[c];
#pragma unroll
      for (int h = 8; h; h /= 2)
        dot += __shfl_xor_sync(ALL, dot, h);
      scores[i][q] = at < share.end ? dot : -INFINITY;
    }
  }
#pragma unroll
  for (int q = 0; q < Q; q++) {
    float top = found.top[q];
#pragma unroll
    for (int i = 0; i < KEYS; i++)
      top = fmaxf(top, scores[i][q]);
    float before = top == -INFINITY ? 0 : power(found.top[q] - top);
    found.top[q] = top;
    found.sum[q] *= before;
#pragma unroll
    for (int c = 0; c < 8; c++)
      found.values[q][c] *= before;
#pragma unroll
    for (int i = 0; i < KEYS; i++) {
      scores[i][q] = scores[i][q] == -INFINITY ? 0 : power(scores[i][q] - top);
      found.sum[q] += scores[i][q];
    }
  }
#pragma unroll
  for (int i = 0; i < KEYS; i++) {
    float value[8];
    batch.values[i].widen_to(value);
#pragma unroll
    for (int q = 0; q < Q; q++)
#pragma unroll
      for (int c = 0; c < 8; c++)
        found.values[q][c] += scores[i][q] * value[c];
  }
}

/* Shared memory of a block. */
template <int Q> struct __align__(16) Shared {
  union {
    float values[HALVES][Q][CUDA_D_MAX];
    float slots[HALVES][CUDA_D_MAX];
    float2 weights[SPLITS_MAX * Q];
  };
  float queries[Q][CUDA_D_MAX];
  float top[HALVES][Q], sum[HALVES][Q], weight[HALVES][Q];
  uint32_t last;
};

/* Two numbers of the result. */
__device__ __forceinline__ void put_out(const cuda_attend_job &job, const Share &share, uint32_t q, uint32_t c,
                                        float2 x, float sum) {
  size_t heads = static_cast<size_t>(job.shape.heads) * job.shape.group;
  size_t at = (share.row * heads + share.head * job.shape.group + share.query + q) * job.shape.d + c;
  if (q >= share.queries)
    return;
  float part = 1 / sum;
  store_any(job.out, job.type, at, x.x * part);
  store_any(job.out, job.type, at + 1, x.y * part);
}

__device__ __forceinline__ float weight_of(float top, float most) { return top == -INFINITY ? 0 : power(top - most); }

/* Adds up the halves of the block: for other blocks to see, or, where there are none, the result. */
template <int Q>
__device__ __forceinline__ void add_halves(const cuda_attend_job &job, const Share &share, Shared<Q> &shared,
                                           float *values, float2 *weights, bool alone) {
  uint32_t d = job.shape.d;
  if (threadIdx.x < HALVES * Q) { /* the weight of every half, once */
    uint32_t q = threadIdx.x % Q, half = threadIdx.x / Q;
    float top = -INFINITY;
#pragma unroll
    for (int h = 0; h < HALVES; h++)
      top = fmaxf(top, shared.top[h][q]);
    shared.weight[half][q] = weight_of(shared.top[half][q], top);
  }
  __syncthreads();
  for (uint32_t at = 2 * threadIdx.x; at < Q * d; at += 2 * THREADS) {
    uint32_t q = at / d, c = at % d;
    float top = -INFINITY, sum = 0;
    float2 value = make_float2(0, 0);
#pragma unroll
    for (int h = 0; h < HALVES; h++) {
      float weight = shared.weight[h][q];
      float2 x = *reinterpret_cast<const float2 *>(&shared.values[h][q][c]);
      value.x += weight * x.x;
      value.y += weight * x.y;
    }
    if (alone || c == 0)
#pragma unroll 4
      for (int h = 0; h < HALVES; h++) {
        sum += shared.weight[h][q] * shared.sum[h][q];
        top = fmaxf(top, shared.top[h][q]);
      }
    if (alone)
      put_out(job, share, q, c, value, sum);
    else
      *reinterpret_cast<float2 *>(values + at) = value;
    if (!alone && c == 0)
      weights[q] = make_float2(top, sum);
  }
}

/* Adds up the blocks. All weights are read at once, then all values, since what takes long is to wait for memory. */
template <int Q>
__device__ __forceinline__ void add_blocks(const cuda_attend_job &job, const Share &share, Shared<Q> &shared,
                                           const float *values, const float2 *weights, uint32_t splits) {
  uint32_t d = job.shape.d, early = min(splits, uint32_t(EARLY));
  float2 first[EARLY];
#pragma unroll
  for (uint32_t s = 0; s < EARLY; s++)
    first[s] = s < early && 2 * threadIdx.x < Q * d
                   ? __ldcg(reinterpret_cast<const float2 *>(values + s * Q * d + 2 * threadIdx.x))
                   : make_float2(0, 0);
  for (uint32_t i = threadIdx.x; i < splits * Q; i += THREADS)
    shared.weights[i] = __ldcg(weights + i);
  __syncthreads();
  for (uint32_t at = 2 * threadIdx.x; at < Q * d; at += 2 * THREADS) {
    uint32_t q = at / d;
    float top = -INFINITY, sum = 0;
    float2 value = make_float2(0, 0);
#pragma unroll 4
    for (uint32_t s = 0; s < splits; s++)
      top = fmaxf(top, shared.weights[s * Q + q].x);
    uint32_t done = at == 2 * threadIdx.x ? early : 0;
#pragma unroll
    for (uint32_t s = 0; s < EARLY; s++)
      if (s < done) {
        float2 theirs = shared.weights[s * Q + q];
        float weight = weight_of(theirs.x, top);
        sum += weight * theirs.y;
        value.x += weight * first[s].x;
        value.y += weight * first[s].y;
      }
#pragma unroll 4
    for (uint32_t s = done; s < splits; s++) {
      float2 theirs = shared.weights[s * Q + q];
      float2 x = __ldcg(reinterpret_cast<const float2 *>(values + s * Q * d + at));
      float weight = weight_of(theirs.x, top);
      sum += weight * theirs.y;
      value.x += weight * x.x;
      value.y += weight * x.y;
    }
    put_out(job, share, q, at % d, value, sum);
  }
}

/* True in the block that comes last to its row and kv head; what the others wrote is there for it. */
template <int Q> __device__ __forceinline__ bool arrive(Shared<Q> &shared, uint32_t *arrived, uint32_t splits) {
  __syncthreads();
  if (threadIdx.x == 0) {
    __threadfence(); /* for what the whole block wrote, which the barrier put before it */
    shared.last = atomicAdd(arrived, 1) == splits - 1;
    if (shared.last)
      *arrived = 0; /* for the next launch */
    __threadfence();
  }
  __syncthreads();
  return shared.last;
}

template <typename T, int Q, bool ROTATE>
__global__ void __launch_bounds__(THREADS) attend_kernel(const __grid_constant__ cuda_attend_job job) {
  __shared__ Shared<Q> shared;
  uint32_t half = threadIdx.x / 16, lane = threadIdx.x % 16, d = job.shape.d, splits = gridDim.x;
  Share share = share_of(job);
  Batch<T> batch;
  batch.load(job, share, share.begin, half, lane);
  make_queries<Q>(job, share, shared.queries);
  float query[Q][8];
  Found<Q> found;
#pragma unroll
  for (int q = 0; q < Q; q++) {
    found.top[q] = -INFINITY;
    found.sum[q] = 0;
#pragma unroll
    for (int c = 0; c < 8; c++) {
      query[q][c] = shared.queries[q][lane * 8 + c];
      found.values[q][c] = 0;
    }
  }
  for (uint32_t base = share.begin; base < share.end; base += STEP) {
    if (base > share.begin)
      batch.load(job, share, base, half, lane);
    take<T, Q, ROTATE>(job, share, batch, base, query, shared.slots[half], found, half, lane);
  }
  __syncthreads(); /* shared.slots is done with */
#pragma unroll
  for (int q = 0; q < Q; q++) {
#pragma unroll
    for (int c = 0; c < 8; c++)
      shared.values[half][q][lane * 8 + c] = found.values[q][c];
    if (lane == 0) {
      shared.top[half][q] = found.top[q];
      shared.sum[half][q] = found.sum[q];
    }
  }
  __syncthreads();
  size_t group = static_cast<size_t>(blockIdx.z) * job.shape.heads + share.head;
  size_t groups = static_cast<size_t>(gridDim.z) * job.shape.heads;
  float *values = job.partial + group * splits * Q * d;
  float2 *weights = reinterpret_cast<float2 *>(job.partial + groups * splits * Q * d) + group * splits * Q;
  add_halves<Q>(job, share, shared, values + static_cast<size_t>(blockIdx.x) * Q * d, weights + blockIdx.x * Q,
                splits == 1);
  if (splits > 1 && arrive<Q>(shared, job.arrived + group, splits))
    add_blocks<Q>(job, share, shared, values, weights, splits);
}

template <typename T> cudaError_t launch(const cuda_attend_job *job, cudaStream_t stream) {
  dim3 grid(job->plan.far_splits + job->plan.hot_splits, job->shape.heads, job->count * job->plan.tiles);
  bool rotate = job->slot_counts && job->packed && !job->slots_rotated; /* slots by their place in the row */
  if (job->plan.tile == 1)
    return enqueue(rotate ? attend_kernel<T, 1, true> : attend_kernel<T, 1, false>, grid, THREADS, stream, *job);
  return enqueue(rotate ? attend_kernel<T, 4, true> : attend_kernel<T, 4, false>, grid, THREADS, stream, *job);
}

} // namespace

extern "C" cudaError_t cuda_attend_launch(const cuda_attend_job *job, cudaStream_t stream) {
  switch (job->shape.type) {
  case CUDA_F32: return launch<float>(job, stream);
  case CUDA_F16: return launch<__half>(job, stream);
  default: return launch<__nv_bfloat16>(job, stream);
  }
}
