// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
#include "retrieval/select.h"

#include <assert.h>
#include <stdbool.h>
#include <stdlib.h>

enum {
  BUCKETS = 1024,
  SORT_BELOW = 64,
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

/* Bits to shift a difference from `low` right by, so that it numbers one of the buckets. */
static uint32_t bucket_shift(uint64_t low, uint64_t high) {
  uint32_t shift = 0;
  while ((high - low) >> shift >= BUCKETS)
    shift++;
  return shift;
}

/* Copies the keys of one bucket to `out`, which may be `keys`, and returns how many. */
static uint32_t take_bucket(const uint64_t *keys, uint32_t count, uint64_t low, uint32_t shift, uint64_t bucket,
                            uint64_t *out) {
  uint32_t n = 0;
  for (uint32_t i = 0; i < count; i++)
    if ((keys[i] - low) >> shift == bucket)
      out[n++] = keys[i];
  return n;
}

/* The key that has `before` smaller ones among `count` different ones. Counts keys by equal parts of their range and
 * goes on in the part that holds the wanted one: linear, and at worst a few rounds, whatever the keys. */
static uint64_t nth_smallest(const uint64_t *keys, uint32_t count, uint32_t before, uint64_t *spare) {
  while (count > SORT_BELOW) {
    uint64_t low = UINT64_MAX, high = 0;
    for (uint32_t i = 0; i < count; i++) {
      low = keys[i] < low ? keys[i] : low;
      high = keys[i] > high ? keys[i] : high;
    }
    uint32_t shift = bucket_shift(low, high), sizes[BUCKETS] = {0};
    for (uint32_t i = 0; i < count; i++)
      sizes[(keys[i] - low) >> shift]++;
    uint32_t bucket = 0;
    while (before >= sizes[bucket])
      before -= sizes[bucket++];
    count = take_bucket(keys, count, low, shift, bucket, spare);
    keys = spare;
  }
  if (keys != spare)
    memcpy(spare, keys, count * sizeof *keys);
  select_sort(spare, count);
  return spare[before];
}

void select_partition(uint64_t *keys, uint32_t count, uint32_t wanted, uint64_t *spare) {
  if (wanted == 0 || wanted >= count)
    return;
  uint64_t last = nth_smallest(keys, count, wanted - 1, spare);
  uint32_t front = 0, back = 0;
  for (uint32_t i = 0; i < count; i++) {
    uint64_t key = keys[i];
    if (key <= last)
      keys[front++] = key;
    else
      spare[back++] = key;
  }
  memcpy(keys + front, spare, back * sizeof *keys);
}

uint32_t select_capacity(uint32_t limit, uint32_t step) { return 2 * limit + step + SELECT_SLACK; }

void select_init(struct select *select, uint64_t *keys, uint32_t limit, uint32_t step) {
  assert(limit >= 1);
  *select = (struct select){.keys = keys, .limit = limit, .capacity = select_capacity(limit, step)};
  select->threshold = SELECT_RANK_NEVER;
}

/* Before the first trim: ranks beyond the worst of more than enough keys cannot get in. */
static void find_bounds(struct select *select) {
  uint32_t low = UINT32_MAX, high = 0;
  for (uint32_t i = 0; i < select->count; i++) {
    uint32_t rank = select_key_rank(select->keys[i]);
    low = rank < low ? rank : low;
    high = rank > high ? rank : high;
  }
  select->low = low;
  select->threshold = high + 1;
}

/* Drops all but the best `limit`. A later key of the same rank as the worst that is kept loses against it, so that only
 * lower ranks can still get in. */
static void trim(struct select *select, uint64_t *spare) {
  uint64_t last = nth_smallest(select->keys, select->count, select->limit - 1, spare);
  uint32_t n = 0;
  for (uint32_t i = 0; i < select->count; i++) {
    select->keys[n] = select->keys[i];
    n += select->keys[i] <= last;
  }
  select->count = n;
  select->threshold = select_key_rank(last);
}

/* Keys of ranks below `end`. */
static uint32_t count_below(const struct select *select, uint32_t end) {
  uint32_t count = 0;
  for (uint32_t i = 0; i < select->count; i++)
    count += select_key_rank(select->keys[i]) < end;
  return count;
}

/* Drops about as much in less time: counts a sample of the keys by equal parts of the ranks that they can have, and
 * drops whole parts. Returns false when that would drop too much, or too little because keys crowd in one part. */
static bool trim_roughly(struct select *select) {
  uint32_t low = select->low, high = select->threshold, sizes[PARTS + 1] = {0}, shift = 0, part = 0;
  uint32_t step = select->limit < SAMPLE_FROM ? 1 : SAMPLE_STEP;
  uint32_t wanted = select->limit / step, kept = 0;
  if (step > 1)
    wanted += wanted / 16; /* so that chance seldom leaves fewer than `limit` */
  while ((high - low) >> shift >= PARTS)
    shift++;
  for (uint32_t i = 0; i < select->count; i += step) {
    uint32_t rank = select_key_rank(select->keys[i]); /* at most `high`, and below `low` only if it came later */
    sizes[rank > low ? (rank - low) >> shift : 0]++;
  }
  while (part < PARTS && (kept += sizes[part]) < wanted)
    part++;
  uint32_t end = low + ((part + 1) << shift), n = 0;
  kept = part < PARTS ? count_below(select, end) : 0;
  if (kept < select->limit || kept > select->limit + select->limit / 2)
    return false;
  for (uint32_t i = 0; i < select->count; i++) {
    select->keys[n] = select->keys[i];
    n += select_key_rank(select->keys[i]) < end;
  }
  select->count = n;
  select->threshold = end;
  return true;
}

void select_make_room(struct select *select, uint32_t step, uint64_t *spare) {
  if (select->capacity - select->count >= step + SELECT_SLACK || select->count <= select->limit)
    return;
  if (select->threshold == SELECT_RANK_NEVER)
    find_bounds(select);
  if (!trim_roughly(select))
    trim(select, spare);
}

void select_finish(struct select *select, uint64_t *spare) {
  if (select->count > select->limit)
    trim(select, spare);
}
