// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// Tokens that leave the hot window, as records: the bytes of kernels/codec_c.c. A warp takes a run of tokens of one
// layer and kv head; their records are put together in shared memory, sealed, and written one after the other.
//
// Where d is 64, four threads take a vector, eight vectors a warp at a time, keys first. Thread m of the four has the
// coordinates 4m .. 4m + 3 of every 16, which are four of the lanes of RECORD.md: sums are made in one thread before
// the tree, and most of the transform needs nobody else. Where d is 128, encode128.cuh has them. Any other d goes
// through shared memory, a warp each.
#include "client/cuda/encode.cuh"
#include "client/cuda/encode128.cuh"

namespace {

enum { WARPS = 8, THREADS = 32 * WARPS, WARPS_PER_PROCESSOR = 16 };
enum { STAGE = 32 /* records of a warp at a time */, STRIDE = 27 /* words of one there; odd for banks */ };
enum { D = 64, N = D / SUM_LANES /* coordinates of a lane */, KEY_BITS = 4, VALUE_BITS = 5 /* of an index */ };
enum { VECTORS = 8, THREADS_PER_VECTOR = 4 };

/* Seals and writes the records of tokens first .. first + count - 1 of a run, which lie in the stage: all threads. */
__device__ __forceinline__ void seal(const cuda_encode_job &job, const Run &run, const uint32_t *table,
                                     uint32_t *stage, uint32_t first, uint32_t count, uint32_t lane) {
  __syncwarp();
  if (lane < count) {
    uint32_t *words = stage + lane * STRIDE, crc = ~0u;
    uint64_t token = job.first + first + lane;
#pragma unroll 5
    for (int i = 0; i < CUDA_RECORD / 4 - 1; i++)
      crc = crc_word(table, crc, words[i]);
    words[CUDA_RECORD / 4 - 1] = crc_place(table, crc, run, token);
  }
  __syncwarp();
  if (lane < CUDA_RECORD / 4) {
    uint32_t *to = record_at(job, run, first) + lane;
    size_t step = static_cast<size_t>(job.shape.layers) * job.shape.heads * (CUDA_RECORD / 4);
#pragma unroll 4
    for (uint32_t r = 0; r < count; r++, to += step)
      *to = stage[r * STRIDE + lane];
  }
  __syncwarp();
}

/* --- d = 64 ------------------------------------------------------------------------------------------------------ */

/* Four numbers as they lie in memory, side by side. */
template <typename T> struct alignas(4 * sizeof(T)) Four {
  T numbers[4];
};

/* One vector's part of thread m: x[t][r] is coordinate 16 t + 4 m + r, of lane 4 m + r. */
struct Part {
  float x[N][4];

  template <typename T> __device__ __forceinline__ void load(const T *vector, uint32_t m) {
#pragma unroll
    for (int t = 0; t < N; t++) {
      Four<T> four = *reinterpret_cast<const Four<T> *>(vector + SUM_LANES * t + 4 * m);
#pragma unroll
      for (int r = 0; r < 4; r++)
        x[t][r] = widen(four.numbers[r]);
    }
  }

  /* Sums and differences of coordinates whose numbers differ in one bit: of r, of m (`own` is -1 where that bit of m is
   * set, else 1), of t. */
  template <int BIT> __device__ __forceinline__ void stage_r() {
#pragma unroll
    for (int t = 0; t < N; t++)
#pragma unroll
      for (int r = 0; r < 4; r++)
        if (!(r & BIT)) {
          float a = x[t][r], b = x[t][r + BIT];
          x[t][r] = a + b;
          x[t][r + BIT] = a - b;
        }
  }
  __device__ __forceinline__ void stage_m(int bit, float own) {
#pragma unroll
    for (int t = 0; t < N; t++)
#pragma unroll
      for (int r = 0; r < 4; r++)
        x[t][r] = fmaf(x[t][r], own, __shfl_xor_sync(ALL, x[t][r], bit)); /* the product is exact: one rounding */
  }
  __device__ __forceinline__ void stage_t(int bit) {
#pragma unroll
    for (int t = 0; t < N; t++)
#pragma unroll
      for (int r = 0; r < 4; r++)
        if (!(t & bit)) {
          float a = x[t][r], b = x[t + bit][r];
          x[t][r] = a + b;
          x[t + bit][r] = a - b;
        }
  }

