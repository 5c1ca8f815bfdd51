// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
#include "retrieval/lane.h"

#include <math.h>

enum {
  SAMPLE_BEST = 32,      /* of the best C that a sample should have */
  SAMPLE_RATIO_MIN = 4,  /* tokens over C from which on a sample pays, */
  SAMPLE_RATIO_MAX = 32, /* and up to which: it takes a miss of the cache for every record of it */
};

/* Puts the distances that passed into a row's select. The scale has no part in them, so it is looked at only here. */
static void put_distances(struct select *select, const struct scan_distances *result, const struct scan_block *block) {
  uint64_t *keys = select->keys + select->count;
  for (uint32_t w = 0; 64 * w < block->count; w++)
    for (uint64_t bits = result->passed[w]; bits; bits &= bits - 1) {
      uint32_t i = 64 * w + (uint32_t)__builtin_ctzll(bits);
      *keys = select_key(result->distances[i], block->ordinal + i);
      keys += record_scale_valid(load_u16(block->k_scale + (size_t)i * RECORD_K_SCALE_BYTES));
    }
  select->count = (uint32_t)(keys - select->keys);
}

/* Scores a block for all rows and keeps what may be among the best. */
static void take_scores(struct lane *lane, const struct scan *scan, const struct scan_block *block) {
  const struct lookup_kernels *kernels = scan->kernels;
  float above[LANE_ROWS];
  if (kernels->take) {
    kernels->take(scan->queries, scan->rows, block, lane->selects);
    return;
  }
  for (uint32_t r = 0; r < scan->rows; r++)
    above[r] = select_limit(lane->selects[r].threshold);
  kernels->weighted(scan->queries, scan->rows, block, above, lane->scores);
  for (uint32_t r = 0; r < scan->rows; r++)
    scan_put(&lane->selects[r], block, &lane->scores[r]);
}

static void take_distances(struct lane *lane, const struct scan *scan, const struct scan_block *block) {
  uint32_t below[LANE_ROWS];
  for (uint32_t r = 0; r < scan->rows; r++)
    below[r] = lane->selects[r].threshold;
  scan->kernels->hamming(scan->queries, scan->rows, block, below, lane->distances);
  for (uint32_t r = 0; r < scan->rows; r++)
    put_distances(&lane->selects[r], &lane->distances[r], block);
}

/* Returns the spare keys. */
static uint64_t *start_selects(struct lane *lane, const struct scan *scan, uint64_t *keys) {
  uint32_t capacity = select_capacity(scan->candidates, SCAN_BLOCK);
  for (uint32_t r = 0; r < scan->rows; r++) {
    select_init(&lane->selects[r], keys + (size_t)r * capacity, scan->candidates, SCAN_BLOCK);
    if (scan->expected[r])
      lane->selects[r].threshold = scan->expected[r];
  }
  return keys + (size_t)scan->rows * capacity;
}

static void scan_block(struct lane *lane, const struct scan *scan, uint64_t *spare, const struct scan_block *block) {
  for (uint32_t r = 0; r < scan->rows; r++)
    select_make_room(&lane->selects[r], SCAN_BLOCK, spare);
  if (scan->mode == LOOKUP_HAMMING)
    take_distances(lane, scan, block);
  else
    take_scores(lane, scan, block);
}

size_t lane_keys(const struct scan *scan) {
  return (size_t)(scan->rows + 1) * select_capacity(scan->candidates, SCAN_BLOCK);
}

/* --- what to expect ---------------------------------------------------------------------------------------------- */

/* Copies `count` records, evenly spread over those of the scan. */
static void take_sample(const struct scan *scan, uint32_t count, struct lane_sample *sample) {
  uint64_t tokens = scan->range->tokens - scan->first;
  uint32_t slice = 0;
  for (uint32_t i = 0; i < count; i++) {
    struct place place = range_next(scan->range, scan->first + (uint32_t)(tokens * i / count), &slice);
    memcpy(sample->signature + (size_t)i * RECORD_SIGNATURE_BYTES, place_signature(place), RECORD_SIGNATURE_BYTES);
    memcpy(sample->k_scale + (size_t)i * RECORD_K_SCALE_BYTES, place_k_scale(place), RECORD_K_SCALE_BYTES);
  }
}

