// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// Encoding where d is 128: a warp takes 16 tokens of one layer and kv head: keys, then values by the same instructions
// (row128.cuh), then their records. Vectors come through shared memory, a row each. That a vector is shared by two
// threads keeps the code short: what does not fit into the instruction cache runs at half the speed.
#ifndef COLDKV_CLIENT_CUDA_ENCODE128_CUH
#define COLDKV_CLIENT_CUDA_ENCODE128_CUH

#include "client/cuda/row128.cuh"

namespace {

enum {
  ROW_WARPS = 4,
  ROW_THREADS = 32 * ROW_WARPS,
  ROW_BLOCKS = 4, /* of a multiprocessor: what registers allow */
  RECORD_WORDS = CUDA_RECORD / 4,
};

struct RowMemory {
  alignas(16) uint8_t rows[ROW_RUN * ROW_STRIDE];
  alignas(16) uint32_t records[ROW_RUN * RECORD_WORDS];
  alignas(16) float minus_means[2][ROW_D]; /* with the signs; of keys, of values */
};

struct alignas(16) Quad {
  float x[4];
};

__device__ __forceinline__ void copy_async(void *to, const void *from) {
#ifdef __CUDACC__
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(
                   static_cast<uint32_t>(__cvta_generic_to_shared(to))), "l"(from) : "memory");
#else
  *static_cast<uint4 *>(to) = *static_cast<const uint4 *>(from);
#endif
}

__device__ __forceinline__ void wait_copies() {
#ifdef __CUDACC__
  asm volatile("cp.async.wait_all;" ::: "memory");
#endif
  __syncwarp();
}

/* What a warp has to do at a time: 16 tokens of one layer and kv head that lie side by side in the ring, so that some
 * at either end may not be meant. */
struct RowRun {
  uint32_t place, layer, head, at; /* at: tokens before it, from the first 16 on */
};

/* Tokens of the first 16 that are not meant. */
__device__ __forceinline__ uint32_t row_skip(const cuda_encode_job &job) {
  return static_cast<uint32_t>(job.first) % ROW_RUN;
}

/* Tokens of a place, with those that are not meant. */
__device__ __forceinline__ uint32_t row_tokens(const cuda_encode_job &job) {
  return (row_skip(job) + job.count + ROW_RUN - 1) / ROW_RUN * ROW_RUN;
}

/* Runs are numbered place after place. */
__device__ __forceinline__ RowRun row_run(const cuda_encode_job &job, uint32_t number) {
  uint32_t runs = row_tokens(job) / ROW_RUN, place = number / runs;
  return {place, place / job.shape.heads, place % job.shape.heads, number % runs * ROW_RUN};
}

/* Goes `step` on. Returns false after the last. */
__device__ __forceinline__ bool go_on(const cuda_encode_job &job, const RowRun &step, RowRun &run) {
  uint32_t tokens = row_tokens(job), carry = run.at + step.at >= tokens;
  run.at += step.at - (carry ? tokens : 0);
  run.place += step.place + carry;
  run.head += step.head + carry;
  carry = run.head >= job.shape.heads;
  run.head -= carry ? job.shape.heads : 0;
  run.layer += step.layer + carry;
  return run.layer < job.shape.layers;
}

/* Begins to copy a piece of a run's keys or values: of each half of a vector as much. */
template <typename T>
__device__ __forceinline__ void fetch(const cuda_encode_job &job, const void *vectors, const RowRun &run,
                                      uint32_t piece, uint8_t *rows, uint32_t lane) {
  enum { VECTOR = ROW_D * sizeof(T), PARTS = ROW_PIECE / 16, AT_A_TIME = 32 / PARTS };
  uint32_t part = lane % PARTS, row = lane / PARTS;
  uint32_t slot = (static_cast<uint32_t>(job.first) - row_skip(job) + run.at) % CUDA_RING + row;
  const uint8_t *from = static_cast<const uint8_t *>(vectors) +
                        (static_cast<size_t>(run.place) * CUDA_RING + slot) * VECTOR +
                        part / (PARTS / 2) * (VECTOR / 2) + piece * (ROW_PIECE / 2) + part % (PARTS / 2) * 16;
  uint8_t *to = rows + row * ROW_STRIDE + part * 16;
#pragma unroll
  for (int i = 0; i < ROW_RUN / AT_A_TIME; i++)
    copy_async(to + i * AT_A_TIME * ROW_STRIDE, from + i * AT_A_TIME * VECTOR);
}

/* What all warps of a block read. */
struct RowTables {
  alignas(16) uint4 factors[CUDA_SEAL_WORDS / 4];
  alignas(16) float signs[ROW_D];
  alignas(16) float2 pairs[16]; /* levels of two indices, the first one's bits being the lower ones */

