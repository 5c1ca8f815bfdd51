// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// Scans on a GPU against reading its memory, in one run. The signatures of 32 layers take turns, which are far more
// than its caches hold.
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "retrieval/cuda/gpu.h"
#include "retrieval/lookup.h"
#include "tools/bench/bench.h"
#include "tools/bench/columns.h"
#include "tools/bench/device.h"
#include "tools/bench/measure.h"
#include "tools/demo/process.h"

#ifdef COLDKV_CUDA
#include "tools/bench/gpu_read.h"

enum {
  LAYERS = 32, /* Llama 3.1 8B */
  HEADS = 8,
  ROWS_MAX = 4, /* query heads of one kv head */
  SHORT = 1 << 17, /* tokens whose key codes are there, too */
  WINNERS = 64 + 16,
  QUERY_SETS = 7, /* that take turns, so that no scan of a layer has the query of its last one */
  TOKENS = 1 << 20,
  CANDIDATES = 1024,
  TURNS = 10, /* each goes over all layers */
  TURNS_QUICK = 2,
  SAMPLES_MAX = LAYERS * TURNS,
  BATCH = 16, /* launches one after the other, without a wait */
  READ_BYTES = 1 << 30,
  SHIFT = 4099, /* records between the beginnings of two columns' contents */
};

#define IN_A_BATCH "each of 16 launches one after the other"
_Static_assert(BATCH == 16, "in words, too");

struct bench {
  struct gpu *gpu;
  struct gpu_scan *scan;
  struct gpu_columns *columns[LAYERS][HEADS];
  struct query queries[QUERY_SETS][HEADS * ROWS_MAX];
  uint32_t turn;
  uint8_t *pool; /* GPU memory for the loops that only read */
  uint32_t *sink;
  cudaEvent_t begin, end;
  uint32_t turns;
  double samples[SAMPLES_MAX];
  double scan_s[2];    /* of one layer, best 1024, by mode */
  double read_s[2][2]; /* of only reading as much, by mode: launched alone, and each of a batch */
};

/* --- data -------------------------------------------------------------------------------------------------------- */

/* Key codes of the first tokens of all columns, likewise. */
static int upload_codes(struct bench *bench, uint64_t *state, struct error *error) {
  size_t count = SHORT + (size_t)LAYERS * HEADS * (SHIFT / 16);
  uint8_t *k_mag = malloc(count * RECORD_K_MAG_BYTES);
  int result = k_mag ? 0 : error_set(error, ERR_MEMORY, "no memory for %zu key codes", count);
  if (!result)
    noise_bytes(state, k_mag, count * RECORD_K_MAG_BYTES);
  for (uint32_t i = 0; i < LAYERS * HEADS && !result; i++)
    result = gpu_columns_append_codes(bench->columns[i / HEADS][i % HEADS],
                                      k_mag + (size_t)i * (SHIFT / 16) * RECORD_K_MAG_BYTES, SHORT, NULL, error);
  cudaDeviceSynchronize();
  free(k_mag);
  return result;
}

/* All columns from one run of random records, each from another place on. */
static int upload(struct bench *bench, struct error *error) {
  size_t count = TOKENS + (size_t)LAYERS * HEADS * SHIFT;
  uint64_t state = (uint64_t)(now_s() * 1e9);
  uint8_t *signature = malloc(count * RECORD_SIGNATURE_BYTES), *k_scale = malloc(count * RECORD_K_SCALE_BYTES);
  int result = signature && k_scale ? 0 : error_set(error, ERR_MEMORY, "no memory for %zu signatures", count);
  if (!result) {
    noise_bytes(&state, signature, count * RECORD_SIGNATURE_BYTES);
    for (size_t i = 0; i < count; i++)
      store_u16(k_scale + i * RECORD_K_SCALE_BYTES, random_scale(&state));
  }
  for (uint32_t i = 0; i < LAYERS * HEADS && !result; i++) {
    struct gpu_columns **columns = &bench->columns[i / HEADS][i % HEADS];
    size_t first = (size_t)i * SHIFT;
    result = gpu_columns_create(bench->gpu, columns, error);
    if (!result)
      result = gpu_columns_append(*columns, signature + first * RECORD_SIGNATURE_BYTES,
                                  k_scale + first * RECORD_K_SCALE_BYTES, TOKENS, NULL, error);
  }
  cudaDeviceSynchronize();
  free(signature);
  free(k_scale);
  if (!result)
    result = upload_codes(bench, &state, error);
  for (uint32_t r = 0; r < QUERY_SETS * HEADS * ROWS_MAX && !result; r++) {
    float row[RECORD_SIGNATURE_BITS];
    struct query *query = &bench->queries[r / (HEADS * ROWS_MAX)][r % (HEADS * ROWS_MAX)];
    random_query(&state, row);
    if (!query_prepare_c(query, LIMIT_HEAD_DIM_MAX, (const uint8_t *)row))
      result = error_set(error, ERR_INTERNAL, "a random query is not finite");
  }
  return result;
}

