// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// The parts of a conversation at one instant, in token order: segments, closed logs, the open log. A snapshot never
// changes; appending to the open tail only raises that tail's count.
#ifndef COLDKV_STORE_SNAPSHOT_H
#define COLDKV_STORE_SNAPSHOT_H

#include "store/segment.h"
#include "store/tail.h"

/* One of segment and tail is set; neither for a segment that is lost or damaged as a whole. */
struct part {
  struct segment *segment;
  struct tail *tail;
  uint64_t first; /* token index of this conversation's first token in it */
  uint32_t count; /* segments: tokens of this conversation in it */
};

struct snapshot {
  atomic_uint refs;
  uint32_t layers, kv_heads; /* 0 while the conversation has no model */
  uint32_t part_count;
  struct part parts[];
};

/* Makes one with room for part_count parts, all empty; NULL when out of memory. */
struct snapshot *snapshot_create(uint32_t part_count);
struct snapshot *snapshot_ref(struct snapshot *snapshot);
void snapshot_unref(struct snapshot *snapshot); /* NULL is allowed */

/* Tokens that can be read of a part now. */
uint32_t part_count(const struct part *part);

/* False for a part whose tokens are known to have been there and cannot be read. */
static inline bool part_readable(const struct part *part) { return part->segment || part->tail; }

/* Columns of one block of a readable part, tokens part->first and on, count as it is now. */
void part_columns(const struct part *part, uint32_t layer, uint32_t head, struct record_columns *columns);

/* Ids of a readable part, u32 from part->first on. */
const uint8_t *part_ids(const struct part *part);

/* The part that holds a token below the end; there must be one. */
uint32_t snapshot_find(const struct snapshot *snapshot, uint64_t token);

#endif
