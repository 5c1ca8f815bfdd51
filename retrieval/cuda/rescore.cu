// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// Rescoring of what scan.cu has left, in place, and the best of it. Four lanes share a candidate, each a part of its
// coordinates; integers are added in any order, and the one multiplication of floats is that of the processor. The
// last block of a job to end selects.
#include "retrieval/cuda/overlap.cuh"
#include "retrieval/cuda/select.cuh"

#include <cuda_fp16.h>

namespace {

enum {
  LANES = 4, /* of one candidate */
  PLACES = THREADS / LANES, /* candidates that a block looks at together */
  EACH = GPU_HEAD_DIM_MAX / LANES,
};
static_assert(sizeof(gpu_rescore_launch) <= 4096, "what a launch may have as its argument");

/* The query and the codebook of a job. */
struct Code {
  int q12[LANES][EACH + 1]; /* the lanes of one candidate read different banks */
  int16_t levels[2][16];
};

__device__ __forceinline__ const uint8_t *chunk_at(const uint8_t *const *chunks, uint32_t number) {
  auto addresses = reinterpret_cast<const unsigned long long *>(chunks);
  return reinterpret_cast<const uint8_t *>(__ldg(addresses + number));
}

/* head_dim 128: a lane has one word of the signature and of each of the two planes, and one of four levels. */
__device__ __forceinline__ int sum_words(const Code &code, const uint8_t *signature, const uint8_t *k_mag,
                                         uint32_t lane) {
  auto words = reinterpret_cast<const uint32_t *>(k_mag);
  uint32_t sign = __ldg(reinterpret_cast<const uint32_t *>(signature) + lane);
  uint32_t low = __ldg(words + lane), high = __ldg(words + LANES + lane);
  int levels[4] = {code.levels[0][0], code.levels[0][1], code.levels[0][2], code.levels[0][3]}, sum = 0;
#pragma unroll
  for (uint32_t i = 0; i < EACH; i++) {
    int first = low >> i & 1 ? levels[1] : levels[0], second = low >> i & 1 ? levels[3] : levels[2];
    int level = high >> i & 1 ? second : first, q = code.q12[lane][i];
    sum += (sign >> i & 1 ? -q : q) * level;
  }
  return sum;
}

/* Any head_dim: a lane has every fourth byte of the planes. */
__device__ int sum_bytes(const Code &code, const gpu_rescore_launch &launch, const uint8_t *signature,
                         const uint8_t *k_mag, uint32_t lane) {
  uint32_t plane_bytes = launch.head_dim / 8;
  int sum = 0;
  for (uint32_t byte = lane; byte < plane_bytes; byte += LANES) {
    uint32_t more = byte < launch.partial / 8, sign = __ldg(signature + byte), bits[4] = {0, 0, 0, 0};
#pragma unroll
    for (uint32_t p = 0; p < 4; p++) /* 64 coordinates have four bits each, all others fewer */
      if (p < launch.whole + more)
        bits[p] = __ldg(k_mag + p * plane_bytes + byte);
#pragma unroll
    for (uint32_t i = 0; i < 8; i++) {
      uint32_t index = (bits[0] >> i & 1) | (bits[1] >> i & 1) << 1 | (bits[2] >> i & 1) << 2 | (bits[3] >> i & 1) << 3;
      uint32_t at = 8 * byte + i;
      int q = code.q12[at / EACH][at % EACH];
      sum += (sign >> i & 1 ? -q : q) * code.levels[more][index];
    }
  }
  return sum;
}

/* One candidate, by four lanes; all of them return the same. */
template <bool WORDS>
__device__ __forceinline__ unsigned long long rescore(const gpu_rescore_launch &launch, const gpu_rescore_job &job,
                                                      const Code &code, unsigned long long key, uint32_t lane) {
  uint32_t record = job.begin + static_cast<uint32_t>(key);
  const uint8_t *chunk = chunk_at(job.chunks, record >> GPU_CHUNK_SHIFT);
  const uint8_t *codes = chunk_at(job.codes, record >> GPU_CODE_CHUNK_SHIFT);
  const uint8_t *signature = chunk + static_cast<size_t>(record % GPU_CHUNK) * 16;
  const uint8_t *k_mag = codes + static_cast<size_t>(record % GPU_CODE_CHUNK) * GPU_CODE_BYTES;
  uint16_t scale = __ldg(reinterpret_cast<const uint16_t *>(chunk + GPU_CHUNK_SCALES) + record % GPU_CHUNK);
  int sum = WORDS ? sum_words(code, signature, k_mag, lane) : sum_bytes(code, launch, signature, k_mag, lane);
  sum += __shfl_xor_sync(0xffffffffu, sum, 1);
  sum += __shfl_xor_sync(0xffffffffu, sum, 2);
  float score = __fmul_rn(__int2float_rn(sum), __half2float(__ushort_as_half(scale)));
  return static_cast<unsigned long long>(rank_of(score)) << 32 | (key & 0xffffffffu);
}

/* Which of DIGITS bins a key falls into: four octaves from the best score on in 512 parts each, and the rest. */
struct Gauge {
  uint32_t best;

