// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// Tokens that leave the hot window, as records: the bytes of kernels/codec_c.c.
//
// Where d is 64 or 128, half a warp takes a vector, thread j of it the coordinates j, j + 16, ...: these are the lanes
// of RECORD.md, so that sums are made in one thread before the tree. A warp takes two tokens of one kv head at a
// time, keys first. Any other d goes through shared memory, a warp a record.
#include "client/cuda/codec.cuh"

namespace {

enum { WARPS = 8, THREADS = 32 * WARPS, RECORD_WORDS = 28, WARPS_PER_PROCESSOR = 32 };

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

__device__ __forceinline__ void load_table(const uint32_t *from, uint32_t *table) {
  for (uint32_t i = threadIdx.x; i < CUDA_CRC_TABLE / 4; i += THREADS)
    reinterpret_cast<uint4 *>(table)[i] = reinterpret_cast<const uint4 *>(from)[i];
  __syncthreads();
}

/* --- d = 64 and 128 ----------------------------------------------------------------------------------------------- */

/* One vector's part of a thread: N coordinates. */
template <int N> struct Part {
  float x[N];

  template <typename T> __device__ __forceinline__ void load(const T *vector, uint32_t j) {
#pragma unroll
    for (int t = 0; t < N; t++)
      x[t] = widen(vector[j + SUM_LANES * t]);
  }

  /* The Walsh-Hadamard transform. own: 1, or -1 where bit s of j is set. */
  __device__ __forceinline__ void hadamard(const float *own) {
#pragma unroll
    for (int s = 0; s < 4; s++)
#pragma unroll
      for (int t = 0; t < N; t++)
        x[t] = fmaf(x[t], own[s], __shfl_xor_sync(ALL, x[t], 1 << s)); /* the product is exact: one rounding */
#pragma unroll
    for (int h = 1; h < N; h *= 2)
#pragma unroll
      for (int t = 0; t < N; t++)
        if (!(t & h)) {
          float a = x[t], b = x[t + h];
          x[t] = a + b;
          x[t + h] = a - b;
        }
#pragma unroll
    for (int t = 0; t < N; t++)
      x[t] *= N == 8 ? 0x1.6a09e6p-4f : 0.125f;
  }
};

/* The level that a is nearest to, and the bits of its index: thresholds that a is above, counted by halving. */
template <int BITS>
__device__ __forceinline__ float find_level(const float *thresholds, const float *levels, float a, bool *bits) {
  constexpr int HALF = 1 << (BITS - 1);
  float less_thresholds[HALF], less_levels[HALF];
  bool above = a > thresholds[HALF - 1];
#pragma unroll
  for (int i = 0; i < HALF; i++)
    less_levels[i] = above ? levels[HALF + i] : levels[i];
#pragma unroll
  for (int i = 0; i + 1 < HALF; i++)
    less_thresholds[i] = above ? thresholds[HALF + i] : thresholds[i];
  bits[BITS - 1] = above;
  if constexpr (BITS == 1)
    return less_levels[0];
  else
    return find_level<BITS - 1>(less_thresholds, less_levels, a, bits);
}

/* Bits of a thread's coordinates: plane p in byte p % 4 of word p / 4, coordinate t at bit t. */
template <int N, int PLANES> struct Planes {
  uint32_t words[(PLANES + 3) / 4];

  __device__ __forceinline__ void put(int p, int t, bool bit) {
    if (bit)
      words[p / 4] |= 1u << (p % 4 * 8 + t);
  }

  /* Swaps threads and coordinates, eight by eight: bit i of a byte is then that of thread i, and the thread's number
   * modulo 8 the coordinate's t. */
  __device__ __forceinline__ void transpose(uint32_t j) {
#pragma unroll
    for (uint32_t s = 1, mask = 0x55555555; s < 8; s *= 2, mask = s == 2 ? 0x33333333 : 0x0f0f0f0f) {
      bool upper = j & s;
      uint32_t keep = upper ? ~mask : mask;
#pragma unroll
      for (int w = 0; w < (PLANES + 3) / 4; w++) {
        uint32_t theirs = __shfl_xor_sync(ALL, words[w], s);
        theirs = upper ? theirs >> s : theirs << s;
        words[w] = (words[w] & keep) | (theirs & ~keep);
      }
    }
  }

  __device__ __forceinline__ void write(int p, uint8_t *plane, uint32_t j) const {
    if (j % 8 < N)
      plane[j % 8 * 2 + j / 8] = static_cast<uint8_t>(words[p / 4] >> p % 4 * 8);
  }
};

/* Signs, index planes and the scale of a rotated vector. Returns false when there is no record of it. */
template <int N, int BITS>
__device__ __forceinline__ bool quantize(const Part<N> &y, const cuda_split &split, uint8_t *signs, uint8_t *planes,
                                         uint8_t *scale, uint32_t j) {
  float squares = 0;
#pragma unroll
  for (int t = 0; t < N; t++)
    squares += y.x[t] * y.x[t];
  float inverse = inverse_rms(lane_tree(squares), SUM_LANES * N);
  float products = 0, weights = 0;
  Planes<N, BITS + 1> bits_of = {};
#pragma unroll
  for (int t = 0; t < N; t++) {
    bool bits[BITS];
    float magnitude = fabsf(y.x[t]);
    float level = find_level<BITS>(split.thresholds[0], split.levels[0], magnitude * inverse, bits);
    products += magnitude * level;
    weights += level * level;
    bits_of.put(BITS, t, y.x[t] < 0);
#pragma unroll
    for (int b = 0; b < BITS; b++)
      bits_of.put(b, t, bits[b]);
  }
  bits_of.transpose(j);
  bits_of.write(BITS, signs, j);
#pragma unroll
  for (int b = 0; b < BITS; b++)
    bits_of.write(b, planes + b * 2 * N, j);
  __half rounded = __float2half_rn(lane_tree(products) / lane_tree(weights));
  uint16_t stored = inverse > 0 ? __half_as_ushort(rounded) : 0;
  if (j == 0)
    *reinterpret_cast<uint16_t *>(scale) = stored;
  return inverse >= 0 && stored < 0x7c00u;
}

/* The vector less its mean, with the first signs. */
template <int N> struct Centre {
  float minus_mean[N]; /* with the signs */

  __device__ __forceinline__ void take(const float *mean, const float *signs, uint32_t j) {
#pragma unroll
    for (int t = 0; t < N; t++)
      minus_mean[t] = -(mean[j + SUM_LANES * t] * signs[t]);
  }
  /* (x - mean) sign: the products are exact, so there is one rounding, the same one. */
  __device__ __forceinline__ void apply(Part<N> &part, const float *signs) const {
#pragma unroll
    for (int t = 0; t < N; t++)
      part.x[t] = fmaf(part.x[t], signs[t], minus_mean[t]);
  }
};

template <int N> __device__ __forceinline__ void take_signs(const uint32_t *words, float *signs, uint32_t j) {
#pragma unroll
  for (int t = 0; t < N; t++)
    signs[t] = negated(words, j + SUM_LANES * t) ? -1.0f : 1.0f;
}

template <typename T, int N, int KEY_BITS, int VALUE_BITS>
__global__ void __launch_bounds__(THREADS) encode_kernel(const __grid_constant__ cuda_encode_job job, uint32_t tokens) {
  __shared__ __align__(16) uint32_t table[CUDA_CRC_TABLE];
  __shared__ uint32_t memory[WARPS][2][RECORD_WORDS];
  load_table(job.crc_table, table);
  uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32, j = lane % SUM_LANES, half = lane / SUM_LANES;
  Run run;
  if (!run_of(job, blockIdx.x * WARPS + warp, tokens, run))
    return;
  uint8_t *record = reinterpret_cast<uint8_t *>(memory[warp][half]);
  float signs[N], own[4];
  take_signs<N>(job.codec.signs[0], signs, j);
#pragma unroll
  for (int s = 0; s < 4; s++)
    own[s] = j >> s & 1 ? -1.0f : 1.0f;
  Centre<N> key_centre, value_centre;
  key_centre.take(job.mean_k + static_cast<size_t>(run.place) * job.shape.d, signs, j);
  value_centre.take(job.mean_v + static_cast<size_t>(run.place) * job.shape.d, signs, j);
  bool good = true;
  for (uint32_t i = run.begin; i < run.end; i += 2) {
    uint32_t token = min(i + half, run.end - 1); /* the odd one at the end is encoded twice and written once */
    Part<N> k, v;
    k.load(static_cast<const T *>(job.keys) + ring_at(job, run, token), j);
    v.load(static_cast<const T *>(job.values) + ring_at(job, run, token), j);
    key_centre.apply(k, signs);
    k.hadamard(own);
    good &= quantize<N, KEY_BITS>(k, job.key, record, record + 18, record + 16, j);
    if (N == 4) { /* d = 64: the other half of the signature */
      float extra[N];
      Planes<N, 1> plane = {};
      take_signs<N>(job.codec.extra[0], extra, j);
#pragma unroll
      for (int t = 0; t < N; t++)
        k.x[t] *= extra[t];
      k.hadamard(own);
#pragma unroll
      for (int t = 0; t < N; t++)
        plane.put(0, t, k.x[t] < 0);
      plane.transpose(j);
      plane.write(0, record + 8, j);
    }
    value_centre.apply(v, signs);
    v.hadamard(own);
    good &= quantize<N, VALUE_BITS>(v, job.value, record + 50, record + 50 + 2 * N, record + 98, j);
    __syncwarp();
#pragma unroll
    for (uint32_t r = 0; r < 2; r++)
      seal(table, job.crc_base, memory[warp][r], run.layer, run.head, job.first + i + r, record_at(job, run, i + r),
           i + r < run.end, lane);
    __syncwarp();
  }
  if (!good)
    report(job.found, job.first);
}

/* --- any d -------------------------------------------------------------------------------------------------------- */

struct Scratch {
  float y[CUDA_D_MAX], products[CUDA_D_MAX], squares[CUDA_D_MAX];
  uint32_t record[RECORD_WORDS];
};

/* Bits of x[n], n a multiple of 8, below zero. */
__device__ void write_signs(const float *x, uint32_t n, uint8_t *plane, uint32_t lane) {
  for (uint32_t base = 0; base < n; base += 32) {
    uint32_t votes = __ballot_sync(ALL, base + lane < n && x[base + lane] < 0);
    if (lane < 4 && base + 8 * lane < n)
      plane[base / 8 + lane] = static_cast<uint8_t>(votes >> 8 * lane);
  }
}

__device__ bool quantize_any(Scratch &s, const cuda_split &split, uint32_t d, uint8_t *planes, uint8_t *scale,
                             uint32_t lane) {
  for (uint32_t i = lane; i < d; i += 32)
    s.squares[i] = s.y[i] * s.y[i];
  __syncwarp();
  float inverse = inverse_rms(lane_sum(s.squares, d, lane), d);
  __syncwarp();
  for (uint32_t base = 0; base < d; base += 32) {
    uint32_t i = base + lane, more = i < split.partial, bits = split.whole + more, index = 0;
    float magnitude = i < d ? fabsf(s.y[i]) : 0, a = magnitude * inverse;
    for (uint32_t t = 0; t + 1 < 1u << bits; t++)
      index += a > split.thresholds[more][t];
    float level = split.levels[more][index];
    if (i < d) {
      s.products[i] = magnitude * level;
      s.squares[i] = level * level;
    }
    for (uint32_t b = 0; b <= split.whole; b++) {
      uint32_t votes = __ballot_sync(ALL, i < d && (index >> b & 1)), end = b < split.whole ? d : split.partial;
      if (lane < 4 && base + 8 * lane < end)
        planes[b * (d / 8) + base / 8 + lane] = static_cast<uint8_t>(votes >> 8 * lane);
    }
  }
  __syncwarp();
  float products = lane_sum(s.products, d, lane), squares = lane_sum(s.squares, d, lane);
  uint16_t stored = inverse > 0 ? __half_as_ushort(__float2half_rn(products / squares)) : 0;
  if (lane == 0)
    *reinterpret_cast<uint16_t *>(scale) = stored;
  return inverse >= 0 && stored < 0x7c00u;
}

template <typename T>
__global__ void __launch_bounds__(THREADS)
    encode_any_kernel(const __grid_constant__ cuda_encode_job job, uint32_t tokens) {
  __shared__ __align__(16) uint32_t table[CUDA_CRC_TABLE];
  __shared__ Scratch memory[WARPS];
  load_table(job.crc_table, table);
  uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32, d = job.shape.d;
  Run run;
  if (!run_of(job, blockIdx.x * WARPS + warp, tokens, run))
    return;
  Scratch &s = memory[warp];
  uint8_t *record = reinterpret_cast<uint8_t *>(s.record);
  const float *mean_k = job.mean_k + static_cast<size_t>(run.place) * d;
  const float *mean_v = job.mean_v + static_cast<size_t>(run.place) * d;
  bool good = true;
  for (uint32_t i = run.begin; i < run.end; i++) {
    for (uint32_t c = lane; c < d; c += 32)
      s.y[c] = widen(static_cast<const T *>(job.keys)[ring_at(job, run, i) + c]) - mean_k[c];
    __syncwarp();
    rotate(job.codec.signs, d, s.y, lane);
    good &= quantize_any(s, job.key, d, record + 18, record + 16, lane);
    write_signs(s.y, d, record, lane);
    __syncwarp();
    rotate(job.codec.extra, d, s.y, lane);
    write_signs(s.y, CUDA_D_MAX - d, record + d / 8, lane);
    __syncwarp();
    for (uint32_t c = lane; c < d; c += 32)
      s.y[c] = widen(static_cast<const T *>(job.values)[ring_at(job, run, i) + c]) - mean_v[c];
    __syncwarp();
    rotate(job.codec.signs, d, s.y, lane);
    good &= quantize_any(s, job.value, d, record + 50 + d / 8, record + 98, lane);
    write_signs(s.y, d, record + 50, lane);
    __syncwarp();
    seal(table, job.crc_base, s.record, run.layer, run.head, job.first + i, record_at(job, run, i), true, lane);
    __syncwarp();
  }
  if (!good && lane == 0)
    report(job.found, job.first);
}

template <typename T> cudaError_t launch(const cuda_encode_job *job, uint32_t processors, cudaStream_t stream) {
  uint32_t places = job->shape.layers * job->shape.heads;
  uint64_t all = static_cast<uint64_t>(places) * job->count;
  uint32_t tokens = static_cast<uint32_t>(all / (static_cast<uint64_t>(processors) * WARPS_PER_PROCESSOR)) & ~1u;
  tokens = tokens < 2 ? 2 : tokens > 16 ? 16 : tokens;
  uint32_t warps = places * ((job->count + tokens - 1) / tokens), blocks = (warps + WARPS - 1) / WARPS;
  switch (job->shape.d) {
  case 128: return enqueue(encode_kernel<T, 8, 2, 2>, blocks, THREADS, stream, *job, tokens);
  case 64: return enqueue(encode_kernel<T, 4, 4, 5>, blocks, THREADS, stream, *job, tokens);
  default: return enqueue(encode_any_kernel<T>, blocks, THREADS, stream, *job, tokens);
  }
}

} // namespace

extern "C" cudaError_t cuda_encode_launch(const cuda_encode_job *job, uint32_t processors, cudaStream_t stream) {
  switch (job->shape.type) {
  case CUDA_F32: return launch<float>(job, processors, stream);
  case CUDA_F16: return launch<__half>(job, processors, stream);
  default: return launch<__nv_bfloat16>(job, processors, stream);
  }
}
