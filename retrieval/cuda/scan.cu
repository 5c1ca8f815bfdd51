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

struct Shared {
  union {
    uint32_t bins[GPU_BINS];
    unsigned long long keys[KEYS];
  };
  uint32_t digits[DIGITS];
  uint32_t sums[WARPS];
  unsigned long long lows[WARPS], highs[WARPS];
  uint32_t count, base, last;
  uint32_t bin, before, inside; /* found by find_bin */
};

/* --- blocks of one job ------------------------------------------------------------------------------------------- */

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

__device__ void clear(uint32_t *bins, uint32_t count) {
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
  for (uint32_t at = threadIdx.x;;) {
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
    at += THREADS;
    if (at >= share.stride)
      break;
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

__device__ void find_range(const unsigned long long *keys, uint32_t count, unsigned long long &low,
                           unsigned long long &high, Shared &shared) {
  low = ~0ull;
  high = 0;
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
#pragma unroll
  for (int i = 0; i < WARPS; i++) {
    low = min(low, shared.lows[i]);
    high = max(high, shared.highs[i]);
  }
}

/* Number `wanted` of the keys, which are all different and at least as many, in ascending order. */
__device__ unsigned long long nth(const unsigned long long *keys, uint32_t count, uint32_t wanted, Shared &shared) {
  unsigned long long low, high;
  find_range(keys, count, low, high, shared);
  for (;;) {
    int bits = 64 - __clzll(static_cast<long long>(high - low)), shift = bits > DIGIT_BITS ? bits - DIGIT_BITS : 0;
    clear(shared.digits, DIGITS);
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
    bool whole = shared.inside == wanted;
    __syncthreads();
    if (whole)
      return high;
  }
}

template <bool HAMMING>
__device__ void select(const gpu_launch &launch, uint32_t job, uint32_t count, Shared &shared) {
  const unsigned long long *keys =
      reinterpret_cast<const unsigned long long *>(launch.gathered + static_cast<size_t>(job) * launch.capacity);
  uint64_t *best = launch.keys + static_cast<size_t>(job) * launch.candidates;
  if (count <= KEYS) {
    for (uint32_t i = threadIdx.x; i < count; i += THREADS)
      shared.keys[i] = __ldcg(&keys[i]);
    keys = shared.keys;
  }
  __syncthreads();
  unsigned long long last = count > launch.candidates ? nth(keys, count, launch.candidates, shared) : ~0ull;
  if (threadIdx.x == 0) {
    const gpu_job &what = launch.jobs[job];
    shared.count = 0;
    launch.counts[job] = min(count, launch.candidates);
    if (what.count > launch.capacity)
      *what.hint = count > launch.candidates ? Mode<HAMMING>::hint(static_cast<uint32_t>(last >> 32), what) : 0;
  }
  __syncthreads();
  uint32_t lane = threadIdx.x % 32;
  for (uint32_t i = threadIdx.x; i - lane < count; i += THREADS) {
    unsigned long long key = i < count ? keys[i] : ~0ull;
    bool keep = i < count && key <= last;
    uint32_t mask = __ballot_sync(0xffffffffu, keep), base = 0;
    if (lane == 0 && mask)
      base = atomicAdd(&shared.count, __popc(mask));
    base = __shfl_sync(0xffffffffu, base, 0);
    if (keep)
      best[base + __popc(mask & ((1u << lane) - 1))] = key;
  }
  for (uint32_t i = count + threadIdx.x; i < launch.candidates; i += THREADS)
    best[i] = ~0ull;
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
