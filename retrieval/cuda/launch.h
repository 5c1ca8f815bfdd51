// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// Between the C side and the kernels; what both compilers read.
#ifndef COLDKV_RETRIEVAL_CUDA_LAUNCH_H
#define COLDKV_RETRIEVAL_CUDA_LAUNCH_H

#include <cuda_runtime_api.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum {
  GPU_CHUNK_SHIFT = 14,
  GPU_CHUNK = 1 << GPU_CHUNK_SHIFT, /* records: their signatures, then their scales */
  GPU_CHUNK_SCALES = 16 * GPU_CHUNK,
  GPU_CHUNK_BYTES = 18 * GPU_CHUNK,
  GPU_CODE_BYTES = 32, /* k_mag of a record */
  GPU_CODE_CHUNK_SHIFT = 13,
  GPU_CODE_CHUNK = 1 << GPU_CODE_CHUNK_SHIFT,
  GPU_CODE_CHUNK_BYTES = GPU_CODE_BYTES * GPU_CODE_CHUNK, /* no more than the other, see struct gpu_stage */
  GPU_JOBS = 32, /* of a launch; they travel as its argument, which has 4096 bytes */
  GPU_JOBS_FEW = 8, /* for which there is a smaller argument: that takes less time */
  GPU_SETS = 2, /* of groups and of room for gathered keys, for launches that overlap; see overlap.cuh */
  GPU_RESCORE_JOBS = 12, /* likewise, with a larger part of the query */
  GPU_HEAD_DIM_MAX = 128,
  GPU_BINS = 2048, /* of counts that blocks share */
  GPU_HINTS = 2 * GPU_JOBS, /* that columns have: by mode, and by the place of a job among those of the same columns */
};

struct gpu_job {
  uint32_t sign[4], magnitude[3][4]; /* as in struct query, little endian */
  const uint8_t *const *chunks;      /* GPU memory */
  int32_t magnitude_sum;
  uint32_t begin, count;
  float size;                        /* of the query: scores grow with it */
  float hint;                        /* of the last scan of these columns; see the top of scan.cu */
  float *next_hint;                  /* memory of the host, of this job alone in its launch */
};

/* What the blocks that share a job tell each other. All zero before the first launch; every launch leaves `arrived`,
 * `gathered`, `tickets`, `sampled`, `counted` and `bins` zero. */
struct gpu_group {
  unsigned long long gathered;  /* high half: blocks that have been through; low half: keys that they have, more than
                                   `capacity` when some do not fit */
  uint32_t arrived, generation; /* barrier */
  uint32_t tickets;             /* for tiles that are nobody's */
  uint32_t sampled;
  uint32_t again;               /* the sample misled: take the exact way */
  uint32_t counted;             /* the exact way is at its end */
  uint32_t shift, below;        /* of the digit to be counted; keys of lower prefixes */
  unsigned long long prefix;
  unsigned long long last; /* keys up to this are gathered */
  uint32_t all;            /* that is all there are */
  uint32_t bins[GPU_BINS];
};

/* What the jobs of a launch have in common. */
struct gpu_shared {
  struct gpu_group *groups;   /* [job] */
  uint64_t *gathered;         /* [job][capacity]; all ones where no key is, before and after a launch */
  uint64_t *keys;             /* [job][candidates] */
  uint32_t *counts;           /* [job] */
  uint32_t blocks;            /* that share a job */
  uint32_t capacity, candidates;
  uint32_t overlap;           /* may begin while the launch before ends */
};

struct gpu_launch {
  struct gpu_shared shared;
  struct gpu_job jobs[GPU_JOBS];
};

struct gpu_rescore_job {
  int16_t q12[GPU_HEAD_DIM_MAX]; /* as in struct query */
  const uint8_t *const *chunks, *const *codes; /* GPU memory */
  uint32_t begin;
};

/* All memory is the GPU's, or the host's where the GPU writes to it. */
struct gpu_rescore_launch {
  struct gpu_rescore_job jobs[GPU_RESCORE_JOBS];
  struct gpu_group *groups;    /* [job]; of these, `arrived` */
  uint64_t *keys;              /* [job][candidates]: in, those of the scan; their ranks become those of final scores */
  const uint32_t *found;       /* [job]: how many there are */
  uint64_t *best_keys;         /* [job][best] */
  uint32_t *counts;            /* [job]: gets `found` */
  int16_t levels[2][16];       /* of struct rescore_code, and the next three */
  uint32_t head_dim, whole, partial;
  uint32_t blocks;             /* that share a job, at most */
  uint32_t candidates, best;
  uint32_t overlap;            /* may begin while the launch before ends */
};

/* How many blocks of a scan kernel the current device runs at a time, the lesser of both modes; 0 after an error. */
uint32_t gpu_scan_blocks(uint32_t processors);

/* Enqueues `jobs` * launch->shared.blocks blocks, which must not be more than those. */
cudaError_t gpu_scan_launch(const struct gpu_launch *launch, uint32_t jobs, int hamming, cudaStream_t stream);

/* Enqueues the rescoring of `jobs` jobs, up to GPU_RESCORE_JOBS, behind their scan. */
cudaError_t gpu_rescore_launch_jobs(struct gpu_rescore_launch *launch, uint32_t jobs, cudaStream_t stream);

#ifdef __cplusplus
}
#endif

#endif
