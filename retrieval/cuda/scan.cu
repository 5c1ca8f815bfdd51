// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// Scan and exact selection in one launch. The blocks that share a job
//  1. score the first records of their share, a sample, and count the scores together by classes;
//  2. learn the limit that a little more than C records should reach, and go over the share once, keeping what does;
//  3. the last one to end selects the best C among what was kept.
// Of columns that were scanned before there is a hint: how high the last of the best C was then, in terms of the
// query's size. It stands for 1; when it misleads, 1 to 3 follow.
// When what was kept is not enough or too much, since the sample misled or too many scores are equal, they count all
// keys digit by digit instead, until they know a bound that enough and not too many keep below; then 2 and 3 again. So
// the answer never depends on the sample. Blocks wait for each other, so all of them have to run at a time.
#include "retrieval/cuda/scan_score.cuh"

namespace {

/* --- blocks of one job ------------------------------------------------------------------------------------------- */

__device__ void release(gpu_group *group, uint32_t generation) {
  __syncthreads();
  if (threadIdx.x == 0) {
    __threadfence();
    atomicExch(&group->generation, generation + 1);
  }
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
  for (uint32_t i = threadIdx.x; i < count; i += THREADS)
    if (bins[i])
      atomicAdd(&group->bins[i], bins[i]);
}

/* Takes the counts of the group away. */
__device__ void take(gpu_group *group, uint32_t *bins, uint32_t count) {
  for (uint32_t i = threadIdx.x; i < count; i += THREADS) {
    bins[i] = __ldcg(&group->bins[i]);
    group->bins[i] = 0;
  }
  __syncthreads();
}

/* --- 1: the sample ----------------------------------------------------------------------------------------------- */

template <bool HAMMING>
__device__ void count_sample(gpu_group *group, const Share &share, const Batch &batch, Shared &shared) {
  typedef Mode<HAMMING> M;
  clear(shared.bins, M::BINS);
  uint32_t count = 0;
#pragma unroll
  for (uint32_t s = 0; s < STREAMS; s++) {
    typename M::Value value = M::value(*share.job, batch.signature[s], batch.scale[s]);
    bool here = inside(share, s, threadIdx.x);
    count += __syncthreads_count(here);
    if (here && M::valid(value, batch.scale[s]) && M::bin(value) < M::BINS)
      atomicAdd(&shared.bins[M::bin(value)], 1);
  }
  __syncthreads();
  merge(group, shared.bins, M::BINS);
  if (threadIdx.x == 0)
    atomicAdd(&group->sampled, count);
}

/* Sets the bound that C records should reach, with so much to spare that chance does not leave fewer. */
template <bool HAMMING>
__device__ void set_bound(const gpu_launch &launch, gpu_group *group, const Share &share, Shared &shared) {
  typedef Mode<HAMMING> M;
  take(group, shared.bins, M::BINS);
  float wanted = static_cast<float>(launch.candidates) * static_cast<float>(__ldcg(&group->sampled)) /
                 static_cast<float>(share.job->count);
  find_bin(shared.bins, M::BINS, static_cast<uint32_t>(wanted + 5 * sqrtf(wanted)) + 8, shared);
  if (threadIdx.x != 0)
    return;
  bool all = shared.bin >= M::BINS;
  group->sampled = 0;
  group->all = all;
  group->last = all ? ~0ull : static_cast<unsigned long long>(M::bin_rank(shared.bin)) << 32 | 0xffffffffu;
}

/* --- 2: gathering ------------------------------------------------------------------------------------------------ */

__device__ void put(gpu_group *group, uint64_t *gathered, uint32_t capacity, unsigned long long key, Shared &shared) {
  uint32_t slot = atomicAdd(&shared.count, 1);
  if (slot < KEYS) {
    shared.keys[slot] = key;
    return;
  }
  slot = atomicAdd(&group->gathered, 1);
  if (slot < capacity)
    gathered[slot] = key;
}

/* Whether a record's scale lets it be a candidate. Hamming scans look only at those that reach the limit. */
template <bool HAMMING> __device__ __forceinline__ bool counts(const Share &share, uint32_t record) {
  return !HAMMING || __ldg(scale_of(chunk_of(share, record), record)) < 0x7c00u;
}

/* Goes over the share and gives every key up to `last` to `use`; `batch` is its first round. */
template <bool HAMMING, typename USE>
__device__ __forceinline__ void for_keys(const Share &share, Batch &batch, unsigned long long last, USE use) {
  typedef Mode<HAMMING> M;
  const typename M::Value limit = M::limit(static_cast<uint32_t>(last >> 32));
  Batch next;
  for (uint32_t at = threadIdx.x;;) {
    bool more = at + THREADS < share.stride;
    if (AHEAD && more)
      load<!HAMMING>(share, at + THREADS, next);
#pragma unroll
    for (uint32_t s = 0; s < STREAMS; s++) {
      typename M::Value value = M::value(*share.job, batch.signature[s], batch.scale[s]);
      if (!M::reaches(value, limit) || !inside(share, s, at))
        continue;
      uint32_t place = s * share.stride + at;
      unsigned long long key = static_cast<unsigned long long>(M::rank(value)) << 32 | (share.ordinal + place);
      if (key <= last && counts<HAMMING>(share, share.first + place))
        use(key);
    }
    if (!more)
      break;
    at += THREADS;
    if (AHEAD)
      batch = next;
    else
      load<!HAMMING>(share, at, batch);
  }
}

template <bool HAMMING>
__device__ void gather(const gpu_launch &launch, gpu_group *group, const Share &share, Batch &batch, uint32_t job,
                       unsigned long long last, Shared &shared) {
  uint64_t *gathered = launch.gathered + static_cast<size_t>(job) * launch.capacity;
  if (threadIdx.x == 0)
    shared.count = 0;
  __syncthreads();
  for_keys<HAMMING>(share, batch, last, [&](unsigned long long key) {
    put(group, gathered, launch.capacity, key, shared);
  });
  __syncthreads();
  uint32_t count = min(shared.count, static_cast<uint32_t>(KEYS));
  if (threadIdx.x == 0)
    shared.base = count ? atomicAdd(&group->gathered, count) : 0;
  __syncthreads();
  for (uint32_t i = threadIdx.x; i < count; i += THREADS)
    if (shared.base + i < launch.capacity)
      gathered[shared.base + i] = shared.keys[i];
}

/* --- the exact way ----------------------------------------------------------------------------------------------- */

/* After a digit was counted: goes on with the part of the keys that number C is in, or sets the bound when that and all
 * before it can be gathered. */
__device__ void narrow(const gpu_launch &launch, gpu_group *group, Shared &shared) {
  take(group, shared.digits, DIGITS);
  uint32_t shift = __ldcg(&group->shift), below = __ldcg(&group->below);
  find_bin(shared.digits, DIGITS, launch.candidates - below, shared);
  if (threadIdx.x != 0)
    return;
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
__device__ unsigned long long count_digits(const gpu_launch &launch, gpu_group *group, const Share &share, Batch &batch,
                                           uint32_t &generation, Shared &shared) {
  do {
    uint32_t shift = __ldcg(&group->shift);
    unsigned long long prefix = __ldcg(&group->prefix);
    unsigned long long end = __ldcg(&group->last);
    clear(shared.digits, DIGITS);
    if (share.length)
      load<!HAMMING>(share, threadIdx.x, batch);
    for_keys<HAMMING>(share, batch, end, [&](unsigned long long key) {
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

template <bool HAMMING>
__device__ void select(const gpu_launch &launch, uint32_t job, uint32_t count, Shared &shared) {
  const unsigned long long *keys =
      reinterpret_cast<const unsigned long long *>(launch.gathered + static_cast<size_t>(job) * launch.capacity);
  unsigned long long last = select_best(keys, count, launch.candidates,
                                        launch.keys + static_cast<size_t>(job) * launch.candidates, shared);
  if (threadIdx.x != 0)
    return;
  const gpu_job &what = launch.jobs[job];
  launch.counts[job] = min(count, launch.candidates);
  if (what.count > launch.capacity)
    *what.hint = count > launch.candidates ? Mode<HAMMING>::hint(static_cast<uint32_t>(last >> 32), what) : 0;
}

/* --- a job ------------------------------------------------------------------------------------------------------- */

/* The last block looks at how many were gathered. Returns how many when it is this block's to select among them.
 * `guessed`: by a hint. */
__device__ bool judge(const gpu_launch &launch, gpu_group *group, uint32_t generation, bool guessed, uint32_t *count,
                      Shared &shared) {
  if (!arrive(group, launch.blocks, shared)) {
    await(group, generation);
    return false;
  }
  *count = __ldcg(&group->gathered);
  bool again = *count > launch.capacity || (*count < launch.candidates && (guessed || !__ldcg(&group->all)));
  again &= guessed || !__ldcg(&group->counted); /* whatever is wrong then, once is enough */
  *count = min(*count, launch.capacity);
  __syncthreads();
  if (threadIdx.x == 0) {
    group->again = again;
    group->gathered = 0;
    group->counted = 0;
    if (again && !guessed) {
      group->shift = 64 - DIGIT_BITS;
      group->below = 0;
      group->prefix = 0;
      group->last = ~0ull;
      group->all = 1; /* that many will be gathered, or there are no more */
    }
  }
  release(group, generation);
  return !again;
}

/* 1, with all blocks. */
template <bool HAMMING>
__device__ unsigned long long find_bound(const gpu_launch &launch, gpu_group *group, const Share &share,
                                         const Batch &batch, uint32_t &generation, bool sampled, Shared &shared) {
  if (sampled)
    count_sample<HAMMING>(group, share, batch, shared);
  if (arrive(group, launch.blocks, shared)) {
    set_bound<HAMMING>(launch, group, share, shared);
    release(group, generation);
  } else {
    await(group, generation);
  }
  generation++;
  __syncthreads();
  return __ldcg(&group->last);
}

template <bool HAMMING>
__global__ void __launch_bounds__(THREADS, BLOCKS_PER_PROCESSOR)
scan_kernel(const __grid_constant__ gpu_launch launch) {
  __shared__ Shared shared;
  uint32_t job = blockIdx.x / launch.blocks, part = blockIdx.x % launch.blocks, count = 0;
  gpu_group *group = &launch.groups[job];
  uint32_t generation = *reinterpret_cast<volatile uint32_t *>(&group->generation);
  uint32_t each = (launch.jobs[job].count + launch.blocks - 1) / launch.blocks, begin;
  each = (each + 31) / 32 * 32;
  begin = min(static_cast<uint64_t>(each) * part, static_cast<uint64_t>(launch.jobs[job].count));
  Share share = {&launch.jobs[job], launch.jobs[job].begin + begin, begin,
                 min(each, launch.jobs[job].count - begin), 0};
  share.stride = (share.length + STREAMS * 32 - 1) / (STREAMS * 32) * 32;
  Batch batch = {};
  if (share.length)
    load<true>(share, threadIdx.x, batch);
  bool sampled = launch.jobs[job].count > launch.capacity;
  float hint = sampled ? __ldcg(launch.jobs[job].hint) : 0;
  bool guess = hint > 0, known = guess;
  uint32_t rank = Mode<HAMMING>::expected(hint, *share.job);
  unsigned long long last = static_cast<unsigned long long>(rank) << 32 | 0xffffffffu;
  for (;;) {
    if (!known)
      last = find_bound<HAMMING>(launch, group, share, batch, generation, sampled, shared);
    gather<HAMMING>(launch, group, share, batch, job, last, shared);
    bool mine = judge(launch, group, generation, guess, &count, shared);
    generation++;
    if (mine)
      select<HAMMING>(launch, job, count, shared);
    if (mine || !__ldcg(&group->again))
      return;
    if (!guess)
      last = count_digits<HAMMING>(launch, group, share, batch, generation, shared);
    if (share.length)
      load<true>(share, threadIdx.x, batch);
    known = !guess;
    guess = false;
  }
}

} // namespace

extern "C" uint32_t gpu_scan_blocks(uint32_t processors) {
  int weighted = 0, hamming = 0;
  if (cudaOccupancyMaxActiveBlocksPerMultiprocessor(&weighted, scan_kernel<false>, THREADS, 0) != cudaSuccess ||
      cudaOccupancyMaxActiveBlocksPerMultiprocessor(&hamming, scan_kernel<true>, THREADS, 0) != cudaSuccess)
    return 0;
  int blocks = weighted < hamming ? weighted : hamming;
  return static_cast<uint32_t>(blocks < BLOCKS_PER_PROCESSOR ? blocks : BLOCKS_PER_PROCESSOR) * processors;
}

extern "C" cudaError_t gpu_scan_launch(const gpu_launch *launch, uint32_t jobs, int hamming, cudaStream_t stream) {
  void *arguments[] = {const_cast<gpu_launch *>(launch)};
  void (*kernel)(gpu_launch) = hamming ? scan_kernel<true> : scan_kernel<false>;
  return cudaLaunchCooperativeKernel(kernel, dim3(jobs * launch->blocks), dim3(THREADS), arguments, 0, stream);
}
