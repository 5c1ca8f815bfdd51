// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
#include "retrieval/lane.h"

/* A block of records: entries of one part, and the ordinal of the first. */
struct block {
  const uint8_t *signature, *k_scale;
  uint32_t count, ordinal;
};

/* Puts the distances that passed into a row's select. The scale has no part in them, so it is looked at only here. */
static void put_distances(struct select *select, const struct scan_distances *result, const struct block *block) {
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
static void take_scores(struct lane *lane, const struct scan *scan, const struct block *block) {
  const struct lookup_kernels *kernels = scan->kernels;
  float above[LANE_ROWS];
  if (kernels->take) {
    kernels->take(scan->queries, scan->rows, block->signature, block->k_scale, block->count, block->ordinal,
                  lane->selects);
    return;
  }
  for (uint32_t r = 0; r < scan->rows; r++)
    above[r] = select_limit(lane->selects[r].threshold);
  kernels->weighted(scan->queries, scan->rows, block->signature, block->k_scale, block->count, above, lane->scores);
  for (uint32_t r = 0; r < scan->rows; r++)
    scan_put(&lane->selects[r], &lane->scores[r], block->count, block->ordinal);
}

static void take_distances(struct lane *lane, const struct scan *scan, const struct block *block) {
  uint32_t below[LANE_ROWS];
  for (uint32_t r = 0; r < scan->rows; r++)
    below[r] = lane->selects[r].threshold;
  scan->kernels->hamming(scan->queries, scan->rows, block->signature, block->count, below, lane->distances);
  for (uint32_t r = 0; r < scan->rows; r++)
    put_distances(&lane->selects[r], &lane->distances[r], block);
}

static void scan_block(struct lane *lane, const struct scan *scan, uint64_t *spare, const struct block *block) {
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

/* Asks for the beginning of a slice, which a scan that comes from another place in memory does not run into by
 * itself. */
static void fetch_slice(const struct slice *slice) {
  struct place place = {slice->columns, slice->begin};
  uint32_t ahead = SCAN_AHEAD / RECORD_SIGNATURE_BYTES, records = slice->count < ahead ? slice->count : ahead;
  scan_prefetch(place_signature(place), 0, records * RECORD_SIGNATURE_BYTES);
  scan_prefetch(place_k_scale(place), 0, records * RECORD_K_SCALE_BYTES);
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
      struct place place = {slice->columns, slice->begin + (at - slice->ordinal)};
      struct block block = {
          .signature = place_signature(place),
          .k_scale = place_k_scale(place),
          .count = slice_end - at < SCAN_BLOCK ? slice_end - at : SCAN_BLOCK,
          .ordinal = at,
      };
      at += block.count;
      if (at == slice_end && at < end)
        fetch_slice(slice + 1);
      scan_block(lane, scan, spare, &block);
    }
  }
  for (uint32_t r = 0; r < scan->rows; r++)
    select_finish(&lane->selects[r], spare);
}
