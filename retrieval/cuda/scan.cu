// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// Scan and exact selection in one launch. The blocks that share a job
//  1. score a sample of its records, and count the scores together by classes;
//  2. learn the limit that a little more than C records should reach, and go over all of them once, keeping what
//     does;
//  3. the last one to end selects the best C among what was kept. Nobody waits for all keys to be there, but that one
//     for each: places where none is yet hold NO_KEY.
// Of columns that were scanned before there is a hint: how high the last of the best C was then, in terms of the
// query's size. It stands for 1; when it misleads, 1 to 3 follow.
// When what was kept is not enough or too much, since the sample misled or too many scores are equal, they count all
// keys digit by digit instead, until they know a bound that enough and not too many keep below; then 2 and 3 again. So
// the answer never depends on the sample.
// Blocks wait for each other, so all of them have to come to run: overlap.cuh.
#include "retrieval/cuda/overlap.cuh"
#include "retrieval/cuda/scan_score.cuh"

namespace {

/* --- blocks of one job ------------------------------------------------------------------------------------------- */

/* Lets the blocks that wait for this generation go on, with what the thread knows to be written. */
__device__ void let_go(gpu_group *group, uint32_t generation) {
  __threadfence();
  atomicExch(&group->generation, generation + 1);
}

__device__ void release(gpu_group *group, uint32_t generation) {
  __syncthreads();
  if (threadIdx.x == 0)
    let_go(group, generation);
}

__device__ void await(gpu_group *group, uint32_t generation) {
  if (threadIdx.x == 0) {
    while (*reinterpret_cast<volatile uint32_t *>(&group->generation) == generation)
      __nanosleep(20);
    __threadfence();
  }
  __syncthreads();
}

/* Adds the counts of a block to those of the group. */
__device__ void merge(gpu_group *group, const uint32_t *bins, uint32_t count) {
#pragma unroll 1
  for (uint32_t i = threadIdx.x; i < count; i += THREADS)
    if (bins[i])
      atomicAdd(&group->bins[i], bins[i]);
}

/* Takes the counts of the group away. */
__device__ void take(gpu_group *group, uint32_t *bins, uint32_t count) {
#pragma unroll 1
  for (uint32_t i = threadIdx.x; i < count; i += THREADS) {
    bins[i] = __ldcg(&group->bins[i]);
    group->bins[i] = 0;
  }
  __syncthreads();
}

/* --- 1: the sample ----------------------------------------------------------------------------------------------- */

/* Of a tile for each warp, evenly spread. */
template <bool HAMMING> __device__ void count_sample(gpu_group *group, const Tiles &tiles, Shared &shared) {
  typedef Mode<HAMMING> M;
  uint32_t tile = static_cast<uint32_t>(static_cast<uint64_t>(tiles.warp) * tiles.count / tiles.warps);
  Batch batch;
  load<true>(tiles, tile, batch);
  clear(shared.bins, M::BINS);
#pragma unroll
  for (uint32_t i = 0; i < TILE_LINES; i++) {
    typename M::Value value = M::value(*tiles.job, batch.signature[i], batch.scale[i]);
    bool here = ordinal_of(tiles, tile, i) < tiles.job->count;
    uint32_t count = __syncthreads_count(here);
    if (threadIdx.x == 0)
      atomicAdd(&group->sampled, count);
    if (here && M::valid(value, batch.scale[i]) && M::bin(value) < M::BINS)
      atomicAdd(&shared.bins[M::bin(value)], 1);
  }
  __syncthreads();
  merge(group, shared.bins, M::BINS);
}

/* Sets the bound that C records should reach, with so much to spare that chance does not leave fewer. */
template <bool HAMMING>
__device__ void set_bound(const gpu_shared &launch, gpu_group *group, const gpu_job &job, Shared &shared) {
  typedef Mode<HAMMING> M;
  take(group, shared.bins, M::BINS);
  float wanted = static_cast<float>(launch.candidates) * static_cast<float>(__ldcg(&group->sampled)) /
                 static_cast<float>(job.count);
  find_bin(shared.bins, M::BINS, static_cast<uint32_t>(wanted + 5 * sqrtf(wanted)) + 8, shared);
  if (threadIdx.x != 0)
    return;
  bool all = shared.bin >= M::BINS;
  group->sampled = 0;
  group->all = all;
  group->last = all ? ~0ull : static_cast<unsigned long long>(M::bin_rank(shared.bin)) << 32 | 0xffffffffu;
}

/* --- 2: gathering ------------------------------------------------------------------------------------------------ */

__device__ __forceinline__ uint64_t *gathered_of(const gpu_shared &launch, uint32_t job) {
  return launch.gathered + static_cast<size_t>(job) * launch.capacity;
}

/* Keeps a key in shared memory, or where the others will be. */
__device__ void put(const gpu_shared &launch, gpu_group *group, uint64_t *gathered, unsigned long long key,
                    Shared &shared) {
  uint32_t slot = atomicAdd(&shared.count, 1);
  if (slot < KEYS) {
    shared.keys[slot] = key;
    return;
  }
  slot = static_cast<uint32_t>(atomicAdd(&group->gathered, 1ull));
  if (slot < launch.capacity)
    gathered[slot] = key;
}

/* Whether a record's scale lets it be a candidate. Hamming scans look only at those that reach the limit. */
template <bool HAMMING> __device__ __forceinline__ bool counts(const Tiles &tiles, uint32_t ordinal) {
  uint32_t record = tiles.job->begin + ordinal;
  return !HAMMING || __ldg(scale_of(chunk_of(*tiles.job, record), record)) < 0x7c00u;
}

/* The warp's first tile. */
template <bool HAMMING> __device__ __forceinline__ void load_first(const Tiles &tiles, Batch &batch) {
  if (tiles.warp * tiles.owned < tiles.count)
    load<!HAMMING>(tiles, tiles.warp * tiles.owned, batch);
}

/* The next launch has groups and room for gathered keys of its own, the one after it those that the last one had: so
 * the next is let in only when the last one has ended. */
__device__ __forceinline__ void admit_next_scan() {
  wait_for_previous();
  admit_next();
}

/* Gives every key up to `last` to `use`, by a warp; `batch` is its first tile. The next tile is asked for as soon as
 * the registers are free, before the few keys are looked at; the ticket for it came while the tile before was there. */
template <bool HAMMING, typename USE>
__device__ __forceinline__ void for_keys(gpu_group *group, const Tiles &tiles, Batch &batch, unsigned long long last,
                                         USE use) {
  typedef Mode<HAMMING> M;
  const typename M::Value limit = M::limit(static_cast<uint32_t>(last >> 32));
  const uint32_t free_tiles = tiles.warps * tiles.owned, end = (tiles.warp + 1) * tiles.owned;
  uint32_t tile = tiles.warp * tiles.owned, next = tile + 1 < end ? tile + 1 : free_tiles + tiles.warp;
  while (tile < tiles.count) {
    uint32_t ticket = 0;
    if (next >= end && threadIdx.x % 32 == 0)
      ticket = atomicAdd(&group->tickets, 1);
    if (next + 1 == end)
      admit_next_scan();
    typename M::Value values[TILE_LINES];
    bool any = false;
#pragma unroll
    for (uint32_t i = 0; i < TILE_LINES; i++) {
      values[i] = M::value(*tiles.job, batch.signature[i], batch.scale[i]);
      any |= M::reaches(values[i], limit);
    }
    if (next < tiles.count)
      load<!HAMMING>(tiles, next, batch);
    if (any) { /* seldom: all else is without a branch */
#pragma unroll
      for (uint32_t i = 0; i < TILE_LINES; i++) {
        uint32_t ordinal = ordinal_of(tiles, tile, i);
        unsigned long long key = static_cast<unsigned long long>(M::rank(values[i])) << 32 | ordinal;
        bool keep = M::reaches(values[i], limit) && ordinal < tiles.job->count && key <= last;
        if (keep && counts<HAMMING>(tiles, ordinal))
          use(key);
      }
    }
    tile = next;
    if (next >= end)
      next = free_tiles + tiles.warps + __shfl_sync(0xffffffffu, ticket, 0);
    else
      next = next + 1 < end ? next + 1 : free_tiles + tiles.warp;
  }
}

/* Adds the block's keys to the others', which may be on their way still. Returns true in the last block to do so, with
 * how many there are in *count; shared.again tells whether these are the wrong ones. `guessed`: by a hint. */
template <bool HAMMING>
__device__ bool gather(const gpu_shared &launch, gpu_group *group, const Tiles &tiles, Batch &batch,
                       uint64_t *gathered, unsigned long long last, bool guessed, uint32_t *count, Shared &shared) {
  if (threadIdx.x == 0)
    shared.count = 0;
  __syncthreads();
  for_keys<HAMMING>(group, tiles, batch, last, [&](unsigned long long key) {
    put(launch, group, gathered, key, shared);
  });
  clear(shared.digits, DIGITS); /* for select() */
  uint32_t own = min(shared.count, static_cast<uint32_t>(KEYS));
  if (threadIdx.x == 0) {
    admit_next_scan();
    unsigned long long before = atomicAdd(&group->gathered, 1ull << 32 | own);
    uint32_t all = static_cast<uint32_t>(before) + own;
    shared.base = static_cast<uint32_t>(before);
    shared.last = before >> 32 == launch.blocks - 1;
    bool again = all > launch.capacity || (all < launch.candidates && (guessed || !__ldcg(&group->all)));
    shared.again = again && (guessed || !__ldcg(&group->counted)); /* whatever is wrong then, once is enough */
  }
  __syncthreads();
#pragma unroll 1
  for (uint32_t i = threadIdx.x; i < own; i += THREADS)
    if (shared.base + i < launch.capacity)
      gathered[shared.base + i] = shared.keys[i];
  *count = min(shared.base + own, launch.capacity);
  return shared.last;
}

/* A key that some block has gathered, or NO_KEY while it is on its way. */
__device__ __forceinline__ unsigned long long peek_key(const uint64_t *at) {
  return *reinterpret_cast<const volatile unsigned long long *>(at);
}

__device__ __forceinline__ unsigned long long wait_key(const uint64_t *at) {
  unsigned long long key;
  while ((key = peek_key(at)) == NO_KEY)
    __nanosleep(20);
  return key;
}

/* --- the exact way ----------------------------------------------------------------------------------------------- */

/* After a digit was counted: goes on with the part of the keys that number C is in, or sets the bound when that and all
 * before it can be gathered. */
__device__ void narrow(const gpu_shared &launch, gpu_group *group, Shared &shared) {
  take(group, shared.digits, DIGITS);
  uint32_t shift = __ldcg(&group->shift), below = __ldcg(&group->below);
  find_bin(shared.digits, DIGITS, launch.candidates - below, shared);
  if (threadIdx.x != 0)
    return;
  group->tickets = 0;
  uint32_t bits = shift >= DIGIT_BITS ? DIGIT_BITS : shift;
  unsigned long long prefix = __ldcg(&group->prefix);
  if (shared.bin >= DIGITS) { /* fewer than C in all */
    group->last = ~0ull;
    group->counted = 1;
    return;
  }
  unsigned long long rest = (1ull << shift) - 1;
  group->counted = below + shared.before + shared.inside <= launch.capacity || shift == 0;
  prefix |= static_cast<unsigned long long>(shared.bin) << shift;
  group->last = prefix | rest;
  group->prefix = prefix;
  group->below = below + shared.before;
  group->shift = shift - bits;
}

template <bool HAMMING>
__device__ unsigned long long count_digits(const gpu_shared &launch, gpu_group *group, const Tiles &tiles, Batch &batch,
                                           uint32_t &generation, Shared &shared) {
  do {
    uint32_t shift = __ldcg(&group->shift);
    unsigned long long prefix = __ldcg(&group->prefix);
    unsigned long long end = __ldcg(&group->last);
    clear(shared.digits, DIGITS);
    load_first<HAMMING>(tiles, batch);
    for_keys<HAMMING>(group, tiles, batch, end, [&](unsigned long long key) {
      if (key >= prefix)
        atomicAdd(&shared.digits[(key - prefix) >> shift], 1);
    });
    __syncthreads();
    merge(group, shared.digits, DIGITS);
    if (arrive(group, launch.blocks, shared)) {
      narrow(launch, group, shared);
      release(group, generation);
    } else {
      await(group, generation);
    }
    generation++;
    __syncthreads();
  } while (!__ldcg(&group->counted));
  return __ldcg(&group->last);
}

/* --- 3: the best C ----------------------------------------------------------------------------------------------- */

/* Which of DIGITS bins a key that was gathered falls into: an octave of scores in 2048 parts, or 32 distances in 64
 * parts of the records each; what is better than that, into the first. */
template <bool HAMMING> struct Gauge {
  uint32_t limit, shift;

  __device__ Gauge(unsigned long long bound, uint32_t count) {
    int bits = 64 - __clzll(static_cast<long long>(count - 1)); /* of the records' numbers */
    limit = static_cast<uint32_t>(bound >> 32);
    shift = HAMMING ? max(bits, 6) - 6 : 12;
  }
  __device__ __forceinline__ uint32_t bin(unsigned long long key) const {
    uint32_t above = limit - static_cast<uint32_t>(key >> 32);
    above = HAMMING ? above << 6 | (63 - (static_cast<uint32_t>(key) >> shift)) : above >> shift;
    return DIGITS - 1 - min(above, static_cast<uint32_t>(DIGITS - 1));
  }
  __device__ __forceinline__ bool open(uint32_t bin) const { return bin == 0; }
};

/* Counts the bins of all keys of a job, as they come, and keeps the first in shared memory. */
template <bool HAMMING>
__device__ void count_gathered(const Gauge<HAMMING> &gauge, const uint64_t *gathered, uint32_t count, Shared &shared) {
  enum { TOGETHER = 4 };
  for (uint32_t first = threadIdx.x; first < count; first += TOGETHER * THREADS) {
    unsigned long long keys[TOGETHER];
#pragma unroll
    for (uint32_t j = 0; j < TOGETHER; j++)
      keys[j] = first + j * THREADS < count ? peek_key(&gathered[first + j * THREADS]) : 0;
#pragma unroll
    for (uint32_t j = 0; j < TOGETHER; j++) {
      uint32_t i = first + j * THREADS;
      if (i >= count)
        break;
      if (keys[j] == NO_KEY)
        keys[j] = wait_key(&gathered[i]);
      if (i < KEYS)
        shared.keys[i] = keys[j];
      atomicAdd(&shared.digits[gauge.bin(keys[j])], 1);
    }
  }
  __syncthreads();
}

template <bool HAMMING>
__device__ void select(const gpu_shared &launch, const gpu_job &job, uint32_t number, uint64_t *gathered,
                       uint32_t count, unsigned long long bound, Shared &shared) {
  uint64_t *best = launch.keys + static_cast<size_t>(number) * launch.candidates;
  if (threadIdx.x == 0)
    launch.counts[number] = min(count, launch.candidates);
  if (count > launch.candidates) {
    const Gauge<HAMMING> gauge(bound, job.count);
    count_gathered(gauge, gathered, count, shared);
    unsigned long long last = write_best(gauge, gathered, count, launch.candidates, best, shared);
    if (threadIdx.x == 0)
      *job.next_hint = Mode<HAMMING>::hint(static_cast<uint32_t>(last >> 32), job);
  } else {
#pragma unroll 1
    for (uint32_t i = threadIdx.x; i < launch.candidates; i += THREADS)
      best[i] = i < count ? wait_key(&gathered[i]) : NO_KEY;
    if (threadIdx.x == 0 && job.count > launch.capacity)
      *job.next_hint = 0;
  }
#pragma unroll 1
  for (uint32_t i = threadIdx.x; i < count; i += THREADS)
    gathered[i] = NO_KEY;
}

/* --- a job ------------------------------------------------------------------------------------------------------- */

/* Makes the group ready for the next launch, or for another round of this one, and lets the other blocks go on. */
__device__ void reset(gpu_group *group, uint32_t generation, bool guessed, bool again) {
  group->again = again;
  group->gathered = 0;
  group->tickets = 0;
  group->counted = 0;
  if (again && !guessed) {
    group->shift = 64 - DIGIT_BITS;
    group->below = 0;
    group->prefix = 0;
    group->last = ~0ull;
    group->all = 1; /* that many will be gathered, or there are no more */
  }
  let_go(group, generation);
}

/* By the last block. */
__device__ void discard(uint64_t *gathered, uint32_t count) {
#pragma unroll 1
  for (uint32_t i = threadIdx.x; i < count; i += THREADS) {
    wait_key(&gathered[i]);
    gathered[i] = NO_KEY;
  }
  __threadfence();
  __syncthreads();
}

/* 1, with all blocks. */
template <bool HAMMING>
__device__ unsigned long long find_bound(const gpu_shared &launch, gpu_group *group, const Tiles &tiles,
                                         uint32_t &generation, bool sampled, Shared &shared) {
  if (sampled)
    count_sample<HAMMING>(group, tiles, shared);
  if (arrive(group, launch.blocks, shared)) {
    set_bound<HAMMING>(launch, group, *tiles.job, shared);
    release(group, generation);
  } else {
    await(group, generation);
  }
  generation++;
  __syncthreads();
  return __ldcg(&group->last);
}

/* What a launch has as its argument: gpu_launch as far as that many jobs. */
template <uint32_t JOBS> struct Argument {
  gpu_shared shared;
  gpu_job jobs[JOBS];
};
static_assert(sizeof(Argument<GPU_JOBS>) == sizeof(gpu_launch), "the same");

template <bool HAMMING, uint32_t JOBS>
__global__ void __launch_bounds__(THREADS, BLOCKS_PER_PROCESSOR)
scan_kernel(const __grid_constant__ Argument<JOBS> argument) {
  __shared__ Shared shared;
  const gpu_shared &launch = argument.shared;
  uint32_t number = blockIdx.x / launch.blocks, count = 0;
  const gpu_job &job = argument.jobs[number];
  gpu_group *group = &launch.groups[number];
  uint64_t *gathered = gathered_of(launch, number);
  bool sampled = job.count > launch.capacity;
  uint32_t generation = *reinterpret_cast<volatile uint32_t *>(&group->generation);
  const Tiles tiles = tiles_of(job, launch.blocks, blockIdx.x % launch.blocks);
  Batch batch = {};
  load_first<HAMMING>(tiles, batch);
  const float hint = sampled ? job.hint : 0;
  bool guess = hint > 0, known = guess;
  unsigned long long last = static_cast<unsigned long long>(Mode<HAMMING>::expected(hint, job)) << 32 | 0xffffffffu;
  for (;;) {
    if (!known) {
      batch = {};
      last = find_bound<HAMMING>(launch, group, tiles, generation, sampled, shared);
      load_first<HAMMING>(tiles, batch);
    }
    if (gather<HAMMING>(launch, group, tiles, batch, gathered, last, guess, &count, shared)) {
      if (shared.again)
        discard(gathered, count);
      if (threadIdx.x == THREADS - 1) /* which the others do not wait for */
        reset(group, generation, guess, shared.again);
      if (!shared.again) {
        select<HAMMING>(launch, job, number, gathered, count, last, shared);
        return;
      }
      __syncthreads();
    } else {
      await(group, generation);
      if (!__ldcg(&group->again))
        return;
    }
    generation++;
    if (!guess) {
      last = count_digits<HAMMING>(launch, group, tiles, batch, generation, shared);
      load_first<HAMMING>(tiles, batch);
    }
    known = !guess;
    guess = false;
  }
}

} // namespace

