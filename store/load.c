// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// Bringing a conversation into memory: its segments are mapped, its logs replayed.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "store/internal.h"
#include "store/log.h"

/* What replaying the logs finds; becomes part of the conversation when all went well. */
struct replay {
  struct conversation *c;
  struct log_list list;
  uint64_t expected; /* token index that comes next */
  struct tail **tails; /* [list.count], NULL for logs that are sealed already */
  uint64_t last_size;  /* good bytes of the last log */
  struct log_header last_header;
  bool last_torn, last_gone; /* gone: torn while it was made */
  uint32_t ahead[LIMIT_AHEAD_MAX];
  uint32_t ahead_count;
};

/* --- segments --------------------------------------------------------------------------------------------------- */

static int check_segment(const struct conversation *c, const struct msg_extent *extent,
                         const struct segment_header *header, const char *path, struct error *error) {
  const uint8_t *model = conversation_model(c);
  bool same_model = model && memcmp(header->model, model, LIMIT_ID_BYTES) == 0;
  bool same_shape = header->layers == c->geometry.layers && header->kv_heads == c->geometry.kv_heads &&
                    header->head_dim == c->geometry.head_dim;
  bool inside = header->first == extent->origin && extent->first >= header->first &&
                extent->first + extent->count <= header->first + header->count;
  if (memcmp(header->id, extent->id.data, LIMIT_ID_BYTES) != 0 || !same_model || !same_shape || !inside)
    return error_set(error, ERR_CORRUPT, "%s is not the segment that conversation '%s' consists of", path, c->name);
  return 0;
}

/* A segment that is damaged as a whole, or not there: its tokens cannot be read, those of the others can. What only a
 * failed call or a newer format keeps from being read is no reason to go on. */
static bool lost_segment(const struct conversation *c, const struct msg_extent *extent, const char *path, int result,
                         const struct error *reason) {
  struct damage_place place;
  if (result != -ERR_CORRUPT && io_exists(c->archive->io, path))
    return false;
  conversation_place(c, extent->first, extent->count, &place);
  archive_damaged(c->archive, path, &place, true, reason->text);
  return true;
}

/* *segment is NULL for a lost one. */
static int map_segment(struct conversation *c, const struct msg_extent *extent, struct segment **segment,
                       struct error *error) {
  char path[PATH_BYTES];
  struct error reason;
  path_segment(path, c->archive->dir, extent->id.data);
  *segment = NULL;
  int result = segment_open(c->archive->io, path, segment, &reason);
  if (!result) {
    result = check_segment(c, extent, segment_header(*segment), path, &reason);
    if (result)
      segment_unref(*segment);
  }
  if (!result) {
    atomic_fetch_add(&c->archive->counters.segments_mapped, 1);
    return 0;
  }
  *segment = NULL;
  if (lost_segment(c, extent, path, result, &reason))
    return 0;
  if (error)
    *error = reason;
  return result;
}

static int map_segments(struct conversation *c, const struct meta *meta, struct error *error) {
  for (uint32_t i = 0; i < meta->extent_count; i++) {
    const struct msg_extent *extent = &meta->extents[i];
    struct segment *segment;
    int result = conversation_reserve(c, error);
    if (!result)
      result = map_segment(c, extent, &segment, error);
    if (result)
      return result;
    uint32_t at = c->extent_count++;
    c->segments[at] = segment;
    c->extents[at] = *extent;
    memcpy(c->extent_ids[at], extent->id.data, LIMIT_ID_BYTES);
    c->extents[at].id.data = c->extent_ids[at];
  }
  return 0;
}

/* --- logs ------------------------------------------------------------------------------------------------------- */

/* A damaged log stays as it is, and where it is: its bytes may be all that is left. What precedes the damage is served;
 * what follows is not, and nothing is written, until a repair. */
