// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// Records as a block of a scan reads them, and what they score.
#ifndef COLDKV_RETRIEVAL_CUDA_SCAN_SCORE_CUH
#define COLDKV_RETRIEVAL_CUDA_SCAN_SCORE_CUH

#include "retrieval/cuda/select.cuh"

#include <cuda_fp16.h>

#ifndef COLDKV_GPU_STREAMS
#define COLDKV_GPU_STREAMS 4
#endif
#ifndef COLDKV_GPU_AHEAD
#define COLDKV_GPU_AHEAD 0
#endif

namespace {

enum {
  BLOCKS_PER_PROCESSOR = 2,
  STREAMS = COLDKV_GPU_STREAMS, /* places of its share that a block reads at a time */
  AHEAD = COLDKV_GPU_AHEAD, /* 1: it asks for the next ones before it looks at these */
};

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

/* A job's share of one block, and what the block knows of it. */
struct Share {
  const gpu_job *job;
  uint32_t first;   /* record of the columns */
  uint32_t ordinal; /* of it */
  uint32_t length;
  uint32_t stride;  /* between the streams */
};

struct Batch {
  uint4 signature[STREAMS];
  uint16_t scale[STREAMS];
};

/* --- records and scores ------------------------------------------------------------------------------------------ */

__device__ __forceinline__ bool inside(const Share &share, uint32_t stream, uint32_t at) {
  return at < share.stride && stream * share.stride + at < share.length;
}

__device__ __forceinline__ const uint8_t *chunk_of(const Share &share, uint32_t record) {
  auto chunks = reinterpret_cast<const unsigned long long *>(share.job->chunks);
  return reinterpret_cast<const uint8_t *>(__ldg(chunks + (record >> GPU_CHUNK_SHIFT)));
}

__device__ __forceinline__ const uint16_t *scale_of(const uint8_t *chunk, uint32_t record) {
  return reinterpret_cast<const uint16_t *>(chunk + GPU_CHUNK_SCALES) + record % GPU_CHUNK;
}

/* One round of all streams. Past an end it reads the share's last record again, which inside() sorts out later: loads
 * that depend on nothing are all under way at a time. */
template <bool SCALES> __device__ __forceinline__ void load(const Share &share, uint32_t at, Batch &batch) {
  const uint8_t *chunks[STREAMS];
  uint32_t records[STREAMS];
#pragma unroll
  for (uint32_t s = 0; s < STREAMS; s++) {
    records[s] = share.first + min(s * share.stride + at, share.length - 1);
    chunks[s] = chunk_of(share, records[s]);
  }
#pragma unroll
  for (uint32_t s = 0; s < STREAMS; s++)
    batch.signature[s] = __ldcs(reinterpret_cast<const uint4 *>(chunks[s]) + records[s] % GPU_CHUNK);
#pragma unroll
  for (uint32_t s = 0; s < STREAMS; s++)
    batch.scale[s] = SCALES ? __ldcs(scale_of(chunks[s], records[s])) : 0;
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
