// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// coldkv-bench scan: what the scan of signatures takes, beside what the memory takes to be read at all. Everything that
// is compared runs in turns on one core.
#include "tools/bench/scan.h"

#include <math.h>
#include <string.h>

#include "tools/bench/columns.h"
#include "tools/bench/measure.h"
#include "tools/bench/read.h"

enum {
  SIGNATURES = 64 << 20,
  SIGNATURES_QUICK = 16 << 20,
  CHUNK = 4 << 20, /* signatures that one loop takes before it is the next one's turn: 75 MB */
  ROUNDS = 11,
  ROUNDS_QUICK = 3,
  PASSING_ONE_IN = 16384,
  SAMPLE = 1 << 18, /* records that limits are found with */
};

/* The block of a part that begins with record `at`, and what to fetch while it is scanned. */
static struct scan_block block_at(const struct record_columns *part, const struct record_columns *after, uint32_t at) {
  uint32_t next = at + SCAN_BLOCK;
  if (next < part->count || !after) {
    after = part;
    next = next < part->count ? next : at;
  } else {
    next = 0;
  }
  return (struct scan_block){
      .signature = part->signature + (size_t)at * RECORD_SIGNATURE_BYTES,
      .k_scale = part->k_scale + (size_t)at * RECORD_K_SCALE_BYTES,
      .next_signature = after->signature + (size_t)next * RECORD_SIGNATURE_BYTES,
      .next_k_scale = after->k_scale + (size_t)next * RECORD_K_SCALE_BYTES,
      .count = SCAN_BLOCK,
      .ordinal = at,
  };
}

/* The first `count` records as one part. */
static struct record_columns part_of(const struct scan_data *data, uint32_t count) {
  return (struct record_columns){.signature = data->signature, .k_scale = data->k_scale, .count = count};
}

/* --- data -------------------------------------------------------------------------------------------------------- */

/* Sets the limits of one row to what about one in PASSING_ONE_IN of the first SAMPLE records passes. */
static void find_limits(struct scan_data *data, uint32_t row) {
  static double scores[SAMPLE];
  static struct scan_scores found;
  static struct scan_distances near;
  const float all_scores = -INFINITY;
  const uint32_t all_distances = 255;
  uint32_t counts[RECORD_SIGNATURE_BITS + 1] = {0}, seen = 0;
  const struct record_columns part = part_of(data, SAMPLE);
  for (uint32_t at = 0; at < SAMPLE; at += SCAN_BLOCK) {
    const struct scan_block block = block_at(&part, NULL, at);
    scan_weighted_c(&data->queries[row], 1, &block, &all_scores, &found);
    scan_hamming_c(&data->queries[row], 1, &block, &all_distances, &near);
    for (uint32_t i = 0; i < SCAN_BLOCK; i++) {
      scores[at + i] = (double)found.scores[i];
      counts[near.distances[i]]++;
    }
  }
  data->above[row] = (float)quantile(scores, SAMPLE, 1 - 1.0 / PASSING_ONE_IN);
  uint32_t below = 0;
  while (seen + counts[below] <= SAMPLE / PASSING_ONE_IN)
    seen += counts[below++];
  data->below[row] = below;
}

static int create(struct scan_data *data, uint32_t count, struct error *error) {
  uint64_t state = 1;
  float row[RECORD_SIGNATURE_BITS];
  *data = (struct scan_data){.count = count};
  data->signature = pages_alloc((size_t)count * RECORD_SIGNATURE_BYTES);
  data->k_scale = pages_alloc((size_t)count * RECORD_K_SCALE_BYTES);
  if (!data->signature || !data->k_scale)
    return error_set(error, ERR_MEMORY, "no memory for %u signatures", count);
  noise_bytes(&state, data->signature, (size_t)count * RECORD_SIGNATURE_BYTES);
  for (uint32_t i = 0; i < count; i++)
    store_u16(data->k_scale + (size_t)i * RECORD_K_SCALE_BYTES, random_scale(&state));
  for (uint32_t r = 0; r < SCAN_ROWS_MAX; r++) {
    random_query(&state, row);
    if (!query_prepare_c(&data->queries[r], LIMIT_HEAD_DIM_MAX, (const uint8_t *)row))
      return error_set(error, ERR_INTERNAL, "a random query is not finite");
    find_limits(data, r);
  }
  return 0;
}

