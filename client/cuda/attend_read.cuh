// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// What a block of attend.cu works on, and how it reads that: keys, values and queries. With one token nearly all time
// is spent waiting, so everything that can be asked for is asked for before anything is waited for.
#ifndef COLDKV_CLIENT_CUDA_ATTEND_READ_CUH
#define COLDKV_CLIENT_CUDA_ATTEND_READ_CUH

#include "client/cuda/plan.h"
#include "client/cuda/types.cuh"

namespace {

enum {
  HALVES = 16,
  WARPS = HALVES / 2,
  THREADS = 16 * HALVES,
  KEYS = PLAN_KEYS / HALVES, /* of a half at once */
  STEP = PLAN_KEYS,
  PAIRS = CUDA_PAIRS_MAX,    /* threads that take a query, or a query's part of the result: two coordinates each */
  AHEAD = 12,                /* splits that are read at once */
  ALL = 0xffffffff,
};

/* Coordinate c of a vector lies here in shared memory: where threads that have eight each write or read four at a time,
 * neighbours are neighbours. */
__device__ __forceinline__ uint32_t position(uint32_t c) { return c / 4 % 2 * PAIRS + c / 8 * 4 + c % 4; }
__device__ __forceinline__ uint32_t coordinate(uint32_t at) { return at % PAIRS / 4 * 8 + at / PAIRS * 4 + at % 4; }

/* Keeps what is computed from x behind what comes before here: the compiler would wait for x as soon as it could. */
__device__ __forceinline__ void hold(uint32_t &x) {
#ifdef __CUDACC__
  asm volatile("" : "+r"(x)::"memory");
#else
  static_cast<void>(x);
#endif
}

/* What a block works on. */
struct Share {
  uint32_t row, head, query, queries; /* query heads of the group: the first, how many */
  uint32_t begin, end;                /* keys of the far or hot range; none where end <= begin */
  bool far;
  uint32_t slots;                     /* of the row; asked for, to be waited for in end_at */

  __device__ __forceinline__ explicit Share(const cuda_attend_job &job) {
    uint32_t tile = 0;
    head = blockIdx.y;
    row = blockIdx.z;
    if (job.plan.tiles > 1) {
      row = blockIdx.z / job.plan.tiles;
      tile = blockIdx.z % job.plan.tiles;
    }
    far = blockIdx.x < job.plan.far_splits;
    slots = far && job.slot_counts ? job.slot_counts[row * job.shape.heads + head] : 0;
    begin = (far ? blockIdx.x : blockIdx.x - job.plan.far_splits) * job.plan.keys;
    end = far ? 0 : min(begin + job.plan.keys, hot_place(job) + 1);
    query = tile * job.plan.tile;
    queries = min(job.plan.tile, job.shape.group - query);
  }

  /* The row's own place in the hot window. */
  __device__ __forceinline__ uint32_t hot_place(const cuda_attend_job &job) const {
    return static_cast<uint32_t>(job.first - job.hot_start) + row;
  }

