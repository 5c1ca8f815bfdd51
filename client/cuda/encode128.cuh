// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// Encoding where d is 128: a thread takes a vector, so that nothing of a transform, a sum or a plane is another
// thread's, and what is done once for a vector is done once. A warp takes 32 tokens of one layer and kv head: keys,
// then values by the same instructions, then their records. Vectors come through shared memory, a row each.
#ifndef COLDKV_CLIENT_CUDA_ENCODE128_CUH
#define COLDKV_CLIENT_CUDA_ENCODE128_CUH

#include "client/cuda/encode.cuh"

namespace {

enum {
  ROW_D = 128,
  ROW_RUN = 32,                    /* tokens of a warp at a time */
  ROW_WARPS = 4,
  ROW_THREADS = 32 * ROW_WARPS,
  ROW_BLOCKS = 3,                  /* of a multiprocessor: what registers allow */
  ROW_PIECE = 256,                 /* bytes of a vector that are fetched at a time */
  ROW_STRIDE = ROW_PIECE + 16,     /* in shared memory: the 16 bytes for the banks */
  ROW_WORDS = ROW_D / 32,
  RECORD_WORDS = CUDA_RECORD / 4,
};

/* 1 or -1 by coordinate, where instructions take it from without loading it. */
struct RowSigns {
  float signs[ROW_D];
};

struct RowMemory {
  alignas(16) uint8_t rows[ROW_RUN * ROW_STRIDE];
  alignas(16) float minus_means[2][ROW_D]; /* with the signs; of keys, of values */
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

/* Begins to copy a piece of 32 vectors of a place, from that of ring index `first` on. Those past the last token are
 * read too: whatever the ring has there. */
template <typename T>
__device__ __forceinline__ void fetch(const void *place, uint32_t first, uint32_t piece, uint8_t *rows, uint32_t lane) {
  enum { VECTOR = ROW_D * sizeof(T), PARTS = ROW_PIECE / 16, AT_A_TIME = 32 / PARTS };
  const uint8_t *from = static_cast<const uint8_t *>(place) + piece * ROW_PIECE + lane % PARTS * 16;
  uint32_t row = lane / PARTS;
  uint8_t *to = rows + row * ROW_STRIDE + lane % PARTS * 16;
  if (first + ROW_RUN <= CUDA_RING) {
    from += (first + row) * VECTOR;
#pragma unroll
    for (int i = 0; i < ROW_RUN / AT_A_TIME; i++)
      copy_async(to + i * AT_A_TIME * ROW_STRIDE, from + i * AT_A_TIME * VECTOR);
  } else {
#pragma unroll 1
    for (int i = 0; i < ROW_RUN / AT_A_TIME; i++)
      copy_async(to + i * AT_A_TIME * ROW_STRIDE, from + (first + row + i * AT_A_TIME) % CUDA_RING * VECTOR);
  }
}

/* (x - mean) sign of a piece: the products are exact, so there is one rounding, the same one. */
template <typename T, int PIECE>
__device__ __forceinline__ void centre(const uint8_t *row, const RowSigns &signs, const float *minus_mean, float *x) {
  enum { NUMBERS = ROW_PIECE / sizeof(T) };
#pragma unroll
  for (int i = 0; i < NUMBERS; i += 8) {
    Eight<T> eight;
    float numbers[8];
    eight.load(reinterpret_cast<const T *>(row) + i);
    eight.widen_to(numbers);
#pragma unroll
    for (int j = 0; j < 8; j++) {
      int c = PIECE * NUMBERS + i + j;
      x[c] = fmaf(numbers[j], signs.signs[c], minus_mean[c]);
    }
  }
}

/* The Walsh-Hadamard transform. No zero that it gives has a sign, but for numbers that a product rounds to zero. */
__device__ __forceinline__ void transform(float *x) {
#pragma unroll
  for (int h = 1; h < ROW_D; h *= 2)
#pragma unroll
    for (int i = 0; i < ROW_D; i++)
      if (!(i & h)) {
        float a = x[i], b = x[i + h];
        x[i] = a + b;
        x[i + h] = a - b;
      }
#pragma unroll
  for (int i = 0; i < ROW_D; i++)
    x[i] = fmaf(x[i], 0x1.6a09e6p-4f, 0.0f);
}

/* The tree over the lanes of RECORD.md. */
template <int HALF = SUM_LANES / 2> __device__ __forceinline__ float row_tree(float *lanes) {
#pragma unroll
  for (int i = 0; i < HALF; i++)
    lanes[i] += lanes[i + HALF];
  if constexpr (HALF == 1)
    return lanes[0];
  else
    return row_tree<HALF / 2>(lanes);
}

__device__ __forceinline__ float sum_of_squares(const float *x) {
  float lanes[SUM_LANES];
#pragma unroll
  for (int i = 0; i < ROW_D; i++)
    lanes[i % SUM_LANES] = i < SUM_LANES ? x[i] * x[i] : lanes[i % SUM_LANES] + x[i] * x[i];
  return row_tree(lanes);
}

/* The largest magnitude whose product with 1/RMS is not above a threshold of the codebook; products grow with it. `at`
 * is the quotient, two roundings away: the answer lies from 3 numbers below to 4 above it. */
__device__ __forceinline__ float own_threshold(float threshold, float at, float inverse) {
  if (!(inverse > 0))
    return __uint_as_float(0x7f800000);
  uint32_t bits = __float_as_uint(at) - 3;
#pragma unroll
  for (uint32_t step = 4; step; step /= 2)
    bits += __uint_as_float(bits + step) * inverse <= threshold ? step : 0;
  return __uint_as_float(bits);
}

/* What a vector becomes. */
struct RowCode {
  uint32_t signs[ROW_WORDS], planes[2][ROW_WORDS], scale;
};

__device__ __forceinline__ void take_sign_bits(const float *x, uint32_t *signs) {
#pragma unroll
  for (int w = 0; w < ROW_WORDS; w++) {
    signs[w] = 0;
#pragma unroll
    for (int i = 31; i >= 0; i--)
      signs[w] = signs[w] << 1 | __float_as_uint(x[32 * w + i]) >> 31;
  }
}

__device__ __forceinline__ void clear_signs_of_zeros(const float *x, uint32_t *signs) {
#pragma unroll
  for (int i = 0; i < ROW_D; i++)
    if (x[i] == 0)
      signs[i / 32] &= ~(1u << i % 32);
}

/* Two index bits of each of two magnitudes, from bit 3 on. */
__device__ __forceinline__ uint32_t two_indices(const float *thresholds, float a, float b) {
  bool high_a = a > thresholds[1], high_b = b > thresholds[1];
  bool low_a = a > (high_a ? thresholds[2] : thresholds[0]), low_b = b > (high_b ? thresholds[2] : thresholds[0]);
  uint32_t bits = low_a ? 8 : 0;
  set(bits, 4, high_a);
  set(bits, 5, low_b);
  set(bits, 6, high_b);
  return bits;
}

/* Returns false when there is no record of the rotated vector. `pairs` in shared memory are the levels of what
 * two_indices gives. */
__device__ __forceinline__ bool quantize_row(const float *x, const cuda_split &split, const uint8_t *pairs, bool tiny,
                                             RowCode &code) {
  take_sign_bits(x, code.signs);
  float sum = sum_of_squares(x);
  if (tiny)
    clear_signs_of_zeros(x, code.signs);
  float inverse = inverse_rms(sum, ROW_D), rms = sqrtf(sum / ROW_D), thresholds[3];
#pragma unroll
  for (int t = 0; t < 3; t++)
    thresholds[t] = own_threshold(split.thresholds[0][t], split.thresholds[0][t] * rms, inverse);
  float products[SUM_LANES], weights[SUM_LANES];
  uint32_t even[ROW_WORDS], odd[ROW_WORDS];
#pragma unroll
  for (int first = 0; first < SUM_LANES; first += 4)
#pragma unroll
    for (int t = 0; t < ROW_D / SUM_LANES; t++) {
      int at = t * SUM_LANES + first, w = at / 32, shift = at % 32;
#pragma unroll
      for (int o = 0; o < 2; o++) {
        float a = fabsf(x[at + o]), b = fabsf(x[at + o + 2]);
        uint32_t bits = two_indices(thresholds, a, b), *to = o ? odd : even;
        float2 levels = *reinterpret_cast<const float2 *>(pairs + bits);
        to[w] = shift ? to[w] + (bits << (shift ? shift - 3 : 0)) : bits >> 3;
        float *product = products + first + o, *weight = weights + first + o;
        product[0] = t ? product[0] + a * levels.x : a * levels.x;
        product[2] = t ? product[2] + b * levels.y : b * levels.y;
        weight[0] = t ? weight[0] + levels.x * levels.x : levels.x * levels.x;
        weight[2] = t ? weight[2] + levels.y * levels.y : levels.y * levels.y;
      }
    }
#pragma unroll
  for (int w = 0; w < ROW_WORDS; w++) {
    code.planes[0][w] = (even[w] & 0x55555555) | (odd[w] << 1 & 0xaaaaaaaa);
    code.planes[1][w] = (even[w] >> 1 & 0x55555555) | (odd[w] & 0xaaaaaaaa);
  }
  uint16_t rounded = __half_as_ushort(__float2half_rn(row_tree(products) / row_tree(weights)));
  code.scale = inverse > 0 ? rounded : 0;
  return inverse >= 0 && code.scale < 0x7c00u;
}

/* The second half of one word and the first of the next. */
__device__ __forceinline__ uint32_t across(uint32_t first, uint32_t second) { return first >> 16 | second << 16; }

/* A record but for its CRC. */
__device__ __forceinline__ void put_together(const RowCode &key, const RowCode &value, uint32_t *words) {
  uint32_t from[5 * ROW_WORDS];
#pragma unroll
  for (int w = 0; w < ROW_WORDS; w++) {
    words[w] = key.signs[w];
    from[w] = key.planes[0][w];
    from[ROW_WORDS + w] = key.planes[1][w];
    from[2 * ROW_WORDS + w] = value.signs[w];
    from[3 * ROW_WORDS + w] = value.planes[0][w];
    from[4 * ROW_WORDS + w] = value.planes[1][w];
  }
  words[ROW_WORDS] = key.scale | from[0] << 16;
#pragma unroll
  for (int w = 1; w < 5 * ROW_WORDS; w++)
    words[ROW_WORDS + w] = across(from[w - 1], from[w]);
  words[6 * ROW_WORDS] = from[5 * ROW_WORDS - 1] >> 16 | value.scale << 16;
}

/* Writes the warp's records; `stage` is theirs, side by side. */
__device__ __forceinline__ void write_records(const cuda_encode_job &job, const Run &run, uint32_t *words,
                                              uint8_t *stage, uint32_t lane) {
  enum { PARTS = CUDA_RECORD / 8, AT_A_TIME = 32 / PARTS };
  uint2 *mine = reinterpret_cast<uint2 *>(stage) + lane * PARTS;
#pragma unroll
  for (int i = 0; i < PARTS; i++)
    mine[i] = make_uint2(words[2 * i], words[2 * i + 1]);
  __syncwarp();
  if (lane < AT_A_TIME * PARTS) {
    uint32_t count = run.end - run.begin, r = lane / PARTS;
    const uint2 *from = reinterpret_cast<const uint2 *>(stage) + lane;
    size_t step = static_cast<size_t>(job.shape.layers) * job.shape.heads * CUDA_RECORD;
    uint8_t *to = reinterpret_cast<uint8_t *>(record_at(job, run, run.begin)) + r * step + lane % PARTS * 8;
    if (count == ROW_RUN) {
#pragma unroll
      for (int i = 0; i < ROW_RUN / AT_A_TIME; i++, to += AT_A_TIME * step)
        *reinterpret_cast<uint2 *>(to) = from[i * AT_A_TIME * PARTS];
    } else {
#pragma unroll 1
      for (; r < count; r += AT_A_TIME, from += AT_A_TIME * PARTS, to += AT_A_TIME * step)
        *reinterpret_cast<uint2 *>(to) = *from;
    }
  }
  __syncwarp();
}

__device__ constexpr bool is_half(__half) { return true; }
template <typename T> __device__ constexpr bool is_half(T) { return false; }

/* Means with signs into shared memory; whether a difference from one may be so small that a product with it is 0 or
 * not a normal number: numbers of fp16 are multiples of 2^-24, such means of 2^-123. */
__device__ __forceinline__ bool take_means(const float *mean, const uint32_t *signs, float *to, uint32_t lane) {
  bool tiny = false;
#pragma unroll
  for (int c = 0; c < ROW_D; c += 32) {
    float x = mean[c + lane];
    tiny |= x != 0 && fabsf(x) < 0x1p-100f;
    to[c + lane] = signs[c / 32] >> lane & 1 ? x : -x;
  }
  return tiny;
}

/* Runs are numbered place after place. */
template <typename T>
__global__ void __launch_bounds__(ROW_THREADS, ROW_BLOCKS)
    encode128_kernel(const __grid_constant__ cuda_encode_job job, const __grid_constant__ RowSigns signs) {
  enum { PIECES = ROW_D * sizeof(T) / ROW_PIECE };
  __shared__ __align__(16) uint32_t table[CUDA_CRC_TABLE];
  __shared__ __align__(16) float2 pairs[16]; /* levels */
  __shared__ RowMemory memories[ROW_WARPS];
  uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  RowMemory &memory = memories[warp];
  load_table(job.crc_table, table);
  if (threadIdx.x < 16)
    pairs[threadIdx.x] = make_float2(job.key.levels[0][threadIdx.x % 4], job.key.levels[0][threadIdx.x / 4]);
  __syncthreads();
  Run run;
  bool good = true;
  for (uint32_t at = blockIdx.x * ROW_WARPS + warp; run_of(job, at, ROW_RUN, run); at += gridDim.x * ROW_WARPS) {
    size_t place = static_cast<size_t>(run.place);
    uint32_t first = (job.first + run.begin) % CUDA_RING;
    const uint8_t *vectors = static_cast<const uint8_t *>(job.keys) + place * CUDA_RING * ROW_D * sizeof(T);
    fetch<T>(vectors, first, 0, memory.rows, lane);
    bool tiny = take_means(job.mean_k + place * ROW_D, job.codec.signs[0], memory.minus_means[0], lane);
    tiny |= take_means(job.mean_v + place * ROW_D, job.codec.signs[0], memory.minus_means[1], lane);
    tiny = !is_half(T()) || __ballot_sync(ALL, tiny) != 0;
    RowCode codes[2];
#pragma unroll 1
    for (int which = 0; which < 2; which++) {
      const uint8_t *row = memory.rows + lane * ROW_STRIDE;
      float x[ROW_D];
      wait_copies();
      centre<T, 0>(row, signs, memory.minus_means[which], x);
      __syncwarp();
      if constexpr (PIECES == 2) {
        fetch<T>(vectors, first, 1, memory.rows, lane);
        wait_copies();
        centre<T, 1>(row, signs, memory.minus_means[which], x);
        __syncwarp();
      }
      if (!which) {
        vectors = static_cast<const uint8_t *>(job.values) + place * CUDA_RING * ROW_D * sizeof(T);
        fetch<T>(vectors, first, 0, memory.rows, lane);
      }
      transform(x);
      RowCode code;
      bool fine = quantize_row(x, job.key, reinterpret_cast<const uint8_t *>(pairs), tiny, code);
      good &= fine || run.begin + lane >= run.end; /* past the end lies anything */
      codes[0] = which ? codes[0] : code;
      codes[1] = code;
    }
    uint32_t words[RECORD_WORDS], crc = ~0u;
    put_together(codes[0], codes[1], words);
#pragma unroll
    for (int i = 0; i < RECORD_WORDS - 1; i++)
      crc = crc_word(table, crc, words[i]);
    words[RECORD_WORDS - 1] = crc_place(table, crc, run, job.first + run.begin + lane);
    write_records(job, run, words, memory.rows, lane);
  }
  if (!good)
    report(job.found, job.first);
}

} // namespace

#endif
