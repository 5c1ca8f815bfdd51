// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// What the C files of this folder know of each other.
#ifndef COLDKV_RETRIEVAL_CUDA_MEMORY_H
#define COLDKV_RETRIEVAL_CUDA_MEMORY_H

#include <stdatomic.h>

#include "proto/cuda/gpu.h"
#include "retrieval/cuda/gpu.h"
#include "retrieval/cuda/launch.h"

enum { GPU_STAGES = 4 };

/* Pinned memory for records on their way to a chunk. */
struct gpu_stage {
  uint8_t *bytes;       /* GPU_CHUNK_BYTES */
  cudaEvent_t uploaded; /* what was in it last */
};

/* Memory of the host for the hints of columns, GPU_HINTS each. */
struct gpu_hints {
  float **pieces, **spare;
  uint32_t piece_count, spare_count;
};

struct gpu {
  int device;
  struct gpu_stage stages[GPU_STAGES];
  uint32_t next_stage;
  cudaMemPool_t pool;
  uint32_t blocks; /* of a scan that run at a time */
  bool overlaps;        /* a launch may begin while the one before ends */
  atomic_bool uploaded; /* something, since the last scan: the next one begins behind it */
  struct gpu_hints hints;
  struct gpu_info info;
};

struct gpu_scan {
  struct gpu *gpu;
  uint32_t jobs_max, keys_max;
  cudaEvent_t fetched;
  uint64_t *keys;                 /* [keys_max]: memory of the host that the GPU writes to */
  uint32_t *counts;               /* [jobs_max]: likewise */
  uint32_t launches;              /* so far */
  struct gpu_group *groups;       /* [GPU_SETS][GPU_JOBS], GPU memory: launches take turns with the sets */
  uint64_t *candidates_keys;      /* [GPU_JOBS][LIMIT_CANDIDATES_MAX], GPU memory: what is to be rescored */
  uint32_t *candidates_counts;    /* [GPU_JOBS], likewise */
  uint64_t *gathered;             /* [GPU_SETS][GPU_JOBS][gpu_scan_capacity(LIMIT_CANDIDATES_MAX)], likewise */
};

/* Pointers to the chunks of columns, in GPU memory: of signatures and scales, of key codes. */
const uint8_t *const *gpu_columns_table(const struct gpu_columns *columns);
const uint8_t *const *gpu_columns_code_table(const struct gpu_columns *columns);

/* GPU_HINTS of them; NULL while there is no record. */
float *gpu_columns_hints(const struct gpu_columns *columns);

/* Hints, all 0, of which nobody knows. */
cudaError_t gpu_hints_take(struct gpu_hints *hints, float **result);
/* Takes NULL. */
void gpu_hints_give_back(struct gpu_hints *hints, float *taken);
/* Once the GPU is done. */
void gpu_hints_free(struct gpu_hints *hints);

/* Enqueues the rescoring of jobs, up to GPU_JOBS, whose candidates a scan has put into scan->candidates_keys. Leaves
 * the best of each at `keys`, and the numbers of candidates at `counts`, memory of the host. */
cudaError_t gpu_rescore(struct gpu_scan *scan, const struct gpu_scan_wanted *wanted, const struct gpu_scan_job *jobs,
                        uint32_t job_count, struct gpu_group *groups, uint64_t *keys, uint32_t *counts,
                        cudaStream_t stream);

/* Keys gathered for one job, of which the best are selected: enough more than C that the sample can be rough. */
static inline uint32_t gpu_scan_capacity(uint32_t candidates) {
  enum { CAPACITY_MIN = 16384, CAPACITY_FACTOR = 4 };
  return candidates * CAPACITY_FACTOR > CAPACITY_MIN ? candidates * CAPACITY_FACTOR : CAPACITY_MIN;
}

#endif
