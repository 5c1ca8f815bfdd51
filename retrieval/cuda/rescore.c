// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
#include "retrieval/rescore.h"

#include "retrieval/cuda/memory.h"

static void fill_job(struct gpu_rescore_job *job, const struct gpu_scan_job *from) {
  *job = (struct gpu_rescore_job){
      .chunks = gpu_columns_table(from->columns),
      .codes = gpu_columns_code_table(from->columns),
      .begin = from->begin,
  };
  memcpy(job->q12, from->query->q12, sizeof job->q12);
}

cudaError_t gpu_rescore(struct gpu_scan *scan, const struct gpu_scan_wanted *wanted, const struct gpu_scan_job *jobs,
                        uint32_t job_count, struct gpu_group *groups, uint64_t *keys, uint32_t *counts,
                        cudaStream_t stream) {
  struct rescore_code code;
  cudaError_t status = cudaSuccess;
  rescore_code_init(&code, wanted->head_dim);
  for (uint32_t first = 0, n; first < job_count && status == cudaSuccess; first += n) {
    n = job_count - first < GPU_RESCORE_JOBS ? job_count - first : GPU_RESCORE_JOBS;
    struct gpu_rescore_launch launch = {
        .groups = groups + first,
        .keys = scan->candidates_keys + (size_t)first * wanted->candidates,
        .found = scan->candidates_counts + first,
        .best_keys = keys + (size_t)first * wanted->best,
        .counts = counts + first,
        .head_dim = code.head_dim,
        .whole = code.whole,
        .partial = code.partial,
        .blocks = scan->gpu->blocks < n ? 1 : scan->gpu->blocks / n, /* about as many as run at a time */
        .candidates = wanted->candidates,
        .best = wanted->best,
        .overlap = scan->gpu->overlaps,
    };
    memcpy(launch.levels, code.levels, sizeof launch.levels);
    for (uint32_t i = 0; i < n; i++)
      fill_job(&launch.jobs[i], &jobs[first + i]);
    status = gpu_rescore_launch_jobs(&launch, n, stream);
  }
  return status;
}
