// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// Scans on an NVIDIA GPU: signatures and scales live in its memory, and a scan leaves the best C candidates of every
// job, the same ones as lane.c does, bit for bit. Where key codes live there, too, it can rescore these, as lookup.c
// does, and leave the best of them.
//
// All work goes to the stream that the caller gives (a cudaStream_t, NULL for the default one) and nothing here waits
// for the GPU except gpu_scan_finish, gpu_columns_append and the functions that destroy. All scans of a process on one
// GPU go to one stream, where they overlap: two that begin at a time on different ones could wait for each other's
// blocks for ever. Who appends on another stream puts them in order: a scan has to come after the appends to its
// columns. One object is used by one thread at a time.
//
// Built without CUDA, or on a machine with no driver or GPU, gpu_create says so and the processor does the work.
#ifndef COLDKV_RETRIEVAL_CUDA_GPU_H
#define COLDKV_RETRIEVAL_CUDA_GPU_H

#include "proto/error.h"
#include "proto/messages.h"
#include "retrieval/query.h"

/* One GPU. */
struct gpu;

/* Signatures and k_scale of the records of one (layer, kv head), in GPU memory, and k_mag of as many as one likes. */
struct gpu_columns;

/* Memory for the scans of one stream, and their results. */
struct gpu_scan;

/* What there is to know about a GPU. */
struct gpu_info {
  char name[128];
  uint32_t major, minor;   /* compute capability */
  uint32_t processors;     /* multiprocessors */
  uint64_t memory_bytes;   /* of the device */
  uint64_t l2_bytes;
};

/* Opens GPU number `device`, 0 for the first. ERR_NOT_SUPPORTED: built without CUDA, no driver, no such GPU, or one of
 * before compute capability 8.0; the sentence says which. ERR_MEMORY, ERR_IO: it is there and does not work. */
int gpu_create(struct gpu **gpu, int device, struct error *error);
/* Waits for the GPU. Columns and scans of it go first. Takes NULL. */
void gpu_destroy(struct gpu *gpu);

void gpu_info(const struct gpu *gpu, struct gpu_info *info);

/* Empty columns; take no GPU memory yet. ERR_MEMORY. */
int gpu_columns_create(struct gpu *gpu, struct gpu_columns **columns, struct error *error);
/* Gives the memory back behind all work of the stream. Takes NULL. */
void gpu_columns_destroy(struct gpu_columns *columns, void *stream);

/* Adds `count` records behind those that are there: signature[16 * count], k_scale[2 * count], host memory, which may
 * be used again after the return: it is copied to memory of the GPU's own first, and the only wait is for that to be
 * free again. After an error, which may be ERR_MEMORY (of the GPU), ERR_LIMIT (2^32 - 1 records) or ERR_IO, the columns
 * hold what they held. Columns of one GPU are appended to and destroyed by one thread at a time. */
int gpu_columns_append(struct gpu_columns *columns, const uint8_t *signature, const uint8_t *k_scale, uint32_t count,
                       void *stream, struct error *error);

uint32_t gpu_columns_count(const struct gpu_columns *columns);

/* GPU memory that columns of `count` records take. */
uint64_t gpu_columns_bytes(uint32_t count);

/* The same for the key codes, k_mag[32 * count]; the first is that of record 0. */
int gpu_columns_append_codes(struct gpu_columns *columns, const uint8_t *k_mag, uint32_t count, void *stream,
                             struct error *error);
uint32_t gpu_columns_codes(const struct gpu_columns *columns);
uint64_t gpu_codes_bytes(uint32_t count); /* beside gpu_columns_bytes */
/* Gives their memory back behind all work of the stream. */
void gpu_columns_drop_codes(struct gpu_columns *columns, void *stream);

/* One row's scan of records begin .. begin + count - 1. */
struct gpu_scan_job {
  const struct gpu_columns *columns;
  const struct query *query; /* copied by gpu_scan_start */
  uint32_t begin, count;
};

/* For up to `jobs_max` jobs, of up to LIMIT_CANDIDATES_MAX candidates each and `keys_max` together. Takes pinned memory
 * of the host for the results, which the GPU writes there. ERR_MEMORY, ERR_LIMIT. */
int gpu_scan_create(struct gpu *gpu, uint32_t jobs_max, uint32_t keys_max, struct gpu_scan **scan,
                    struct error *error);
/* Waits for the GPU. Takes NULL. */
void gpu_scan_destroy(struct gpu_scan *scan);

/* What is to be left of each job. */
struct gpu_scan_wanted {
  enum lookup_mode mode;
  uint32_t candidates;
  uint32_t best;     /* 0: the candidates. Otherwise so many of them, at most all: those of the highest final scores */
  uint32_t head_dim; /* with `best`: of the key codes */
};

/* Enqueues the jobs, up to 32 of them in one launch, and behind each launch the rescoring. ERR_BAD_PARAMS: more jobs or
 * candidates than the scan is for, none of either, or records or key codes that the columns do not have. ERR_IO: the
 * launch failed. */
int gpu_scan_start(struct gpu_scan *scan, const struct gpu_scan_wanted *wanted, const struct gpu_scan_job *jobs,
                   uint32_t job_count, void *stream, struct error *error);

/* Has the end of the last start noted, on its stream. ERR_IO. */
int gpu_scan_fetch(struct gpu_scan *scan, void *stream, struct error *error);

/* Waits for what gpu_scan_fetch has enqueued: (*counts)[job] candidates at (*keys)[job * candidates], in no order, the
 * scan's memory until its next fetch. A key is that of select.h, its ordinal counted from the job's `begin`. A count is
 * below `candidates` only when a job has no more records with a valid scale; the keys after the last are UINT64_MAX.
 * Where the best were wanted, the keys are at (*keys)[job * best], as many as there are candidates and at most `best`,
 * and their ranks are those of final scores; the counts are still of candidates.
 * Other threads may use the GPU and its columns meanwhile. ERR_IO. */
int gpu_scan_finish(struct gpu_scan *scan, const uint64_t **keys, const uint32_t **counts, struct error *error);

#endif