static void note_damage(struct replay *r, const char *path, uint64_t first, const struct error *reason) {
  struct conversation *c = r->c;
  struct damage_place place;
  if (!atomic_load(&c->damaged))
    c->damage = *reason;
  atomic_store(&c->damaged, true);
  conversation_place(c, first, 0, &place);
  archive_damaged(c->archive, path, &place, true, reason->text);
}

static int replay_frame(struct replay *r, struct tail *tail, const struct log_frame *frame, const char *path,
                        struct error *error) {
  const struct msg_geometry *g = &r->c->geometry;
  if (frame->count) {
    if (frame->layers != g->layers || frame->kv_heads != g->kv_heads || !conversation_model(r->c))
      return error_set(error, ERR_CORRUPT, "%s holds records of another geometry than its conversation", path);
    if (tail_room(tail) < frame->count)
      return error_set(error, ERR_CORRUPT, "%s holds more than %u tokens", path, LIMIT_SEGMENT_TOKENS);
    tail_append(tail, frame->ids, frame->records, frame->count);
  }
  memcpy(r->ahead, frame->ahead_ids, 4 * (size_t)frame->ahead);
  r->ahead_count = frame->ahead;
  return 0;
}

/* Reads all frames of one log into its tail. Returns LOG_END or LOG_TORN. */
static int replay_frames(struct replay *r, struct log_reader *reader, struct tail *tail, const char *path,
                         struct error *error) {
  const struct log_header *header = log_reader_header(reader);
  struct log_frame frame;
  int result;
  if (memcmp(header->conversation, r->c->id, LIMIT_ID_BYTES) != 0 || header->first != tail_first(tail))
    return error_set(error, ERR_CORRUPT, "%s is the log of another conversation, or of other tokens", path);
  while ((result = log_reader_next(reader, &frame, error)) == LOG_FRAME) {
    result = replay_frame(r, tail, &frame, path, error);
    if (result)
      return result;
  }
  return result;
}

/* A log that another one follows was complete and synced before that one was made. */
static int check_closed(const struct replay *r, uint32_t at, int end, const char *path, struct error *error) {
  uint64_t next = r->list.first[at + 1];
  if (end == LOG_END && next == r->list.first[at] + tail_count(r->tails[at]))
    return 0;
  return error_set(error, ERR_CORRUPT, "%s ends before token %llu, where the next log begins; restore it from a backup",
                   path, (unsigned long long)next);
}

static int replay_log(struct replay *r, uint32_t at, struct error *error) {
  struct conversation *c = r->c;
  bool last = at + 1 == r->list.count, torn = false;
  char path[PATH_BYTES];
  struct log_reader *reader;
  path_log(path, c->archive->dir, c->id, r->list.first[at]);
  if (r->list.first[at] != r->expected)
    return error_set(error, ERR_CORRUPT,
                     "conversation '%s': %s does not go on at token %llu, where what precedes it ends; restore the "
                     "missing file from a backup",
                     c->name, path, (unsigned long long)r->expected);
  int result = tail_create(c->archive->io, r->expected, (uint32_t)c->geometry.layers, (uint32_t)c->geometry.kv_heads,
                           &c->archive->counters.tail_bytes, &r->tails[at], error);
  if (result)
    return result;
  result = log_reader_open(c->archive->io, path, &reader, &torn, error);
  if (torn && last) {
    r->last_gone = true;
    return 0;
  }
  if (!result) {
    if (last && c->recovered)
      log_reader_limit(reader, c->log.size);
    result = replay_frames(r, reader, r->tails[at], path, error);
    r->last_torn = result == LOG_TORN;
    r->last_size = log_reader_offset(reader);
    r->last_header = *log_reader_header(reader);
    log_reader_close(reader);
  }
  if (result >= 0 && !last)
    result = check_closed(r, at, result, path, error);
  r->expected += tail_count(r->tails[at]);
  return result < 0 ? result : 0;
}

/* Removes a log whose tokens are in a segment: a crash came between the two. */
static void drop_sealed_log(struct conversation *c, uint64_t first) {
  char path[PATH_BYTES];
  path_log(path, c->archive->dir, c->id, first);
  archive_log(c->archive, "conversation '%s': removed %s, which is sealed already", c->name, path);
  c->archive->io->unlink(path);
}

