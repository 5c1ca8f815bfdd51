// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
#include "retrieval/select.h"

#include <assert.h>
#include <stdbool.h>
#include <stdlib.h>

#include "retrieval/kernels.h"

enum {
  BUCKETS = 1024,
  SORT_BELOW = 32,
  PARTS = 256,
  SAMPLE_FROM = 1024, /* keys to keep from which on a sample says enough */
  SAMPLE_STEP = 4,
};

static int compare_keys(const void *a, const void *b) {
  uint64_t x, y;
  memcpy(&x, a, sizeof x);
  memcpy(&y, b, sizeof y);
  return (x > y) - (x < y);
}

void select_sort(uint64_t *keys, uint32_t count) { qsort(keys, count, sizeof *keys, compare_keys); }

/* --- what other instructions do faster ---------------------------------------------------------------------------- */

uint32_t select_take_c(const uint64_t *keys, uint32_t count, uint64_t low, uint64_t span, uint64_t *out) {
  uint32_t n = 0;
  for (uint32_t i = 0; i < count; i++) { /* without a branch, which nothing would predict */
    uint64_t key = keys[i];
    out[n] = key;
    n += key - low <= span;
  }
  return n;
}

uint32_t select_count_c(const uint64_t *keys, uint32_t count, uint64_t end) {
  uint32_t below = 0;
  for (uint32_t i = 0; i < count; i++)
    below += keys[i] < end;
  return below;
}

void select_range_c(const uint64_t *keys, uint32_t count, uint64_t *low, uint64_t *high) {
  *low = UINT64_MAX;
  *high = 0;
  for (uint32_t i = 0; i < count; i++) {
    *low = keys[i] < *low ? keys[i] : *low;
    *high = keys[i] > *high ? keys[i] : *high;
  }
}

/* --- one key of many ---------------------------------------------------------------------------------------------- */

/* select_sort for a few, in less time. */
static void sort_few(uint64_t *keys, uint32_t count) {
  for (uint32_t i = 1; i < count; i++) {
    uint64_t key = keys[i];
    uint32_t at = i;
    for (; at > 0 && keys[at - 1] > key; at--)
      keys[at] = keys[at - 1];
    keys[at] = key;
  }
}

/* Bits to shift a difference from `low` right by, so that it numbers one of the buckets. */
static uint32_t bucket_shift(uint64_t low, uint64_t high) {
  uint32_t shift = 0;
  while ((high - low) >> shift >= BUCKETS)
    shift++;
  return shift;
}

/* The key that has `before` smaller ones among `count` different ones. Counts keys by equal parts of their range and
 * goes on in the part that holds the wanted one: linear, and at worst a few rounds, whatever the keys. */
static uint64_t nth_smallest(const uint64_t *keys, uint32_t count, uint32_t before, uint64_t *spare) {
  const struct lookup_kernels *kernels = lookup_kernels();
  while (count > SORT_BELOW) {
    uint64_t low, high;
    kernels->range_keys(keys, count, &low, &high);
    uint32_t shift = bucket_shift(low, high), sizes[BUCKETS] = {0};
    for (uint32_t i = 0; i < count; i++)
      sizes[(keys[i] - low) >> shift]++;
    uint64_t bucket = 0;
    while (before >= sizes[bucket])
      before -= sizes[bucket++];
    count = kernels->take_keys(keys, count, low + (bucket << shift), (UINT64_C(1) << shift) - 1, spare);
    keys = spare;
  }
  if (keys != spare)
    memcpy(spare, keys, count * sizeof *keys);
  sort_few(spare, count);
  return spare[before];
}

void select_partition(uint64_t *keys, uint32_t count, uint32_t wanted, uint64_t *spare) {
  if (wanted == 0 || wanted >= count)
    return;
  const struct lookup_kernels *kernels = lookup_kernels();
  uint64_t last = nth_smallest(keys, count, wanted - 1, spare);
  uint32_t back = kernels->take_keys(keys, count, last + 1, UINT64_MAX - (last + 1), spare);
  uint32_t front = kernels->take_keys(keys, count, 0, last, keys);
  memcpy(keys + front, spare, back * sizeof *keys);
}

uint32_t select_capacity(uint32_t limit, uint32_t step) { return 2 * limit + step + SELECT_SLACK; }

void select_init(struct select *select, uint64_t *keys, uint32_t limit, uint32_t step) {
  assert(limit >= 1);
  *select = (struct select){.keys = keys, .limit = limit, .capacity = select_capacity(limit, step)};
  select->threshold = SELECT_RANK_NEVER;
  select->low = UINT32_MAX;
  select->trim_at = 2 * limit;
}

/* Before the first trim: the ranks there are. Those beyond the worst of enough keys cannot get in. */
static void find_bounds(struct select *select) {
  uint32_t low = UINT32_MAX, high = 0;
  for (uint32_t i = 0; i < select->count; i++) {
    uint32_t rank = select_key_rank(select->keys[i]);
    low = rank < low ? rank : low;
    high = rank > high ? rank : high;
  }
  select->low = low;
  select->high = high;
  if (select->count >= select->limit && high < select->threshold)
    select->threshold = high + 1;
}

/* Drops all but the best `limit`. A later key of the same rank as the worst that is kept loses against it, so that only
 * lower ranks can still get in. */
