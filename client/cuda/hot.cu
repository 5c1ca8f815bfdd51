// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// Keys and values into the hot window, their rotations, and their means. One warp takes one vector, in shared memory.
#include "client/cuda/types.cuh"

namespace {

enum { WARPS = 4, THREADS = 32 * WARPS };

/* Angles in double, as rope_angles has them. */
__global__ void __launch_bounds__(THREADS) rows_kernel(const __grid_constant__ cuda_rows_job job) {
  uint32_t at = blockIdx.x * THREADS + threadIdx.x;
  if (at >= job.count * job.pairs)
    return;
  uint32_t row = at / job.pairs, p = at % job.pairs;
  int64_t position = job.counted ? job.first + row : job.positions[row];
  double sine, cosine;
  sincos(job.freqs[p] * static_cast<double>(position), &sine, &cosine);
  float *to = job.rows + static_cast<size_t>(row) * 2 * job.pairs;
  to[p] = static_cast<float>(cosine);
  to[job.pairs + p] = static_cast<float>(sine);
}

template <typename T> __global__ void __launch_bounds__(THREADS) put_kernel(const __grid_constant__ cuda_put_job job) {
  __shared__ float memory[WARPS][CUDA_D_MAX];
  const cuda_shape &shape = job.shape;
  uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32, at = blockIdx.x * WARPS + warp;
  if (at >= job.count * shape.heads)
    return;
  uint32_t row = at / shape.heads, head = at % shape.heads;
  uint64_t token = job.first + row;
  float *x = memory[warp], keys = 0, values = 0;
  size_t from = static_cast<size_t>(at) * shape.d;
  size_t to = (static_cast<size_t>(head) * CUDA_RING + token % CUDA_RING) * shape.d;
  size_t sink = (static_cast<size_t>(head) * CUDA_SINKS + token % CUDA_SINKS) * shape.d;
  bool is_sink = token < CUDA_SINKS;
  for (uint32_t c = lane; c < shape.d; c += 32) {
    float value = load_any(job.v, job.type, from + c);
    x[c] = load_any(job.k, job.type, from + c);
    keys += x[c] * x[c];
    values += value * value;
    narrow(value, static_cast<T *>(job.hot.values)[to + c]);
    if (is_sink)
      narrow(value, static_cast<T *>(job.hot.sink_values)[sink + c]);
  }
  float most = job.norm_max * job.norm_max;
  keys = warp_sum(keys);
  values = warp_sum(values);
  if (lane == 0 && !(keys <= most && values <= most)) /* NaN, too */
    report(job.found, job.first);
  __syncwarp();
  if (job.unrotate) {
    rotate_pairs(shape, job.unrotate + static_cast<size_t>(row) * 2 * shape.pairs, -1, x, lane, 32);
    __syncwarp();
  }
  for (uint32_t c = lane; c < shape.d; c += 32)
    narrow(x[c], static_cast<T *>(job.hot.keys)[to + c]);
  __syncwarp();
  rotate_pairs(shape, job.rows + static_cast<size_t>(row) * 2 * shape.pairs, 1, x, lane, 32);
  __syncwarp();
  for (uint32_t c = lane; c < shape.d; c += 32) {
    narrow(x[c], static_cast<T *>(job.hot.rotated)[to + c]);
    if (is_sink)
      narrow(x[c], static_cast<T *>(job.hot.sink_keys)[sink + c]);
  }
}

/* Sums in double, token after token, as calibrate.c makes them. */
template <typename T>
__global__ void means_kernel(const void *vectors, uint32_t d, uint64_t first, uint64_t end, float *means) {
  size_t place = blockIdx.x;
  double sum = 0;
  for (uint64_t t = first; t < end; t++)
    sum += static_cast<double>(
        widen(static_cast<const T *>(vectors)[(place * CUDA_RING + t % CUDA_RING) * d + threadIdx.x]));
  means[place * d + threadIdx.x] = static_cast<float>(sum / static_cast<double>(end - first));
}

} // namespace

extern "C" cudaError_t cuda_rows_launch(const cuda_rows_job *job, cudaStream_t stream) {
  uint32_t all = job->count * job->pairs;
  if (!all)
    return cudaSuccess;
  return enqueue(rows_kernel, (all + THREADS - 1) / THREADS, THREADS, stream, *job);
}

extern "C" cudaError_t cuda_put_launch(const cuda_put_job *job, cudaStream_t stream) {
  uint32_t blocks = (job->count * job->shape.heads + WARPS - 1) / WARPS;
  switch (job->shape.type) {
  case CUDA_F32: return enqueue(put_kernel<float>, blocks, THREADS, stream, *job);
  case CUDA_F16: return enqueue(put_kernel<__half>, blocks, THREADS, stream, *job);
  default: return enqueue(put_kernel<__nv_bfloat16>, blocks, THREADS, stream, *job);
  }
}

extern "C" cudaError_t cuda_means_launch(const cuda_shape *shape, const void *vectors, uint64_t first, uint64_t end,
                                         float *means, cudaStream_t stream) {
  uint32_t blocks = shape->layers * shape->heads, d = shape->d;
  switch (shape->type) {
  case CUDA_F32: return enqueue(means_kernel<float>, blocks, d, stream, vectors, d, first, end, means);
  case CUDA_F16: return enqueue(means_kernel<__half>, blocks, d, stream, vectors, d, first, end, means);
  default: return enqueue(means_kernel<__nv_bfloat16>, blocks, d, stream, vectors, d, first, end, means);
  }
}
