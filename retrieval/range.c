// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
#include "retrieval/range.h"

bool range_init(struct range *range, struct slice *slices, const struct record_columns *parts, uint32_t part_count,
                uint64_t from, uint64_t before) {
  *range = (struct range){.slices = slices};
  uint64_t tokens = 0;
  for (uint32_t i = 0; i < part_count; i++) {
    uint64_t first = parts[i].first, end = first + parts[i].count;
    uint64_t low = first > from ? first : from, high = end < before ? end : before;
    if (low >= high)
      continue;
    slices[range->slice_count++] = (struct slice){
        .columns = &parts[i],
        .begin = (uint32_t)(low - first),
        .count = (uint32_t)(high - low),
        .ordinal = (uint32_t)tokens,
    };
    tokens += high - low;
    if (tokens > UINT32_MAX)
      return false;
  }
  range->tokens = (uint32_t)tokens;
  return true;
}

void range_index(struct range *range, uint32_t *steps) {
  uint32_t slice = 0;
  range->steps = steps;
  for (uint32_t i = 0; i < range_steps(range); i++) {
    while (slice + 1 < range->slice_count && range->slices[slice + 1].ordinal <= i * RANGE_STEP)
      slice++;
    steps[i] = slice;
  }
}
