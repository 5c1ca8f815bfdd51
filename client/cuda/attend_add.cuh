// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// How attend.cu adds up what halves, warps and blocks found: the block that comes last does.
#ifndef COLDKV_CLIENT_CUDA_ATTEND_ADD_CUH
#define COLDKV_CLIENT_CUDA_ATTEND_ADD_CUH

#include "client/cuda/attend_read.cuh"

namespace {

/* 2^x, to 2 units in the last place. */
__device__ __forceinline__ float power(float x) {
#ifdef __CUDACC__
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  return exp2f(x);
#endif
}

/* What powers are taken relative to. */
__device__ __forceinline__ float base_of(float top) { return top == -INFINITY ? 0 : top; }

/* Keys times queries that a half has at once: i * Q + q. */
template <int Q> struct Dots {
  enum { COUNT = KEYS * Q, LANES = 16 / COUNT /* that have the same one */ };
  static_assert(16 % COUNT == 0, "a lane has one");
};

/* What a half has found: a running maximum and sum of powers of two for the key and query of the lane's, the maximum
 * being that of the query in all the warp, and weighted values of Q queries. */
template <int Q> struct Found {
  float top, sum, values[Q * 8];
};

/* Shared memory of a block. Vectors in the order of position(). */
template <int Q> struct __align__(16) Shared {
  union {
    float values[WARPS][Q][CUDA_D_MAX];
    float slots[HALVES][CUDA_D_MAX];
  };
  float queries[Q][CUDA_D_MAX];
  float top[Q][WARPS], sum[Q][WARPS];
  uint32_t last;
};

/* Adds up the two halves of a warp, each of which keeps half of it, for the block to see. */
template <int Q>
__device__ __forceinline__ void add_halves(const Found<Q> &found, Shared<Q> &shared, uint32_t half, uint32_t lane) {
  uint32_t warp = half / 2, upper = half % 2;
  float sum = found.sum;
#pragma unroll
  for (int h = Q * Dots<Q>::LANES; h <= 16; h *= 2)
    sum += __shfl_xor_sync(ALL, sum, h);
#pragma unroll
  for (int four = 0; four < Q; four++) {
    float x[4];
#pragma unroll
    for (int c = 0; c < 4; c++) {
      float low = found.values[four * 4 + c], high = found.values[(Q + four) * 4 + c];
      x[c] = (upper ? high : low) + __shfl_xor_sync(ALL, upper ? low : high, 16);
    }
    uint32_t which = upper * Q + four; /* of the fours of a lane, two for each query */
    *reinterpret_cast<float4 *>(&shared.values[warp][which / 2][which % 2 * PAIRS + lane * 4]) =
        make_float4(x[0], x[1], x[2], x[3]);
  }
  if (upper == 0 && lane % Dots<Q>::LANES == 0 && lane < Q * Dots<Q>::LANES) {
    shared.top[lane / Dots<Q>::LANES][warp] = found.top;
    shared.sum[lane / Dots<Q>::LANES][warp] = sum;
  }
}

/* Two numbers of the result as far as they are known: weighted values, then maximum and sum. */
struct Part {
  float2 value, weight;
};

/* Adds up the warps of the block. */
template <int Q> __device__ __forceinline__ Part add_warps(const Shared<Q> &shared, uint32_t q, uint32_t pair) {
  Part part = {make_float2(0, 0), make_float2(-INFINITY, 0)};
#pragma unroll
  for (int w = 0; w < WARPS; w++)
    part.weight.x = fmaxf(part.weight.x, shared.top[q][w]);
#pragma unroll
  for (int w = 0; w < WARPS; w++) {
    float weight = power(shared.top[q][w] - base_of(part.weight.x));
    float2 x = *reinterpret_cast<const float2 *>(&shared.values[w][q][2 * pair]);
    part.weight.y += weight * shared.sum[q][w];
    part.value.x += weight * x.x;
    part.value.y += weight * x.y;
  }
  return part;
}

/* Adds up blocks: `values` are a thread's own, `step` from one block to the next, as `weights` are Q. All is read at
 * once, since what takes long is to wait for it. */
template <int Q>
__device__ __forceinline__ Part add_blocks(const float2 *values, uint32_t step, const float2 *weights,
                                           uint32_t splits) {
  Part part = {make_float2(0, 0), make_float2(-INFINITY, 0)};
  for (uint32_t from = 0; from < splits; from += AHEAD) {
    float2 x[AHEAD], w[AHEAD];
#pragma unroll
    for (uint32_t s = 0; s < AHEAD; s++) {
      bool there = from + s < splits;
      const float2 *value = values + (from + s) * step, *weight = weights + (from + s) * Q;
      x[s] = there ? __ldcg(value) : make_float2(0, 0);
      w[s] = there ? __ldcg(weight) : make_float2(-INFINITY, 0);
    }
    float top = part.weight.x;
#pragma unroll
    for (uint32_t s = 0; s < AHEAD; s++)
      top = fmaxf(top, w[s].x);
    float before = power(part.weight.x - base_of(top));
    part.weight = make_float2(top, part.weight.y * before);
    part.value = make_float2(part.value.x * before, part.value.y * before);
#pragma unroll
    for (uint32_t s = 0; s < AHEAD; s++) {
      float weight = power(w[s].x - base_of(top));
      part.weight.y += weight * w[s].y;
      part.value.x += weight * x[s].x;
      part.value.y += weight * x[s].y;
    }
  }
  return part;
}

/* True in the block that comes last to its row and kv head; what the others wrote is there for it, and `arrived` is 0
 * again for the next launch. */
template <int Q> __device__ __forceinline__ bool arrive(Shared<Q> &shared, uint32_t *arrived, uint32_t splits) {
  __syncthreads();
  if (threadIdx.x == 0) { /* for what the whole block wrote, which the barrier put before it */
#ifdef __CUDACC__
    uint32_t before;
    asm volatile("atom.acq_rel.gpu.global.inc.u32 %0, [%1], %2;"
                 : "=r"(before)
                 : "l"(__cvta_generic_to_global(arrived)), "r"(splits - 1)
                 : "memory");
    shared.last = before == splits - 1;
#else
    __threadfence();
    shared.last = atomicAdd(arrived, 1) == splits - 1;
    if (shared.last)
      *arrived = 0;
    __threadfence();
#endif
  }
  __syncthreads();
  return shared.last;
}

/* Adds up the blocks in the memory of the GPU. Returns true in the last of them. */
template <int Q>
__device__ __forceinline__ bool add_grid(const cuda_attend_job &job, const Share &share, Shared<Q> &shared, uint32_t q,
                                         uint32_t pair, uint32_t splits, Part &part) {
  uint32_t d = job.shape.d, c = coordinate(2 * pair);
  uint32_t group = blockIdx.z * job.shape.heads + share.head, groups = gridDim.z * job.shape.heads;
  float2 *values = reinterpret_cast<float2 *>(job.partial + group * splits * Q * d + q * d + c);
  float2 *weights = reinterpret_cast<float2 *>(job.partial + groups * splits * Q * d) + group * splits * Q + q;
  if (q < Q && c < d) {
    values[blockIdx.x * (Q * d / 2)] = part.value;
    if (pair == 0)
      weights[blockIdx.x * Q] = part.weight;
  }
  if (!arrive<Q>(shared, job.arrived + group, splits))
    return false;
  if (q < Q && c < d)
    part = add_blocks<Q>(values, Q * d / 2, weights, splits);
  return true;
}

} // namespace

#endif
