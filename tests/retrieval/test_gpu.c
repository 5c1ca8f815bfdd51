// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// usage: test_gpu [SEED [ROUNDS [RECORDS]]]
//
// Checks scans and rescoring on the GPU against plain C, over random and extreme input, other at every run unless a
// seed that is not 0 is given; columns have up to RECORDS. Exits with 77 where there is no GPU.
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "proto/bytes.h"
#include "retrieval/cuda/gpu.h"
#include "retrieval/lane.h"
#include "tests/proto/random.h"
#include "tests/retrieval/rescored.h"

enum { ROUNDS = 60, JOBS_MAX = 80, FLIGHTS = 2, RECORDS = 300000, SKIPPED = 77 };

/* What records look like. Key codes are random, except where everything is to be equal. */
enum kind { RANDOM, SCALES_REAL, ALL_EQUAL, FEW_VALUES, LATE_BEST, SAMPLE_BEST, MOSTLY_INVALID, KINDS };
static const char *const kind_names[] = {"random", "real scales", "all equal", "few values", "best late",
                                         "best in the sample", "mostly invalid"};

struct columns {
  enum kind kind;
  uint32_t count;
  uint8_t *signature, *k_scale, *k_mag;
  struct gpu_columns *gpu;
};

static struct random randomness;
static uint32_t records_max = RECORDS;
static struct error error;

static void give_up(const char *what) {
  fprintf(stderr, "test_gpu: %s: %s\n", what, error.text);
  exit(1);
}

static void *allocate(size_t size) {
  void *memory = malloc(size ? size : 1);
  if (!memory)
    abort();
  return memory;
}

static uint32_t below(uint32_t n) { return (uint32_t)random_below(&randomness, n); }

/* --- input ------------------------------------------------------------------------------------------------------- */

static uint16_t make_scale(enum kind kind, uint32_t i, uint32_t count) {
  uint16_t real = (uint16_t)(0x2c00 + below(0x400));
  switch (kind) {
  case RANDOM: return (uint16_t)random_u64(&randomness); /* subnormal, infinite, NaN, negative */
  case SCALES_REAL: return real;
  case ALL_EQUAL: return 0x3c00;
  case FEW_VALUES: return below(50) ? (uint16_t)(below(3) * 0x3c00) : 0x7c00;
  /* places where a sample may fall have low scales, or the only high ones */
  case LATE_BEST: return i % (count / 64 + 1) < count / 128 ? 0x0001 : real;
  case SAMPLE_BEST: return i % 8192 < 700 ? 0x7bff : (uint16_t)(i % 4096 ? 0x0001 : 0x7e00);
  default: return i % 997 ? (uint16_t)(0x7c00 + below(0x400)) : real;
  }
}

/* Records or their key codes, as they come: some at a time. */
static void append(struct columns *columns, bool codes, void *stream) {
  for (uint32_t done = 0, n; done < columns->count; done += n) {
    n = below(3) ? below(columns->count - done) + 1 : below(100) + 1;
    n = n < columns->count - done ? n : columns->count - done;
    if (codes ? gpu_columns_append_codes(columns->gpu, columns->k_mag + (size_t)done * RECORD_K_MAG_BYTES, n, stream,
                                         &error)
              : gpu_columns_append(columns->gpu, columns->signature + (size_t)done * 16,
                                   columns->k_scale + (size_t)done * 2, n, stream, &error))
      give_up("append");
  }
}

static void make_columns(struct gpu *gpu, struct columns *columns, void *stream) {
  static const uint32_t edges[] = {0, 1, 2, 31, 33, 511, 2049, 16383, 16384, 16385, 65537};
  uint32_t pick = below(4);
  columns->kind = (enum kind)below(KINDS);
  columns->count = pick == 0   ? edges[below(sizeof edges / sizeof *edges)]
                   : pick == 1 ? below(20000)
                               : below(records_max);
  columns->signature = allocate((size_t)columns->count * 16);
  columns->k_scale = allocate((size_t)columns->count * 2);
  columns->k_mag = allocate((size_t)columns->count * RECORD_K_MAG_BYTES);
  random_fill(&randomness, columns->signature, (size_t)columns->count * 16);
  random_fill(&randomness, columns->k_mag, (size_t)columns->count * RECORD_K_MAG_BYTES);
  for (uint32_t i = 0; i < columns->count; i++) {
    if (columns->kind == ALL_EQUAL)
      memset(columns->signature + (size_t)i * 16, 0x5a, 16);
    if (columns->kind == FEW_VALUES)
      memset(columns->signature + (size_t)i * 16, below(2) ? 0xff : 0x0f, 16);
    store_u16(columns->k_scale + (size_t)i * 2, make_scale(columns->kind, i, columns->count));
  }
  if (columns->kind == ALL_EQUAL)
    memset(columns->k_mag, 0xc3, (size_t)columns->count * RECORD_K_MAG_BYTES);
  if (gpu_columns_create(gpu, &columns->gpu, &error))
    give_up("columns");
  append(columns, false, stream);
  append(columns, true, stream);
  if (below(4) == 0) { /* they go and come again */
    gpu_columns_drop_codes(columns->gpu, stream);
    append(columns, true, stream);
  }
}

