// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// The tokens of a lookup's range over all parts, numbered 0, 1, 2, ... in token order: their ordinals.
#ifndef COLDKV_RETRIEVAL_RANGE_H
#define COLDKV_RETRIEVAL_RANGE_H

#include "proto/record.h"

/* Entries begin .. begin + count - 1 of one part. */
struct slice {
  const struct record_columns *columns;
  uint32_t begin, count;
  uint32_t ordinal; /* of the first one */
};

struct range {
  struct slice *slices; /* the caller's memory: one per part */
  uint32_t slice_count;
  uint32_t tokens;
  uint32_t *steps; /* by range_index: the slice that ordinals 0, RANGE_STEP, 2 RANGE_STEP, ... are in */
};

enum { RANGE_STEP = 4096 }; /* what most slices have */

/* One record of a range. */
struct place {
  const struct record_columns *columns;
  uint32_t entry;
};

/* Cuts parts, in ascending token order, to the tokens from .. before - 1. Returns false when they are more than
 * ordinals can number. */
bool range_init(struct range *range, struct slice *slices, const struct record_columns *parts, uint32_t part_count,
                uint64_t from, uint64_t before);

/* Prepares range_at; `steps` is the caller's memory for range_steps(range) of them. */
static inline uint32_t range_steps(const struct range *range) { return range->tokens / RANGE_STEP + 1; }
void range_index(struct range *range, uint32_t *steps);

/* Where ordinal < range->tokens lies. */
static inline struct place range_at(const struct range *range, uint32_t ordinal) {
  const struct slice *at = &range->slices[range->steps[ordinal / RANGE_STEP]];
  while (ordinal - at->ordinal >= at->count)
    at++;
  return (struct place){at->columns, at->begin + (ordinal - at->ordinal)};
}

/* The same, with no range_index, for ordinals whose slices ascend from call to call; *slice is 0 before the first. */
static inline struct place range_next(const struct range *range, uint32_t ordinal, uint32_t *slice) {
  const struct slice *at = &range->slices[*slice];
  while (ordinal - at->ordinal >= at->count) {
    at++;
    ++*slice;
  }
  return (struct place){at->columns, at->begin + (ordinal - at->ordinal)};
}

static inline uint64_t place_token(struct place place) { return place.columns->first + place.entry; }

static inline const uint8_t *place_signature(struct place place) {
  return place.columns->signature + (size_t)place.entry * RECORD_SIGNATURE_BYTES;
}

static inline const uint8_t *place_k_scale(struct place place) {
  return place.columns->k_scale + (size_t)place.entry * RECORD_K_SCALE_BYTES;
}

static inline const uint8_t *place_k_mag(struct place place) {
  return place.columns->k_mag + (size_t)place.entry * RECORD_K_MAG_BYTES;
}

#endif
