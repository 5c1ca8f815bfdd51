// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// Making the catalog agree with the files. What a file cannot tell because it is damaged stays as the catalog had it.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "store/internal.h"

struct rebuild {
  struct archive *archive;
  struct catalog *catalog;
  MDB_txn *txn;
  bool damaged; /* a meta cannot be read, so that some segments' users are unknown */
  uint32_t models, conversations;
};

static void set_aside(struct rebuild *r, const char *path, const struct error *reason) {
  archive_damaged(r->archive, path, NULL, false, reason->text);
}

/* Clears away what a crash left of replacing a file. */
static void remove_temporary(struct archive *archive, const char *directory, const char *name) {
  char path[PATH_BYTES];
  path_join(path, directory, name);
  if (archive->io->unlink(path) == 0)
    archive_log(archive, "removed %s, left by a crash", path);
}

/* --- models ----------------------------------------------------------------------------------------------------- */

static int add_model(void *context, const char *name, struct error *error) {
  struct rebuild *r = context;
  char directory[PATH_BYTES], path[PATH_BYTES];
  uint8_t id[LIMIT_ID_BYTES];
  struct model_file model;
  struct error reason;
  path_join(directory, r->archive->dir, "models");
  if (path_is_temporary(name))
    remove_temporary(r->archive, directory, name);
  if (!path_id_parse(name, id))
    return 0;
  path_join(path, directory, name);
  if (model_read(r->archive->io, path, &model, &reason)) {
    set_aside(r, path, &reason);
    return 0;
  }
  int result = 0;
  if (memcmp(model.message.id.data, id, sizeof id) != 0) {
    error_set(&reason, ERR_CORRUPT, "%s is the file of another model", path);
    set_aside(r, path, &reason);
  } else {
    result = catalog_put_model(r->catalog, r->txn, &model.message, error);
    r->models++;
  }
  model_file_finish(&model);
  return result;
}

/* --- conversations ---------------------------------------------------------------------------------------------- */

static int add_segments(struct rebuild *r, const struct meta *meta, struct error *error) {
  for (uint32_t i = 0; i < meta->extent_count; i++) {
    const struct msg_extent *extent = &meta->extents[i];
    struct catalog_segment segment = {.first = extent->origin};
    int result = catalog_get_segment(r->catalog, r->txn, extent->id.data, &segment, error);
    if (result < 0)
      return result;
    if (result == CATALOG_NONE) {
      memcpy(segment.id, extent->id.data, LIMIT_ID_BYTES);
      memcpy(segment.conversation, meta->message.id.data, LIMIT_ID_BYTES);
      if (meta->message.model.size)
        memcpy(segment.model, meta->message.model.data, LIMIT_ID_BYTES);
    }
    uint32_t count = (uint32_t)(extent->first + extent->count - extent->origin);
    segment.count = count > segment.count ? count : segment.count;
    segment.users++;
    result = catalog_put_segment(r->catalog, r->txn, &segment, error);
    if (result)
      return result;
  }
  return 0;
}

static int add_message(struct rebuild *r, const struct meta *meta, const struct log_census *census,
                       struct error *error) {
  const struct msg_meta *m = &meta->message;
  struct model_entry model;
  uint64_t sealed = 0, pages = segment_total_pages((uint32_t)m->geometry.layers, (uint32_t)m->geometry.kv_heads);
  if (meta->extent_count)
    sealed = meta->extents[meta->extent_count - 1].first + meta->extents[meta->extent_count - 1].count;
  struct msg_conversation message = {
      .name = m->name,
      .id = m->id,
      .model = m->model,
      .uid = m->uid,
      .tokens = sealed + census->tokens,
      .durable = sealed, /* of the logs it is known once they have been replayed */
      .ahead = census->ahead,
      .bytes = census->bytes + meta->extent_count * pages * SEGMENT_PAGE_BYTES,
      .created_s = m->created_s,
      .used_s = census->changed_s,
  };
  if (m->model.size) {
    int result = catalog_get_model(r->catalog, r->txn, m->model.data, &model, error);
    if (result < 0)
      return result;
    if (result == 0)
      message.model_name = model.message.name;
  }
  return catalog_put_conversation(r->catalog, r->txn, &message, error);
}

static int count_logs(void *context, const char *name, struct error *error) {
  (void)error;
  *(uint32_t *)context += strncmp(name, "log-", 4) == 0;
  return 0;
}

/* A directory without meta: being made when a crash came, unless there are logs in it. */
static void no_meta(struct rebuild *r, const char *directory) {
  char path[PATH_BYTES];
  uint32_t logs = 0;
  struct error reason;
  if (io_list_directory(r->archive->io, directory, count_logs, &logs, &reason) == 0 && logs == 0) {
    path_join(path, directory, "meta" PATH_TEMPORARY_SUFFIX);
    r->archive->io->unlink(path);
    if (r->archive->io->rmdir(directory) == 0)
      archive_log(r->archive, "removed %s, which was being made when a crash came", directory);
    return;
  }
  error_set(&reason, ERR_CORRUPT, "%s has no meta file; restore it from a backup, or see coldkv repair", directory);
  path_join(path, directory, "meta");
  set_aside(r, path, &reason);
  r->damaged = true;
}