  /* The Walsh-Hadamard transform. */
  __device__ __forceinline__ void hadamard(uint32_t m) {
    stage_r<1>();
    stage_r<2>();
    stage_m(1, m & 1 ? -1.0f : 1.0f);
    stage_m(2, m & 2 ? -1.0f : 1.0f);
#pragma unroll
    for (int bit = 1; bit < N; bit *= 2)
      stage_t(bit);
#pragma unroll
    for (int t = 0; t < N; t++)
#pragma unroll
      for (int r = 0; r < 4; r++)
        x[t][r] *= 0.125f;
  }
};

/* The tree over the lanes of RECORD.md; every thread of a vector gets the sum. */
__device__ __forceinline__ float four_tree(const float *lanes) {
  float sums[4];
#pragma unroll
  for (int r = 0; r < 4; r++) {
    sums[r] = lanes[r] + __shfl_xor_sync(ALL, lanes[r], 2);
    sums[r] += __shfl_xor_sync(ALL, sums[r], 1);
  }
  return (sums[0] + sums[2]) + (sums[1] + sums[3]);
}

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

/* A plane of a vector's bits: coordinate 16 t + 4 m + r is bit 4 t + r of thread m. Returns 32 of them as they lie in a
 * record, thread m those from coordinate 32 m on; threads 2 and 3 have none. */
__device__ __forceinline__ uint32_t gather_plane(uint32_t bits, uint32_t m) {
  uint32_t theirs = __shfl_xor_sync(ALL, bits, 2); /* byte m of all four: theirs and mine, in the order of threads */
  bits = __byte_perm(bits, theirs, m & 2 ? 0x3276 : 0x5410);
  theirs = __shfl_xor_sync(ALL, bits, 1);
  bits = __byte_perm(bits, theirs, m & 1 ? 0x3715 : 0x6240);
  uint32_t low = bits & 0x0f0f0f0f, high = bits >> 4 & 0x0f0f0f0f; /* of two 16 coordinates */
  return __byte_perm(low | low >> 4, high | high >> 4, 0x6420);
}

/* Puts a plane into a record, at an even place. */
__device__ __forceinline__ void put_plane(uint8_t *plane, uint32_t bits, uint32_t m) {
  uint32_t word = gather_plane(bits, m);
  uint16_t *to = reinterpret_cast<uint16_t *>(plane) + 2 * m;
  if (m < N / 2) {
    to[0] = static_cast<uint16_t>(word);
    to[1] = static_cast<uint16_t>(word >> 16);
  }
}

/* Signs, index planes and the scale of a rotated vector. Returns false when there is no record of it. */
template <int BITS>
__device__ __forceinline__ bool quantize(const Part &y, const cuda_split &split, uint8_t *signs, uint8_t *planes,
                                         uint8_t *scale, uint32_t m) {
  float sums[4] = {}, products[4] = {}, weights[4] = {};
#pragma unroll
  for (int t = 0; t < N; t++)
#pragma unroll
    for (int r = 0; r < 4; r++)
      sums[r] += y.x[t][r] * y.x[t][r];
  float inverse = inverse_rms(four_tree(sums), D);
  uint32_t bits[BITS + 1] = {};
#pragma unroll
  for (int t = 0; t < N; t++)
#pragma unroll
    for (int r = 0; r < 4; r++) {
      bool index[BITS];
      float magnitude = fabsf(y.x[t][r]);
      float level = find_level<BITS>(split.thresholds[0], split.levels[0], magnitude * inverse, index);
      products[r] += magnitude * level;
      weights[r] += level * level;
      set(bits[BITS], 4 * t + r, y.x[t][r] < 0);
#pragma unroll
      for (int b = 0; b < BITS; b++)
        set(bits[b], 4 * t + r, index[b]);
    }
  put_plane(signs, bits[BITS], m);
#pragma unroll
  for (int b = 0; b < BITS; b++)
    put_plane(planes + b * D / 8, bits[b], m);
  __half rounded = __float2half_rn(four_tree(products) / four_tree(weights));
  uint16_t stored = inverse > 0 ? __half_as_ushort(rounded) : 0;
  if (m == 0)
    *reinterpret_cast<uint16_t *>(scale) = stored;
  return inverse >= 0 && stored < 0x7c00u;
}

/* The first signs of a thread's coordinates, and where the means lie, negative and with these signs. */
struct Centre {
  float signs[N][4];

