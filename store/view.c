// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
#include <stdlib.h>
#include <string.h>

#include "store/internal.h"
#include "store/mapped_fault.h"

struct view {
  struct snapshot *snapshot;
  uint64_t count;
  struct archive_counters *counters;
};

int view_acquire(struct conversation *c, struct view **out, struct error *error) {
  struct view *view = calloc(1, sizeof *view);
  if (!view)
    return error_set(error, ERR_MEMORY, "out of memory for a view of conversation '%s'", c->name);
  pthread_mutex_lock(&c->lock);
  /* Both under the lock: a count that reaches into a new log is only set once that log's snapshot is in place. */
  view->snapshot = c->snapshot ? snapshot_ref(c->snapshot) : NULL;
  view->count = conversation_count(c);
  pthread_mutex_unlock(&c->lock);
  view->counters = &c->archive->counters;
  if (!view->snapshot) {
    free(view);
    return error_set(error, ERR_BUSY, "conversation '%s' is not in memory; load it first", c->name);
  }
  *out = view;
  return 0;
}

void view_release(struct view *view) {
  if (!view)
    return;
  snapshot_unref(view->snapshot);
  free(view);
}

uint64_t view_count(const struct view *view) { return view->count; }

uint32_t view_parts(const struct view *view) {
  uint32_t count = view->snapshot->part_count;
  while (count && view->snapshot->parts[count - 1].first >= view->count)
    count--;
  return count;
}

/* Tokens of a part that this view sees. */
static uint32_t visible(const struct view *view, const struct part *part) {
  uint64_t left = view->count - part->first;
  uint32_t count = part_count(part);
  return left < count ? (uint32_t)left : count;
}

static int count_bad(struct view *view, int result, bool fresh) {
  if (fresh)
    atomic_fetch_add(&view->counters->bad_pages, 1);
  return result;
}

static int check_readable(struct view *view, const struct part *part, struct error *error) {
  bool fresh = false;
  int result = part->segment ? segment_check_readable(part->segment, &fresh, error) : 0;
  return count_bad(view, result, fresh);
}

int view_check_part(struct view *view, uint32_t at, struct error *error) {
  return at < view->snapshot->part_count ? check_readable(view, &view->snapshot->parts[at], error) : 0;
}

int view_columns(struct view *view, uint32_t at, uint32_t layer, uint32_t head, struct record_columns *columns,
                 struct error *error) {
  const struct snapshot *snapshot = view->snapshot;
  if (at >= view_parts(view) || layer >= snapshot->layers || head >= snapshot->kv_heads)
    return error_set(error, ERR_RANGE, "no part %u with layer %u and head %u", at, layer, head);
  const struct part *part = &snapshot->parts[at];
  if (part->segment) {
    bool fresh;
    int result = segment_check_layer(part->segment, layer, &fresh, error);
    if (result)
      return count_bad(view, result, fresh);
  }
  part_columns(part, layer, head, columns);
  columns->count = visible(view, part);
  return 0;
}

static int check_range(const struct view *view, uint64_t first, uint64_t count, struct error *error) {
  if (first <= view->count && count <= view->count - first)
    return 0;
  return error_set(error, ERR_RANGE, "tokens %llu to %llu asked for, the conversation has %llu",
                   (unsigned long long)first, (unsigned long long)(first + count), (unsigned long long)view->count);
}

int view_tokens(struct view *view, uint64_t first, uint64_t count, uint32_t *ids, struct error *error) {
  int result = check_range(view, first, count, error);
  while (!result && count) {
    const struct part *part = &view->snapshot->parts[snapshot_find(view->snapshot, first)];
    uint32_t skip = (uint32_t)(first - part->first), some = visible(view, part) - skip;
    some = count < some ? (uint32_t)count : some;
    if (part->segment) {
      bool fresh;
      result = segment_check_ids(part->segment, &fresh, error);
      if (result)
        return count_bad(view, result, fresh);
    }
    mapped_guard_begin();
    memcpy(ids, part_ids(part) + 4 * (size_t)skip, 4 * (size_t)some);
    mapped_guard_end();
    result = check_readable(view, part, error);
    ids += some;
    first += some;
    count -= some;
  }
  return result;
}

/* A record's own CRC does not tell conversations apart, the CRC of a page does: a good page stands for all records
 * that begin in it. *proven is the end of those known to be this segment's. */
static bool belongs(const struct part *part, uint32_t layer, uint32_t head, uint64_t token, uint64_t *proven) {
  const uint32_t per_page = SEGMENT_PAGE_BYTES / RECORD_SIGNATURE_BYTES;
  if (part->tail || token < *proven)
    return true;
  uint64_t first = segment_header(part->segment)->first;
  uint32_t entry = (uint32_t)(token - first);
  uint32_t page = segment_page(part->segment, SEGMENT_SCAN, layer, head) + entry / per_page;
  if (segment_check_page(part->segment, page, NULL) == 0) {
    *proven = first + (entry / per_page + 1) * (uint64_t)per_page;
    return true;
  }
  return segment_proves(part->segment, layer, head, entry);
}

static int copy_records(struct view *view, const struct part *part, uint32_t layer, uint32_t head, uint32_t skip,
                        uint32_t count, uint8_t *records, struct error *error) {
  struct record_columns columns;
  uint64_t proven = 0;
  part_columns(part, layer, head, &columns);
  mapped_guard_begin();
  for (uint32_t i = 0; i < count; i++)
    record_gather(&columns, skip + i, records + (size_t)i * RECORD_BYTES);
  mapped_guard_end();
  int result = check_readable(view, part, error);
  if (result)
    return result;
  for (uint32_t i = 0; i < count; i++) {
    const uint8_t *record = records + (size_t)i * RECORD_BYTES;
    uint64_t token = columns.first + skip + i;
    if (!record_check(record, layer, head, token) || !belongs(part, layer, head, token, &proven))
      return error_set(error, ERR_CORRUPT, "the record of token %llu, layer %u, head %u is damaged in %s",
                       (unsigned long long)token, layer, head,
                       part->segment ? segment_path(part->segment) : "memory");
  }
  return 0;
}

int view_records(struct view *view, uint32_t layer, uint32_t head, uint64_t first, uint64_t count, uint8_t *records,
                 struct error *error) {
  if (layer >= view->snapshot->layers || head >= view->snapshot->kv_heads)
    return error_set(error, ERR_RANGE, "layer %u, head %u asked for, the model has %u and %u", layer, head,
                     view->snapshot->layers, view->snapshot->kv_heads);
  int result = check_range(view, first, count, error);
  while (!result && count) {
    const struct part *part = &view->snapshot->parts[snapshot_find(view->snapshot, first)];
    uint32_t skip = (uint32_t)(first - part->first), some = visible(view, part) - skip;
    some = count < some ? (uint32_t)count : some;
    result = copy_records(view, part, layer, head, skip, some, records, error);
    records += (size_t)some * RECORD_BYTES;
    first += some;
    count -= some;
  }
  return result;
}

void view_keep(struct view *view, uint64_t budget_bytes) {
  for (uint32_t i = 0; i < view_parts(view); i++)
    if (view->snapshot->parts[i].segment)
      segment_keep(view->snapshot->parts[i].segment, &view->counters->scan_kept_bytes, budget_bytes);
}

const struct segment *view_segment(const struct view *view, uint32_t part) {
  return part < view->snapshot->part_count ? view->snapshot->parts[part].segment : NULL;
}
