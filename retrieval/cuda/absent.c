// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// In place of the others in a build without CUDA: no GPU can be opened, so that nothing else is ever called with one.
#include "retrieval/cuda/gpu.h"

static int no_cuda(struct error *error) { return error_set(error, ERR_NOT_SUPPORTED, "no GPU: built without CUDA"); }

int gpu_create(struct gpu **gpu, int device, struct error *error) {
  (void)device;
  *gpu = NULL;
  return no_cuda(error);
}

void gpu_destroy(struct gpu *gpu) { (void)gpu; }

void gpu_info(const struct gpu *gpu, struct gpu_info *info) {
  (void)gpu;
  *info = (struct gpu_info){.name = "none"};
}

int gpu_columns_create(struct gpu *gpu, struct gpu_columns **columns, struct error *error) {
  (void)gpu;
  *columns = NULL;
  return no_cuda(error);
}

void gpu_columns_destroy(struct gpu_columns *columns, void *stream) {
  (void)columns;
  (void)stream;
}

int gpu_columns_append(struct gpu_columns *columns, const uint8_t *signature, const uint8_t *k_scale, uint32_t count,
                       void *stream, struct error *error) {
  (void)columns;
  (void)signature;
  (void)k_scale;
  (void)count;
  (void)stream;
  return no_cuda(error);
}

uint32_t gpu_columns_count(const struct gpu_columns *columns) {
  (void)columns;
  return 0;
}

uint64_t gpu_columns_bytes(uint32_t count) {
  (void)count;
  return 0;
}

int gpu_columns_append_codes(struct gpu_columns *columns, const uint8_t *k_mag, uint32_t count, void *stream,
                             struct error *error) {
  (void)columns;
  (void)k_mag;
  (void)count;
  (void)stream;
  return no_cuda(error);
}

uint32_t gpu_columns_codes(const struct gpu_columns *columns) {
  (void)columns;
  return 0;
}

uint64_t gpu_codes_bytes(uint32_t count) {
  (void)count;
  return 0;
}

void gpu_columns_drop_codes(struct gpu_columns *columns, void *stream) {
  (void)columns;
  (void)stream;
}

int gpu_scan_create(struct gpu *gpu, uint32_t jobs_max, uint32_t keys_max, struct gpu_scan **scan,
                    struct error *error) {
  (void)gpu;
  (void)jobs_max;
  (void)keys_max;
  *scan = NULL;
  return no_cuda(error);
}

void gpu_scan_destroy(struct gpu_scan *scan) { (void)scan; }

int gpu_scan_start(struct gpu_scan *scan, const struct gpu_scan_wanted *wanted, const struct gpu_scan_job *jobs,
                   uint32_t job_count, void *stream, struct error *error) {
  (void)scan;
  (void)wanted;
  (void)jobs;
  (void)job_count;
  (void)stream;
  return no_cuda(error);
}

int gpu_scan_fetch(struct gpu_scan *scan, void *stream, struct error *error) {
  (void)scan;
  (void)stream;
  return no_cuda(error);
}

int gpu_scan_finish(struct gpu_scan *scan, const uint64_t **keys, const uint32_t **counts, struct error *error) {
  (void)scan;
  (void)keys;
  (void)counts;
  return no_cuda(error);
}
