// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// Whole lookups in memory: what selecting and rescoring add to the scan, and what a second thread brings.
#include <math.h>
#include <stdlib.h>

#include "retrieval/lookup.h"
#include "tools/bench/columns.h"
#include "tools/bench/measure.h"
#include "tools/bench/read.h"
#include "tools/bench/scan.h"
#include "tools/bench/team.h"

enum {
  TOKENS = 4 << 20, /* for two threads */
  WINDOW = 1 << 20, /* for a lookup over the scan alone */
  K = 64,
  ROUNDS = 41,
  ROUNDS_QUICK = 9,
};

struct lookups {
  const struct scan_data *data;
  struct columns columns;
  struct lookup_scratch *scratch;
  struct team *team; /* NULL: one processor */
  uint64_t state;
  uint32_t rounds;
  double lookup[2][ROUNDS], scan[2][ROUNDS]; /* by mode */
  double one[ROUNDS], two[ROUNDS], read_one[ROUNDS], read_two[ROUNDS];
};

/* Seconds by `clock` of one lookup of the default C; a query that no cache has seen. */
static int time_lookup(struct lookups *lookups, enum lookup_mode mode, uint64_t from, uint64_t before,
                       const struct lookup_team *team, double (*clock)(void), double *seconds, struct error *error) {
  static uint64_t tokens[K];
  static uint8_t records[K * RECORD_BYTES];
  static uint32_t index[K];
  static float scores[K], row[RECORD_SIGNATURE_BITS];
  struct lookup_answer answer = {.tokens = tokens, .records = records, .index = index, .scores = scores};
  const struct lookup_request request = {
      .mode = mode, .head_dim = LIMIT_HEAD_DIM_MAX, .rows = 1, .k = K, .from = from, .before = before,
      .queries = (const uint8_t *)row, .row_stride = sizeof row, .team = team};
  random_query(&lookups->state, row);
  double start = clock();
  int result = lookup_run(lookups->scratch, &request, lookups->columns.parts, lookups->columns.part_count, &answer,
                          error);
  *seconds = clock() - start;
  if (!result && (answer.count != K || answer.bad_records))
    result = error_set(error, ERR_INTERNAL, "a lookup found %u records, %llu of them bad", answer.count,
                       (unsigned long long)answer.bad_records);
  return result;
}

/* Seconds of the kernels alone over the same records. */
static double time_scan(const struct lookups *lookups, enum lookup_mode mode, uint64_t from, uint64_t before) {
  double start = core_s();
  uint32_t end = (uint32_t)(before / LIMIT_SEGMENT_TOKENS);
  for (uint32_t p = (uint32_t)(from / LIMIT_SEGMENT_TOKENS); p < end; p++) {
    const struct record_columns *part = &lookups->columns.parts[p], *after = p + 1 < end ? part + 1 : NULL;
    if (mode == LOOKUP_WEIGHTED)
      scan_weighted(lookups->data, part, after, 1);
    else
      scan_hamming(lookups->data, part, after, 1);
  }
  return core_s() - start;
}

/* --- reading with two threads, the limit of what they can do ------------------------------------------------------ */

struct reading {
  const struct read_loop *loop;
  const uint8_t *data;
  size_t bytes; /* of one share */
  volatile uint64_t sink[2];
};

static void read_share(void *context, uint32_t index) {
  struct reading *reading = context;
  reading->sink[index] = reading->loop->run(reading->data + index * reading->bytes, reading->bytes);
}

static void time_reads(struct lookups *lookups, const struct read_loop *loop, uint32_t round) {
  struct reading reading = {loop, lookups->data->signature,
                            (size_t)lookups->data->count * RECORD_SIGNATURE_BYTES / 2, {0}};
  double start = now_s();
  read_share(&reading, 0);
  read_share(&reading, 1);
  lookups->read_one[round] = now_s() - start;
  if (!lookups->team)
    return;
  const struct lookup_team *team = team_of(lookups->team);
  start = now_s();
  team->run(team, 2, read_share, &reading);
  lookups->read_two[round] = now_s() - start;
}

