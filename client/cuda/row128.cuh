// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// What becomes of a vector where d is 128. Two threads take it, so that most of the transform and all of a lane's sum
// are one thread's. Thread m of the two, m being half of the warp, begins with coordinates 64 m .. 64 m + 63, which is
// all that the stages of the transform up to 8 need. Then the two exchange half of what they have: thread m goes on
// with the coordinates whose bit 3 is m, those of the lanes 8 m .. 8 m + 7 of RECORD.md, and has byte m of every two of
// a plane.
#ifndef COLDKV_CLIENT_CUDA_ROW128_CUH
#define COLDKV_CLIENT_CUDA_ROW128_CUH

#include "client/cuda/encode.cuh"

namespace {

enum {
  ROW_D = 128,
  ROW_RUN = 16,                    /* vectors of a warp at a time */
  ROW_OWN = ROW_D / 2,             /* coordinates of a thread */
  ROW_KEPT = ROW_OWN / 2,          /* of them, those that it keeps when the two exchange */
  ROW_CHUNK = 8,                   /* coordinates side by side */
  ROW_PIECE = 256,                 /* bytes of a vector that are fetched at a time, half of them a thread's */
  ROW_STRIDE = ROW_PIECE + 16,     /* in shared memory: the 16 bytes for the banks */
};

/* Which of the warp's vectors a thread is at work on, which half of it, and 1 or -1 by half. */
struct RowPlace {
  uint32_t row, m;
  float sign;
};

/* Sums and differences of what is H apart, of x[BEGIN .. END - 1]. */
template <int H, int BEGIN = 0, int END = ROW_OWN> __device__ __forceinline__ void stage(float *x) {
#pragma unroll
  for (int i = BEGIN; i < END; i++)
    if (!(i & H)) {
      float a = x[i], b = x[i + H];
      x[i] = a + b;
      x[i + H] = a - b;
    }
}

/* (x - mean) sign of a piece: the products are exact, so there is one rounding, the same one. And the transform, as far
 * as it stays within 8 coordinates. Of 16 a thread first takes those that it gives away, to x[32 ..], then those that
 * it keeps; one after the other where else compilers load more than there are registers for. */
template <typename T, int PIECE>
__device__ __forceinline__ void centre(const uint8_t *rows, const float *signs, const float *minus_means,
                                       const RowPlace &place, float *x) {
  enum { SIXTEENS = ROW_PIECE / 2 / (16 * sizeof(T)), COUNT = SIXTEENS * ROW_CHUNK, FIRST = PIECE * COUNT };
#pragma unroll (sizeof(T) == 4 ? 1 : 2)
  for (uint32_t kept = 0; kept < 2; kept++) {
    uint32_t chunk = ROW_CHUNK * (kept ? place.m : 1 - place.m), at = ROW_OWN * place.m + chunk;
    const T *from = reinterpret_cast<const T *>(rows + place.row * ROW_STRIDE + place.m * (ROW_PIECE / 2)) + chunk;
#pragma unroll
    for (int i = 0; i < SIXTEENS; i++) {
      int first = FIRST + ROW_CHUNK * i;
      Eight<T> eight;
      Eight<float> means, factors;
      float numbers[ROW_CHUNK], mean[ROW_CHUNK], factor[ROW_CHUNK];
      eight.load(from + 16 * i);
      means.load(minus_means + at + 2 * first);
      factors.load(signs + at + 2 * first);
      eight.widen_to(numbers);
      means.widen_to(mean);
      factors.widen_to(factor);
#pragma unroll
      for (int j = 0; j < ROW_CHUNK; j++)
        x[first + j] = fmaf(numbers[j], factor[j], mean[j]);
    }
    stage<1, FIRST, FIRST + COUNT>(x);
    stage<2, FIRST, FIRST + COUNT>(x);
    stage<4, FIRST, FIRST + COUNT>(x);
    if (!kept)
#pragma unroll
      for (int i = FIRST; i < FIRST + COUNT; i++)
        x[ROW_KEPT + i] = x[i];
  }
}

/* The rest of the Walsh-Hadamard transform. Afterwards x[8 t + r] is coordinate 16 t + 8 m + r. No zero that it gives
 * has a sign, but for numbers that a product rounds to zero. */
__device__ __forceinline__ void transform(const RowPlace &place, float *x) {
#pragma unroll
  for (int i = 0; i < ROW_KEPT; i++) { /* 8 apart; thread 1 keeps the difference. Products with 1 and -1 are exact. */
    float kept = x[i], given = x[i + ROW_KEPT];
    x[i] = fmaf(kept, place.sign, given);
    x[i + ROW_KEPT] = __shfl_xor_sync(ALL, fmaf(given, -place.sign, kept), ROW_RUN);
  }
  stage<8>(x);
  stage<16>(x);
  stage<32>(x); /* 64 apart; thread 1 has the differences with the other sign */
  float norm = 0x1.6a09e6p-4f, upper = norm * place.sign;
#pragma unroll
  for (int i = 0; i < ROW_OWN; i++)
    x[i] = fmaf(x[i], i < ROW_KEPT ? norm : upper, 0.0f);
}

/* The tree over the lanes of RECORD.md, of which each thread has 8. */
__device__ __forceinline__ float row_tree(const float *lanes) {
  float sums[ROW_CHUNK];
#pragma unroll
  for (int r = 0; r < ROW_CHUNK; r++)
    sums[r] = lanes[r] + __shfl_xor_sync(ALL, lanes[r], ROW_RUN);
#pragma unroll
  for (int h = ROW_CHUNK / 2; h; h /= 2)
#pragma unroll
    for (int r = 0; r < h; r++)
      sums[r] += sums[r + h];
  return sums[0];
}

__device__ __forceinline__ float sum_of_squares(const float *x) {
  float lanes[ROW_CHUNK];
#pragma unroll
  for (int i = 0; i < ROW_OWN; i++)
    lanes[i % ROW_CHUNK] = i < ROW_CHUNK ? x[i] * x[i] : lanes[i % ROW_CHUNK] + x[i] * x[i];
  return row_tree(lanes);
}

/* The largest magnitude whose product with 1/RMS is not above a threshold of the codebook; products grow with it. They
 * round to the threshold as far as half a unit of its last place above it: `at` is where they get there, rounded. */
__device__ __forceinline__ float own_threshold(float threshold, float rms, float inverse) {
  float half = __uint_as_float((__float_as_uint(threshold) & 0x7f800000) - (24 << 23)), near = threshold * rms;
  float at = fmaf(fmaf(-near, inverse, threshold) + half, rms, near);
  float below = __uint_as_float(__float_as_uint(at) - 1);
  return !(inverse > 0) ? __uint_as_float(0x7f800000) : at * inverse <= threshold ? at : below;
}

/* Sign bits of 32 numbers. */
__device__ __forceinline__ uint32_t sign_bits(const float *x) {
  uint32_t bits = 0;
#pragma unroll
  for (int i = 31; i >= 0; i--)
    bits = bits << 1 | __float_as_uint(x[i]) >> 31;
  return bits;
}

/* Sets a bit, which is 0 and below 23, by one instruction of the floating point units, which have less to do here than
 * those for integers: what is added are numbers that are not normal, and these are integers. */
__device__ __forceinline__ void add_bit(uint32_t &bits, int i, bool condition) {
#ifdef __CUDACC__
  float sum = __uint_as_float(bits);
  asm("{ .reg .pred p; setp.ne.u32 p, %1, 0; @p add.rn.f32 %0, %0, %2; }"
      : "+f"(sum) : "r"(static_cast<uint32_t>(condition)), "f"(__uint_as_float(1u << i)));
  bits = __float_as_uint(sum);
#else
  set(bits, i, condition);
#endif
}

/* Two index bits of each of two magnitudes, from bit 3 on. */
__device__ __forceinline__ uint32_t two_indices(const float *thresholds, float a, float b) {
  bool high_a = a > thresholds[1], high_b = b > thresholds[1];
  bool low_a = a > (high_a ? thresholds[2] : thresholds[0]), low_b = b > (high_b ? thresholds[2] : thresholds[0]);
  uint32_t bits = low_a ? 8 : 0;
  add_bit(bits, 4, high_a);
  add_bit(bits, 5, low_b);
  add_bit(bits, 6, high_b);
  return bits;
}

/* Where in a record the codes of its key or value lie. */
struct RowCode {
  uint8_t *signs, *planes, *scale; /* a plane is 16 bytes */
};

__device__ __forceinline__ RowCode code_of(uint8_t *record, bool value) {
  return {record + (value ? 50 : 0), record + (value ? 66 : 18), record + (value ? 98 : 16)};
}

/* Puts a thread's bytes of half a plane, every other one. */
__device__ __forceinline__ void put_bytes(uint8_t *plane, uint32_t bits) {
#pragma unroll
  for (int i = 0; i < 4; i++)
    plane[2 * i] = static_cast<uint8_t>(bits >> 8 * i);
}

/* The lane sum of the squares of the levels that index planes say, by all threads together: each takes a lane of
 * RECORD.md. */
__device__ __forceinline__ float sum_of_weights(const uint8_t *planes, const float2 *pairs, uint32_t lane) {
  uint32_t byte = lane / 8 % 2, bit = lane % 8;
  float sum = 0;
#pragma unroll 1
  for (uint32_t t = 0; t < ROW_D / SUM_LANES; t++) {
    float level = pairs[(planes[2 * t + byte] >> bit & 1) + 2 * (planes[ROW_D / 8 + 2 * t + byte] >> bit & 1)].x;
    sum += level * level;
  }
  return lane_tree(sum);
}

/* About that sum, from how many indices have the lower bit, the higher one and both, in a byte each. */
__device__ __forceinline__ float about_weights(uint32_t counts, const float *levels) {
  float none = levels[0] * levels[0], low = levels[1] * levels[1] - none, high = levels[2] * levels[2] - none;
  float both = levels[3] * levels[3] - low - (high + none);
  float sum = fmaf(static_cast<float>(counts & 255), low, ROW_D * none);
  return fmaf(static_cast<float>(counts >> 16), both, fmaf(static_cast<float>(counts >> 8 & 255), high, sum));
}

__device__ __forceinline__ uint16_t to_half(float x) { return __half_as_ushort(__float2half_rn(x)); }

/* The scale, rounded. What the sum of weights is about decides, but where a number of fp16 changes nearby: then the sum
 * is made. It is 12 roundings away from what it stands for, about_weights less than 8, and quotients add 3. */
__device__ __forceinline__ uint16_t scale_of(float products, uint32_t counts, const uint8_t *planes,
                                             const float2 *pairs, const float *levels, const RowPlace &place) {
  constexpr float MARGIN = 32 * 0x1p-24f;
  float scale = products / about_weights(counts, levels);
  uint16_t rounded = to_half(scale - scale * MARGIN);
  uint32_t open = __ballot_sync(ALL, rounded != to_half(scale + scale * MARGIN)) & 0xffff;
#pragma unroll 1
  for (; open; open &= open - 1) {
    uint32_t row = __popc((open & -open) - 1);
    float weights = sum_of_weights(planes - place.row * CUDA_RECORD + row * CUDA_RECORD, pairs,
                                   ROW_RUN * place.m + place.row);
    if (place.row == row)
      rounded = to_half(products / weights);
  }
  return rounded;
}

/* Puts the codes of the rotated vector, but for what the other thread puts. Returns false when there are none. `pairs`
 * in shared memory are the levels of what two_indices gives. TINY: a zero may have a sign. */
template <bool TINY>
__device__ __forceinline__ bool quantize_row(float *x, const cuda_split &split, const float2 *pairs,
                                             const RowPlace &place, const RowCode &code) {
  enum { HALF = ROW_OWN / 2 };
  if constexpr (TINY)
#pragma unroll
    for (int i = 0; i < ROW_OWN; i++)
      x[i] += 0.0f;
  uint32_t signs[2] = {sign_bits(x), sign_bits(x + HALF)}, counts = 0;
  float rms, inverse = inverse_rms(sum_of_squares(x), ROW_D, rms), thresholds[3], products[ROW_CHUNK] = {};
#pragma unroll
  for (int t = 0; t < 3; t++)
    thresholds[t] = own_threshold(split.thresholds[0][t], rms, inverse);
#pragma unroll
  for (int w = 0; w < 2; w++) {
    uint32_t words[2] = {}; /* two bits of coordinates 0, 2, 4, .. and 1, 3, 5, .. */
#pragma unroll
    for (int at = 0; at < HALF; at += 4)
#pragma unroll
      for (int o = 0; o < 2; o++) {
        float a = fabsf(x[HALF * w + at + o]), b = fabsf(x[HALF * w + at + o + 2]);
        float *product = products + (at + o) % ROW_CHUNK;
        uint32_t bits = two_indices(thresholds, a, b);
        float2 levels = *reinterpret_cast<const float2 *>(reinterpret_cast<const uint8_t *>(pairs) + bits);
        words[o] = at ? words[o] + (bits << (at ? at - 3 : 0)) : bits >> 3;
        product[0] = w || at >= ROW_CHUNK ? product[0] + a * levels.x : a * levels.x;
        product[2] = w || at >= ROW_CHUNK ? product[2] + b * levels.y : b * levels.y;
      }
    uint32_t low = (words[0] & 0x55555555) | (words[1] << 1 & 0xaaaaaaaa);
    uint32_t high = (words[0] >> 1 & 0x55555555) | (words[1] & 0xaaaaaaaa);
    uint32_t to = ROW_D / 16 * w + place.m;
    put_bytes(code.signs + to, signs[w]);
    put_bytes(code.planes + to, low);
    put_bytes(code.planes + ROW_D / 8 + to, high);
    counts += __popc(low) + (__popc(high) << 8) + (__popc(low & high) << 16);
  }
  counts += __shfl_xor_sync(ALL, counts, ROW_RUN);
  __syncwarp();
  uint16_t scale = scale_of(row_tree(products), counts, code.planes, pairs, split.levels[0], place);
  scale = inverse > 0 ? scale : 0;
  if (place.m == 0)
    *reinterpret_cast<uint16_t *>(code.scale) = scale;
  return inverse >= 0 && scale < 0x7c00u;
}

} // namespace

#endif