  __device__ __forceinline__ void end_at(const cuda_attend_job &job) {
    hold(slots);
    if (far)
      end = min(begin + job.plan.keys, job.sinks + slots);
  }
};

/* Some keys and values of a half, as they lie in memory. */
template <typename T> struct Batch {
  Eight<T> keys[KEYS], values[KEYS];
  uint32_t places[KEYS], start; /* of slots */

  __device__ __forceinline__ void take(int i, const void *key, const void *value, uint32_t at, bool there) {
    if (there) {
      keys[i].load(static_cast<const T *>(key) + at);
      values[i].load(static_cast<const T *>(value) + at);
    } else {
      keys[i].clear();
      values[i].clear();
    }
  }

  /* Asks for keys and values in the hot window, or for where slots lie, whether the row has so many or not. */
  __device__ __forceinline__ void find(const cuda_attend_job &job, const Share &share, uint32_t base, uint32_t half,
                                       uint32_t lane) {
    uint32_t d = job.shape.d;
    if (share.far) {
#pragma unroll
      for (int i = 0; i < KEYS; i++) {
        uint32_t slot = base + i * HALVES + half - job.sinks; /* less than 0 for sinks: far from k */
        places[i] = slot < job.k ? job.index[(share.row * job.shape.heads + share.head) * job.k + slot] : 0;
      }
      start = job.k ? job.starts[share.head] : 0;
      return;
    }
#pragma unroll
    for (int i = 0; i < KEYS; i++) {
      uint32_t at = base + i * HALVES + half;
      uint32_t vector = share.head * CUDA_RING + (static_cast<uint32_t>(job.hot_start) + at) % CUDA_RING;
      take(i, job.hot.rotated, job.hot.values, vector * d + lane * 8, at < share.end && lane * 8 < d);
    }
  }

  /* Asks for keys and values of sinks and slots. */
  __device__ __forceinline__ void load_far(const cuda_attend_job &job, const Share &share, uint32_t base, uint32_t half,
                                           uint32_t lane) {
    uint32_t d = job.shape.d;
#pragma unroll
    for (int i = 0; i < KEYS; i++) {
      uint32_t at = base + i * HALVES + half;
      bool sink = at < job.sinks;
      uint32_t vector = sink ? share.head * CUDA_SINKS + at : start + places[i];
      take(i, sink ? job.hot.sink_keys : job.slot_keys, sink ? job.hot.sink_values : job.slot_values,
           vector * d + lane * 8, at < share.end && lane * 8 < d);
    }
  }
};

/* Two coordinates of a query of the block, for threads that have some. */
struct Query {
  uint32_t q, first, second; /* which query, and its coordinates */
  uint32_t a, b;             /* as they lie in memory; 0 where there are none */
  float cosine, sine, uncosine, unsine;

  __device__ __forceinline__ void load(const cuda_attend_job &job, const Share &share) {
    const cuda_shape &shape = job.shape;
    uint32_t p = threadIdx.x % PAIRS;
    bool pair = p < shape.pairs;
    q = threadIdx.x / PAIRS;
    first = shape.half && pair ? p : 2 * p; /* behind the pairs, what is not rotated */
    second = shape.half && pair ? p + shape.pairs : 2 * p + 1;
    uint32_t from = ((share.row * shape.heads + share.head) * shape.group + share.query + q) * shape.d;
    a = b = 0;
    if (q < share.queries && second < shape.d) {
      a = load_raw(job.q, job.type, from + first);
      b = load_raw(job.q, job.type, from + second);
    }
    uncosine = 1;
    unsine = 0;
    if (job.unrotate && pair) {
      const float *row = job.unrotate + share.row * 2 * shape.pairs + p;
      uncosine = row[0];
      unsine = row[shape.pairs];
    }
  }

  /* Apart, since it waits for the number of slots. */
  __device__ __forceinline__ void load_rotation(const cuda_attend_job &job, const Share &share) {
    uint32_t p = threadIdx.x % PAIRS, pairs = job.shape.pairs;
    bool packed = share.far && job.packed;
    uint32_t place = packed ? CUDA_SINKS + share.slots + share.hot_place(job) : share.row;
    const float *row = (packed ? job.table : job.rows) + place * 2 * pairs + p;
    cosine = p < pairs ? row[0] : 1;
    sine = p < pairs ? row[pairs] : 0;
  }

  /* Before RoPE, then rotated for the block's keys, and scaled. */
  __device__ __forceinline__ void make(const cuda_attend_job &job, float (*queries)[CUDA_D_MAX], uint32_t count) {
    hold(a);
    hold(b);
    float x = widen_raw(a, job.type) * job.scale, y = widen_raw(b, job.type) * job.scale;
    float real = x * uncosine + y * unsine, imaginary = y * uncosine - x * unsine;
    if (q < count) {
      queries[q][position(first)] = real * cosine - imaginary * sine;
      queries[q][position(second)] = real * sine + imaginary * cosine;
    }
  }
};

} // namespace

#endif