/* Random bytes, again and again, for the loops that only read. */
static int fill_pool(struct bench *bench, struct error *error) {
  enum { NOISE_BYTES = 1 << 25 };
  uint64_t state = 2;
  uint8_t *noise = malloc(NOISE_BYTES);
  if (!noise)
    return error_set(error, ERR_MEMORY, "no memory for %d bytes", NOISE_BYTES);
  noise_bytes(&state, noise, NOISE_BYTES);
  cudaError_t status = cudaSuccess;
  for (size_t at = 0; at < READ_BYTES && status == cudaSuccess; at += NOISE_BYTES)
    status = cudaMemcpy(bench->pool + at, noise, NOISE_BYTES, cudaMemcpyHostToDevice);
  free(noise);
  return status == cudaSuccess ? 0 : error_set(error, ERR_IO, "GPU: %s", cudaGetErrorString(status));
}

static int create(struct bench *bench, struct error *error) {
  int result = gpu_create(&bench->gpu, 0, error);
  if (!result)
    result = gpu_scan_create(bench->gpu, HEADS * ROWS_MAX, HEADS * ROWS_MAX * LIMIT_CANDIDATES_MAX, &bench->scan,
                             error);
  if (result)
    return result;
  if (cudaMalloc((void **)&bench->pool, READ_BYTES) != cudaSuccess ||
      cudaMalloc((void **)&bench->sink, sizeof *bench->sink) != cudaSuccess ||
      cudaEventCreate(&bench->begin) != cudaSuccess || cudaEventCreate(&bench->end) != cudaSuccess)
    return error_set(error, ERR_MEMORY, "no GPU memory to read (%d bytes)", READ_BYTES);
  result = fill_pool(bench, error);
  return result ? result : upload(bench, error);
}

static void destroy(struct bench *bench) {
  for (uint32_t i = 0; i < LAYERS * HEADS; i++)
    gpu_columns_destroy(bench->columns[i / HEADS][i % HEADS], NULL);
  gpu_scan_destroy(bench->scan);
  if (bench->gpu) {
    cudaFree(bench->pool);
    cudaFree(bench->sink);
  }
  gpu_destroy(bench->gpu);
}

/* --- times ------------------------------------------------------------------------------------------------------- */

static void start(struct bench *bench) { cudaEventRecord(bench->begin, NULL); }

/* Seconds on the GPU's clock since start(). */
static double stop(struct bench *bench) {
  float ms = 0;
  cudaEventRecord(bench->end, NULL);
  cudaEventSynchronize(bench->end);
  cudaEventElapsedTime(&ms, bench->begin, bench->end);
  return (double)ms * 1e-3;
}

static int failed(struct error *error) {
  cudaError_t status = cudaGetLastError();
  return status == cudaSuccess ? 0 : error_set(error, ERR_IO, "GPU: %s", cudaGetErrorString(status));
}

/* Bytes of a layer's columns that a scan reads. */
static double bytes_of(enum lookup_mode mode) {
  return (double)HEADS * TOKENS * (RECORD_SIGNATURE_BYTES + (mode == LOOKUP_HAMMING ? 0 : RECORD_K_SCALE_BYTES));
}