static void destroy(struct scan_data *data) {
  pages_free(data->signature, (size_t)data->count * RECORD_SIGNATURE_BYTES);
  pages_free(data->k_scale, (size_t)data->count * RECORD_K_SCALE_BYTES);
}

/* --- kernels ----------------------------------------------------------------------------------------------------- */

static volatile uint64_t seen; /* so that no result is for nothing */

/* Words of 64 records with one that passed. */
static uint64_t words_passed(const uint64_t passed[SCAN_BLOCK / 64]) {
  uint64_t count = 0;
  for (int w = 0; w < SCAN_BLOCK / 64; w++)
    count += (uint64_t)(passed[w] != 0);
  return count;
}

void scan_weighted(const struct scan_data *data, const struct record_columns *part, const struct record_columns *after,
                   uint32_t rows) {
  static struct scan_scores results[SCAN_ROWS_MAX];
  const struct lookup_kernels *kernels = lookup_kernels();
  uint64_t passed = 0;
  for (uint32_t at = 0; at < part->count; at += SCAN_BLOCK) {
    const struct scan_block block = block_at(part, after, at);
    kernels->weighted(data->queries, rows, &block, data->above, results);
    for (uint32_t r = 0; r < rows; r++)
      passed += words_passed(results[r].passed);
  }
  seen += passed;
}

void scan_hamming(const struct scan_data *data, const struct record_columns *part, const struct record_columns *after,
                  uint32_t rows) {
  static struct scan_distances results[SCAN_ROWS_MAX];
  const struct lookup_kernels *kernels = lookup_kernels();
  uint64_t passed = 0;
  for (uint32_t at = 0; at < part->count; at += SCAN_BLOCK) {
    const struct scan_block block = block_at(part, after, at);
    kernels->hamming(data->queries, rows, &block, data->below, results);
    for (uint32_t r = 0; r < rows; r++)
      passed += words_passed(results[r].passed);
  }
  seen += passed;
}

/* --- in turns ---------------------------------------------------------------------------------------------------- */

/* Seconds of every loop over all the signatures, by round. */
struct rounds {
  uint32_t count;
  double read[READ_LOOPS_MAX][ROUNDS], hamming[ROUNDS], weighted[ROUNDS];
  double hamming_rows[2][ROUNDS], weighted_rows[2][ROUNDS]; /* of 1 and 8 rows, over one chunk */
};

/* What is left of a chunk in the caches helps nobody, since a loop's next one is another's last but far back. */
static struct record_columns chunk_of(const struct scan_data *data, uint32_t chunk) {
  uint32_t chunks = data->count / CHUNK;
  size_t first = (size_t)(chunks ? chunk % chunks : 0) * CHUNK;
  return (struct record_columns){
      .signature = data->signature + first * RECORD_SIGNATURE_BYTES,
      .k_scale = data->k_scale + first * RECORD_K_SCALE_BYTES,
      .count = CHUNK,
  };
}

static double time_weighted(const struct scan_data *data, uint32_t chunk, uint32_t rows) {
  const struct record_columns part = chunk_of(data, chunk);
  double start = core_s();
  scan_weighted(data, &part, NULL, rows);
  return core_s() - start;
}

static double time_hamming(const struct scan_data *data, uint32_t chunk, uint32_t rows) {
  const struct record_columns part = chunk_of(data, chunk);
  double start = core_s();
  scan_hamming(data, &part, NULL, rows);
  return core_s() - start;
}

static double time_read(const struct scan_data *data, uint32_t chunk, const struct read_loop *loop) {
  const struct record_columns part = chunk_of(data, chunk);
  double start = core_s();
  seen += loop->run(part.signature, (size_t)part.count * RECORD_SIGNATURE_BYTES);
  return core_s() - start;
}

