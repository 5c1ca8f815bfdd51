// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "store/internal.h"

uint64_t conversation_count(const struct conversation *c) { return atomic_load(&c->count); }
uint64_t conversation_durable(const struct conversation *c) { return atomic_load(&c->durable); }
const uint8_t *conversation_id(const struct conversation *c) { return c->id; }
const char *conversation_name(const struct conversation *c) { return c->name; }
const struct msg_geometry *conversation_geometry(const struct conversation *c) { return &c->geometry; }

const uint8_t *conversation_model(const struct conversation *c) {
  const struct model *model = atomic_load(&c->model);
  return model ? model->file.message.id.data : NULL;
}

uint32_t conversation_ahead(const struct conversation *conversation, uint32_t *ids) {
  struct conversation *c = (struct conversation *)(uintptr_t)conversation;
  pthread_mutex_lock(&c->lock);
  uint32_t count = c->ahead_count;
  memcpy(ids, c->ahead, count * sizeof ids[0]);
  pthread_mutex_unlock(&c->lock);
  return count;
}

bool conversation_damaged(const struct conversation *c, struct error *why) {
  bool damaged = atomic_load(&c->damaged);
  if (damaged && why)
    *why = c->damage;
  return damaged;
}

int conversation_check_sound(const struct conversation *c, struct error *error) {
  if (!conversation_damaged(c, error))
    return 0;
  error_prefix(error, "conversation '%s' can only be read until 'coldkv repair' has been run, since it is damaged",
               c->name);
  return -ERR_CORRUPT;
}

void conversation_place(const struct conversation *c, uint64_t first, uint64_t count, struct damage_place *place) {
  *place = (struct damage_place){.owned = true, .uid = c->uid, .first = first, .count = count};
  memcpy(place->conversation, c->id, sizeof place->conversation);
  memcpy(place->name, c->name, sizeof place->name);
}

bool conversation_loaded(const struct conversation *conversation) {
  struct conversation *c = (struct conversation *)(uintptr_t)conversation;
  pthread_mutex_lock(&c->lock);
  bool loaded = c->snapshot != NULL;
  pthread_mutex_unlock(&c->lock);
  return loaded;
}

struct conversation *conversation_find(struct archive *archive, const uint8_t *id) {
  struct conversation *c = archive->conversations;
  while (c && memcmp(c->id, id, LIMIT_ID_BYTES) != 0)
    c = c->next;
  return c;
}

int conversation_write_meta(struct conversation *c, const struct msg_extent *extents, uint32_t extent_count,
                            const uint8_t *model, struct error *error) {
  struct msg_meta meta = {
      .id = span_of(c->id, sizeof c->id),
      .name = span_str(c->name),
      .uid = c->uid,
      .fingerprint = span_of(c->fingerprint, sizeof c->fingerprint),
      .model = span_of(model, model ? LIMIT_ID_BYTES : 0),
      .geometry = c->geometry,
      .created_s = c->created_s,
      .extents = {.count = extent_count, .items = extents},
  };
  uint8_t *data;
  size_t size;
  char path[PATH_BYTES];
  int result = meta_pack(&meta, &data, &size, error);
  if (result)
    return result;
  path_meta(path, c->archive->dir, c->id);
  result = archive_replace_file(c->archive, path, data, size, error);
  free(data);
  return result;
}

uint64_t conversation_sealed(const struct conversation *c) {
  if (!c->extent_count)
    return 0;
  const struct msg_extent *last = &c->extents[c->extent_count - 1];
  return last->first + last->count;
}

int conversation_reserve(struct conversation *c, struct error *error) {
  if (c->extent_count == c->extent_room) {
    uint32_t room = c->extent_room ? 2 * c->extent_room : 8;
    struct msg_extent *extents = realloc(c->extents, room * sizeof *extents);
    if (extents)
      c->extents = extents;
    uint8_t(*ids)[LIMIT_ID_BYTES] = realloc(c->extent_ids, room * sizeof *ids);
    if (ids)
      c->extent_ids = ids;
    struct segment **segments = realloc(c->segments, room * sizeof *segments);
    if (segments)
      c->segments = segments;
    if (!extents || !ids || !segments)
      return error_set(error, ERR_MEMORY, "out of memory for the extents of conversation '%s'", c->name);
    c->extent_room = room;
    for (uint32_t i = 0; i < c->extent_count; i++)
      c->extents[i].id.data = c->extent_ids[i];
  }
  if (c->closed_count == c->closed_room) {
    uint32_t room = c->closed_room ? 2 * c->closed_room : 4;
    struct closed_log *closed = realloc(c->closed, room * sizeof *closed);
    if (!closed)
      return error_set(error, ERR_MEMORY, "out of memory for the logs of conversation '%s'", c->name);
    c->closed = closed;
    c->closed_room = room;
  }
  return 0;
}

