// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// Appending tokens: what is checked, how a frame is split at the end of a segment, and sync.
#include <stdlib.h>
#include <string.h>

#include "store/internal.h"
#include "store/mapped_fault.h"

/* What is left of an append once repeated tokens are taken away. */
struct batch {
  uint64_t first;
  uint32_t count, blocks;
  const uint8_t *ids, *records;
  const uint8_t *ahead; /* u32, maybe unaligned */
  uint32_t ahead_count;
};

/* Neither a stored token nor one ahead may have the id that stands for a lost one. */
static bool has_missing_id(struct span ids) {
  for (size_t at = 0; at < ids.size; at += 4)
    if (load_u32(ids.data + at) == TOKEN_ID_MISSING)
      return true;
  return false;
}

static int check_shape(const struct conversation *c, const struct msg_append *append, struct error *error) {
  uint64_t count = append->ids.size / 4, ahead = append->ahead.size / 4;
  uint64_t token_bytes = c->geometry.layers * c->geometry.kv_heads * RECORD_BYTES;
  if (append->ids.size % 4 || append->ahead.size % 4 || count > LIMIT_APPEND_TOKENS_MAX || ahead > LIMIT_AHEAD_MAX)
    return error_set(error, ERR_BAD_PARAMS, "append of %llu tokens and %llu ids ahead: at most %u and %u",
                     (unsigned long long)count, (unsigned long long)ahead, LIMIT_APPEND_TOKENS_MAX, LIMIT_AHEAD_MAX);
  if (append->records.size != count * token_bytes)
    return error_set(error, ERR_BAD_PARAMS, "append of %llu tokens with %zu bytes of records, wanted %llu",
                     (unsigned long long)count, append->records.size, (unsigned long long)(count * token_bytes));
  if (has_missing_id(append->ids) || has_missing_id(append->ahead))
    return error_set(error, ERR_BAD_PARAMS, "token id %u stands for a lost token, and cannot be appended",
                     TOKEN_ID_MISSING);
  if (append->first > LIMIT_TOKEN_INDEX_MAX - count - ahead)
    return error_set(error, ERR_RANGE, "token %llu is past the last possible one",
                     (unsigned long long)(append->first + count + ahead));
  if (count && !conversation_model(c))
    return error_set(error, ERR_NO_MODEL, "conversation '%s' has no model yet; calibrate one and open it with its id",
                     c->name);
  if (append->first > conversation_count(c))
    return error_set(error, ERR_GAP, "conversation '%s' goes on at token %llu, not at %llu", c->name,
                     (unsigned long long)conversation_count(c), (unsigned long long)append->first);
  return 0;
}

/* Another byte came for a stored token: who is wrong? */
static int refuse_repeat(const struct conversation *c, uint64_t token, const uint8_t *stored, uint32_t layer,
                         uint32_t head, struct error *error) {
  if (stored && !record_check(stored, layer, head, token))
    return error_set(error, ERR_CORRUPT, "conversation '%s': the stored record of token %llu, layer %u, head %u is bad",
                     c->name, (unsigned long long)token, layer, head);
  return error_set(error, ERR_CONFLICT, "conversation '%s' holds other bytes for token %llu", c->name,
                   (unsigned long long)token);
}

static int compare_bytes(const struct conversation *c, const struct part *part, uint64_t token, const uint8_t *id,
                         const uint8_t *records, bool *fresh, struct error *error) {
  uint32_t heads = (uint32_t)c->geometry.kv_heads, blocks = (uint32_t)c->geometry.layers * heads;
  uint32_t at = (uint32_t)(token - part->first);
  int result = part->segment ? segment_check_ids(part->segment, fresh, error) : 0;
  if (!part_readable(part))
    result = error_set(error, ERR_CORRUPT, "conversation '%s': token %llu cannot be compared, its segment is lost",
                       c->name, (unsigned long long)token);
  if (result)
    return result;
  if (memcmp(part_ids(part) + 4 * (size_t)at, id, 4) != 0)
    return refuse_repeat(c, token, NULL, 0, 0, error);
  for (uint32_t block = 0; block < blocks; block++) {
    struct record_columns columns;
    uint8_t stored[RECORD_BYTES];
    part_columns(part, block / heads, block % heads, &columns);
    record_gather(&columns, at, stored);
    if (memcmp(stored, records + (size_t)block * RECORD_BYTES, RECORD_BYTES) != 0)
      return refuse_repeat(c, token, stored, block / heads, block % heads, error);
  }
  return 0;
}

/* What the disk could not give proves nobody wrong. */
static int compare_token(const struct conversation *c, const struct snapshot *snapshot, uint64_t token,
                         const uint8_t *id, const uint8_t *records, struct error *error) {
  const struct part *part = &snapshot->parts[snapshot_find(snapshot, token)];
  bool bad = false, lost = false;
  mapped_guard_begin();
  int result = compare_bytes(c, part, token, id, records, &bad, error);
  mapped_guard_end();
  int unreadable = part->segment ? segment_check_readable(part->segment, &lost, error) : 0;
  if (bad || lost)
    atomic_fetch_add(&c->archive->counters.bad_pages, 1);
  return unreadable ? unreadable : result;
}