/* The loops take turns chunk by chunk, each at another place, so that who else uses the memory is the same for all. */
static void run_round(const struct scan_data *data, const struct read_loop *loops, int loop_count,
                      struct rounds *rounds, uint32_t round) {
  for (uint32_t chunk = 0; chunk < data->count / CHUNK; chunk++) {
    uint32_t place = chunk;
    for (int l = 0; l < loop_count; l++)
      rounds->read[l][round] += time_read(data, place++, &loops[l]);
    rounds->weighted[round] += time_weighted(data, place++, 1);
    rounds->hamming[round] += time_hamming(data, place++, 1);
  }
  uint32_t place = round;
  for (int eight = 0; eight < 2; eight++) {
    uint32_t rows = eight ? SCAN_ROWS_MAX : 1;
    rounds->weighted_rows[eight][round] = time_weighted(data, place++, rows);
    rounds->hamming_rows[eight][round] = time_hamming(data, place++, rows);
  }
}

static void print(const struct scan_data *data, const struct read_loop *loops, int loop_count, struct rounds *rounds,
                  struct bench_output *output) {
  double signature_bytes = (double)data->count * RECORD_SIGNATURE_BYTES, scratch[ROUNDS];
  double scan_bytes = signature_bytes + (double)data->count * RECORD_K_SCALE_BYTES;
  double hamming_ratio[READ_LOOPS_MAX] = {0}, weighted_ratio[READ_LOOPS_MAX] = {0}, rates[READ_LOOPS_MAX] = {0};
  int best = 0;
  for (int l = 0; l < loop_count; l++) {
    hamming_ratio[l] = ratio_median(rounds->read[l], rounds->hamming, rounds->count);
    weighted_ratio[l] = ratio_median(rounds->read[l], rounds->weighted, rounds->count) * scan_bytes / signature_bytes;
    memcpy(scratch, rounds->read[l], sizeof scratch);
    rates[l] = signature_bytes / median(scratch, rounds->count);
    if (rates[l] > rates[best])
      best = l;
  }
  bench_text(output, "kernel", lookup_kernels()->name, "kernels in use");
  bench_integer(output, "signatures", data->count, "N");
  bench_integer(output, "hamming_bytes", (uint64_t)signature_bytes, "read by one Hamming scan");
  bench_integer(output, "weighted_bytes", (uint64_t)scan_bytes, "read by one weighted scan");
  bench_integer(output, "rounds", rounds->count, "in which all loops took turns; medians count");
  for (int l = 0; l < loop_count && !bench_is_json(output); l++)
    bench_figure(output, "  read", rates[l] / 1e9, loops[l].name);
  bench_text(output, "read_loop", loops[best].name, "the fastest loop that only reads");
  bench_figure(output, "read_gb_s", rates[best] / 1e9, "GB/s, of that loop over the signatures");
  bench_figure(output, "hamming_gb_s", signature_bytes / median(rounds->hamming, rounds->count) / 1e9, "GB/s");
  bench_figure(output, "weighted_gb_s", scan_bytes / median(rounds->weighted, rounds->count) / 1e9,
               "GB/s, 18 bytes a record");
  bench_figure(output, "hamming_over_read", hamming_ratio[best], "wanted: at least 0.85");
  bench_figure(output, "weighted_over_read", weighted_ratio[best], "wanted: at least 0.7");
  bench_figure(output, "rows8_over_1",
               SCAN_ROWS_MAX * ratio_median(rounds->weighted_rows[0], rounds->weighted_rows[1], rounds->count),
               "weighted scans per second, 8 rows together over one by one; wanted: at least 1.5");
  bench_figure(output, "rows8_over_1_hamming",
               SCAN_ROWS_MAX * ratio_median(rounds->hamming_rows[0], rounds->hamming_rows[1], rounds->count),
               "the same of Hamming scans");
}

int bench_scan(const struct bench_options *options, struct bench_output *output, struct error *error) {
  static struct rounds rounds;
  struct scan_data data;
  struct read_loop loops[READ_LOOPS_MAX];
  int other, loop_count = read_loops(loops);
  pin_here(&other);
  rounds.count = options->quick ? ROUNDS_QUICK : ROUNDS;
  bench_machine(output, "scan", "signatures in memory on one core");
  int result = create(&data, options->quick ? SIGNATURES_QUICK : SIGNATURES, error);
  if (!result) {
    for (uint32_t round = 0; round < rounds.count; round++)
      run_round(&data, loops, loop_count, &rounds, round);
    print(&data, loops, loop_count, &rounds, output);
    result = scan_lookups(&data, options, other, output, error);
  }
  if (!result && options->faiss)
    result = scan_against_faiss(&data, options, output, error);
  destroy(&data);
  return result;
}
