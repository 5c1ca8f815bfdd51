// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// The best of many keys, by all threads of one block. Keys are those of select.h.
#ifndef COLDKV_RETRIEVAL_CUDA_SELECT_CUH
#define COLDKV_RETRIEVAL_CUDA_SELECT_CUH

#include "retrieval/cuda/launch.h"

/* What may be tried by -D: results are the same. */
#ifndef COLDKV_GPU_THREADS
#define COLDKV_GPU_THREADS 512
#endif

namespace {

enum {
  THREADS = COLDKV_GPU_THREADS, /* of a block: whole warps, and at least as many as a query has coordinates */
  WARPS = THREADS / 32,
  DIGIT_BITS = 11,
  DIGITS = 1 << DIGIT_BITS,
  KEYS = 4096, /* in shared memory */
  FEW = THREADS < 512 ? THREADS : 512, /* keys that are compared with each other instead of counted once more */
};
static_assert(DIGITS <= int(GPU_BINS), "bins for every digit");
static_assert(FEW * sizeof(unsigned long long) <= DIGITS * sizeof(uint32_t), "room for a few");
static_assert(THREADS % 32 == 0 && THREADS >= int(GPU_HEAD_DIM_MAX), "threads for every coordinate");

struct Shared {
  union {
    uint32_t bins[GPU_BINS];
    unsigned long long keys[KEYS];
  };
  alignas(8) uint32_t digits[DIGITS]; /* or a few keys */
  uint32_t sums[WARPS];
  unsigned long long lows[WARPS], highs[WARPS];
  uint32_t count, base, last, rest, again;
  uint32_t bin, before, inside; /* found by find_bin */
};

constexpr unsigned long long NO_KEY = ~0ull; /* its score would be a NaN */

/* select_rank */
__device__ __forceinline__ uint32_t rank_of(float score) {
  uint32_t bits = __float_as_uint(score);
  if (bits & 0x80000000u)
    return bits == 0x80000000u ? 0x7fffffffu : bits;
  return bits ^ 0x7fffffffu;
}

/* True in the last block to come here; the others go on to await(). */
__device__ bool arrive(gpu_group *group, uint32_t blocks, Shared &shared) {
  __syncthreads();
  if (threadIdx.x == 0) {
    __threadfence();
    shared.last = atomicAdd(&group->arrived, 1) == blocks - 1;
    if (shared.last)
      group->arrived = 0;
    __threadfence();
  }
  __syncthreads();
  return shared.last;
}

__device__ void clear(uint32_t *bins, uint32_t count) {
#pragma unroll 1
  for (uint32_t i = threadIdx.x; i < count; i += THREADS)
    bins[i] = 0;
  __syncthreads();
}

/* Finds the bin that holds number `wanted` (1 is the first) of what was counted: shared.bin, .before (how many are in
 * earlier bins), .inside. shared.bin is `count` when there are fewer; .before is how many there are then. */
__device__ void find_bin(const uint32_t *bins, uint32_t count, uint32_t wanted, Shared &shared) {
  uint32_t each = (count + THREADS - 1) / THREADS, first = threadIdx.x * each, own = 0;
  uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  for (uint32_t i = first; i < first + each && i < count; i++)
    own += bins[i];
  uint32_t sum = own;
#pragma unroll
  for (uint32_t step = 1; step < 32; step *= 2) {
    uint32_t other = __shfl_up_sync(0xffffffffu, sum, step);
    sum += lane >= step ? other : 0;
  }
  if (lane == 31)
    shared.sums[warp] = sum;
  __syncthreads();
  uint32_t before = sum - own;
  for (uint32_t i = 0; i < warp; i++)
    before += shared.sums[i];
  if (threadIdx.x == THREADS - 1 && before + own < wanted) {
    shared.bin = count;
    shared.before = before + own;
    shared.inside = 0;
  }
  if (before < wanted && before + own >= wanted) {
    uint32_t i = first;
    while (before + bins[i] < wanted)
      before += bins[i++];
    shared.bin = i;
    shared.before = before;
    shared.inside = bins[i];
  }
  __syncthreads();
}

__device__ void find_range(const unsigned long long *keys, uint32_t count, unsigned long long &low,
                           unsigned long long &high, Shared &shared) {
  low = ~0ull;
  high = 0;
#pragma unroll 1
  for (uint32_t i = threadIdx.x; i < count; i += THREADS) {
    low = min(low, keys[i]);
    high = max(high, keys[i]);
  }
#pragma unroll
  for (int step = 16; step; step /= 2) {
    low = min(low, __shfl_xor_sync(0xffffffffu, low, step));
    high = max(high, __shfl_xor_sync(0xffffffffu, high, step));
  }
  if (threadIdx.x % 32 == 0) {
    shared.lows[threadIdx.x / 32] = low;
    shared.highs[threadIdx.x / 32] = high;
  }
  __syncthreads();
#pragma unroll 1
  for (int i = 0; i < WARPS; i++) {
    low = min(low, shared.lows[i]);
    high = max(high, shared.highs[i]);
  }
}

/* Number `wanted` of the keys from `low` to `high`, which are FEW at most. */
__device__ unsigned long long nth_of_few(const unsigned long long *keys, uint32_t count, uint32_t wanted,
                                         unsigned long long low, unsigned long long high, Shared &shared) {
  auto few = reinterpret_cast<unsigned long long *>(shared.digits);
  if (threadIdx.x == 0)
    shared.count = 0;
  __syncthreads();
  for (uint32_t i = threadIdx.x; i < count; i += THREADS) {
    unsigned long long key = keys[i];
    if (key >= low && key <= high)
      few[atomicAdd(&shared.count, 1)] = key;
  }
  __syncthreads();
  uint32_t there = shared.count, before = 0;
  unsigned long long own = threadIdx.x < there ? few[threadIdx.x] : 0;
#pragma unroll 8
  for (uint32_t i = 0; i < there; i++)
    before += few[i] < own;
  if (threadIdx.x < there && before == wanted - 1)
    shared.lows[0] = own;
  __syncthreads();
  return shared.lows[0];
}

/* Number `wanted` of the keys, which are all different and at least as many, in ascending order. */
__device__ unsigned long long nth(const unsigned long long *keys, uint32_t count, uint32_t wanted, Shared &shared) {
  unsigned long long low, high;
  find_range(keys, count, low, high, shared);
  for (;;) {
    int bits = 64 - __clzll(static_cast<long long>(high - low)), shift = bits > DIGIT_BITS ? bits - DIGIT_BITS : 0;
    clear(shared.digits, DIGITS);
#pragma unroll 1
    for (uint32_t i = threadIdx.x; i < count; i += THREADS) {
      unsigned long long key = keys[i];
      if (key >= low && key <= high)
        atomicAdd(&shared.digits[(key - low) >> shift], 1);
    }
    __syncthreads();
    find_bin(shared.digits, DIGITS, wanted, shared);
    low += static_cast<unsigned long long>(shared.bin) << shift;
    high = min(high, low + ((1ull << shift) - 1));
    wanted -= shared.before;
    uint32_t inside = shared.inside;
    __syncthreads();
    if (inside == wanted)
      return high;
    if (inside <= FEW)
      return nth_of_few(keys, count, wanted, low, high, shared);
  }
}

/* Writes the keys of all threads of a warp that are to be kept behind those that are there. */
__device__ __forceinline__ void append(unsigned long long *to, unsigned long long key, bool keep, uint32_t *count) {
  uint32_t mask = __ballot_sync(0xffffffffu, keep), lane = threadIdx.x % 32, base = 0;
  if (lane == 0 && mask)
    base = atomicAdd(count, __popc(mask));
  base = __shfl_sync(0xffffffffu, base, 0);
  if (keep)
    to[base + __popc(mask & ((1u << lane) - 1))] = key;
}

/* Moves the keys of the first `count` in shared memory that are to be kept to the front, in any order. */
template <typename KEEP> __device__ void compact(uint32_t count, Shared &shared, KEEP keep) {
  enum { EACH = KEYS / THREADS };
  unsigned long long own[EACH];
  uint32_t masks[EACH], lane = threadIdx.x % 32, base = 0;
#pragma unroll
  for (uint32_t j = 0; j < EACH; j++) {
    uint32_t i = threadIdx.x + j * THREADS;
    own[j] = i < count ? shared.keys[i] : NO_KEY;
    masks[j] = __ballot_sync(0xffffffffu, i < count && keep(own[j]));
    base += __popc(masks[j]);
  }
  if (lane == 0)
    base = atomicAdd(&shared.count, base);
  base = __shfl_sync(0xffffffffu, base, 0);
  __syncthreads();
#pragma unroll
  for (uint32_t j = 0; j < EACH; j++) {
    if (masks[j] >> lane & 1)
      shared.keys[base + __popc(masks[j] & ((1u << lane) - 1))] = own[j];
    base += __popc(masks[j]);
  }
}

/* Writes the best `wanted` of more keys to `best`, in any order, and returns the last of them. The first KEYS of them
 * are in shared memory, and shared.digits has the numbers of keys in each bin of the gauge; where too many are in the
 * bin in which the best end, or it has an open end, keys are counted anew. If all are in shared memory, the best are
 * put together there: `best` may be far away. */
template <typename GAUGE>
__device__ unsigned long long write_best(const GAUGE &gauge, const uint64_t *keys, uint32_t count, uint32_t wanted,
                                         uint64_t *best, Shared &shared) {
  auto all = reinterpret_cast<const unsigned long long *>(keys);
  auto rest = reinterpret_cast<unsigned long long *>(shared.digits);
  const bool near = count <= KEYS;
  auto to = near ? shared.keys : reinterpret_cast<unsigned long long *>(best);
  find_bin(shared.digits, DIGITS, wanted, shared);
  const uint32_t bin = shared.bin, inside = shared.inside;
  uint32_t before = shared.before;
  const bool few = inside <= FEW && !gauge.open(bin);
  unsigned long long last = few ? 0 : nth(near ? shared.keys : all, count, wanted, shared);
  auto keep = [&](unsigned long long key) {
    uint32_t of = gauge.bin(key);
    if (few && of == bin)
      rest[atomicAdd(&shared.rest, 1)] = key;
    return few ? of < bin : key <= last;
  };
  __syncthreads();
  if (threadIdx.x == 0)
    shared.count = shared.rest = 0;
  __syncthreads();
  if (near)
    compact(count, shared, keep);
  else
#pragma unroll 2
    for (uint32_t i = threadIdx.x; i - threadIdx.x % 32 < count; i += THREADS) {
      unsigned long long key = i < KEYS ? shared.keys[i] : i < count ? __ldcg(&all[i]) : NO_KEY;
      append(to, key, i < count && keep(key), &shared.count);
    }
  __syncthreads();
  if (few && threadIdx.x < inside) {
    unsigned long long own = rest[threadIdx.x];
#pragma unroll 4
    for (uint32_t i = 0; i < inside; i++)
      before += rest[i] < own;
    if (before < wanted)
      to[before] = own;
    if (before == wanted - 1)
      shared.lows[0] = own;
  }
  __syncthreads();
  for (uint32_t i = threadIdx.x; near && i < wanted; i += THREADS)
    best[i] = shared.keys[i];
  return few ? shared.lows[0] : last;
}

} // namespace

#endif