static int replay_all(struct replay *r, struct error *error) {
  struct conversation *c = r->c;
  uint64_t sealed = r->expected;
  uint32_t i = 0;
  for (; i + 1 < r->list.count && r->list.first[i + 1] <= sealed; i++)
    if (!archive_read_only(c->archive))
      drop_sealed_log(c, r->list.first[i]);
  for (; i < r->list.count; i++) {
    struct error reason = {0};
    int result = replay_log(r, i, &reason);
    if (result == -ERR_CORRUPT) {
      char path[PATH_BYTES];
      path_log(path, c->archive->dir, c->id, r->list.first[i]);
      note_damage(r, path, r->expected, &reason);
      r->list.count = r->tails[i] ? i + 1 : i;
      r->last_gone = false;
      return 0;
    }
    if (result && error)
      *error = reason;
    if (result)
      return result;
  }
  return 0;
}

/* The index may know of more durable tokens, or bytes of the last log, than can be read: then some are lost. */
static int check_durable(struct replay *r, struct error *error) {
  struct conversation *c = r->c;
  struct conversation_entry entry;
  struct error reason;
  char path[PATH_BYTES];
  MDB_txn *txn;
  int result = catalog_begin(&c->archive->catalog, false, &txn, error);
  if (result)
    return result;
  result = catalog_get_conversation(&c->archive->catalog, txn, c->id, &entry, error);
  catalog_abort(txn);
  if (result)
    return result < 0 ? result : 0;
  const struct msg_conversation *m = &entry.message;
  uint32_t last = r->list.count - 1;
  bool has_last = r->list.count && r->tails[last];
  if (m->durable > r->expected)
    error_set(&reason, ERR_CORRUPT,
              "its files end at token %llu although %llu were durable; restore its logs from a backup",
              (unsigned long long)r->expected, (unsigned long long)m->durable);
  else if (has_last && m->log_first == r->list.first[last] && m->log_bytes > r->last_size)
    error_set(&reason, ERR_CORRUPT,
              "its last log is good up to byte %llu although %llu were durable; restore it from a backup",
              (unsigned long long)r->last_size, (unsigned long long)m->log_bytes);
  else
    return 0;
  if (has_last)
    path_log(path, c->archive->dir, c->id, r->list.first[last]);
  else
    path_conversation(path, c->archive->dir, c->id);
  note_damage(r, path, r->expected, &reason);
  r->last_gone = false;
  return 0;
}

/* Opens the last log for writing, its torn end cut off. */
static int open_last(struct replay *r, struct error *error) {
  struct conversation *c = r->c;
  char path[PATH_BYTES];
  uint32_t at = r->list.count;
  if (!at)
    return 0;
  path_log(path, c->archive->dir, c->id, r->list.first[--at]);
  if (r->last_torn || r->last_gone) {
    atomic_fetch_add(&c->archive->counters.torn_frames, 1);
    archive_log(c->archive, "conversation '%s': dropped the torn end of %s, which was never acknowledged", c->name,
                path);
  }
  if (r->last_gone) {
    c->archive->io->unlink(path);
    if (!at || !r->tails[at - 1])
      return 0;
    path_log(path, c->archive->dir, c->id, r->list.first[--at]); /* the one before is the open log again */
  }
  int result = log_writer_open(&c->log, c->archive->io, path, &r->last_header, r->last_size, error);
  if (!result) {
    c->has_log = true;
    atomic_store(&c->log_bytes, c->log.size);
  }
  return result;
}