/* Three standard deviations more than the part of the best C that should be in the sample: chance leaves fewer than C
 * once in some hundred scans. */
static uint32_t sample_wanted(const struct scan *scan, uint32_t count) {
  double part = (double)scan->candidates * count / (scan->range->tokens - scan->first);
  return (uint32_t)(part + 3 * sqrt(part)) + 4;
}

void lane_expect(struct lane *lane, struct scan *scan, struct lane_sample *sample, uint64_t *keys) {
  uint64_t tokens = scan->range->tokens - scan->first, candidates = scan->candidates;
  uint64_t wanted = SAMPLE_BEST * tokens / candidates;
  uint32_t count = wanted < SCAN_BLOCK ? (uint32_t)wanted : SCAN_BLOCK, slice = 0;
  if (tokens < SAMPLE_RATIO_MIN * candidates || tokens > SAMPLE_RATIO_MAX * candidates || candidates < SAMPLE_BEST)
    return;
  take_sample(scan, count, sample);
  struct place next = range_next(scan->range, scan->first, &slice);
  struct scan_block block = {
      .signature = sample->signature,
      .k_scale = sample->k_scale,
      .next_signature = place_signature(next),
      .next_k_scale = place_k_scale(next),
      .count = count,
  };
  uint64_t *spare = start_selects(lane, scan, keys);
  scan_block(lane, scan, spare, &block);
  for (uint32_t r = 0; r < scan->rows; r++)
    scan->expected[r] = select_end_of(&lane->selects[r], sample_wanted(scan, count), spare);
}

/* --- runs --------------------------------------------------------------------------------------------------------- */

void lane_share(const struct scan *scan, uint32_t lanes) {
  atomic_init(&scan->sharing->next, scan->first);
  for (uint32_t r = 0; r < scan->rows; r++)
    select_bound_init(&scan->sharing->bounds[r], lanes);
}

/* Ordinals begin .. end - 1. */
struct run {
  uint32_t begin, end;
};

static struct run take_run(const struct scan *scan) {
  uint64_t tokens = scan->range->tokens;
  uint64_t begin = atomic_fetch_add_explicit(&scan->sharing->next, LANE_RUN, memory_order_relaxed);
  uint64_t end = begin + LANE_RUN;
  return (struct run){(uint32_t)(begin < tokens ? begin : tokens), (uint32_t)(end < tokens ? end : tokens)};
}

/* Scans a run block by block. `next` is the ordinal that comes after it; *slice holds the run's first one or comes
 * before that. */
static void scan_run(struct lane *lane, const struct scan *scan, uint64_t *spare, struct run run, uint32_t next,
                     uint32_t *slice) {
  const struct range *range = scan->range;
  for (uint32_t at = run.begin; at < run.end;) {
    struct place here = range_next(range, at, slice);
    uint32_t left = range->slices[*slice].ordinal + range->slices[*slice].count - at;
    uint32_t count = left < run.end - at ? left : run.end - at;
    count = count < SCAN_BLOCK ? count : SCAN_BLOCK;
    uint32_t after = at + count < run.end ? at + count : next, ahead = *slice;
    struct place there = after < range->tokens ? range_next(range, after, &ahead) : here;
    struct scan_block block = {
        .signature = place_signature(here),
        .k_scale = place_k_scale(here),
        .next_signature = place_signature(there),
        .next_k_scale = place_k_scale(there),
        .count = count,
        .ordinal = at,
    };
    scan_block(lane, scan, spare, &block);
    at += count;
  }
}

void lane_scan(struct lane *lane, uint32_t index, const struct scan *scan, uint64_t *keys) {
  uint64_t *spare = start_selects(lane, scan, keys);
  uint32_t slice = 0;
  for (uint32_t r = 0; r < scan->rows && scan->sharing; r++)
    select_join(&lane->selects[r], &scan->sharing->bounds[r], index);
  struct run run = {scan->first, scan->range->tokens}, next = {run.end, run.end};
  for (run = scan->sharing ? take_run(scan) : run; run.begin < run.end; run = next) {
    if (scan->sharing) /* now, so that its first block is fetched in time */
      next = take_run(scan);
    scan_run(lane, scan, spare, run, next.begin, &slice);
  }
  for (uint32_t r = 0; r < scan->rows; r++)
    select_finish(&lane->selects[r], spare);
}