/* Compares the first `repeated` tokens with what is stored. */
static int check_repeat(struct conversation *c, const struct msg_append *append, uint32_t repeated,
                        struct error *error) {
  size_t token_bytes = (size_t)c->geometry.layers * c->geometry.kv_heads * RECORD_BYTES;
  int result = 0;
  if (!repeated)
    return 0;
  pthread_mutex_lock(&c->lock);
  struct snapshot *snapshot = snapshot_ref(c->snapshot); /* the sealer may put another in its place */
  pthread_mutex_unlock(&c->lock);
  for (uint32_t i = 0; i < repeated && !result; i++)
    result = compare_token(c, snapshot, append->first + i, append->ids.data + 4 * (size_t)i,
                           append->records.data + i * token_bytes, error);
  snapshot_unref(snapshot);
  return result;
}

static int check_records(const struct conversation *c, const struct batch *batch, struct error *error) {
  uint32_t heads = (uint32_t)c->geometry.kv_heads;
  for (uint32_t i = 0; i < batch->count; i++)
    for (uint32_t block = 0; block < batch->blocks; block++) {
      const uint8_t *record = batch->records + ((size_t)i * batch->blocks + block) * RECORD_BYTES;
      if (!record_check(record, block / heads, block % heads, batch->first + i))
        return error_set(error, ERR_BAD_RECORD,
                         "the record of token %llu, layer %u, head %u fails its CRC or has an impossible scale",
                         (unsigned long long)(batch->first + i), block / heads, block % heads);
    }
  return 0;
}

static struct log_frame frame_of(const struct conversation *c, const struct batch *batch) {
  return (struct log_frame){
      .first = batch->first,
      .count = batch->count,
      .ahead = batch->ahead_count,
      .layers = (uint32_t)c->geometry.layers,
      .kv_heads = (uint32_t)c->geometry.kv_heads,
      .ids = batch->ids,
      .ahead_ids = batch->ahead,
      .records = batch->records,
  };
}

static void keep_ahead(struct conversation *c, const struct batch *batch) {
  pthread_mutex_lock(&c->lock);
  memcpy(c->ahead, batch->ahead, 4 * (size_t)batch->ahead_count);
  c->ahead_count = batch->ahead_count;
  pthread_mutex_unlock(&c->lock);
}

/* Makes what a batch wrote visible. */
static void publish_batch(struct conversation *c, const struct batch *batch) {
  tail_append(c->tail, batch->ids, batch->records, batch->count);
  keep_ahead(c, batch);
  atomic_store(&c->count, batch->first + batch->count);
  atomic_store(&c->log_bytes, c->log.size);
  atomic_fetch_add(&c->archive->counters.appended_tokens, batch->count);
}

static int append_here(struct conversation *c, const struct batch *batch, struct error *error) {
  struct log_frame frame = frame_of(c, batch);
  uint64_t before = c->log.size;
  int result = log_writer_append(&c->log, &frame, error);
  if (result)
    return result;
  atomic_fetch_add(&c->archive->counters.appended_bytes, c->log.size - before);
  publish_batch(c, batch);
  return 0;
}

/* Makes the file of a new log. One that can neither be made nor removed would be taken for damage if the log before it
 * were written to again: then nothing is. */
static int make_log(struct conversation *c, struct log_writer *log, const char *path, const struct log_frame *frame,
                    struct error *error) {
  bool left;
  struct error reason;
  int result = log_writer_create(log, c->archive->io, path, c->id, frame, &left, &reason);
  if (left)
    archive_sync_failed(c->archive, &reason);
  if (result && error)
    *error = reason;
  return result;
}

/* Starts a new log with the batch; the log there was, if any, is closed and waits to be sealed. A log is made only once
 * the one before is complete on disk, so that recovery can tell damage from a crash. */
static int append_in_new_log(struct conversation *c, const struct batch *batch, struct error *error) {
  struct archive *archive = c->archive;
  struct log_frame frame = frame_of(c, batch);
  struct log_writer log = {.fd = -1};
  struct tail *tail = NULL;
  char path[PATH_BYTES];
  path_log(path, archive->dir, c->id, batch->first);
  int result = conversation_sync_log(c, error);
  if (!result)
    result = tail_create(archive->io, batch->first, (uint32_t)c->geometry.layers, (uint32_t)c->geometry.kv_heads,
                         &archive->counters.tail_bytes, &tail, error);
  if (!result)
    result = make_log(c, &log, path, &frame, error);
  if (result) {
    tail_unref(tail);
    return result;
  }
  pthread_mutex_lock(&c->lock);
  struct tail *old = c->tail;
  result = conversation_reserve(c, error);
  if (!result && old)
    c->closed[c->closed_count++] = (struct closed_log){.first = c->log.first, .tail = old};
  c->tail = tail;
  if (!result && (result = conversation_publish(c, error)) != 0 && old)
    c->closed_count--;
  if (result)
    c->tail = old;
  pthread_mutex_unlock(&c->lock);
  if (result) {
    if (archive->io->unlink(path))
      archive_sync_failed(archive, error); /* as in make_log */
    log_writer_close(&log);
    tail_unref(tail);
    return result;
  }
  log_writer_close(&c->log);
  c->log = log;
  c->has_log = true;
  atomic_fetch_add(&archive->counters.appended_bytes, log.size);
  publish_batch(c, batch);
  return 0;
}

