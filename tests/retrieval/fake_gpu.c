// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
#include "tests/retrieval/fake_gpu.h"

#include <stdlib.h>

#include "tests/retrieval/rescored.h"

enum {
  CHUNK = 16384,
  CHUNK_BYTES = CHUNK * (RECORD_SIGNATURE_BYTES + RECORD_K_SCALE_BYTES),
  CODE_CHUNK = 8192,
  CODE_CHUNK_BYTES = CODE_CHUNK * RECORD_K_MAG_BYTES,
};

struct fake_gpu_faults fake_gpu_faults;
uint64_t fake_gpu_bytes, fake_gpu_code_bytes, fake_gpu_appended, fake_gpu_codes_appended, fake_gpu_scanned;
uint64_t fake_gpu_rescored;

struct gpu {
  struct gpu_info info;
};

struct gpu_columns {
  uint8_t *signature, *k_scale, *k_mag;
  uint32_t count, codes;
};

struct gpu_scan {
  uint32_t jobs_max, keys_max;
  struct lane *lane;
  uint64_t *keys;
  uint32_t *counts;
  bool failed;
};

static uint64_t variable(const char *name, uint64_t otherwise) {
  const char *value = getenv(name);
  return value ? strtoull(value, NULL, 10) : otherwise;
}

int gpu_create(struct gpu **gpu, int device, struct error *error) {
  *gpu = device == 0 ? calloc(1, sizeof **gpu) : NULL;
  if (!*gpu)
    return error_set(error, ERR_NOT_SUPPORTED, "no GPU number %d", device);
  (*gpu)->info = (struct gpu_info){.name = "a stand-in", .major = 8, .processors = 1, .memory_bytes = 1 << 30};
  fake_gpu_faults.bytes_max = variable("FAKE_GPU_BYTES", fake_gpu_faults.bytes_max);
  fake_gpu_faults.fail_scans = (uint32_t)variable("FAKE_GPU_FAIL_SCANS", fake_gpu_faults.fail_scans);
  return 0;
}

void gpu_destroy(struct gpu *gpu) { free(gpu); }

void gpu_info(const struct gpu *gpu, struct gpu_info *info) { *info = gpu->info; }

int gpu_columns_create(struct gpu *gpu, struct gpu_columns **columns, struct error *error) {
  (void)gpu;
  *columns = calloc(1, sizeof **columns);
  return *columns ? 0 : error_set(error, ERR_MEMORY, "no memory for columns");
}

void gpu_columns_destroy(struct gpu_columns *columns, void *stream) {
  if (!columns)
    return;
  fake_gpu_bytes -= gpu_columns_bytes(columns->count);
  gpu_columns_drop_codes(columns, stream);
  free(columns->signature);
  free(columns->k_scale);
  free(columns);
}

static bool there_is_room(uint64_t more) {
  return !fake_gpu_faults.bytes_max || fake_gpu_bytes + fake_gpu_code_bytes + more <= fake_gpu_faults.bytes_max;
}

int gpu_columns_append(struct gpu_columns *columns, const uint8_t *signature, const uint8_t *k_scale, uint32_t count,
                       void *stream, struct error *error) {
  uint64_t end = (uint64_t)columns->count + count, more = gpu_columns_bytes((uint32_t)end);
  (void)stream;
  more -= gpu_columns_bytes(columns->count);
  if (!there_is_room(more))
    return error_set(error, ERR_MEMORY, "GPU: no memory for signatures");
  columns->signature = realloc(columns->signature, end * RECORD_SIGNATURE_BYTES + 1);
  columns->k_scale = realloc(columns->k_scale, end * RECORD_K_SCALE_BYTES + 1);
  if (!columns->signature || !columns->k_scale)
    abort();
  memcpy(columns->signature + (size_t)columns->count * RECORD_SIGNATURE_BYTES, signature,
         (size_t)count * RECORD_SIGNATURE_BYTES);
  memcpy(columns->k_scale + (size_t)columns->count * RECORD_K_SCALE_BYTES, k_scale,
         (size_t)count * RECORD_K_SCALE_BYTES);
  columns->count += count;
  fake_gpu_bytes += more;
  fake_gpu_appended += count;
  return 0;
}

uint32_t gpu_columns_count(const struct gpu_columns *columns) { return columns->count; }

uint64_t gpu_columns_bytes(uint32_t count) { return ((uint64_t)count + CHUNK - 1) / CHUNK * CHUNK_BYTES; }

uint32_t gpu_columns_codes(const struct gpu_columns *columns) { return columns->codes; }

uint64_t gpu_codes_bytes(uint32_t count) { return ((uint64_t)count + CODE_CHUNK - 1) / CODE_CHUNK * CODE_CHUNK_BYTES; }

int gpu_columns_append_codes(struct gpu_columns *columns, const uint8_t *k_mag, uint32_t count, void *stream,
                             struct error *error) {
  uint64_t end = (uint64_t)columns->codes + count, more = gpu_codes_bytes((uint32_t)end);
  (void)stream;
  more -= gpu_codes_bytes(columns->codes);
  if (!there_is_room(more))
    return error_set(error, ERR_MEMORY, "GPU: no memory for key codes");
  columns->k_mag = realloc(columns->k_mag, end * RECORD_K_MAG_BYTES + 1);
  if (!columns->k_mag)
    abort();
  memcpy(columns->k_mag + (size_t)columns->codes * RECORD_K_MAG_BYTES, k_mag, (size_t)count * RECORD_K_MAG_BYTES);
  columns->codes += count;
  fake_gpu_code_bytes += more;
  fake_gpu_codes_appended += count;
  return 0;
}