static void free_columns(struct columns *columns, void *stream) {
  gpu_columns_destroy(columns->gpu, stream);
  free(columns->signature);
  free(columns->k_scale);
  free(columns->k_mag);
}

static void make_query(struct query *query, uint32_t head_dim) {
  float row[QUERY_FLOATS];
  uint32_t kind = below(5);
  for (int i = 0; i < QUERY_FLOATS; i++) {
    row[i] = (float)((int)below(2001) - 1000) * 0.37f;
    if (kind == 1)
      row[i] = below(2) ? 1.0f : -1.0f; /* all of them 7 or -7 */
    if (kind == 2)
      row[i] = i == 77 ? 3e38f : 0x1p-149f;
    if (kind == 3 && below(10))
      row[i] = 0;
    if (kind == 4)
      row[i] = below(7) ? 0.0f : -0.0f; /* mostly all zero */
  }
  if (!query_prepare_c(query, head_dim, (const uint8_t *)row))
    abort();
}

/* --- reference --------------------------------------------------------------------------------------------------- */

/* The best of a job, ascending; returns how many. */
static uint32_t reference(const struct columns *columns, const struct gpu_scan_job *job, enum lookup_mode mode,
                          uint32_t candidates, uint64_t *best) {
  struct lookup_kernels kernels;
  lookup_kernels_init(&kernels, 0);
  struct record_columns part = {
      .signature = columns->signature, .k_scale = columns->k_scale, .count = columns->count};
  struct slice slices[1];
  struct range range;
  if (job->count == 0 || !range_init(&range, slices, &part, 1, job->begin, (uint64_t)job->begin + job->count))
    return 0;
  struct scan scan = {.kernels = &kernels, .mode = mode, .range = &range, .queries = job->query, .rows = 1,
                      .candidates = candidates};
  static struct lane lane;
  uint64_t *keys = allocate(lane_keys(&scan) * sizeof *keys);
  lane_scan(&lane, 0, &scan, keys);
  uint32_t count = lane.selects[0].count;
  select_sort(lane.selects[0].keys, count);
  memcpy(best, lane.selects[0].keys, count * sizeof *best);
  free(keys);
  return count;
}

/* --- rounds ------------------------------------------------------------------------------------------------------ */

/* `got`: as many keys as there are to be, and what is after the last of them. */
static bool check_job(const struct columns *columns, const struct gpu_scan_job *job,
                      const struct gpu_scan_wanted *asked, uint64_t *got, uint32_t got_count, uint64_t *wanted) {
  uint32_t count = reference(columns, job, asked->mode, asked->candidates, wanted), places = asked->candidates;
  bool right = got_count == count;
  if (right && asked->best) {
    rescored(&(struct record_columns){.signature = columns->signature, .k_scale = columns->k_scale,
                                      .k_mag = columns->k_mag},
             job, asked->head_dim, wanted, count);
    places = asked->best;
    count = count < places ? count : places;
  }
  if (right) {
    select_sort(got, count);
    right = memcmp(got, wanted, count * sizeof *got) == 0;
    for (uint32_t i = count; i < places; i++)
      right &= got[i] == UINT64_MAX;
  }
  if (!right)
    fprintf(stderr, "WRONG: %s, %s, records %u + %u of %u, C %u, best %u of head_dim %u: got %u, wanted %u\n",
            asked->mode == LOOKUP_HAMMING ? "hamming" : "weighted", kind_names[columns->kind], job->begin, job->count,
            columns->count, asked->candidates, asked->best, asked->head_dim, got_count, count);
  return right;
}

static struct gpu_scan_wanted make_wanted(void) {
  static const uint32_t edges[] = {1, 2, 1024, 4096, 4097, LIMIT_CANDIDATES_MAX};
  struct gpu_scan_wanted wanted = {
      .mode = below(2) ? LOOKUP_HAMMING : LOOKUP_WEIGHTED,
      .candidates = below(2) ? edges[below(sizeof edges / sizeof *edges)] : 1 + below(LIMIT_CANDIDATES_MAX),
      .head_dim = below(2) ? LIMIT_HEAD_DIM_MAX : 64 + 8 * below(9),
  };
  if (below(2))
    wanted.best = below(3) ? 1 + below(wanted.candidates < 80 ? wanted.candidates : 80) : 1 + below(wanted.candidates);
  return wanted;
}

/* A scan between its start and the check of its results. */
struct flight {
  struct gpu_scan *scan;
  struct gpu_scan_wanted asked;
  struct query queries[JOBS_MAX];
  struct gpu_scan_job jobs[JOBS_MAX];
  uint32_t of[JOBS_MAX], job_count; /* columns of each job */
};