/* An append over the end of a segment: one frame closes the old log, one begins the new one. Both or none. */
static int append_split(struct conversation *c, const struct batch *batch, uint32_t room, struct error *error) {
  uint32_t ids[LIMIT_APPEND_TOKENS_MAX + LIMIT_AHEAD_MAX], rest_count = batch->count - room;
  struct batch head = *batch, rest = *batch;
  rest.first += room;
  rest.count = rest_count;
  rest.ids += 4 * (size_t)room;
  rest.records += (size_t)room * batch->blocks * RECORD_BYTES;
  memcpy(ids, rest.ids, 4 * (size_t)rest_count);
  memcpy(ids + rest_count, batch->ahead, 4 * (size_t)batch->ahead_count);
  head.count = room;
  head.ahead = (const uint8_t *)ids; /* to this frame the rest of the append is ahead, too */
  head.ahead_count = rest_count + batch->ahead_count;
  if (head.ahead_count > LIMIT_AHEAD_MAX)
    head.ahead_count = LIMIT_AHEAD_MAX;

  struct log_frame frame = frame_of(c, &head);
  uint64_t before = c->log.size;
  int result = log_writer_append(&c->log, &frame, error);
  if (result)
    return result;
  uint64_t written = c->log.size - before;
  tail_append(c->tail, head.ids, head.records, head.count); /* seen by nobody before `count` says so */
  result = append_in_new_log(c, &rest, error);
  if (result) {
    tail_retract(c->tail, head.count);
    log_writer_retract(&c->log, before, !archive_read_only(c->archive));
    return result;
  }
  atomic_fetch_add(&c->archive->counters.appended_bytes, written);
  atomic_fetch_add(&c->archive->counters.appended_tokens, head.count);
  return 0;
}

static int append_batch(struct conversation *c, const struct batch *batch, struct error *error) {
  if (!c->has_log)
    return append_in_new_log(c, batch, error);
  uint32_t room = tail_room(c->tail);
  if (batch->count <= room && (room || batch->count == 0))
    return append_here(c, batch, error);
  return room ? append_split(c, batch, room, error) : append_in_new_log(c, batch, error);
}

static bool same_ahead(struct conversation *c, const struct batch *batch) {
  return batch->ahead_count == c->ahead_count && memcmp(batch->ahead, c->ahead, 4 * (size_t)c->ahead_count) == 0;
}

int conversation_append(struct conversation *c, const struct msg_append *append, bool *wrote, struct error *error) {
  *wrote = false;
  int result = archive_check_writable(c->archive, error);
  if (!result)
    result = check_shape(c, append, error);
  if (!result)
    result = conversation_load(c, error);
  if (!result)
    result = conversation_check_sound(c, error);
  if (result)
    return result;
  uint64_t stored = conversation_count(c) - append->first;
  uint32_t count = (uint32_t)(append->ids.size / 4), repeated = stored < count ? (uint32_t)stored : count;
  result = check_repeat(c, append, repeated, error);
  if (result || stored > count)
    return result; /* an old message, sent again: its ids ahead are stored by now, or no longer true */
  static const uint8_t nothing[4];
  struct batch batch = {
      .first = append->first + repeated,
      .count = count - repeated,
      .blocks = (uint32_t)(c->geometry.layers * c->geometry.kv_heads),
      .ids = count ? append->ids.data + 4 * (size_t)repeated : nothing,
      .ahead = append->ahead.size ? append->ahead.data : nothing,
      .ahead_count = (uint32_t)(append->ahead.size / 4),
  };
  batch.records = count ? append->records.data + (size_t)repeated * batch.blocks * RECORD_BYTES : nothing;
  if (!batch.count && same_ahead(c, &batch))
    return 0;
  result = check_records(c, &batch, error);
  if (!result)
    result = append_batch(c, &batch, error);
  *wrote = result == 0;
  return result;
}

int conversation_sync_log(struct conversation *c, struct error *error) {
  struct error reason;
  bool sync_failed;
  if (!c->has_log || (c->log.synced == c->log.size && c->log.entry_synced))
    return 0;
  int result = archive_check_writable(c->archive, error);
  if (result)
    return result;
  result = log_writer_sync(&c->log, &sync_failed, &reason);
  if (sync_failed)
    archive_sync_failed(c->archive, &reason);
  if (result) {
    if (error)
      *error = reason;
    return result;
  }
  atomic_fetch_add(&c->archive->counters.log_syncs, 1);
  return 0;
}

int conversation_sync(struct conversation *c, struct error *error) {
  uint64_t count = conversation_count(c);
  int result = conversation_sync_log(c, error);
  if (!result)
    atomic_store(&c->durable, count);
  return result;
}