/* Hands what was replayed over to the conversation. */
static int adopt(struct replay *r, struct error *error) {
  struct conversation *c = r->c;
  uint32_t kept = r->list.count - (r->last_gone ? 1 : 0);
  int result = 0;
  pthread_mutex_lock(&c->lock);
  c->closed_count = 0;
  for (uint32_t i = 0; i < kept && !result; i++) {
    if (!r->tails[i])
      continue;
    if (i + 1 == kept) {
      c->tail = r->tails[i];
    } else if ((result = conversation_reserve(c, error)) == 0) {
      c->closed[c->closed_count++] = (struct closed_log){.first = r->list.first[i], .tail = r->tails[i]};
    } else {
      break;
    }
    r->tails[i] = NULL;
  }
  memcpy(c->ahead, r->ahead, sizeof c->ahead);
  c->ahead_count = r->ahead_count;
  atomic_store(&c->count, r->expected);
  if (!result)
    result = conversation_publish(c, error);
  pthread_mutex_unlock(&c->lock);
  return result;
}

/* Leaves out a log that this daemon could neither finish nor remove. */
static void leave_out_unfinished(const struct conversation *c, struct log_list *list) {
  if (!c->recovered)
    return;
  while (list->count && (!c->has_log || list->first[list->count - 1] > c->log.first))
    list->count--;
}

/* Replays whatever logs there are; on the first time also mends what a crash left. */
static int replay(struct conversation *c, struct error *error) {
  char path[PATH_BYTES];
  struct replay *r = calloc(1, sizeof *r);
  if (!r)
    return error_set(error, ERR_MEMORY, "out of memory for conversation '%s'", c->name);
  r->c = c;
  r->expected = conversation_sealed(c);
  path_conversation(path, c->archive->dir, c->id);
  int result = log_list_read(c->archive->io, path, &r->list, error);
  leave_out_unfinished(c, &r->list);
  if (!result) {
    r->tails = calloc(r->list.count ? r->list.count : 1, sizeof r->tails[0]);
    if (!r->tails)
      result = error_set(error, ERR_MEMORY, "out of memory for conversation '%s'", c->name);
  }
  if (!result)
    result = replay_all(r, error);
  if (!result && !c->recovered && !conversation_damaged(c, NULL))
    result = check_durable(r, error);
  if (!result && !c->recovered && !conversation_damaged(c, NULL))
    result = open_last(r, error);
  if (!result)
    result = adopt(r, error);
  for (uint32_t i = 0; r->tails && i < r->list.count; i++)
    tail_unref(r->tails[i]);
  free(r->tails);
  log_list_finish(&r->list);
  free(r);
  return result;
}

int conversation_recover(struct conversation *c, const struct meta *meta, struct error *error) {
  damage_list_clear(&c->archive->damage, c->id); /* what is still there is found again */
  int result = map_segments(c, meta, error);
  if (!result)
    result = replay(c, error);
  if (result)
    return result;
  c->recovered = true;
  atomic_store(&c->durable, conversation_sealed(c));
  if (conversation_damaged(c, NULL))
    return 0;
  /* what was written before a crash of the daemon may be in the page cache only */
  return archive_read_only(c->archive) ? 0 : conversation_sync(c, error);
}

int conversation_load(struct conversation *c, struct error *error) {
  if (conversation_loaded(c))
    return 0;
  uint64_t before = conversation_count(c);
  pthread_mutex_lock(&c->seal_lock);
  int result = replay(c, error);
  pthread_mutex_unlock(&c->seal_lock);
  if (!result && conversation_count(c) != before && !conversation_damaged(c, NULL))
    result = error_set(error, ERR_CORRUPT, "the logs of conversation '%s' changed under the daemon", c->name);
  return result;
}

int conversation_unload(struct conversation *c, struct error *error) {
  int result = c->has_log && !archive_read_only(c->archive) ? conversation_sync(c, error) : 0;
  if (result)
    return result;
  pthread_mutex_lock(&c->lock);
  snapshot_unref(c->snapshot);
  c->snapshot = NULL;
  for (uint32_t i = 0; i < c->closed_count; i++) {
    tail_unref(c->closed[i].tail);
    c->closed[i].tail = NULL;
  }
  tail_unref(c->tail);
  c->tail = NULL;
  pthread_mutex_unlock(&c->lock);
  return 0;
}