  __device__ __forceinline__ void take(const uint32_t *words, uint32_t m) {
#pragma unroll
    for (int t = 0; t < N; t++)
#pragma unroll
      for (int r = 0; r < 4; r++)
        signs[t][r] = negated(words, SUM_LANES * t + 4 * m + r) ? -1.0f : 1.0f;
  }
  /* (x - mean) sign: the products are exact, so there is one rounding, the same one. */
  __device__ __forceinline__ void apply(Part &part, const float *minus_mean, uint32_t m) const {
#pragma unroll
    for (int t = 0; t < N; t++) {
      Four<float> four = *reinterpret_cast<const Four<float> *>(minus_mean + SUM_LANES * t + 4 * m);
#pragma unroll
      for (int r = 0; r < 4; r++)
        part.x[t][r] = fmaf(part.x[t][r], signs[t][r], four.numbers[r]);
    }
  }
};

/* The other half of the signature, of another rotation of the rotated key. */
__device__ __forceinline__ void put_extra(Part &k, const uint32_t *words, uint8_t *plane, uint32_t m) {
  uint32_t bits = 0;
#pragma unroll
  for (int t = 0; t < N; t++)
#pragma unroll
    for (int r = 0; r < 4; r++)
      k.x[t][r] = negated(words, SUM_LANES * t + 4 * m + r) ? -k.x[t][r] : k.x[t][r];
  k.hadamard(m);
#pragma unroll
  for (int t = 0; t < N; t++)
#pragma unroll
    for (int r = 0; r < 4; r++)
      set(bits, 4 * t + r, k.x[t][r] < 0);
  put_plane(plane, bits, m);
}

/* Shared memory of a warp. */
struct Memory {
  alignas(16) float minus_means[2][D]; /* of keys, of values */
  uint32_t stage[STAGE * STRIDE];

