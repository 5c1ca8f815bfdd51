// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// What the kernels that make records have in common: where tokens come from and records go, CRCs, and setting bits.
#ifndef COLDKV_CLIENT_CUDA_ENCODE_CUH
#define COLDKV_CLIENT_CUDA_ENCODE_CUH

#include "client/cuda/codec.cuh"

namespace {

/* What one warp has to do: a run of tokens of one (layer, head). */
struct Run {
  uint32_t place, layer, head, begin, end;
};

__device__ __forceinline__ bool run_of(const cuda_encode_job &job, uint32_t warp, uint32_t tokens, Run &run) {
  uint32_t runs = (job.count + tokens - 1) / tokens;
  run.place = warp / runs;
  run.layer = run.place / job.shape.heads;
  run.head = run.place % job.shape.heads;
  run.begin = warp % runs * tokens;
  run.end = min(job.count, run.begin + tokens);
  return run.place < job.shape.layers * job.shape.heads;
}

__device__ __forceinline__ size_t ring_at(const cuda_encode_job &job, const Run &run, uint32_t i) {
  return (static_cast<size_t>(run.place) * CUDA_RING + (job.first + i) % CUDA_RING) * job.shape.d;
}

__device__ __forceinline__ uint32_t *record_at(const cuda_encode_job &job, const Run &run, uint32_t i) {
  size_t at = static_cast<size_t>(i) * job.shape.layers * job.shape.heads + run.place;
  return reinterpret_cast<uint32_t *>(job.records + at * CUDA_RECORD);
}

/* The caller synchronizes. */
__device__ __forceinline__ void load_table(const uint32_t *from, uint32_t *table) {
  for (uint32_t i = threadIdx.x; i < CUDA_CRC_TABLE / 4; i += blockDim.x)
    reinterpret_cast<uint4 *>(table)[i] = reinterpret_cast<const uint4 *>(from)[i];
}

/* The CRC-32C of what came before and one more word, "slicing by 4". */
__device__ __forceinline__ uint32_t crc_word(const uint32_t *table, uint32_t crc, uint32_t word) {
  uint32_t bytes = crc ^ word;
  return table[3 * 256 + (bytes & 255)] ^ table[2 * 256 + (bytes >> 8 & 255)] ^ table[256 + (bytes >> 16 & 255)] ^
         table[bytes >> 24];
}

/* Of a record's first 100 bytes, the end of it: its place. */
__device__ __forceinline__ uint32_t crc_place(const uint32_t *table, uint32_t crc, const Run &run, uint64_t token) {
  crc = crc_word(table, crc, run.layer | run.head << 16);
  crc = crc_word(table, crc, static_cast<uint32_t>(token));
  return ~crc_word(table, crc, static_cast<uint32_t>(token >> 32));
}

/* Sets a bit by one instruction that depends on the condition; left alone, compilers make two of it. */
__device__ __forceinline__ void set(uint32_t &bits, int i, bool condition) {
#ifdef __CUDACC__
  asm("{ .reg .pred p; setp.ne.u32 p, %1, 0; @p or.b32 %0, %0, %2; }"
      : "+r"(bits) : "r"(static_cast<uint32_t>(condition)), "r"(1u << i));
#else
  bits |= condition ? 1u << i : 0;
#endif
}

} // namespace

#endif
