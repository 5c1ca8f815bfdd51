// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
#include "retrieval/lane.h"

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

/* Describes the block of `slice` that begins with ordinal `at`; `next` is the slice after it, or NULL. */
static struct scan_block block_at(const struct slice *slice, uint32_t at, uint32_t slice_end,
                                  const struct slice *next) {
  struct place here = {slice->columns, slice->begin + (at - slice->ordinal)}, after = here;
  uint32_t count = slice_end - at < SCAN_BLOCK ? slice_end - at : SCAN_BLOCK;
  if (at + count < slice_end)
    after.entry += count;
  else if (next)
    after = (struct place){next->columns, next->begin};
  return (struct scan_block){
      .signature = place_signature(here),
      .k_scale = place_k_scale(here),
      .next_signature = place_signature(after),
      .next_k_scale = place_k_scale(after),
      .count = count,
      .ordinal = at,
  };
}

void lane_scan(struct lane *lane, const struct scan *scan, uint64_t *keys, uint32_t begin, uint32_t end) {
  uint32_t capacity = select_capacity(scan->candidates, SCAN_BLOCK);
  uint64_t *spare = keys + (size_t)scan->rows * capacity;
  for (uint32_t r = 0; r < scan->rows; r++)
    select_init(&lane->selects[r], keys + (size_t)r * capacity, scan->candidates, SCAN_BLOCK);
  for (uint32_t s = 0, at = begin; s < scan->range->slice_count && at < end; s++) {
    const struct slice *slice = &scan->range->slices[s];
    uint32_t slice_end = slice->ordinal + slice->count < end ? slice->ordinal + slice->count : end;
    while (at < slice_end) { /* slices before `begin` end before it */
      struct scan_block block = block_at(slice, at, slice_end, slice_end < end ? slice + 1 : NULL);
      scan_block(lane, scan, spare, &block);
      at += block.count;
    }
  }
  for (uint32_t r = 0; r < scan->rows; r++)
    select_finish(&lane->selects[r], spare);
}
