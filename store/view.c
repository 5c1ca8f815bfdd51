// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
#include <stdlib.h>
#include <string.h>

#include "store/internal.h"
#include "store/mapped_fault.h"

struct view {
  struct snapshot *snapshot;
  uint64_t count;
  struct archive *archive;
  struct damage_place owner; /* whose it is; says nothing about tokens */
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
  view->archive = c->archive;
  conversation_place(c, 0, 0, &view->owner);
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

static void note(struct view *view, const struct part *part, uint64_t first, uint64_t count, uint32_t page,
                 const char *what) {
  struct damage_place place = view->owner;
  place.first = first;
  place.count = count;
  place.page = page;
  archive_damaged(view->archive, segment_path(part->segment), &place, false, what);
}

/* Counts and notes a page that was found bad. `layer`: see segment_bad_page. */
static int bad_part(struct view *view, const struct part *part, uint32_t layer, int result, bool fresh,
                    const struct error *reason, struct error *error) {
  uint64_t first;
  uint32_t count, page = segment_bad_page(part->segment, layer);
  if (fresh)
    atomic_fetch_add(&view->archive->counters.bad_pages, 1);
  segment_page_tokens(part->segment, page, &first, &count);
  note(view, part, first, count, page, reason->text);
  if (error)
    *error = *reason;
  return result;
}

static int lost_part(const struct part *part, struct error *error) {
  return error_set(error, ERR_CORRUPT,
                   "the segment of tokens %llu to %llu is lost or damaged; restore it from a backup, or see coldkv "
                   "repair",
                   (unsigned long long)part->first, (unsigned long long)(part->first + part->count - 1));
}

static int check_readable(struct view *view, const struct part *part, struct error *error) {
  bool fresh = false;
  struct error reason;
  int result = part->segment ? segment_check_readable(part->segment, &fresh, &reason) : 0;
  return result ? bad_part(view, part, SEGMENT_NO_LAYER, result, fresh, &reason, error) : 0;
}

int view_check_part(struct view *view, uint32_t at, struct error *error) {
  return at < view->snapshot->part_count ? check_readable(view, &view->snapshot->parts[at], error) : 0;
}

int view_columns(struct view *view, uint32_t at, uint32_t layer, uint32_t head, struct record_columns *columns,
                 struct error *error) {
  const struct snapshot *snapshot = view->snapshot;
  *columns = (struct record_columns){.count = 0};
  if (at >= view_parts(view) || layer >= snapshot->layers || head >= snapshot->kv_heads)
    return error_set(error, ERR_RANGE, "no part %u with layer %u and head %u", at, layer, head);
  const struct part *part = &snapshot->parts[at];
  columns->first = part->first;
  columns->count = visible(view, part);
  if (!part_readable(part))
    return lost_part(part, error);
  if (part->segment) {
    bool fresh;
    struct error reason;
    int result = segment_check_layer(part->segment, layer, &fresh, &reason);
    if (result)
      return bad_part(view, part, layer, result, fresh, &reason, error);
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

static int copy_ids(struct view *view, const struct part *part, uint32_t skip, uint32_t count, uint32_t *ids,
                    struct error *error) {
  if (!part_readable(part))
    return lost_part(part, error);
  if (part->segment) {
    bool fresh;
    struct error reason;
    int result = segment_check_ids(part->segment, &fresh, &reason);
    if (result)
      return bad_part(view, part, SEGMENT_NO_LAYER, result, fresh, &reason, error);
  }
  mapped_guard_begin();
  memcpy(ids, part_ids(part) + 4 * (size_t)skip, 4 * (size_t)count);
  mapped_guard_end();
  int result = check_readable(view, part, error);
  for (uint32_t i = 0; i < count && !result; i++)
    if (ids[i] == TOKEN_ID_MISSING)
      result = error_set(error, ERR_CORRUPT, "the id of token %llu was lost to damage, and given up by a repair",
                         (unsigned long long)(part->first + skip + i));
  return result;
}

int view_tokens(struct view *view, uint64_t first, uint64_t count, uint32_t *ids, struct error *error) {
  int result = check_range(view, first, count, error);
  while (!result && count) {
    const struct part *part = &view->snapshot->parts[snapshot_find(view->snapshot, first)];
    uint32_t skip = (uint32_t)(first - part->first), some = visible(view, part) - skip;
    some = count < some ? (uint32_t)count : some;
    result = copy_ids(view, part, skip, some, ids, error);
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

static int bad_record(struct view *view, const struct part *part, uint32_t layer, uint32_t head, uint64_t token,
                      const uint8_t *record, struct error *error) {
  struct error reason;
  if (record_missing(record))
    return error_set(error, ERR_CORRUPT,
                     "the record of token %llu, layer %u, head %u was lost to damage, and given up by a repair",
                     (unsigned long long)token, layer, head);
  error_set(&reason, ERR_CORRUPT, "the record of token %llu, layer %u, head %u is damaged in %s",
            (unsigned long long)token, layer, head, part->segment ? segment_path(part->segment) : "memory");
  if (part->segment)
    note(view, part, token, 1, 0, reason.text);
  if (error)
    *error = reason;
  return -ERR_CORRUPT;
}

static int copy_records(struct view *view, const struct part *part, uint32_t layer, uint32_t head, uint32_t skip,
                        uint32_t count, uint8_t *records, struct error *error) {
  struct record_columns columns;
  uint64_t proven = 0;
  if (!part_readable(part))
    return lost_part(part, error);
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
      return bad_record(view, part, layer, head, token, record, error);
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
      segment_keep(view->snapshot->parts[i].segment, &view->archive->counters.scan_kept_bytes, budget_bytes);
}

const struct segment *view_segment(const struct view *view, uint32_t part) {
  return part < view->snapshot->part_count ? view->snapshot->parts[part].segment : NULL;
}