int conversation_publish(struct conversation *c, struct error *error) {
  uint32_t count = c->extent_count + c->closed_count + (c->tail != NULL), at = 0;
  struct snapshot *snapshot = snapshot_create(count);
  if (!snapshot)
    return error_set(error, ERR_MEMORY, "out of memory for the parts of conversation '%s'", c->name);
  snapshot->layers = (uint32_t)c->geometry.layers;
  snapshot->kv_heads = (uint32_t)c->geometry.kv_heads;
  for (uint32_t i = 0; i < c->extent_count; i++)
    snapshot->parts[at++] = (struct part){.segment = c->segments[i] ? segment_ref(c->segments[i]) : NULL,
                                          .first = c->extents[i].first,
                                          .count = (uint32_t)c->extents[i].count};
  for (uint32_t i = 0; i < c->closed_count; i++)
    snapshot->parts[at++] = (struct part){.tail = tail_ref(c->closed[i].tail), .first = c->closed[i].first};
  if (c->tail)
    snapshot->parts[at++] = (struct part){.tail = tail_ref(c->tail), .first = tail_first(c->tail)};
  snapshot_unref(c->snapshot);
  c->snapshot = snapshot;
  return 0;
}

/* Bytes on disk of the sealed part and of the logs there are, by size alone. */
static uint64_t bytes_on_disk(const struct conversation *c) {
  uint64_t pages = 0;
  for (uint32_t i = 0; i < c->extent_count; i++)
    pages += c->segments[i] ? segment_header(c->segments[i])->pages : 0;
  uint64_t token = 4 + c->geometry.layers * c->geometry.kv_heads * RECORD_BYTES;
  return pages * SEGMENT_PAGE_BYTES + c->closed_count * LIMIT_SEGMENT_TOKENS * token + atomic_load(&c->log_bytes);
}

void conversation_message(struct conversation *c, struct msg_conversation *message) {
  const struct model *model = atomic_load(&c->model);
  *message = (struct msg_conversation){
      .name = span_str(c->name),
      .id = span_of(c->id, sizeof c->id),
      .uid = c->uid,
      .created_s = c->created_s,
      .used_s = archive_now_s(),
  };
  if (model) {
    message->model = model->file.message.id;
    message->model_name = model->file.message.name;
  }
  pthread_mutex_lock(&c->lock);
  message->tokens = conversation_count(c);
  message->durable = conversation_durable(c);
  message->ahead = c->ahead_count;
  message->bytes = bytes_on_disk(c);
  pthread_mutex_unlock(&c->lock);
}

int conversation_update_catalog(struct conversation *c, struct error *error) {
  struct catalog *catalog = &c->archive->catalog;
  struct msg_conversation message;
  MDB_txn *txn;
  if (conversation_damaged(c, NULL))
    return 0; /* it knows of tokens that cannot be read now */
  conversation_message(c, &message);
  if (c->has_log) {
    message.log_first = c->log.first;
    message.log_bytes = c->log.synced;
  }
  int result = catalog_begin(catalog, true, &txn, error);
  if (!result) {
    result = catalog_put_conversation(catalog, txn, &message, error);
    if (!result)
      result = catalog_put_name(catalog, txn, c->uid, c->name, c->id, error);
    if (result)
      catalog_abort(txn);
    else
      result = catalog_commit(txn, error);
  }
  if (result)
    atomic_store(&c->archive->catalog_stale, true);
  return result;
}

void conversation_destroy(struct conversation *c) {
  if (!c)
    return;
  for (uint32_t i = 0; i < c->extent_count; i++)
    if (c->segments[i]) {
      segment_unref(c->segments[i]);
      atomic_fetch_sub(&c->archive->counters.segments_mapped, 1);
    }
  for (uint32_t i = 0; i < c->closed_count; i++)
    tail_unref(c->closed[i].tail);
  snapshot_unref(c->snapshot);
  tail_unref(c->tail);
  log_writer_close(&c->log);
  model_release(atomic_load(&c->model));
  pthread_mutex_destroy(&c->lock);
  pthread_mutex_destroy(&c->seal_lock);
  free(c->extents);
  free(c->extent_ids);
  free(c->segments);
  free(c->closed);
  free(c);
}

void conversation_release(struct conversation *c) {
  if (!c || --c->refs)
    return;
  struct error error;
  struct archive *archive = c->archive;
  /* the catalog is told of what was appended, and may be marked as complete before the disk has it */
  if (!archive_read_only(archive) && c->has_log && conversation_sync(c, &error))
    archive_log(archive, "conversation '%s': %s", c->name, error.text);
  if (c->log.overhang)
    atomic_store(&archive->catalog_stale, true); /* the file may hold a frame that nobody was told of */
  if (!archive_read_only(archive) && conversation_update_catalog(c, &error))
    archive_log(archive, "conversation '%s': %s", c->name, error.text);
  struct conversation **link = &archive->conversations;
  while (*link != c)
    link = &(*link)->next;
  *link = c->next;
  conversation_destroy(c);
}