/* Starts a scan of some of the columns. */
static void start_scan(struct flight *flight, const struct columns *columns, uint32_t heads) {
  flight->asked = make_wanted();
  flight->job_count = below(4) ? 1 + below(9) : 1 + below(JOBS_MAX);
  for (uint32_t j = 0; j < flight->job_count; j++) {
    flight->of[j] = below(heads);
    uint32_t count = columns[flight->of[j]].count, begin = below(3) ? 0 : below(count + 1);
    make_query(&flight->queries[j], flight->asked.head_dim);
    flight->jobs[j] = (struct gpu_scan_job){columns[flight->of[j]].gpu, &flight->queries[j], begin,
                                            below(3) ? count - begin : below(count - begin + 1)};
  }
  if (gpu_scan_start(flight->scan, &flight->asked, flight->jobs, flight->job_count, NULL, &error))
    give_up("start");
}

/* Returns how many jobs were wrong. */
static uint32_t finish_scan(struct flight *flight, const struct columns *columns) {
  const struct gpu_scan_wanted *asked = &flight->asked;
  uint32_t places = asked->best ? asked->best : asked->candidates, wrong = 0;
  uint64_t *keys = allocate(places * sizeof *keys), *wanted = allocate(asked->candidates * sizeof *wanted);
  const uint64_t *found;
  const uint32_t *counts;
  if (gpu_scan_finish(flight->scan, &found, &counts, &error))
    give_up("finish");
  for (uint32_t j = 0; j < flight->job_count; j++) {
    memcpy(keys, found + (size_t)j * places, places * sizeof *keys);
    wrong += !check_job(&columns[flight->of[j]], &flight->jobs[j], asked, keys, counts[j], wanted);
  }
  free(keys);
  free(wanted);
  return wrong;
}

/* Scans that are started one after the other, and only then waited for. */
static uint32_t run_scans(struct flight *flights, const struct columns *columns, uint32_t heads, uint32_t *jobs_done) {
  uint32_t count = 1 + below(FLIGHTS), wrong = 0;
  for (uint32_t i = 0; i < count; i++) {
    for (uint32_t starts = below(3) ? 1 : 2; starts > 0; starts--) /* of the last one come the results */
      start_scan(&flights[i], columns, heads);
    if (gpu_scan_fetch(flights[i].scan, NULL, &error))
      give_up("fetch");
  }
  for (uint32_t i = 0; i < count; i++) {
    wrong += finish_scan(&flights[i], columns);
    *jobs_done += flights[i].job_count;
  }
  return wrong;
}

/* New columns, which several scans go over: each leaves a hint for the next, which may be of any use or none. */
static uint32_t run_round(struct gpu *gpu, struct flight *flights, uint32_t *jobs_done) {
  static struct columns columns[4];
  uint32_t heads = 1 + below(4), wrong = 0;
  for (uint32_t h = 0; h < heads; h++)
    make_columns(gpu, &columns[h], NULL);
  for (uint32_t scans = 1 + below(2); scans > 0; scans--)
    wrong += run_scans(flights, columns, heads, jobs_done);
  for (uint32_t h = 0; h < heads; h++)
    free_columns(&columns[h], NULL);
  return wrong;
}

int main(int argc, char **argv) {
  uint64_t seed = argc > 1 ? strtoull(argv[1], NULL, 0) : 0;
  uint32_t rounds = argc > 2 ? (uint32_t)strtoul(argv[2], NULL, 0) : ROUNDS, jobs = 0, wrong = 0;
  records_max = argc > 3 ? (uint32_t)strtoul(argv[3], NULL, 0) : RECORDS;
  struct gpu *gpu;
  static struct flight flights[FLIGHTS];
  struct gpu_info info;
  if (gpu_create(&gpu, 0, &error)) {
    printf("skipped: %s\n", error.text);
    return error.code == ERR_NOT_SUPPORTED ? SKIPPED : 1;
  }
  if (seed == 0)
    seed = (uint64_t)time(NULL);
  gpu_info(gpu, &info);
  printf("%s, seed %llu\n", info.name, (unsigned long long)seed);
  fflush(stdout);
  randomness.state = seed;
  for (uint32_t r = 0; r < rounds; r++) {
    /* now and then new ones, whose memory others have written before */
    for (uint32_t i = 0; i < FLIGHTS && r % 8 == 0; i++)
      if (gpu_scan_create(gpu, JOBS_MAX, JOBS_MAX * LIMIT_CANDIDATES_MAX, &flights[i].scan, &error))
        give_up("scan");
    wrong += run_round(gpu, flights, &jobs);
    for (uint32_t i = 0; i < FLIGHTS && (r % 8 == 7 || r + 1 == rounds); i++)
      gpu_scan_destroy(flights[i].scan);
  }
  gpu_destroy(gpu);
  printf("%u jobs, %u wrong\n", jobs, wrong);
  return wrong != 0;
}