/* Seconds that reading `bytes` takes the best loop, place by place, each of a batch of launches; which loop that is. */
static double time_read(struct bench *bench, size_t bytes, uint32_t batch, int *best) {
  struct gpu_info info;
  double least = 0;
  gpu_info(bench->gpu, &info);
  for (int kind = 0; kind < GPU_READ_KINDS; kind++) {
    uint32_t places = (uint32_t)(READ_BYTES / bytes), count = 0, place = 0;
    for (uint32_t i = 0; i < 4 * bench->turns; i++) {
      start(bench);
      for (uint32_t j = 0; j < batch; j++, place++)
        gpu_read_launch(kind, bench->pool + place % places * bytes, bytes, info.processors, bench->sink, NULL);
      bench->samples[count] = stop(bench) / batch;
      count += i >= 2; /* warm */
    }
    double time = median(bench->samples, count);
    if (kind == 0 || time < least) {
      least = time;
      *best = kind;
    }
  }
  return least;
}

static int start_layer(struct bench *bench, enum lookup_mode mode, uint32_t layer, uint32_t rows, uint32_t candidates,
                       struct error *error) {
  struct gpu_scan_job jobs[HEADS * ROWS_MAX];
  const struct query *queries = bench->queries[bench->turn++ % QUERY_SETS];
  for (uint32_t i = 0; i < HEADS * rows; i++)
    jobs[i] = (struct gpu_scan_job){bench->columns[layer][i / rows], &queries[i], 0, TOKENS};
  const struct gpu_scan_wanted wanted = {.mode = mode, .candidates = candidates};
  return gpu_scan_start(bench->scan, &wanted, jobs, HEADS * rows, NULL, error);
}

/* One layer's scan. */
struct layer_case {
  uint32_t rows, candidates, batch;
  const char *name;
};

/* Seconds of a layer's scan, each of a batch of launches. */
static int time_layer(struct bench *bench, enum lookup_mode mode, const struct layer_case *of, double *time,
                      struct error *error) {
  int result = 0;
  uint32_t count = 0, layer = 0;
  for (uint32_t i = 0; i < LAYERS * (bench->turns + 1) && !result; i++) {
    start(bench);
    for (uint32_t j = 0; j < of->batch && !result; j++)
      result = start_layer(bench, mode, layer++ % LAYERS, of->rows, of->candidates, error);
    bench->samples[count] = stop(bench) / of->batch;
    count += i >= LAYERS; /* all have been scanned for as many candidates */
  }
  *time = median(bench->samples, count);
  return result ? result : failed(error);
}

/* Seconds of all layers, one after the other. */
static int time_token(struct bench *bench, enum lookup_mode mode, double *time, struct error *error) {
  int result = 0;
  uint32_t count = 0;
  for (uint32_t i = 0; i < 2 * bench->turns && !result; i++) {
    start(bench);
    for (uint32_t layer = 0; layer < LAYERS && !result; layer++)
      result = start_layer(bench, mode, layer, 1, CANDIDATES, error);
    bench->samples[count] = stop(bench);
    count += i >= 1;
  }
  *time = median(bench->samples, count);
  return result ? result : failed(error);
}

/* --- output ------------------------------------------------------------------------------------------------------ */

static double print_reads(struct bench *bench, struct bench_output *output) {
  static const char *const names[2][2] = {[LOOKUP_WEIGHTED] = {"read_weighted_us", "read_weighted_batch_us"},
                                          [LOOKUP_HAMMING] = {"read_hamming_us", "read_hamming_batch_us"}};
  int loop = 0;
  double rate = READ_BYTES / time_read(bench, READ_BYTES, 1, &loop);
  bench_integer(output, "read_loop", (uint64_t)loop, "the fastest loop that only reads");
  bench_figure(output, "read_gb_s", rate / 1e9, "GB/s, of 1 GiB: the device's read bandwidth");
  for (int m = 0; m < 2; m++) {
    enum lookup_mode mode = m ? LOOKUP_HAMMING : LOOKUP_WEIGHTED;
    for (int batch = 0; batch < 2; batch++) {
      char what[128];
      snprintf(what, sizeof what, "only reading %.1f MB, %s", bytes_of(mode) / 1e6,
               batch ? IN_A_BATCH : "one launch alone");
      bench->read_s[mode][batch] = time_read(bench, (size_t)bytes_of(mode), batch ? BATCH : 1, &loop);
      bench_figure(output, names[mode][batch], bench->read_s[mode][batch] * 1e6, what);
    }
  }
  return rate;
}