  __device__ __forceinline__ uint32_t bin(unsigned long long key) const {
    return min((static_cast<uint32_t>(key >> 32) - best) >> 14, static_cast<uint32_t>(DIGITS - 1));
  }
  __device__ __forceinline__ bool open(uint32_t bin) const { return bin == DIGITS - 1; }
};

/* The least of all threads' ranks. */
__device__ uint32_t least_rank(uint32_t rank, Shared &shared) {
#pragma unroll
  for (int step = 16; step; step /= 2)
    rank = min(rank, __shfl_xor_sync(0xffffffffu, rank, step));
  if (threadIdx.x % 32 == 0)
    shared.sums[threadIdx.x / 32] = rank;
  __syncthreads();
  rank = shared.sums[threadIdx.x % WARPS];
#pragma unroll
  for (int step = 16; step; step /= 2)
    rank = min(rank, __shfl_xor_sync(0xffffffffu, rank, step));
  __syncthreads();
  return rank;
}

/* Writes the best `wanted` of `count` different keys in GPU memory to `best`, in any order, and all ones where there
 * are fewer. shared.digits are zero. */
__device__ void select_best(const uint64_t *keys, uint32_t count, uint32_t wanted, uint64_t *best, Shared &shared) {
  auto all = reinterpret_cast<const unsigned long long *>(keys);
  uint32_t rank = ~0u;
#pragma unroll 4
  for (uint32_t i = threadIdx.x; i < count; i += THREADS) {
    unsigned long long key = __ldcg(&all[i]);
    rank = min(rank, static_cast<uint32_t>(key >> 32));
    if (i < KEYS)
      shared.keys[i] = key;
    if (count <= wanted)
      best[i] = key;
  }
  if (count > wanted) {
    const Gauge gauge = {least_rank(rank, shared)};
#pragma unroll 1
    for (uint32_t i = threadIdx.x; i < count; i += THREADS)
      atomicAdd(&shared.digits[gauge.bin(i < KEYS ? shared.keys[i] : __ldcg(&all[i]))], 1);
    __syncthreads();
    write_best(gauge, keys, count, wanted, best, shared);
  }
#pragma unroll 1
  for (uint32_t i = count + threadIdx.x; i < wanted; i += THREADS)
    best[i] = NO_KEY;
}

template <bool WORDS>
__global__ void __launch_bounds__(THREADS, 2) rescore_kernel(const __grid_constant__ gpu_rescore_launch launch) {
  __shared__ Shared shared;
  __shared__ Code code;
  uint32_t number = blockIdx.x / launch.blocks, part = blockIdx.x % launch.blocks, lane = threadIdx.x % LANES;
  const gpu_rescore_job &job = launch.jobs[number];
  admit_next();
  uint64_t *keys = launch.keys + static_cast<size_t>(number) * launch.candidates;
  if (threadIdx.x < GPU_HEAD_DIM_MAX)
    code.q12[threadIdx.x / EACH][threadIdx.x % EACH] = job.q12[threadIdx.x];
  if (threadIdx.x < 32)
    code.levels[threadIdx.x / 16][threadIdx.x % 16] = launch.levels[threadIdx.x / 16][threadIdx.x % 16];
  wait_for_previous();
  __syncthreads();
  uint32_t count = __ldcg(&launch.found[number]);
  for (uint32_t base = part * PLACES; base < count; base += launch.blocks * PLACES) {
    uint32_t place = base + threadIdx.x / LANES;
    unsigned long long key = __ldcg(reinterpret_cast<unsigned long long *>(&keys[min(place, count - 1)]));
    key = rescore<WORDS>(launch, job, code, key, lane);
    if (lane == 0 && place < count)
      keys[place] = key;
  }
  clear(shared.digits, DIGITS);
  if (!arrive(&launch.groups[number], launch.blocks, shared))
    return;
  select_best(keys, count, launch.best, launch.best_keys + static_cast<size_t>(number) * launch.best, shared);
  if (threadIdx.x == 0)
    launch.counts[number] = count;
}

} // namespace

extern "C" cudaError_t gpu_rescore_launch_jobs(gpu_rescore_launch *given, uint32_t jobs, cudaStream_t stream) {
  uint32_t needed = (given->candidates + PLACES - 1) / PLACES;
  given->blocks = given->blocks < needed ? given->blocks : needed;
  bool words = given->head_dim == GPU_HEAD_DIM_MAX;
  void (*kernel)(gpu_rescore_launch) = words ? rescore_kernel<true> : rescore_kernel<false>;
  return launch(kernel, jobs * given->blocks, THREADS, *given, given->overlap ? BEGIN_OVERLAPPING : BEGIN_BEHIND,
                stream);
}
