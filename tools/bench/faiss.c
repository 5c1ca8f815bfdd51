// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// FAISS IndexBinaryFlat on the same signatures, the same core and in the same run. It lives in Python processes that
// wait for their turn; what is compared with it is a scan that keeps the best 64, exactly, as it does.
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "retrieval/lane.h"
#include "tools/bench/measure.h"
#include "tools/bench/scan.h"
#include "tools/demo/process.h"

enum {
  SIGNATURES = 16 << 20,
  SIGNATURES_QUICK = 1 << 20,
  K = 64,
  ROUNDS = 15,
  ROUNDS_QUICK = 5,
  SIDES = 2, /* PyPI's and Debian's */
};

struct side {
  const char *name;
  char interpreter[PATH_MAX], version[64];
  FILE *to, *from; /* NULL: not to be had */
  pid_t pid;
  double seconds[ROUNDS];
};

struct faiss {
  const struct scan_data *data;
  struct side sides[SIDES];
  uint32_t count, rounds;
  char scratch[PATH_MAX];
  struct lane *lane;
  uint64_t *keys;
  uint32_t distances[K]; /* of the last Hamming scan, ascending */
  double hamming[ROUNDS], weighted[ROUNDS];
};

/* --- files and processes ------------------------------------------------------------------------------------------ */

static int write_file(const char *folder, const char *name, const void *data, size_t size, char path[PATH_MAX],
                      struct error *error) {
  snprintf(path, PATH_MAX, "%s/%s", folder, name);
  FILE *file = fopen(path, "wb");
  if (!file || fwrite(data, 1, size, file) != size || fclose(file))
    return error_set_errno(error, errno, "%s: cannot be written", path);
  return 0;
}

/* Reads which interpreters there are from the script that installs them. */
static int find_interpreters(struct faiss *faiss, struct error *error) {
  char script[PATH_MAX], command[PATH_MAX + 8], line[PATH_MAX + 16];
  int result = process_beside(script, "faiss_compare.sh", error);
  if (result)
    return result;
  snprintf(command, sizeof command, "sh '%s'", script);
  FILE *pipe = popen(command, "r");
  if (!pipe)
    return error_set_errno(error, errno, "%s: cannot be run", script);
  while (fgets(line, sizeof line, pipe)) {
    line[strcspn(line, "\n")] = 0;
    for (int i = 0; i < SIDES; i++) {
      size_t size = strlen(faiss->sides[i].name);
      if (strncmp(line, faiss->sides[i].name, size) == 0 && line[size] == ' ')
        snprintf(faiss->sides[i].interpreter, PATH_MAX, "%s", line + size + 1);
    }
  }
  pclose(pipe);
  return 0;
}

static void become(const char *interpreter, const char *program, const char *base, const char *queries, int in, int out,
                   pid_t parent) {
  char k[16];
  snprintf(k, sizeof k, "%d", K);
  process_follow(parent);
  dup2(in, 0);
  dup2(out, 1);
  setenv("OMP_NUM_THREADS", "1", 1);
  execl(interpreter, interpreter, program, base, queries, k, (char *)NULL);
  _exit(127);
}

/* Starts one FAISS and waits until it has read the signatures. */
static int start(struct side *side, const char *base, const char *queries, struct error *error) {
  int in[2], out[2];
  char program[PATH_MAX];
  if (!side->interpreter[0])
    return 0;
  int result = process_beside(program, "faiss_compare.py", error);
  if (result)
    return result;
  if (pipe2(in, O_CLOEXEC) || pipe2(out, O_CLOEXEC)) /* or one side would keep the other's open */
    return error_set_errno(error, errno, "cannot make a pipe");
  pid_t parent = getpid();
  side->pid = fork();
  if (side->pid == 0) {
    become(side->interpreter, program, base, queries, in[0], out[1], parent);
  }
  close(in[0]);
  close(out[1]);
  side->to = fdopen(in[1], "w");
  side->from = fdopen(out[0], "r");
  if (side->pid < 0 || !side->to || !side->from || !fgets(side->version, sizeof side->version, side->from))
    return error_set(error, ERR_INTERNAL, "%s: its FAISS does not start", side->interpreter);
  side->version[strcspn(side->version, "\n")] = 0;
  return 0;
}

static void stop(struct side *side) {
  if (side->to)
    fclose(side->to);
  if (side->from)
    fclose(side->from);
  if (side->pid > 0)
    waitpid(side->pid, NULL, 0);
}

/* --- one turn ---------------------------------------------------------------------------------------------------- */

static int time_faiss(struct side *side, uint32_t query, double *seconds, struct error *error) {
  double other;
  fprintf(side->to, "time %u\n", query);
  fflush(side->to);
  if (fscanf(side->from, "%lf %lf", seconds, &other) != 2)
    return error_set(error, ERR_INTERNAL, "%s: its FAISS gave no time", side->interpreter);
  if (other < *seconds)
    *seconds = other;
  return 0;
}

/* Compares its 64 least distances with ours: both are exact. */
static int check(struct faiss *faiss, struct side *side, uint32_t query, struct error *error) {
  fprintf(side->to, "check %u\n", query);
  fflush(side->to);
  for (int i = 0; i < K; i++) {
    uint32_t distance;
    if (fscanf(side->from, "%u", &distance) != 1 || distance != faiss->distances[i])
      return error_set(error, ERR_INTERNAL, "FAISS %s finds other distances than we do", side->version);
  }
  return 0;
}

