// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// Queries of lookups, and records decoded: one warp takes one vector. Not much work, so any d goes the same way.
#include "client/cuda/codec.cuh"

namespace {

enum { WARPS = 4, THREADS = 32 * WARPS };

__global__ void __launch_bounds__(THREADS) query_kernel(const __grid_constant__ cuda_query_job job) {
  __shared__ float memory[WARPS][2][CUDA_D_MAX];
  const cuda_shape &shape = job.shape;
  uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32, at = blockIdx.x * WARPS + warp, d = shape.d;
  if (at >= job.rows * shape.heads)
    return;
  uint32_t row = at / shape.heads;
  float *x = memory[warp][0], *sum = memory[warp][1], *to = job.queries + static_cast<size_t>(at) * CUDA_D_MAX;
  for (uint32_t c = lane; c < d; c += 32)
    sum[c] = 0;
  bool good = true;
  for (uint32_t j = 0; j < shape.group; j++) {
    float squares = 0;
    for (uint32_t c = lane; c < d; c += 32) {
      x[c] = load_any(job.q, job.type, (static_cast<size_t>(at) * shape.group + j) * d + c);
      squares += x[c] * x[c];
    }
    good = good && warp_sum(squares) <= job.norm_max * job.norm_max;
    __syncwarp();
    if (job.unrotate) {
      rotate_pairs(shape, job.unrotate + static_cast<size_t>(row) * 2 * shape.pairs, -1, x, lane, 32);
      __syncwarp();
    }
    for (uint32_t c = lane; c < d; c += 32)
      sum[c] += x[c];
    __syncwarp();
  }
  if (lane == 0 && !good)
    report(job.found, job.first);
  __syncwarp();
  rotate_pairs(shape, job.expected, 1, sum, lane, 32);
  __syncwarp();
  rotate(job.codec.signs, d, sum, lane);
  for (uint32_t c = lane; c < d; c += 32)
    to[c] = x[c] = sum[c];
  __syncwarp();
  if (d == CUDA_D_MAX)
    return;
  rotate(job.codec.extra, d, x, lane);
  for (uint32_t c = lane; c < CUDA_D_MAX - d; c += 32)
    to[d + c] = x[c];
}

/* Reads signs and index planes back. */
__device__ void read_planes(const uint8_t *signs, const uint8_t *planes, const cuda_split &split, float scale,
                            uint32_t d, float *y, uint32_t lane) {
  for (uint32_t i = lane; i < d; i += 32) {
    uint32_t more = i < split.partial, bits = split.whole + more, index = 0;
    for (uint32_t b = 0; b < bits; b++)
      index |= static_cast<uint32_t>(planes[b * (d / 8) + i / 8] >> i % 8 & 1) << b;
    float value = split.levels[more][index] * scale;
    y[i] = signs[i / 8] >> i % 8 & 1 ? -value : value;
  }
  __syncwarp();
}

__device__ uint32_t head_of(const uint32_t *starts, uint32_t heads, uint32_t entry) {
  uint32_t low = 0, high = heads;
  while (high - low > 1) {
    uint32_t middle = (low + high) / 2;
    if (starts[middle] <= entry)
      low = middle;
    else
      high = middle;
  }
  return low;
}

__device__ float scale_at(const uint8_t *bytes) {
  return __half2float(__ushort_as_half(static_cast<unsigned short>(bytes[0] | bytes[1] << 8)));
}

/* RoPE by a position, angles in double. */
__device__ void rotate_to(const cuda_decode_job &job, uint64_t position, float *x, uint32_t lane) {
  for (uint32_t p = lane; p < job.shape.pairs; p += 32) {
    uint32_t i = pair_first(job.shape, p), j = pair_second(job.shape, p);
    double sine, cosine;
    sincos(job.freqs[p] * static_cast<double>(position), &sine, &cosine);
    float c = static_cast<float>(cosine), s = static_cast<float>(sine), a = x[i], b = x[j];
    x[i] = a * c - b * s;
    x[j] = a * s + b * c;
  }
  __syncwarp();
}

template <typename T>
__global__ void __launch_bounds__(THREADS) decode_kernel(const __grid_constant__ cuda_decode_job job) {
  __shared__ float memory[WARPS][CUDA_D_MAX];
  uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32, at = blockIdx.x * WARPS + warp, d = job.shape.d;
  uint32_t entry = at / 2;
  bool value = at % 2;
  if (entry >= job.all)
    return;
  uint32_t head = head_of(job.starts, job.shape.heads, entry);
  const uint8_t *record = job.records + static_cast<size_t>(entry) * CUDA_RECORD;
  float *x = memory[warp];
  if (value)
    read_planes(record + 50, record + 50 + d / 8, job.value, scale_at(record + 98), d, x, lane);
  else
    read_planes(record, record + 18, job.key, scale_at(record + 16), d, x, lane);
  rotate_back(job.codec.signs, d, x, lane);
  const float *mean = (value ? job.mean_v : job.mean_k) + static_cast<size_t>(head) * d;
  for (uint32_t c = lane; c < d; c += 32)
    x[c] += mean[c];
  __syncwarp();
  if (!value && job.rotate == CUDA_ROTATE_INDEX)
    rotate_to(job, job.tokens[entry], x, lane);
  if (!value && job.rotate == CUDA_ROTATE_PLACE)
    rotate_to(job, CUDA_SINKS + entry - job.starts[head], x, lane);
  T *to = static_cast<T *>(value ? job.values : job.keys) + static_cast<size_t>(entry) * d;
  for (uint32_t c = lane; c < d; c += 32)
    narrow(x[c], to[c]);
}

} // namespace

extern "C" cudaError_t cuda_query_launch(const cuda_query_job *job, cudaStream_t stream) {
  return enqueue(query_kernel, (job->rows * job->shape.heads + WARPS - 1) / WARPS, THREADS, stream, *job);
}

extern "C" cudaError_t cuda_decode_launch(const cuda_decode_job *job, cudaStream_t stream) {
  uint32_t blocks = (2 * job->all + WARPS - 1) / WARPS;
  if (!job->all)
    return cudaSuccess;
  switch (job->shape.type) {
  case CUDA_F32: return enqueue(decode_kernel<float>, blocks, THREADS, stream, *job);
  case CUDA_F16: return enqueue(decode_kernel<__half>, blocks, THREADS, stream, *job);
  default: return enqueue(decode_kernel<__nv_bfloat16>, blocks, THREADS, stream, *job);
  }
}
