// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
#include <math.h>
#include <stdlib.h>

#include "retrieval/cuda/memory.h"

static cudaError_t allocate(struct gpu_scan *scan) {
  size_t keys = (size_t)scan->keys_max * sizeof(uint64_t);
  size_t groups = (size_t)GPU_SETS * GPU_JOBS * sizeof *scan->groups;
  size_t gathered = (size_t)GPU_SETS * GPU_JOBS * gpu_scan_capacity(LIMIT_CANDIDATES_MAX) * sizeof(uint64_t);
  cudaError_t status = cudaSetDevice(scan->gpu->device);
  if (status == cudaSuccess)
    status = cudaMalloc((void **)&scan->groups, groups);
  if (status == cudaSuccess)
    status = cudaMalloc((void **)&scan->gathered, gathered);
  if (status == cudaSuccess)
    status = cudaMalloc((void **)&scan->candidates_keys, GPU_JOBS * (size_t)LIMIT_CANDIDATES_MAX * sizeof(uint64_t));
  if (status == cudaSuccess)
    status = cudaMalloc((void **)&scan->candidates_counts, GPU_JOBS * sizeof(uint32_t));
  if (status == cudaSuccess)
    status = cudaMemset(scan->groups, 0, groups);
  if (status == cudaSuccess)
    status = cudaMemset(scan->gathered, 0xff, gathered);
  if (status == cudaSuccess)
    status = cudaMallocHost((void **)&scan->keys, keys); /* the same address on the GPU */
  if (status == cudaSuccess)
    status = cudaMallocHost((void **)&scan->counts, scan->jobs_max * sizeof *scan->counts);
  if (status == cudaSuccess)
    status = cudaEventCreateWithFlags(&scan->fetched, cudaEventDisableTiming);
  return status == cudaSuccess ? cudaDeviceSynchronize() : status; /* other streams do not wait for a memset */
}

int gpu_scan_create(struct gpu *gpu, uint32_t jobs_max, uint32_t keys_max, struct gpu_scan **result,
                    struct error *error) {
  *result = NULL;
  if (jobs_max == 0 || keys_max == 0)
    return error_set(error, ERR_LIMIT, "a GPU scan of %u jobs with %u candidates together", jobs_max, keys_max);
  struct gpu_scan *scan = calloc(1, sizeof *scan);
  if (!scan)
    return error_set(error, ERR_MEMORY, "out of memory for a GPU scan (%zu bytes)", sizeof *scan);
  *scan = (struct gpu_scan){.gpu = gpu, .jobs_max = jobs_max, .keys_max = keys_max};
  cudaError_t status = allocate(scan);
  if (status != cudaSuccess) {
    gpu_scan_destroy(scan);
    return gpu_failed(error, status, "no memory for scans");
  }
  *result = scan;
  return 0;
}

void gpu_scan_destroy(struct gpu_scan *scan) {
  if (!scan)
    return;
  cudaSetDevice(scan->gpu->device);
  cudaFree(scan->groups);
  cudaFree(scan->gathered);
  cudaFree(scan->candidates_keys);
  cudaFree(scan->candidates_counts);
  cudaFreeHost(scan->keys);
  cudaFreeHost(scan->counts);
  if (scan->fetched)
    cudaEventDestroy(scan->fetched);
  free(scan);
}

/* The root of the sum of squares of q4. */
static float query_size(const struct query *query) {
  int sum = 0;
  for (int w = 0; w < 2; w++)
    for (int a = 0; a < QUERY_PLANES; a++)
      for (int b = 0; b < QUERY_PLANES; b++)
        sum += __builtin_popcountll(query->magnitude[a][w] & query->magnitude[b][w]) << (a + b);
  return sqrtf((float)sum);
}

/* Jobs of the same columns in one launch have hints of their own, since they read and write them all at a time. */
static float *hint_of(const struct gpu_scan_job *jobs, uint32_t i, enum lookup_mode mode) {
  uint32_t before = 0;
  float *hints = gpu_columns_hints(jobs[i].columns);
  for (uint32_t j = 0; j < i; j++)
    before += jobs[j].columns == jobs[i].columns;
  return hints ? hints + (mode == LOOKUP_HAMMING ? GPU_JOBS : 0) + before : NULL;
}

static void fill_job(struct gpu_job *job, const struct gpu_scan_job *from, float *hint) {
  *job = (struct gpu_job){
      .size = query_size(from->query),
      .next_hint = hint,
      .chunks = gpu_columns_table(from->columns),
      .magnitude_sum = from->query->magnitude_sum,
      .begin = from->begin,
      .count = from->count,
  };
  if (hint)
    __atomic_load(hint, &job->hint, __ATOMIC_RELAXED); /* a launch may be about to write it */
  memcpy(job->sign, from->query->sign, sizeof job->sign);
  memcpy(job->magnitude, from->query->magnitude, sizeof job->magnitude);
}