static int print_layer(struct bench *bench, struct bench_output *output, enum lookup_mode mode, double rate,
                       struct error *error) {
  static const struct layer_case cases[] = {
      {1, CANDIDATES, 1, ""},        {1, CANDIDATES, BATCH, "_batch"}, {1, 4096, 1, "_4096"},
      {1, 4096, BATCH, "_4096_batch"}, {ROWS_MAX, CANDIDATES, 1, "_rows4"},
  };
  bool hamming = mode == LOOKUP_HAMMING;
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    const struct layer_case *of = &cases[i];
    char name[64], what[160];
    double time;
    int result = time_layer(bench, mode, of, &time, error);
    if (result)
      return result;
    snprintf(name, sizeof name, "%s%s_us", hamming ? "hamming" : "weighted", of->name);
    snprintf(what, sizeof what, "8 kv heads x 1M tokens, %u row%s each, best %u: %.1f MB%s", of->rows,
             of->rows > 1 ? "s" : "", of->candidates, bytes_of(mode) / 1e6,
             of->batch > 1 ? ", " IN_A_BATCH : "");
    if (i == 0)
      bench->scan_s[mode] = time;
    bench_figure(output, name, time * 1e6, what);
    snprintf(name, sizeof name, "%s%s_over_read", hamming ? "hamming" : "weighted", of->name);
    bench_figure(output, name, bytes_of(mode) / time / rate,
                 i ? "" : hamming ? "wanted: at least 0.85" : "wanted: at least 0.75");
    snprintf(name, sizeof name, "%s%s_over_reading", hamming ? "hamming" : "weighted", of->name);
    bench_figure(output, name, bench->read_s[mode][of->batch > 1] / time,
                 "over only reading as much, launched in the same way");
  }
  return 0;
}

static int print_token(struct bench *bench, struct bench_output *output, enum lookup_mode mode, double rate,
                       struct error *error) {
  bool hamming = mode == LOOKUP_HAMMING;
  double bytes = LAYERS * bytes_of(mode);
  double time;
  int result = time_token(bench, mode, &time, error);
  if (result)
    return result;
  bench_figure(output, hamming ? "token_hamming_ms" : "token_weighted_ms", time * 1e3,
               "32 layers x 8 heads x 1M tokens, layer by layer; wanted: at most 2");
  bench_figure(output, hamming ? "token_hamming_bound_ms" : "token_weighted_bound_ms", bytes / rate * 1e3,
               "reading as much alone");
  return 0;
}

/* Starts a scan of 128k tokens of a layer's heads. */
static int start_short(struct bench *bench, const struct gpu_scan_wanted *wanted, uint32_t turn, struct error *error) {
  struct gpu_scan_job jobs[HEADS];
  for (uint32_t h = 0; h < HEADS; h++)
    jobs[h] = (struct gpu_scan_job){bench->columns[turn % LAYERS][h], &bench->queries[turn % QUERY_SETS][h], 0, SHORT};
  return gpu_scan_start(bench->scan, wanted, jobs, HEADS, NULL, error);
}

/* Seconds that it takes on the GPU, and seconds until a caller has the result. */
static int time_short(struct bench *bench, const struct gpu_scan_wanted *wanted, double *device, double *wait,
                      struct error *error) {
  uint32_t count = 0;
  int result = 0;
  for (uint32_t i = 0; i < LAYERS * bench->turns && !result; i++) {
    start(bench);
    result = start_short(bench, wanted, i, error);
    bench->samples[count] = stop(bench);
    count += i >= 4;
  }
  *device = median(bench->samples, count);
  count = 0;
  for (uint32_t i = 0; i < SAMPLES_MAX && !result; i++) {
    const uint64_t *keys;
    const uint32_t *counts;
    double begin = now_s();
    result = start_short(bench, wanted, i, error);
    if (!result)
      result = gpu_scan_fetch(bench->scan, NULL, error);
    if (!result)
      result = gpu_scan_finish(bench->scan, &keys, &counts, error);
    bench->samples[count] = now_s() - begin;
    count += i >= 4;
  }
  *wait = median(bench->samples, count);
  return result ? result : failed(error);
}