static int add_conversation(void *context, const char *name, struct error *error) {
  struct rebuild *r = context;
  char directory[PATH_BYTES], path[PATH_BYTES];
  uint8_t id[LIMIT_ID_BYTES];
  struct meta meta;
  struct log_census census;
  struct error reason;
  if (!path_id_parse(name, id))
    return 0;
  path_conversation(directory, r->archive->dir, id);
  path_meta(path, r->archive->dir, id);
  if (!io_exists(r->archive->io, path)) {
    no_meta(r, directory);
    return 0;
  }
  int result = meta_read(r->archive->io, path, &meta, &reason);
  if (!result && memcmp(meta.message.id.data, id, sizeof id) != 0) {
    meta_finish(&meta);
    result = error_set(&reason, ERR_CORRUPT, "%s is the file of another conversation", path);
  }
  if (!result) {
    uint64_t sealed = meta.extent_count ? meta.extents[meta.extent_count - 1].first : 0;
    sealed += meta.extent_count ? meta.extents[meta.extent_count - 1].count : 0;
    result = log_census(r->archive->io, r->archive->dir, id, sealed, &census, &reason);
    if (result)
      meta_finish(&meta);
  }
  if (result) {
    set_aside(r, path, &reason);
    r->damaged = true;
    return 0;
  }
  result = add_segments(r, &meta, error);
  if (!result)
    result = add_message(r, &meta, &census, error);
  meta_finish(&meta);
  remove_temporary(r->archive, directory, "meta" PATH_TEMPORARY_SUFFIX);
  r->conversations++;
  return result;
}

/* --- what the files no longer have, and the names --------------------------------------------------------------- */

static int prune_models(struct rebuild *r, struct error *error) {
  struct model_entry entry;
  uint8_t after[LIMIT_ID_BYTES];
  char path[PATH_BYTES];
  int result = catalog_next_model(r->catalog, r->txn, NULL, &entry, error);
  while (!result) {
    memcpy(after, entry.id, sizeof after);
    path_model(path, r->archive->dir, after);
    if (!io_exists(r->archive->io, path))
      result = catalog_delete(r->catalog, r->txn, r->catalog->models, after, error);
    if (!result)
      result = catalog_next_model(r->catalog, r->txn, after, &entry, error);
  }
  return result == CATALOG_NONE ? 0 : result;
}

/* Names a conversation; of two with the same name the older one gets it. */
static int name_conversation(struct rebuild *r, const struct conversation_entry *entry, struct error *error) {
  struct conversation_entry other;
  uint8_t id[LIMIT_ID_BYTES];
  uint32_t uid = (uint32_t)entry->message.uid;
  int result = catalog_get_name(r->catalog, r->txn, uid, entry->name, id, error);
  if (result == 0) {
    char text[PATH_ID_TEXT_BYTES];
    path_id_text(entry->id, text);
    archive_log(r->archive, "conversation %s has the name '%s' of another one; only the older can be opened", text,
                entry->name);
    result = catalog_get_conversation(r->catalog, r->txn, id, &other, error);
    if (!result && other.message.created_s <= entry->message.created_s)
      return 0;
  }
  return result < 0 ? result : catalog_put_name(r->catalog, r->txn, uid, entry->name, entry->id, error);
}

static int name_conversations(struct rebuild *r, struct error *error) {
  struct conversation_entry entry;
  uint8_t after[LIMIT_ID_BYTES];
  char path[PATH_BYTES];
  int result = catalog_next_conversation(r->catalog, r->txn, NULL, &entry, error);
  while (!result) {
    memcpy(after, entry.id, sizeof after);
    path_conversation(path, r->archive->dir, after);
    if (!io_exists(r->archive->io, path))
      result = catalog_delete(r->catalog, r->txn, r->catalog->conversations, after, error);
    else
      result = name_conversation(r, &entry, error);
    if (!result)
      result = catalog_next_conversation(r->catalog, r->txn, after, &entry, error);
  }
  return result == CATALOG_NONE ? 0 : result;
}

static int fill(struct rebuild *r, struct error *error) {
  char path[PATH_BYTES];
  int result = catalog_clear(r->txn, r->catalog->segments, error);
  if (!result)
    result = catalog_clear(r->txn, r->catalog->names, error);
  path_join(path, r->archive->dir, "models");
  if (!result)
    result = io_list_directory(r->archive->io, path, add_model, r, error);
  path_join(path, r->archive->dir, "conversations");
  if (!result)
    result = io_list_directory(r->archive->io, path, add_conversation, r, error);
  if (!result)
    result = prune_models(r, error);
  return result ? result : name_conversations(r, error);
}

int rebuild_run(struct archive *archive, bool *damaged, struct error *error) {
  struct rebuild r;
  int result;
  do {
    r = (struct rebuild){.archive = archive, .catalog = &archive->catalog};
    result = catalog_begin(r.catalog, true, &r.txn, error);
    if (result)
      return result;
    result = fill(&r, error);
    if (result)
      catalog_abort(r.txn);
    else
      result = catalog_commit(r.txn, error);
  } while (result == -ERR_NO_SPACE && catalog_grow(r.catalog)); /* all of it is one transaction */
  if (!result && r.models + r.conversations)
    archive_log(archive, "made the catalog again from the files: %u models, %u conversations", r.models,
                r.conversations);
  *damaged = r.damaged;
  return result;
}
