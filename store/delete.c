// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// Deleting a conversation. Renaming its directory decides; everything after that is clearing away, which the next start
// goes on with if it is cut short: index, segments that nobody else uses, then the directory, meta last.
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "store/internal.h"

struct clearing {
  struct archive *archive;
  const char *directory;
};

static int unlink_one(void *context, const char *name, struct error *error) {
  const struct clearing *clearing = context;
  char path[PATH_BYTES];
  path_join(path, clearing->directory, name);
  if (strcmp(name, "meta") == 0)
    return 0;
  if (clearing->archive->io->unlink(path) && errno != ENOENT)
    return error_set_errno(error, errno, "cannot remove %s", path);
  return 0;
}

/* Unlinks the segments of a deleted conversation that the catalog no longer knows, and makes that last before the meta
 * that names them goes. */
static int clear_segments(struct archive *archive, const struct meta *meta, struct error *error) {
  struct catalog_segment segment;
  char path[PATH_BYTES];
  bool touched[256] = {false};
  for (uint32_t i = 0; i < meta->extent_count; i++) {
    MDB_txn *txn;
    int result = catalog_begin(&archive->catalog, false, &txn, error);
    if (result)
      return result;
    result = catalog_get_segment(&archive->catalog, txn, meta->extents[i].id.data, &segment, error);
    catalog_abort(txn);
    if (result < 0)
      return result;
    if (result != CATALOG_NONE)
      continue;
    path_segment(path, archive->dir, meta->extents[i].id.data);
    if (archive->io->unlink(path) && errno != ENOENT)
      return error_set_errno(error, errno, "cannot remove %s", path);
    touched[meta->extents[i].id.data[0]] = true;
  }
  for (unsigned i = 0; i < 256; i++) {
    const uint8_t id[LIMIT_ID_BYTES] = {(uint8_t)i};
    path_segment_directory(path, archive->dir, id);
    int result = touched[i] && io_exists(archive->io, path) ? archive_sync_directory(archive, path, error) : 0;
    if (result)
      return result;
  }
  return 0;
}

int delete_finish(struct archive *archive, const uint8_t *id, struct error *error) {
  char directory[PATH_BYTES], path[PATH_BYTES];
  struct meta meta;
  path_deleted(directory, archive->dir, id);
  path_join(path, directory, "meta");
  int result = 0;
  if (io_exists(archive->io, path)) { /* it goes last: without it the segments are gone */
    result = meta_read(archive->io, path, &meta, error);
    if (!result) {
      result = clear_segments(archive, &meta, error);
      meta_finish(&meta);
    } else if (result == -ERR_CORRUPT) {
      archive_log(archive, "deleting %s: its segments stay, since its meta cannot be read", directory);
      result = 0;
    }
  }
  struct clearing clearing = {.archive = archive, .directory = directory};
  if (!result)
    result = io_list_directory(archive->io, directory, unlink_one, &clearing, error);
  if (!result && archive->io->unlink(path) && errno != ENOENT)
    result = error_set_errno(error, errno, "cannot remove %s", path);
  if (!result && archive->io->rmdir(directory))
    result = error_set_errno(error, errno, "cannot remove %s", directory);
  return result;
}

/* Takes the conversation out of the index, and its segments, less those that another one uses. */
static int forget(struct archive *archive, uint32_t uid, const char *name, const uint8_t *id,
                  const struct meta *meta, struct error *error) {
  struct catalog *catalog = &archive->catalog;
  MDB_txn *txn;
  int result = catalog_begin(catalog, true, &txn, error);
  if (result)
    return result;
  result = catalog_delete_name(catalog, txn, uid, name, error);
  if (!result)
    result = catalog_delete(catalog, txn, catalog->conversations, id, error);
  for (uint32_t i = 0; i < meta->extent_count && !result; i++) {
    struct catalog_segment segment;
    result = catalog_get_segment(catalog, txn, meta->extents[i].id.data, &segment, error);
    if (result == 0 && --segment.users)
      result = catalog_put_segment(catalog, txn, &segment, error);
    else if (result == 0)
      result = catalog_delete(catalog, txn, catalog->segments, segment.id, error);
    else if (result == CATALOG_NONE)
      result = 0;
  }
  if (!result)
    return catalog_commit(txn, error);
  catalog_abort(txn);
  return result;
}

static int rename_deleted(struct archive *archive, const uint8_t *id, struct error *error) {
  char path[PATH_BYTES], deleted[PATH_BYTES], parent[PATH_BYTES];
  path_conversation(path, archive->dir, id);
  path_deleted(deleted, archive->dir, id);
  path_join(parent, archive->dir, "conversations");
  int directory = io_open_directory(archive->io, parent, error);
  if (directory < 0)
    return directory;
  if (archive->io->rename(path, deleted)) {
    int result = error_set_errno(error, errno, "cannot rename %s to delete it", path);
    archive->io->close(directory);
    return result;
  }
  struct error reason;
  int result = io_sync_opened(archive->io, directory, parent, &reason);
  if (result) {
    archive_sync_failed(archive, &reason);
    if (error)
      *error = reason;
  }
  return result;
}

/* Finds a conversation that nobody holds. A meta that cannot be read is left empty. */
static int find_meta(struct archive *archive, uint32_t uid, const char *name, uint8_t *found, struct meta *meta,
                     struct error *error) {
  uint8_t id[LIMIT_ID_BYTES];
  char path[PATH_BYTES];
  MDB_txn *txn;
  int result = catalog_begin(&archive->catalog, false, &txn, error);
  if (result)
    return result;
  result = catalog_get_name(&archive->catalog, txn, uid, name, id, error);
  catalog_abort(txn);
  if (result == CATALOG_NONE)
    return error_set(error, ERR_NO_CONVERSATION, "no conversation '%s'", name);
  if (!result && conversation_find(archive, id))
    return error_set(error, ERR_BUSY, "conversation '%s' is open; close it everywhere first", name);
  path_meta(path, archive->dir, id);
  if (!result)
    result = meta_read(archive->io, path, meta, error);
  if (!result && memcmp(meta->message.id.data, id, LIMIT_ID_BYTES) != 0) {
    meta_finish(meta);
    result = -ERR_CORRUPT;
  }
  if (result == -ERR_CORRUPT) { /* a damaged conversation can be deleted, too */
    *meta = (struct meta){0};
    result = 0;
  }
  memcpy(found, id, LIMIT_ID_BYTES);
  return result;
}

int conversation_delete(struct archive *archive, uint32_t uid, const char *name, struct error *error) {
  uint8_t id[LIMIT_ID_BYTES];
  struct meta meta;
  struct error reason;
  int result = archive_check_writable(archive, error);
  if (!result)
    result = find_meta(archive, uid, name, id, &meta, error);
  if (result)
    return result;
  result = rename_deleted(archive, id, error);
  if (!result && forget(archive, uid, name, id, &meta, &reason)) {
    /* the next start makes the index again and clears away the rest */
    atomic_store(&archive->catalog_stale, true);
    archive_log(archive, "conversation '%s' is deleted, but %s", name, reason.text);
  } else if (!result && delete_finish(archive, id, &reason)) {
    archive_log(archive, "conversation '%s' is deleted; its files go at the next start: %s", name, reason.text);
  }
  meta_finish(&meta);
  return result;
}