void gpu_columns_drop_codes(struct gpu_columns *columns, void *stream) {
  (void)stream;
  fake_gpu_code_bytes -= gpu_codes_bytes(columns->codes);
  free(columns->k_mag);
  columns->k_mag = NULL;
  columns->codes = 0;
}

int gpu_scan_create(struct gpu *gpu, uint32_t jobs_max, uint32_t keys_max, struct gpu_scan **scan,
                    struct error *error) {
  (void)gpu;
  *scan = calloc(1, sizeof **scan);
  if (!*scan)
    return error_set(error, ERR_MEMORY, "no memory for scans");
  **scan = (struct gpu_scan){.jobs_max = jobs_max, .keys_max = keys_max};
  (*scan)->lane = calloc(1, sizeof *(*scan)->lane);
  (*scan)->keys = malloc(keys_max * sizeof(uint64_t));
  (*scan)->counts = malloc(jobs_max * sizeof(uint32_t));
  if (!(*scan)->lane || !(*scan)->keys || !(*scan)->counts)
    abort();
  return 0;
}

void gpu_scan_destroy(struct gpu_scan *scan) {
  if (!scan)
    return;
  free(scan->lane);
  free(scan->keys);
  free(scan->counts);
  free(scan);
}

/* What is wanted of a job, backwards, since nobody is to rely on the order. Returns the number of candidates. */
static uint32_t run_job(struct gpu_scan *scan, const struct gpu_scan_wanted *wanted, const struct gpu_scan_job *job,
                        uint64_t *keys) {
  const struct gpu_columns *columns = job->columns;
  const struct record_columns part = {
      .signature = columns->signature, .k_scale = columns->k_scale, .k_mag = columns->k_mag, .count = columns->count};
  uint32_t places = wanted->best ? wanted->best : wanted->candidates;
  struct slice slices[1];
  struct range range;
  for (uint32_t i = 0; i < places; i++)
    keys[i] = UINT64_MAX;
  if (!range_init(&range, slices, &part, 1, job->begin, (uint64_t)job->begin + job->count) || !range.tokens)
    return 0;
  const struct scan lane_wanted = {.kernels = lookup_kernels(), .mode = wanted->mode, .range = &range,
                                   .queries = job->query, .rows = 1, .candidates = wanted->candidates};
  uint64_t *memory = malloc(lane_keys(&lane_wanted) * sizeof *memory);
  if (!memory)
    abort();
  lane_scan(scan->lane, 0, &lane_wanted, memory);
  uint32_t count = scan->lane->selects[0].count, left = count < places ? count : places;
  if (wanted->best) {
    rescored(&part, job, wanted->head_dim, scan->lane->selects[0].keys, count);
    fake_gpu_rescored += count;
  }
  for (uint32_t i = 0; i < left; i++)
    keys[i] = scan->lane->selects[0].keys[left - 1 - i];
  free(memory);
  fake_gpu_scanned += range.tokens;
  return count;
}

static bool goes_wrong(uint32_t *times) {
  bool wrong = *times > 0;
  *times -= wrong;
  return wrong;
}

int gpu_scan_start(struct gpu_scan *scan, const struct gpu_scan_wanted *wanted, const struct gpu_scan_job *jobs,
                   uint32_t job_count, void *stream, struct error *error) {
  uint32_t candidates = wanted->candidates, places = wanted->best ? wanted->best : candidates;
  (void)stream;
  if (job_count == 0 || job_count > scan->jobs_max || candidates == 0 || candidates > LIMIT_CANDIDATES_MAX ||
      (uint64_t)job_count * candidates > scan->keys_max || wanted->best > candidates)
    return error_set(error, ERR_BAD_PARAMS, "a scan of %u jobs with %u candidates", job_count, candidates);
  for (uint32_t i = 0; i < job_count; i++) {
    uint32_t there = wanted->best ? jobs[i].columns->codes : jobs[i].columns->count;
    if (jobs[i].begin > there || jobs[i].count > there - jobs[i].begin)
      return error_set(error, ERR_BAD_PARAMS, "a scan of records that are not there");
  }
  if (goes_wrong(&fake_gpu_faults.fail_starts))
    return error_set(error, ERR_IO, "GPU: cannot launch a scan");
  scan->failed = goes_wrong(&fake_gpu_faults.fail_scans);
  for (uint32_t i = 0; i < job_count; i++)
    scan->counts[i] = run_job(scan, wanted, &jobs[i], scan->keys + (size_t)i * places);
  if (goes_wrong(&fake_gpu_faults.lie))
    scan->keys[(scan->counts[0] < places ? scan->counts[0] : places) / 2] |= UINT32_MAX;
  return 0;
}

int gpu_scan_fetch(struct gpu_scan *scan, void *stream, struct error *error) {
  (void)scan;
  (void)stream;
  (void)error;
  return 0;
}

int gpu_scan_finish(struct gpu_scan *scan, const uint64_t **keys, const uint32_t **counts, struct error *error) {
  if (scan->failed)
    return error_set(error, ERR_IO, "GPU: a scan failed");
  *keys = scan->keys;
  *counts = scan->counts;
  return 0;
}