  __device__ __forceinline__ void take_mean(int which, const float *mean, const uint32_t *signs, uint32_t lane) {
    for (uint32_t c = lane; c < D; c += 32)
      minus_means[which][c] = negated(signs, c) ? mean[c] : -mean[c];
  }
};

template <typename T>
__global__ void __launch_bounds__(THREADS, 2)
    encode_kernel(const __grid_constant__ cuda_encode_job job, uint32_t tokens) {
  __shared__ __align__(16) uint32_t table[CUDA_CRC_TABLE];
  __shared__ Memory memories[WARPS];
  load_table(job.crc_table, table);
  __syncthreads();
  uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32, m = lane % THREADS_PER_VECTOR;
  uint32_t vector = lane / THREADS_PER_VECTOR;
  Run run;
  if (!run_of(job, blockIdx.x * WARPS + warp, tokens, run))
    return;
  Memory &memory = memories[warp];
  memory.take_mean(0, job.mean_k + static_cast<size_t>(run.place) * D, job.codec.signs[0], lane);
  memory.take_mean(1, job.mean_v + static_cast<size_t>(run.place) * D, job.codec.signs[0], lane);
  __syncwarp();
  Centre centre;
  centre.take(job.codec.signs[0], m);
  bool good = true;
  for (uint32_t i = run.begin; i < run.end; i += VECTORS) {
    uint32_t token = min(i + vector, run.end - 1); /* past the end the last one again, which is not written */
    uint32_t at = (i - run.begin) % STAGE;
    uint8_t *record = reinterpret_cast<uint8_t *>(memory.stage + (at + vector) * STRIDE);
    Part part;
    part.load(static_cast<const T *>(job.keys) + ring_at(job, run, token), m);
    centre.apply(part, memory.minus_means[0], m);
    part.hadamard(m);
    good &= quantize<KEY_BITS>(part, job.key, record, record + 18, record + 16, m);
    put_extra(part, job.codec.extra[0], record + 8, m);
    part.load(static_cast<const T *>(job.values) + ring_at(job, run, token), m);
    centre.apply(part, memory.minus_means[1], m);
    part.hadamard(m);
    good &= quantize<VALUE_BITS>(part, job.value, record + 50, record + 50 + D / 8, record + 98, m);
    if (at + VECTORS == STAGE || i + VECTORS >= run.end)
      seal(job, run, table, memory.stage, i - at, min(run.end - (i - at), at + VECTORS), lane);
  }
  if (!good)
    report(job.found, job.first);
}

/* --- any d -------------------------------------------------------------------------------------------------------- */

struct Scratch {
  float y[CUDA_D_MAX], products[CUDA_D_MAX], squares[CUDA_D_MAX];
  uint32_t stage[STAGE * STRIDE];
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
  __syncthreads();
  uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32, d = job.shape.d;
  Run run;
  if (!run_of(job, blockIdx.x * WARPS + warp, tokens, run))
    return;
  Scratch &s = memory[warp];
  const float *mean_k = job.mean_k + static_cast<size_t>(run.place) * d;
  const float *mean_v = job.mean_v + static_cast<size_t>(run.place) * d;
  bool good = true;
  for (uint32_t i = run.begin; i < run.end; i++) {
    uint32_t at = (i - run.begin) % STAGE;
    uint8_t *record = reinterpret_cast<uint8_t *>(s.stage + at * STRIDE);
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
    if (at + 1 == STAGE || i + 1 == run.end)
      seal(job, run, table, s.stage, i - at, at + 1, lane);
    __syncwarp();
  }
  if (!good && lane == 0)
    report(job.found, job.first);
}

template <typename T> cudaError_t launch128(const cuda_encode_job *job, uint32_t processors, cudaStream_t stream) {
  uint32_t tokens = static_cast<uint32_t>(job->first) % ROW_RUN + job->count;
  uint32_t runs = job->shape.layers * job->shape.heads * ((tokens + ROW_RUN - 1) / ROW_RUN);
  uint32_t blocks = min((runs + ROW_WARPS - 1) / ROW_WARPS, processors * ROW_BLOCKS);
  return enqueue(encode128_kernel<T>, blocks, ROW_THREADS, stream, *job);
}

template <typename T> cudaError_t launch(const cuda_encode_job *job, uint32_t processors, cudaStream_t stream) {
  uint32_t places = job->shape.layers * job->shape.heads;
  uint64_t all = static_cast<uint64_t>(places) * job->count;
  uint32_t tokens = static_cast<uint32_t>(all / (static_cast<uint64_t>(processors) * WARPS_PER_PROCESSOR));
  tokens = min(max(tokens / VECTORS * VECTORS, static_cast<uint32_t>(VECTORS)), static_cast<uint32_t>(STAGE));
  uint32_t warps = places * ((job->count + tokens - 1) / tokens), blocks = (warps + WARPS - 1) / WARPS;
  switch (job->shape.d) {
  case 128: return launch128<T>(job, processors, stream);
  case 64: return enqueue(encode_kernel<T>, blocks, THREADS, stream, *job, tokens);
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