  __device__ __forceinline__ void fill(const cuda_encode_job &job) {
    const uint4 *from = reinterpret_cast<const uint4 *>(job.crc_table + CUDA_CRC_TABLE);
    for (uint32_t i = threadIdx.x; i < CUDA_SEAL_WORDS / 4; i += ROW_THREADS)
      copy_async(factors + i, from + i);
    for (uint32_t c = threadIdx.x; c < ROW_D; c += ROW_THREADS)
      signs[c] = negated(job.codec.signs[0], c) ? -1.0f : 1.0f;
    if (threadIdx.x < 16)
      pairs[threadIdx.x] = make_float2(job.key.levels[0][threadIdx.x % 4], job.key.levels[0][threadIdx.x / 4]);
  }
};

/* Of bit matrices, sums += rows of `a` times columns of `b`, 16 x 256 by 256 x 8, as tensor cores share them out. */
__device__ __forceinline__ void multiply_bits(int *sums, const uint32_t *a, const uint32_t *b) {
#ifdef __CUDACC__
  asm("mma.sync.aligned.m16n8k256.row.col.s32.b1.b1.s32.and.popc {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+r"(sums[0]), "+r"(sums[1]), "+r"(sums[2]), "+r"(sums[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
  uint32_t lane = threadIdx.x % 32;
  for (uint32_t i = 0; i < 16; i++) { /* word, of either 4; column, of a thread's two */
    uint32_t word = i % 4, high = i / 4 % 2, column = i / 8;
    for (uint32_t upper = 0; upper < 2; upper++)
      sums[column + 2 * upper] += __popc(__shfl_sync(ALL, a[2 * high + upper], lane / 4 * 4 + word) &
                                         __shfl_sync(ALL, b[high], (lane % 4 * 2 + column) * 4 + word));
  }
#endif
}

/* Makes the CRCs of the records, a product of bit matrices: a row is a record, its place and a 1, a column one bit of
 * the CRC. Thread t of every four gets byte t of two records'. */
__device__ __forceinline__ void seal_rows(uint32_t *records, const uint4 *factors, const cuda_encode_job &job,
                                          const RowRun &run, uint32_t lane) {
  enum { BITS = 256, WORDS = BITS / 32, STEPS = CUDA_SEAL_BITS / BITS };
  uint32_t *low = records + lane / 4 * RECORD_WORDS, *high = low + ROW_RUN / 2 * RECORD_WORDS, t = lane % 4;
  int sums[4][4] = {};
#pragma unroll
  for (int k = 0; k < STEPS; k++) {
    uint32_t a[4];
    if (k + 1 < STEPS) {
      a[0] = low[WORDS * k + t];
      a[1] = high[WORDS * k + t];
      a[2] = low[WORDS * k + t + 4];
      a[3] = high[WORDS * k + t + 4];
    } else {
      uint64_t token = job.first - row_skip(job) + run.at + lane / 4, later = token + ROW_RUN / 2;
      uint32_t place = run.layer | run.head << 16;
      a[0] = t == 0 ? low[WORDS * k] : t == 1 ? place : static_cast<uint32_t>(t == 2 ? token : token >> 32);
      a[1] = t == 0 ? high[WORDS * k] : t == 1 ? place : static_cast<uint32_t>(t == 2 ? later : later >> 32);
      a[2] = a[3] = t == 0;
    }
#pragma unroll
    for (int i = 0; i < 2; i++) {
      uint4 b = factors[(2 * k + i) * 32 + lane];
      const uint32_t first[] = {b.x, b.y}, second[] = {b.z, b.w};
      multiply_bits(sums[2 * i], a, first);
      multiply_bits(sums[2 * i + 1], a, second);
    }
  }
  uint32_t low_byte = 0, high_byte = 0;
#pragma unroll
  for (int i = 0; i < 8; i++) {
    low_byte = low_byte >> 1 | static_cast<uint32_t>(sums[i / 2][i % 2]) << 31;
    high_byte = high_byte >> 1 | static_cast<uint32_t>(sums[i / 2][2 + i % 2]) << 31;
  }
  reinterpret_cast<uint8_t *>(low + RECORD_WORDS - 1)[t] = static_cast<uint8_t>(low_byte >> 24);
  reinterpret_cast<uint8_t *>(high + RECORD_WORDS - 1)[t] = static_cast<uint8_t>(high_byte >> 24);
}

/* Writes the warp's records, those that are meant. */
__device__ __forceinline__ void write_records(const cuda_encode_job &job, const RowRun &run, const uint32_t *records,
                                              uint32_t lane) {
  enum { PARTS = CUDA_RECORD / 8, AT_A_TIME = 32 / PARTS };
  uint32_t row = lane / PARTS, token = run.at - row_skip(job) + row; /* of the job's; before its first a large number */
  const uint2 *from = reinterpret_cast<const uint2 *>(records) + lane;
  int64_t step = static_cast<int64_t>(job.shape.layers) * job.shape.heads * CUDA_RECORD;
  uint8_t *to = job.records + static_cast<int32_t>(token) * step + static_cast<size_t>(run.place) * CUDA_RECORD +
                lane % PARTS * 8;
  if (lane >= AT_A_TIME * PARTS)
    return;
  if (run.at >= row_skip(job) && run.at + ROW_RUN <= row_skip(job) + job.count) {
#pragma unroll
    for (int i = 0; i < ROW_RUN / AT_A_TIME; i++, to += AT_A_TIME * step)
      *reinterpret_cast<uint2 *>(to) = from[i * AT_A_TIME * PARTS];
  } else {
#pragma unroll 1
    for (; row < ROW_RUN; row += AT_A_TIME, token += AT_A_TIME, from += AT_A_TIME * PARTS, to += AT_A_TIME * step)
      if (token < job.count)
        *reinterpret_cast<uint2 *>(to) = *from;
  }
}

__device__ constexpr bool is_half(__half) { return true; }
template <typename T> __device__ constexpr bool is_half(T) { return false; }

/* Gives means their signs, in place. Returns whether a difference from one may be so small that a product with it is 0
 * or not a normal number: numbers of fp16 are multiples of 2^-24, such means of 2^-123. */
__device__ __forceinline__ bool take_means(float *means, const float *signs, uint32_t lane) {
  Quad mean = *reinterpret_cast<Quad *>(means + 4 * lane), sign = *reinterpret_cast<const Quad *>(signs + 4 * lane);
  bool tiny = false;
#pragma unroll
  for (int i = 0; i < 4; i++) {
    tiny |= mean.x[i] != 0 && fabsf(mean.x[i]) < 0x1p-100f;
    mean.x[i] *= -sign.x[i];
  }
  *reinterpret_cast<Quad *>(means + 4 * lane) = mean;
  return tiny;
}

__device__ __forceinline__ void fetch_means(const cuda_encode_job &job, const RowRun &run, RowMemory &memory,
                                            uint32_t lane) {
  copy_async(memory.minus_means[0] + 4 * lane, job.mean_k + static_cast<size_t>(run.place) * ROW_D + 4 * lane);
  copy_async(memory.minus_means[1] + 4 * lane, job.mean_v + static_cast<size_t>(run.place) * ROW_D + 4 * lane);
}

/* Runs are numbered place after place. What comes next is fetched as soon as there is room for it. */
template <typename T>
__global__ void __launch_bounds__(ROW_THREADS, ROW_BLOCKS)
    encode128_kernel(const __grid_constant__ cuda_encode_job job) {
  enum { PIECES = ROW_D * sizeof(T) / ROW_PIECE };
  __shared__ RowTables tables;
  __shared__ RowMemory memories[ROW_WARPS];
  uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  RowMemory &memory = memories[warp];
  RowPlace place = {lane % ROW_RUN, lane / ROW_RUN, lane / ROW_RUN ? -1.0f : 1.0f};
  RowRun run = row_run(job, blockIdx.x * ROW_WARPS + warp), step = row_run(job, gridDim.x * ROW_WARPS);
  bool more = run.layer < job.shape.layers, good = true;
  if (more) {
    fetch_means(job, run, memory, lane);
    fetch<T>(job, job.keys, run, 0, memory.rows, lane);
  }
  tables.fill(job);
  wait_copies();
  __syncthreads();
  while (more) {
    wait_copies();
    bool tiny = take_means(memory.minus_means[0], tables.signs, lane);
    tiny |= take_means(memory.minus_means[1], tables.signs, lane);
    tiny = !is_half(T()) || __ballot_sync(ALL, tiny) != 0;
    RowRun next = run;
    more = go_on(job, step, next);
    uint8_t *record = reinterpret_cast<uint8_t *>(memory.records + place.row * RECORD_WORDS);
#pragma unroll 1
    for (int which = 0; which < 2; which++) {
      float x[ROW_OWN];
      wait_copies();
      centre<T, 0>(memory.rows, tables.signs, memory.minus_means[which], place, x);
      __syncwarp();
      if constexpr (PIECES == 2) {
        fetch<T>(job, which ? job.values : job.keys, run, 1, memory.rows, lane);
        wait_copies();
        centre<T, 1>(memory.rows, tables.signs, memory.minus_means[which], place, x);
        __syncwarp();
      }
      if (which && more)
        fetch_means(job, next, memory, lane);
      if (!which || more)
        fetch<T>(job, which ? job.keys : job.values, which ? next : run, 0, memory.rows, lane);
      RowCode code = code_of(record, which);
      bool fine;
      if (tiny) { /* apart, so that instructions of the usual case mix */
        transform(place, x);
        fine = quantize_row<true>(x, job.key, tables.pairs, place, code);
      } else {
        transform(place, x);
        fine = quantize_row<false>(x, job.key, tables.pairs, place, code);
      }
      good &= fine || run.at + place.row - row_skip(job) >= job.count; /* elsewhere lies anything */
    }
    __syncwarp();
    seal_rows(memory.records, tables.factors, job, run, lane);
    __syncwarp();
    write_records(job, run, memory.records, lane);
    __syncwarp();
    run = next;
  }
  if (!good)
    report(job.found, job.first);
}

} // namespace

#endif