static void trim(struct select *select, uint64_t *spare) {
  uint64_t last = nth_smallest(select->keys, select->count, select->limit - 1, spare);
  select->count = lookup_kernels()->take_keys(select->keys, select->count, 0, last, select->keys);
  select->threshold = select_key_rank(last);
}

uint32_t select_end_of(const struct select *select, uint32_t wanted, uint64_t *spare) {
  if (select->count < wanted)
    return 0;
  return select_key_rank(nth_smallest(select->keys, select->count, wanted - 1, spare)) + 1;
}

/* Drops the keys of ranks from `end` on; no others can get in any more. */
static void cut(struct select *select, uint32_t end) {
  select->count = lookup_kernels()->take_keys(select->keys, select->count, 0, select_key(end, 0) - 1, select->keys);
  if (end < select->threshold)
    select->threshold = end;
}

/* A rank below which there are at least `wanted` of the keys and at most half as many more, found in little time:
 * counts a sample of the keys by equal parts of the ranks that they can have. Returns false when the sample misled, or
 * keys crowd in one part. */
static bool rough_end(const struct select *select, uint32_t wanted, uint32_t *end) {
  uint32_t low = select->low, high = select->high < select->threshold ? select->high : select->threshold;
  uint32_t sizes[PARTS + 1] = {0}, shift = 0, part = 0, step = wanted < SAMPLE_FROM ? 1 : SAMPLE_STEP;
  uint32_t sampled = wanted / step, kept = 0;
  if (step > 1)
    sampled += sampled / 16; /* so that chance seldom leaves fewer than `wanted` */
  while (high > low && (high - low) >> shift >= PARTS)
    shift++;
  for (uint32_t i = 0; i < select->count; i += step) {
    uint32_t rank = select_key_rank(select->keys[i]); /* may have come after low and high were set */
    sizes[rank <= low ? 0 : rank <= high ? (rank - low) >> shift : PARTS]++;
  }
  while (part < PARTS && (kept += sizes[part]) < sampled)
    part++;
  if (part == PARTS)
    return false;
  *end = low + ((part + 1) << shift);
  kept = lookup_kernels()->count_keys(select->keys, select->count, select_key(*end, 0));
  return kept >= wanted && kept <= wanted + wanted / 2;
}

/* --- lanes ------------------------------------------------------------------------------------------------------- */

void select_bound_init(struct select_bound *bound, uint32_t lanes) {
  assert(lanes >= 1 && lanes <= SELECT_LANES_MAX);
  bound->lanes = lanes;
  atomic_init(&bound->threshold, SELECT_RANK_NEVER);
  for (uint32_t i = 0; i < lanes; i++)
    atomic_init(&bound->parts[i], SELECT_RANK_NEVER);
}

/* Keys of one lane that make `limit` together with as many of each other. */
static uint32_t lane_part(const struct select *select) {
  return (select->limit + select->bound->lanes - 1) / select->bound->lanes;
}

void select_join(struct select *select, struct select_bound *bound, uint32_t lane) {
  select->bound = bound;
  select->lane = lane;
  select->trim_at = 2 * lane_part(select);
}

/* What all lanes together know. Every value stays true for ever, so no order among the reads is needed. */
static uint32_t bound_threshold(const struct select *select) {
  return atomic_load_explicit(&select->bound->threshold, memory_order_relaxed);
}

/* Tells the others below which rank this lane has its part of the best. Together that is `limit` keys below the highest
 * of these ranks. */
static void publish(struct select *select, uint64_t *spare) {
  struct select_bound *bound = select->bound;
  uint32_t end, part = lane_part(select), highest = 0;
  if (!rough_end(select, part, &end))
    end = select_end_of(select, part, spare);
  atomic_store_explicit(&bound->parts[select->lane], end, memory_order_relaxed);
  for (uint32_t i = 0; i < bound->lanes; i++) {
    uint32_t other = atomic_load_explicit(&bound->parts[i], memory_order_relaxed);
    highest = other > highest ? other : highest;
  }
  uint32_t known = atomic_load_explicit(&bound->threshold, memory_order_relaxed);
  while (highest < known &&
         !atomic_compare_exchange_weak_explicit(&bound->threshold, &known, highest, memory_order_relaxed,
                                                memory_order_relaxed))
    ;
}

/* Drops what cannot be among the best of all lanes, and waits for another part before it tries again. */
static void trim_lane(struct select *select, uint64_t *spare) {
  uint32_t part = lane_part(select);
  publish(select, spare);
  cut(select, bound_threshold(select));
  select->trim_at = select->count + part;
  if (select->trim_at > 2 * select->limit)
    select->trim_at = 2 * select->limit;
}

/* --- trimming ---------------------------------------------------------------------------------------------------- */

void select_make_room(struct select *select, uint32_t step, uint64_t *spare) {
  uint32_t end;
  if (select->bound && bound_threshold(select) < select->threshold)
    select->threshold = bound_threshold(select);
  if (select->count <= select->trim_at)
    return;
  if (select->low == UINT32_MAX)
    find_bounds(select);
  if (select->bound)
    trim_lane(select, spare);
  if (select->capacity - select->count >= step + SELECT_SLACK)
    return;
  if (rough_end(select, select->limit, &end))
    cut(select, end);
  else
    trim(select, spare);
}

void select_finish(struct select *select, uint64_t *spare) {
  if (select->bound)
    cut(select, bound_threshold(select));
  if (select->count > select->limit)
    trim(select, spare);
}
