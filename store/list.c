// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// Lists and descriptions of conversations: from the catalog, with what is open as it is now.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "store/internal.h"

/* Puts what the open object knows in place of what the catalog says. */
static void refresh(struct archive *archive, struct conversation_entry *entry) {
  struct msg_conversation *m = &entry->message, now;
  struct conversation *c = conversation_find(archive, entry->id);
  if (!c)
    return;
  conversation_message(c, &now);
  m->tokens = now.tokens;
  m->durable = now.durable;
  m->ahead = now.ahead;
  m->bytes = now.bytes;
  m->used_s = now.used_s;
}

static int next_entry(struct archive *archive, uint32_t uid, const char *after, struct conversation_entry *entry,
                      struct error *error) {
  uint8_t id[LIMIT_ID_BYTES];
  char name[LIMIT_NAME_BYTES_MAX + 1];
  MDB_txn *txn;
  int result = catalog_begin(&archive->catalog, false, &txn, error);
  if (result)
    return result;
  result = catalog_next_name(&archive->catalog, txn, uid, after, name, id, error);
  if (!result) {
    result = catalog_get_conversation(&archive->catalog, txn, id, entry, error);
    if (result == CATALOG_NONE)
      result = error_set(error, ERR_CORRUPT, "catalog: the name '%s' leads nowhere; restart the daemon", name);
  }
  catalog_abort(txn);
  return result;
}

int conversation_each(struct archive *archive, uint32_t uid, const char *after, conversation_visit_fn *visit,
                      void *context, struct error *error) {
  struct conversation_entry entry;
  char last[LIMIT_NAME_BYTES_MAX + 1];
  snprintf(last, sizeof last, "%s", after ? after : "");
  for (;;) {
    int result = next_entry(archive, uid, last, &entry, error);
    if (result)
      return result == CATALOG_NONE ? 0 : result;
    memcpy(last, entry.name, sizeof last);
    refresh(archive, &entry);
    result = visit(context, &entry.message);
    if (result)
      return result;
  }
}

static int reserve_extents(struct conversation_entry *entry, uint32_t room, struct error *error) {
  entry->extents = calloc(room ? room : 1, sizeof *entry->extents);
  entry->extent_ids = calloc(room ? room : 1, LIMIT_ID_BYTES);
  return entry->extents && entry->extent_ids ? 0 : error_set(error, ERR_MEMORY, "out of memory for %u extents", room);
}

static void add_extent(struct conversation_entry *entry, const struct msg_extent *extent) {
  struct list *list = &entry->message.extents;
  uint8_t *id = entry->extent_ids + (size_t)list->count * LIMIT_ID_BYTES;
  memcpy(id, extent->id.data, LIMIT_ID_BYTES);
  entry->extents[list->count] = *extent;
  entry->extents[list->count].id.data = id;
  list->items = entry->extents;
  list->count++;
}

/* A log that another one follows is complete: it reaches to where that begins. */
static void add_log(struct conversation_entry *entry, uint64_t first, uint64_t next) {
  struct msg_extent extent = {.kind = 1,
                              .id = span_of(entry->id, LIMIT_ID_BYTES),
                              .origin = first,
                              .first = first,
                              .count = next - first};
  add_extent(entry, &extent);
}

static int describe_open(struct conversation *c, struct conversation_entry *entry, struct error *error) {
  pthread_mutex_lock(&c->lock);
  int result = reserve_extents(entry, c->extent_count + c->closed_count, error);
  for (uint32_t i = 0; i < c->extent_count && !result; i++)
    add_extent(entry, &c->extents[i]);
  for (uint32_t i = 0; i < c->closed_count && !result; i++)
    add_log(entry, c->closed[i].first, i + 1 < c->closed_count ? c->closed[i + 1].first : c->log.first);
  pthread_mutex_unlock(&c->lock);
  uint64_t count = conversation_count(c);
  entry->message.log_first = c->has_log ? c->log.first : count;
  entry->message.log_tokens = count - entry->message.log_first;
  return result;
}

static int describe_stored(struct archive *archive, struct conversation_entry *entry, struct error *error) {
  char path[PATH_BYTES];
  struct meta meta;
  struct log_list logs;
  path_meta(path, archive->dir, entry->id);
  int result = meta_read(archive->io, path, &meta, error);
  if (result)
    return result;
  path_conversation(path, archive->dir, entry->id);
  result = log_list_read(archive->io, path, &logs, error);
  if (!result) {
    uint64_t end = 0;
    result = reserve_extents(entry, meta.extent_count + logs.count, error);
    for (uint32_t i = 0; i < meta.extent_count && !result; i++) {
      add_extent(entry, &meta.extents[i]);
      end = meta.extents[i].first + meta.extents[i].count;
    }
    for (uint32_t i = 0; i + 1 < logs.count && !result; i++)
      if (logs.first[i] >= end)
        add_log(entry, logs.first[i], logs.first[i + 1]);
    struct msg_conversation *m = &entry->message;
    m->log_first = logs.count ? logs.first[logs.count - 1] : end;
    m->log_tokens = m->tokens > m->log_first ? m->tokens - m->log_first : 0;
    log_list_finish(&logs);
  }
  meta_finish(&meta);
  return result;
}

int conversation_describe(struct archive *archive, uint32_t uid, const char *name, struct conversation_entry *entry,
                          struct error *error) {
  uint8_t id[LIMIT_ID_BYTES];
  MDB_txn *txn;
  memset(entry, 0, sizeof *entry);
  int result = catalog_begin(&archive->catalog, false, &txn, error);
  if (result)
    return result;
  result = catalog_get_name(&archive->catalog, txn, uid, name, id, error);
  if (!result)
    result = catalog_get_conversation(&archive->catalog, txn, id, entry, error);
  catalog_abort(txn);
  if (result)
    return result < 0 ? result : error_set(error, ERR_NO_CONVERSATION, "no conversation '%s'", name);
  refresh(archive, entry);
  struct conversation *c = conversation_find(archive, id);
  result = c ? describe_open(c, entry, error) : describe_stored(archive, entry, error);
  if (result)
    conversation_entry_finish(entry);
  return result;
}

void conversation_entry_finish(struct conversation_entry *entry) {
  free(entry->extents);
  free(entry->extent_ids);
  entry->extents = NULL;
  entry->extent_ids = NULL;
  entry->message.extents = (struct list){0};
}