/* One layer of 128k tokens. */
static int print_wait(struct bench *bench, struct bench_output *output, struct error *error) {
  const uint32_t most = lookup_default_candidates(SHORT);
  const struct {
    struct gpu_scan_wanted wanted;
    const char *name, *what;
  } cases[] = {
      {{.mode = LOOKUP_WEIGHTED, .candidates = CANDIDATES}, "1024", "best 1024"},
      {{.mode = LOOKUP_WEIGHTED, .candidates = most}, "4096", "best 4096"},
      {{.mode = LOOKUP_WEIGHTED, .candidates = most, .best = WINNERS, .head_dim = LIMIT_HEAD_DIM_MAX}, "rescored",
       "best 4096, of these the best 80 after rescoring"},
  };
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    char name[64], what[128];
    double device, wait;
    int result = time_short(bench, &cases[i].wanted, &device, &wait, error);
    if (result)
      return result;
    snprintf(name, sizeof name, "device_128k_%s_us", cases[i].name);
    snprintf(what, sizeof what, "8 kv heads x 128k tokens, weighted, %s: on the GPU", cases[i].what);
    bench_figure(output, name, device * 1e6, what);
    snprintf(name, sizeof name, "wait_128k_%s_us", cases[i].name);
    bench_figure(output, name, wait * 1e6, "from the call to the result in host memory");
  }
  return 0;
}

/* The same in plain PyTorch, by a program that prints "name microseconds what it did" lines. */
static int print_torch(struct bench *bench, struct bench_output *output, struct error *error) {
  char script[PATH_MAX], command[PATH_MAX + 64], line[512], name[64], what[256];
  int result = process_beside(script, "cuda_compare.py", error);
  if (result)
    return result;
  snprintf(command, sizeof command, "python3 '%s' %d %d %d", script, HEADS, TOKENS, CANDIDATES);
  fflush(stdout);
  FILE *pipe = popen(command, "r");
  if (!pipe)
    return error_set_errno(error, errno, "%s: cannot be run", command);
  while (fgets(line, sizeof line, pipe)) {
    double us;
    line[strcspn(line, "\n")] = 0;
    if (sscanf(line, "%63s %lf %255[^\n]", name, &us, what) != 3)
      continue;
    bench_figure(output, name, us, what);
    bool best = strcmp(name, "torch_weighted_us") == 0 || strcmp(name, "torch_hamming_us") == 0;
    if (!best)
      continue;
    enum lookup_mode mode = strcmp(name, "torch_hamming_us") == 0 ? LOOKUP_HAMMING : LOOKUP_WEIGHTED;
    bench_figure(output, mode == LOOKUP_HAMMING ? "hamming_over_torch" : "weighted_over_torch",
                 us * 1e-6 / bench->scan_s[mode], "times as fast as that; wanted: 20");
  }
  pclose(pipe);
  return 0;
}

static int run(const struct bench_options *options, struct bench *bench, struct bench_output *output,
               struct error *error) {
  struct gpu_info info;
  int result = create(bench, error);
  if (result)
    return result;
  gpu_info(bench->gpu, &info);
  bench_machine(output, "cuda", "scans in the memory of a GPU; device events, medians");
  bench_text(output, "gpu", info.name, "device");
  bench_integer(output, "l2_mb", info.l2_bytes >> 20, "MB of second level cache");
  bench_integer(output, "resident_mb", gpu_columns_bytes(TOKENS) * LAYERS * HEADS >> 20,
                "MB of signatures and scales that take turns");
  start(bench);
  stop(bench);
  start(bench);
  bench_figure(output, "events_us", stop(bench) * 1e6, "between two events with nothing between them");
  double rate = print_reads(bench, output);
  result = print_layer(bench, output, LOOKUP_WEIGHTED, rate, error);
  if (!result)
    result = print_layer(bench, output, LOOKUP_HAMMING, rate, error);
  if (!result)
    result = print_token(bench, output, LOOKUP_WEIGHTED, rate, error);
  if (!result)
    result = print_token(bench, output, LOOKUP_HAMMING, rate, error);
  if (!result)
    result = print_wait(bench, output, error);
  if (!result)
    result = print_torch(bench, output, error);
  return result ? result : bench_device(options->quick, rate, output, error);
}

int bench_cuda(const struct bench_options *options, struct bench_output *output, struct error *error) {
  static struct bench bench;
  bench = (struct bench){.turns = options->quick ? TURNS_QUICK : TURNS};
  int result = run(options, &bench, output, error);
  destroy(&bench);
  return result;
}
#else
int bench_cuda(const struct bench_options *options, struct bench_output *output, struct error *error) {
  struct gpu *gpu;
  (void)options;
  (void)output;
  return gpu_create(&gpu, 0, error);
}
#endif
