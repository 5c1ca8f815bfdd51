// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// Records as a block of a scan reads them, and what they score.
#ifndef COLDKV_RETRIEVAL_CUDA_SCAN_SCORE_CUH
#define COLDKV_RETRIEVAL_CUDA_SCAN_SCORE_CUH

#include "retrieval/cuda/select.cuh"

#include <cuda_fp16.h>

namespace {

enum {
  BLOCKS_PER_PROCESSOR = 2,
  TILE = 128, /* records that a warp reads at a time; a chunk is a whole number of them */
  TILE_LINES = TILE / 32, /* that a thread has */
  OWNED_PERCENT = 75, /* of the tiles, that are some warp's from the beginning */
};
static_assert(GPU_CHUNK % TILE == 0, "a tile lies in one chunk");

/* Classes of scores, best first: those above zero by exponent and four bits of the fraction, then all others, of which
 * one seldom needs any. Sums are at most 896 and scales 2^-24 to 65504, so that all lie between these two. */
enum : uint32_t {
  SCORE_END = 0x4c800000u,   /* 2^26 */
  SCORE_LEAST = 0x33800000u, /* 2^-24 */
  CLASS_SHIFT = 19,
  CLASSES_ABOVE = (SCORE_END - SCORE_LEAST) >> CLASS_SHIFT,
  DISTANCES = 129,
};
constexpr float HINT_MARGIN = 0.07f; /* by which a score may be lower than expected */
static_assert(CLASSES_ABOVE <= uint32_t(GPU_BINS), "bins for every class");

/* A job's records as a warp takes them. The warps of all blocks that share the job have equal parts of most tiles to
 * themselves, and one more each; the others go to whoever is there first, since blocks begin at different times where
 * launches overlap. */
struct Tiles {
  const gpu_job *job;
  uint32_t first; /* record where tile 0 begins, at most TILE - 1 before the job's first */
  uint32_t count;
  uint32_t warps, warp; /* that share; this one */
  uint32_t owned;       /* of each warp: those from warp * owned on */
};

struct Batch {
  uint4 signature[TILE_LINES];
  uint16_t scale[TILE_LINES];
};

/* --- records and scores ------------------------------------------------------------------------------------------ */

__device__ __forceinline__ Tiles tiles_of(const gpu_job &job, uint32_t blocks, uint32_t block) {
  Tiles tiles = {&job, job.begin / TILE * TILE, 0, blocks * WARPS, threadIdx.x / 32 * blocks + block, 0};
  if (job.count)
    tiles.count = (job.begin % TILE + (job.count - 1)) / TILE + 1;
  tiles.owned = max(tiles.count / tiles.warps * OWNED_PERCENT / 100, 1u);
  return tiles;
}

__device__ __forceinline__ const uint8_t *chunk_of(const gpu_job &job, uint32_t record) {
  auto chunks = reinterpret_cast<const unsigned long long *>(job.chunks);
  return reinterpret_cast<const uint8_t *>(__ldg(chunks + (record >> GPU_CHUNK_SHIFT)));
}

__device__ __forceinline__ const uint16_t *scale_of(const uint8_t *chunk, uint32_t record) {
  return reinterpret_cast<const uint16_t *>(chunk + GPU_CHUNK_SCALES) + record % GPU_CHUNK;
}

/* A tile's records, also those before and after the job's; a chunk has memory for all. Loads that depend on nothing
 * are all under way at a time. */
template <bool SCALES> __device__ __forceinline__ void load(const Tiles &tiles, uint32_t tile, Batch &batch) {
  uint32_t record = tiles.first + tile * TILE;
  const uint8_t *chunk = chunk_of(*tiles.job, record);
  record = record % GPU_CHUNK + threadIdx.x % 32;
  auto signatures = reinterpret_cast<const uint4 *>(chunk) + record;
  const uint16_t *scales = scale_of(chunk, record);
#pragma unroll
  for (uint32_t i = 0; i < TILE_LINES; i++)
    batch.signature[i] = __ldcs(signatures + 32 * i);
#pragma unroll
  for (uint32_t i = 0; i < TILE_LINES; i++)
    batch.scale[i] = SCALES ? __ldcs(scales + 32 * i) : 0;
}

/* Number, among the job's records, of a tile's in line i; not below the job's count where it is none of them. */
__device__ __forceinline__ uint32_t ordinal_of(const Tiles &tiles, uint32_t tile, uint32_t i) {
  return tiles.first + tile * TILE + 32 * i + threadIdx.x % 32 - tiles.job->begin;
}

/* Sum of three words bit by bit: what has the same weight, and what has twice of it. */
__device__ __forceinline__ uint32_t add3(uint32_t a, uint32_t b, uint32_t c, uint32_t &twice) {
  twice = (a & b) | (c & (a | b));
  return a ^ b ^ c;
}

/* The sum of |q4| where signature and signs differ. The words under the three magnitudes are first added bit by bit,
 * which leaves 7 of 12 population counts, the slower instruction. */
__device__ __forceinline__ int opposed(const gpu_job &job, uint4 word) {
  uint32_t d[4] = {word.x ^ job.sign[0], word.y ^ job.sign[1], word.z ^ job.sign[2], word.w ^ job.sign[3]};
  uint32_t m[3][4];
#pragma unroll
  for (int p = 0; p < 3; p++)
#pragma unroll
    for (int i = 0; i < 4; i++)
      m[p][i] = d[i] & job.magnitude[p][i];
  uint32_t two, four_a, four_b, eight_a, eight_b;
  uint32_t one = add3(m[0][0], m[0][1], m[0][2], two);
  uint32_t twos = add3(m[1][0], m[1][1], two, four_a);
  twos = add3(twos, m[1][2], m[1][3], four_b);
  uint32_t fours_a = add3(m[2][0], m[2][1], four_a, eight_a);
  uint32_t fours_b = add3(m[2][2], m[2][3], four_b, eight_b);
  int ones = __popc(one) + __popc(m[0][3]);
  int fours = __popc(fours_a) + __popc(fours_b) + 2 * (__popc(eight_a) + __popc(eight_b));
  return ones + 2 * __popc(twos) + 4 * fours;
}

/* What a mode makes of a record: a value to compare with the limit, the class of one, the rank of a key. */
template <bool HAMMING> struct Mode;

template <> struct Mode<false> {
  typedef float Value;

  __device__ static __forceinline__ float value(const gpu_job &job, uint4 signature, uint16_t scale) {
    return static_cast<float>(job.magnitude_sum - 2 * opposed(job, signature)) * __half2float(__ushort_as_half(scale));
  }
  __device__ static __forceinline__ bool reaches(float score, float limit) { return score >= limit; } /* NaN: no */
  __device__ static __forceinline__ bool valid(float score, uint16_t) { return score == score; }
  __device__ static __forceinline__ uint32_t rank(float score) { return rank_of(score); }
  __device__ static __forceinline__ uint32_t bin(float score) {
    return score > 0 ? (SCORE_END - 1 - __float_as_uint(score)) >> CLASS_SHIFT : CLASSES_ABOVE;
  }
  /* The highest rank of a class. */
  __device__ static __forceinline__ uint32_t bin_rank(uint32_t bin) {
    return rank(__uint_as_float(SCORE_END - ((bin + 1) << CLASS_SHIFT)));
  }
  /* What reaches this has at most that rank. */
  __device__ static __forceinline__ float limit(uint32_t rank) {
    if (rank >= 0xff800000u)
      return __uint_as_float(0xff800000u);
    return __uint_as_float(rank & 0x80000000u ? rank : rank ^ 0x7fffffffu);
  }
  static constexpr uint32_t BINS = CLASSES_ABOVE; /* that are counted */
  /* What the next scan may expect of its best C, from the rank of this one's last, and which rank that then is. 0: what
   * nobody knows. */
  __device__ static __forceinline__ float hint(uint32_t rank, const gpu_job &job) {
    float score = limit(rank);
    return rank < rank_of_zero() && job.size > 0 ? score / job.size : 0;
  }
  __device__ static __forceinline__ uint32_t expected(float hint, const gpu_job &job) {
    return rank(hint * job.size * (1 - HINT_MARGIN));
  }
  __device__ static __forceinline__ uint32_t rank_of_zero() { return 0x7fffffffu; }
};

template <> struct Mode<true> {
  typedef uint32_t Value;

  __device__ static __forceinline__ uint32_t value(const gpu_job &job, uint4 signature, uint16_t) {
    return __popc(signature.x ^ job.sign[0]) + __popc(signature.y ^ job.sign[1]) + __popc(signature.z ^ job.sign[2]) +
           __popc(signature.w ^ job.sign[3]);
  }
  __device__ static __forceinline__ bool reaches(uint32_t distance, uint32_t limit) { return distance <= limit; }
  __device__ static __forceinline__ bool valid(uint32_t, uint16_t scale) { return scale < 0x7c00u; }
  __device__ static __forceinline__ uint32_t rank(uint32_t distance) { return distance; }
  __device__ static __forceinline__ uint32_t bin(uint32_t distance) { return distance; }
  __device__ static __forceinline__ uint32_t bin_rank(uint32_t bin) { return bin; }
  __device__ static __forceinline__ uint32_t limit(uint32_t rank) { return rank; }
  static constexpr uint32_t BINS = DISTANCES;
  __device__ static __forceinline__ float hint(uint32_t distance, const gpu_job &) { return distance + 1; }
  __device__ static __forceinline__ uint32_t expected(float hint, const gpu_job &) {
    return static_cast<uint32_t>(hint); /* one more, where a half to twice as many are */
  }
};

} // namespace

#endif
