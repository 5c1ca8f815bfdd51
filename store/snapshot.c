// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
#include "store/snapshot.h"

#include <stdlib.h>

struct snapshot *snapshot_create(uint32_t count) {
  struct snapshot *snapshot = calloc(1, sizeof *snapshot + count * sizeof snapshot->parts[0]);
  if (!snapshot)
    return NULL;
  atomic_init(&snapshot->refs, 1);
  snapshot->part_count = count;
  return snapshot;
}

struct snapshot *snapshot_ref(struct snapshot *snapshot) {
  atomic_fetch_add_explicit(&snapshot->refs, 1, memory_order_relaxed);
  return snapshot;
}

void snapshot_unref(struct snapshot *snapshot) {
  if (!snapshot || atomic_fetch_sub_explicit(&snapshot->refs, 1, memory_order_acq_rel) != 1)
    return;
  for (uint32_t i = 0; i < snapshot->part_count; i++) {
    segment_unref(snapshot->parts[i].segment);
    tail_unref(snapshot->parts[i].tail);
  }
  free(snapshot);
}

uint32_t part_count(const struct part *part) { return part->tail ? tail_count(part->tail) : part->count; }

void part_columns(const struct part *part, uint32_t layer, uint32_t head, struct record_columns *c) {
  if (part->tail) {
    tail_columns(part->tail, layer, head, c);
    return;
  }
  segment_columns(part->segment, layer, head, c);
  size_t skip = (size_t)(part->first - c->first); /* a conversation may begin inside a segment */
  c->signature += skip * RECORD_SIGNATURE_BYTES;
  c->k_scale += skip * RECORD_K_SCALE_BYTES;
  c->k_mag += skip * RECORD_K_MAG_BYTES;
  c->v_code += skip * RECORD_V_CODE_BYTES;
  c->v_scale += skip * RECORD_V_SCALE_BYTES;
  c->crc += skip * RECORD_CRC_BYTES;
  c->first = part->first;
  c->count = part->count;
}

const uint8_t *part_ids(const struct part *part) {
  if (part->tail)
    return tail_ids(part->tail);
  return segment_ids(part->segment) + 4 * (size_t)(part->first - segment_header(part->segment)->first);
}

uint32_t snapshot_find(const struct snapshot *snapshot, uint64_t token) {
  uint32_t low = 0, high = snapshot->part_count;
  while (high - low > 1) {
    uint32_t middle = low + (high - low) / 2;
    if (snapshot->parts[middle].first <= token)
      low = middle;
    else
      high = middle;
  }
  return low;
}