static int check(const struct gpu_scan *scan, const struct gpu_scan_wanted *wanted, const struct gpu_scan_job *jobs,
                 uint32_t job_count, struct error *error) {
  uint32_t candidates = wanted->candidates;
  if (job_count == 0 || job_count > scan->jobs_max || candidates == 0 || candidates > LIMIT_CANDIDATES_MAX ||
      (uint64_t)job_count * candidates > scan->keys_max || wanted->best > candidates ||
      (wanted->best && !record_head_dim_valid(wanted->head_dim)))
    return error_set(error, ERR_BAD_PARAMS,
                     "GPU scan of %u jobs with %u candidates, the best %u of head_dim %u, made for %u with %u together",
                     job_count, candidates, wanted->best, wanted->head_dim, scan->jobs_max, scan->keys_max);
  for (uint32_t i = 0; i < job_count; i++) {
    uint32_t there = gpu_columns_count(jobs[i].columns), codes = gpu_columns_codes(jobs[i].columns);
    there = wanted->best && codes < there ? codes : there;
    if (jobs[i].begin > there || jobs[i].count > there - jobs[i].begin)
      return error_set(error, ERR_BAD_PARAMS, "GPU scan of records %u + %u of %u", jobs[i].begin, jobs[i].count, there);
  }
  return 0;
}

/* One launch, and one more or some where its candidates are to be rescored. */
static cudaError_t start_jobs(struct gpu_scan *scan, const struct gpu_scan_wanted *wanted,
                              const struct gpu_scan_job *jobs, uint32_t first, uint32_t count, cudaStream_t stream) {
  uint64_t *keys = scan->keys + (size_t)first * (wanted->best ? wanted->best : wanted->candidates);
  uint32_t *counts = scan->counts + first, set = scan->launches % GPU_SETS;
  struct gpu_group *groups = scan->groups + (size_t)set * GPU_JOBS;
  bool uploaded = atomic_exchange(&scan->gpu->uploaded, false);
  struct gpu_launch launch;
  launch.shared = (struct gpu_shared){
      .groups = groups,
      .gathered = scan->gathered + (size_t)set * GPU_JOBS * gpu_scan_capacity(LIMIT_CANDIDATES_MAX),
      .keys = wanted->best ? scan->candidates_keys : keys,
      .counts = wanted->best ? scan->candidates_counts : counts,
      .blocks = scan->gpu->blocks / count,
      .capacity = gpu_scan_capacity(wanted->candidates),
      .candidates = wanted->candidates,
      .overlap = scan->gpu->overlaps && !uploaded,
  };
  for (uint32_t i = 0; i < count; i++)
    fill_job(&launch.jobs[i], &jobs[first + i], hint_of(jobs + first, i, wanted->mode));
  cudaError_t status = gpu_scan_launch(&launch, count, wanted->mode == LOOKUP_HAMMING, stream);
  scan->launches += status == cudaSuccess; /* the next one must not have the set of one that may be running */
  if (status != cudaSuccess && uploaded)
    atomic_store(&scan->gpu->uploaded, true); /* still for the next one */
  if (status == cudaSuccess && wanted->best)
    status = gpu_rescore(scan, wanted, jobs + first, count, groups, keys, counts, stream);
  return status;
}

int gpu_scan_start(struct gpu_scan *scan, const struct gpu_scan_wanted *wanted, const struct gpu_scan_job *jobs,
                   uint32_t job_count, void *stream, struct error *error) {
  int result = check(scan, wanted, jobs, job_count, error);
  if (result)
    return result;
  cudaError_t status = cudaSetDevice(scan->gpu->device);
  if (status != cudaSuccess)
    return gpu_failed(error, status, "cannot be used");
  uint32_t most = scan->gpu->blocks < GPU_JOBS ? scan->gpu->blocks : GPU_JOBS;
  for (uint32_t first = 0, n; first < job_count; first += n) {
    n = job_count - first < most ? job_count - first : most;
    status = start_jobs(scan, wanted, jobs, first, n, stream);
    if (status != cudaSuccess)
      return gpu_failed(error, status, "cannot launch a scan");
  }
  return 0;
}

int gpu_scan_fetch(struct gpu_scan *scan, void *stream, struct error *error) {
  cudaError_t status = cudaSetDevice(scan->gpu->device);
  if (status == cudaSuccess)
    status = cudaEventRecord(scan->fetched, stream);
  return status == cudaSuccess ? 0 : gpu_failed(error, status, "cannot fetch what a scan found");
}

int gpu_scan_finish(struct gpu_scan *scan, const uint64_t **keys, const uint32_t **counts, struct error *error) {
  cudaError_t status = cudaEventSynchronize(scan->fetched);
  if (status != cudaSuccess)
    return gpu_failed(error, status, "a scan failed");
  *keys = scan->keys;
  *counts = scan->counts;
  return 0;
}