/* Our scan with selection, as a lookup does it. */
static double time_ours(struct faiss *faiss, enum lookup_mode mode, uint32_t query) {
  const struct scan_data *data = faiss->data;
  struct record_columns columns = {.signature = data->signature, .k_scale = data->k_scale, .count = faiss->count};
  struct slice slice;
  struct range range;
  range_init(&range, &slice, &columns, 1, 0, faiss->count);
  const struct scan scan = {.kernels = lookup_kernels(), .mode = mode, .range = &range,
                            .queries = &data->queries[query], .rows = 1, .candidates = K};
  if (!faiss->keys)
    faiss->keys = malloc(lane_keys(&scan) * sizeof *faiss->keys);
  if (!faiss->keys)
    return NAN;
  double began = core_s();
  lane_scan(faiss->lane, 0, &scan, faiss->keys);
  const struct select *found = &faiss->lane->selects[0];
  select_sort(found->keys, found->count);
  double seconds = core_s() - began;
  for (uint32_t i = 0; i < K && mode == LOOKUP_HAMMING; i++)
    faiss->distances[i] = select_key_rank(found->keys[i]);
  return seconds;
}

static int run_rounds(struct faiss *faiss, struct error *error) {
  int result = 0;
  for (uint32_t i = 0; i < faiss->rounds && !result; i++) {
    uint32_t query = i % SCAN_ROWS_MAX;
    faiss->hamming[i] = time_ours(faiss, LOOKUP_HAMMING, query);
    for (int s = 0; s < SIDES && !result; s++) {
      struct side *side = &faiss->sides[s];
      if (!side->from)
        continue;
      result = time_faiss(side, query, &side->seconds[i], error);
      if (!result && i == 0)
        result = check(faiss, side, query, error);
    }
    faiss->weighted[i] = time_ours(faiss, LOOKUP_WEIGHTED, query);
  }
  return result;
}

/* --- the whole --------------------------------------------------------------------------------------------------- */

static void print(struct faiss *faiss, struct bench_output *output) {
  static const char *const names[SIDES][5] = {
      {"hamming_over_faiss", "weighted_over_faiss", "faiss_version", "faiss_ms", "wanted: at least 1.6 and 1.3"},
      {"hamming_over_faiss_debian", "weighted_over_faiss_debian", "faiss_debian_version", "faiss_debian_ms",
       "wanted: at least 5 and 4"},
  };
  double ratios[SIDES][2];
  for (int s = 0; s < SIDES; s++) {
    const struct side *side = &faiss->sides[s];
    ratios[s][0] = side->from ? ratio_median(side->seconds, faiss->hamming, faiss->rounds) : NAN;
    ratios[s][1] = side->from ? ratio_median(side->seconds, faiss->weighted, faiss->rounds) : NAN;
  }
  bench_integer(output, "faiss_signatures", faiss->count, "N, of 128 bits; k = 64, one query, one core");
  bench_figure(output, "select_hamming_ms", 1e3 * median(faiss->hamming, faiss->rounds),
               "ms, our Hamming scan that keeps the best 64");
  bench_figure(output, "select_weighted_ms", 1e3 * median(faiss->weighted, faiss->rounds), "ms, the weighted one");
  for (int s = 0; s < SIDES; s++) {
    struct side *side = &faiss->sides[s];
    bench_text(output, names[s][2], side->from ? side->version : "none", s ? "FAISS of Debian" : "FAISS of PyPI");
    bench_figure(output, names[s][3], side->from ? 1e3 * median(side->seconds, faiss->rounds) : NAN, "ms a search");
    bench_figure(output, names[s][0], ratios[s][0], names[s][4]);
    bench_figure(output, names[s][1], ratios[s][1], "FAISS's Hamming search over our weighted scan");
  }
}

int scan_against_faiss(const struct scan_data *data, const struct bench_options *options,
                       struct bench_output *output, struct error *error) {
  struct faiss *faiss = calloc(1, sizeof *faiss);
  char base[PATH_MAX], queries[PATH_MAX];
  uint64_t signs[SCAN_ROWS_MAX][2];
  if (!faiss)
    return error_set(error, ERR_MEMORY, "no memory to compare with FAISS");
  faiss->data = data;
  faiss->count = options->quick ? SIGNATURES_QUICK : SIGNATURES;
  faiss->rounds = options->quick ? ROUNDS_QUICK : ROUNDS;
  faiss->sides[0].name = "pypi";
  faiss->sides[1].name = "debian";
  faiss->lane = aligned_alloc(64, (sizeof *faiss->lane + 63) / 64 * 64);
  for (int r = 0; r < SCAN_ROWS_MAX; r++)
    memcpy(signs[r], data->queries[r].sign, sizeof signs[r]);
  int result = faiss->lane ? find_interpreters(faiss, error) : error_set(error, ERR_MEMORY, "no memory for a scan");
  if (!result)
    result = scratch_create(faiss->scratch, error);
  if (!result)
    result = write_file(faiss->scratch, "signatures", data->signature, (size_t)faiss->count * RECORD_SIGNATURE_BYTES,
                        base, error);
  if (!result)
    result = write_file(faiss->scratch, "queries", signs, sizeof signs, queries, error);
  for (int s = 0; s < SIDES && !result; s++)
    result = start(&faiss->sides[s], base, queries, error);
  if (!result)
    result = run_rounds(faiss, error);
  if (!result)
    print(faiss, output);
  for (int s = 0; s < SIDES; s++)
    stop(&faiss->sides[s]);
  scratch_remove(faiss->scratch);
  free(faiss->lane);
  free(faiss->keys);
  free(faiss);
  return result;
}