/* --- in turns ---------------------------------------------------------------------------------------------------- */

static int run_round(struct lookups *lookups, uint32_t i, struct error *error) {
  int result = 0;
  for (int mode = 0; mode < 2 && !result; mode++) { /* windows in turn, so that none is still in a cache */
    uint64_t from = (uint64_t)(2 * i + (uint32_t)mode) % (TOKENS / WINDOW) * WINDOW;
    uint64_t next = (from + WINDOW) % TOKENS;
    result = time_lookup(lookups, (enum lookup_mode)mode, from, from + WINDOW, NULL, core_s,
                         &lookups->lookup[mode][i], error);
    lookups->scan[mode][i] = time_scan(lookups, (enum lookup_mode)mode, next, next + WINDOW);
  }
  if (!result)
    result = time_lookup(lookups, LOOKUP_WEIGHTED, 0, TOKENS, NULL, now_s, &lookups->one[i], error);
  if (!result && lookups->team)
    result = time_lookup(lookups, LOOKUP_WEIGHTED, 0, TOKENS, team_of(lookups->team), now_s, &lookups->two[i],
                         error);
  return result;
}

static void print(struct lookups *lookups, struct bench_output *output) {
  uint32_t n = lookups->rounds;
  double ratios[2], over = NAN, reads = NAN;
  for (int mode = 0; mode < 2; mode++)
    ratios[mode] = ratio_median(lookups->lookup[mode], lookups->scan[mode], n);
  if (lookups->team) {
    over = ratio_median(lookups->one, lookups->two, n);
    reads = ratio_median(lookups->read_one, lookups->read_two, n);
  }
  bench_integer(output, "lookup_tokens", WINDOW, "N of the lookups over the scan alone");
  bench_integer(output, "lookup_candidates", lookup_default_candidates(WINDOW), "C, rescored for the best 64");
  bench_figure(output, "lookup_ms", 1e3 * median(lookups->lookup[0], n), "ms, a whole weighted lookup");
  bench_figure(output, "lookup_scan_ms", 1e3 * median(lookups->scan[0], n), "ms, the scan alone");
  bench_figure(output, "lookup_over_scan", ratios[0], "wanted: at most 1.3");
  bench_figure(output, "lookup_over_scan_hamming", ratios[1], "the same in Hamming mode");
  bench_integer(output, "threads_tokens", TOKENS, "N of the lookups by two threads");
  bench_figure(output, "threads1_ms", 1e3 * median(lookups->one, n), "ms, by one thread");
  bench_figure(output, "threads2_ms", lookups->team ? 1e3 * median(lookups->two, n) : NAN, "ms, by two");
  bench_figure(output, "threads2_over_1", over, "wanted: at least 1.8");
  bench_figure(output, "threads2_over_1_read", reads, "what two threads bring to a loop that only reads");
}

int scan_lookups(const struct scan_data *data, const struct bench_options *options, int other,
                 struct bench_output *output, struct error *error) {
  struct read_loop loops[READ_LOOPS_MAX];
  struct lookups *lookups = calloc(1, sizeof *lookups);
  if (!lookups)
    return error_set(error, ERR_MEMORY, "no memory for times");
  lookups->data = data;
  lookups->state = 7;
  lookups->rounds = options->quick ? ROUNDS_QUICK : ROUNDS;
  read_loops(loops);
  int result = columns_create(&lookups->columns, TOKENS, 3, error);
  if (!result)
    result = lookup_scratch_create(&lookups->scratch, error);
  if (!result && other >= 0)
    result = team_create(&lookups->team, other, error);
  for (uint32_t i = 0; i < lookups->rounds && !result; i++) {
    result = run_round(lookups, i, error);
    time_reads(lookups, &loops[0], i);
  }
  if (!result)
    print(lookups, output);
  team_destroy(lookups->team);
  lookup_scratch_destroy(lookups->scratch);
  columns_destroy(&lookups->columns);
  free(lookups);
  return result;
}