extern "C" uint32_t gpu_scan_blocks(uint32_t processors) {
  int weighted = 0, hamming = 0;
  if (cudaOccupancyMaxActiveBlocksPerMultiprocessor(&weighted, scan_kernel<false, GPU_JOBS>, THREADS, 0) !=
          cudaSuccess ||
      cudaOccupancyMaxActiveBlocksPerMultiprocessor(&hamming, scan_kernel<true, GPU_JOBS>, THREADS, 0) != cudaSuccess)
    return 0;
  int blocks = weighted < hamming ? weighted : hamming;
  return static_cast<uint32_t>(blocks < BLOCKS_PER_PROCESSOR ? blocks : BLOCKS_PER_PROCESSOR) * processors;
}

template <uint32_t JOBS>
static cudaError_t launch_jobs(const gpu_launch *given, uint32_t jobs, int hamming, cudaStream_t stream) {
  void (*kernel)(Argument<JOBS>) = hamming ? scan_kernel<true, JOBS> : scan_kernel<false, JOBS>;
  return launch(kernel, jobs * given->shared.blocks, THREADS, *reinterpret_cast<const Argument<JOBS> *>(given),
                given->shared.overlap ? BEGIN_OVERLAPPING : BEGIN_TOGETHER, stream);
}

extern "C" cudaError_t gpu_scan_launch(const gpu_launch *launch, uint32_t jobs, int hamming, cudaStream_t stream) {
  return jobs <= GPU_JOBS_FEW ? launch_jobs<GPU_JOBS_FEW>(launch, jobs, hamming, stream)
                              : launch_jobs<GPU_JOBS>(launch, jobs, hamming, stream);
}
