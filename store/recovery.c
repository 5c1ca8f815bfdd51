// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// What happens when an archive is opened: the catalog is checked, or made again, and what a crash left is cleared away.
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "store/catalog_check.h"
#include "store/internal.h"

/* --- the catalog ------------------------------------------------------------------------------------------------ */

/* Puts a complete new catalog in the place of the old one. */
static int replace_catalog(struct archive *archive, const char *directory, const char *copy, const char *data,
                           struct error *error) {
  char lock[PATH_BYTES];
  path_join(lock, directory, "lock.mdb");
  archive->io->unlink(lock); /* it belongs to the file that goes */
  if (archive->io->rename(copy, data))
    return error_set_errno(error, errno, "cannot rename %s to its final name", copy);
  return archive_sync_directory(archive, directory, error);
}

/* Makes an empty catalog. Beside its place, so that a crash leaves none that is half made. */
static int make_catalog(struct archive *archive, const char *directory, const char *data, struct error *error) {
  char copy[PATH_BYTES];
  struct catalog fresh;
  path_join(copy, directory, CATALOG_DATA_NAME PATH_TEMPORARY_SUFFIX);
  archive->io->unlink(copy);
  int result = catalog_open(&fresh, copy, archive->options.catalog_map_bytes, CATALOG_NEW_FILE, error);
  catalog_close(&fresh);
  return result ? result : replace_catalog(archive, directory, copy, data, error);
}

/* Checks the catalog that is there, in a child, and puts the copy that the child made in its place: what is written to
 * from now on holds checked entries only. *damaged tells that it has to be made again. */
static int check_catalog(struct archive *archive, const char *directory, const char *data, bool *damaged,
                         struct error *error) {
  char copy[PATH_BYTES];
  struct error reason;
  path_join(copy, directory, CATALOG_DATA_NAME PATH_TEMPORARY_SUFFIX);
  archive->io->unlink(copy);
  int result = catalog_check(directory, archive->options.catalog_map_bytes, copy, &reason);
  *damaged = result == -ERR_CORRUPT || result == -ERR_VERSION;
  if (*damaged) {
    archive_log(archive, "the catalog is damaged: %s", reason.text);
    return 0;
  }
  if (!result)
    return replace_catalog(archive, directory, copy, data, error);
  archive->io->unlink(copy);
  return error_set(error, reason.code, "%s", reason.text);
}

/* Opens the environment; *rebuild tells that it was damaged or is new. */
static int open_catalog(struct archive *archive, bool *rebuild, struct error *error) {
  char directory[PATH_BYTES], data[PATH_BYTES];
  path_join(directory, archive->dir, "catalog");
  path_join(data, directory, CATALOG_DATA_NAME);
  *rebuild = !io_exists(archive->io, data);
  int result = *rebuild ? 0 : check_catalog(archive, directory, data, rebuild, error);
  if (!result && *rebuild)
    result = make_catalog(archive, directory, data, error);
  if (result)
    return result;
  return catalog_open(&archive->catalog, directory, archive->options.catalog_map_bytes, CATALOG_WRITE, error);
}

struct comparison {
  struct archive *archive;
  MDB_txn *txn;
  bool models; /* or conversations */
  size_t count;
};

static int compare_one(void *context, const char *name, struct error *error) {
  struct comparison *comparison = context;
  struct catalog *catalog = &comparison->archive->catalog;
  uint8_t id[LIMIT_ID_BYTES];
  if (!path_id_parse(name, id))
    return 0;
  comparison->count++;
  if (comparison->models) {
    struct model_entry entry;
    return catalog_get_model(catalog, comparison->txn, id, &entry, error);
  }
  struct conversation_entry entry;
  return catalog_get_conversation(catalog, comparison->txn, id, &entry, error);
}

/* Compares which models, or conversations, there are. Returns 0 when they are the same, CATALOG_NONE when not. */
static int compare_names(struct archive *archive, MDB_txn *txn, bool models, struct error *error) {
  struct comparison comparison = {.archive = archive, .txn = txn, .models = models};
  char path[PATH_BYTES];
  MDB_stat stat;
  path_join(path, archive->dir, models ? "models" : "conversations");
  int result = io_list_directory(archive->io, path, compare_one, &comparison, error);
  if (result)
    return result;
  if (mdb_stat(txn, models ? archive->catalog.models : archive->catalog.conversations, &stat))
    return CATALOG_NONE;
  return stat.ms_entries == comparison.count ? 0 : CATALOG_NONE;
}

/* True in *current when the archive was closed in good order and nobody changed its directories since. */
static int check_current(struct archive *archive, bool *current, struct error *error) {
  MDB_txn *txn;
  int result = catalog_begin(&archive->catalog, false, &txn, error);
  if (result)
    return result;
  result = catalog_get_clean(&archive->catalog, txn, current, error);
  if (!result && *current) {
    result = compare_names(archive, txn, true, error);
    if (!result)
      result = compare_names(archive, txn, false, error);
    if (result == CATALOG_NONE || result == -ERR_CORRUPT) {
      *current = false;
      result = 0;
    }
  }
  catalog_abort(txn);
  return result;
}

static int clear_mark(struct archive *archive, struct error *error) {
  MDB_txn *txn;
  int result = catalog_begin(&archive->catalog, true, &txn, error);
  if (result)
    return result;
  result = catalog_set_clean(&archive->catalog, txn, false, error);
  if (!result)
    return catalog_commit(txn, error);
  catalog_abort(txn);
  return result;
}

/* --- leftovers -------------------------------------------------------------------------------------------------- */

static int finish_deleted(void *context, const char *name, struct error *error) {
  struct archive *archive = context;
  uint8_t id[LIMIT_ID_BYTES];
  struct error reason;
  (void)error;
  if (strncmp(name, PATH_DELETED_PREFIX, strlen(PATH_DELETED_PREFIX)) != 0 ||
      !path_id_parse(name + strlen(PATH_DELETED_PREFIX), id))
    return 0;
  if (delete_finish(archive, id, &reason))
    archive_log(archive, "cannot finish deleting conversations/%s: %s", name, reason.text);
  else
    archive_log(archive, "finished deleting conversations/%s", name);
  return 0;
}

struct sweep {
  struct archive *archive;
  char directory[PATH_BYTES];
  bool removed;
};

static int sweep_file(void *context, const char *name, struct error *error) {
  struct sweep *sweep = context;
  struct archive *archive = sweep->archive;
  struct catalog_segment segment;
  uint8_t id[LIMIT_ID_BYTES];
  char path[PATH_BYTES];
  MDB_txn *txn;
  path_join(path, sweep->directory, name);
  bool leftover = path_is_temporary(name);
  if (!leftover && path_segment_parse(name, id)) {
    int result = catalog_begin(&archive->catalog, false, &txn, error);
    if (result)
      return result;
    result = catalog_get_segment(&archive->catalog, txn, id, &segment, error);
    catalog_abort(txn);
    if (result <= 0)
      return result;
    leftover = segment_is_leftover(archive->io, archive->dir, path);
    if (!leftover)
      archive_log(archive, "%s belongs to no conversation; it is kept", path);
  }
  if (leftover && archive->io->unlink(path) == 0) {
    archive_log(archive, "removed %s, left by a crash", path);
    sweep->removed = true;
  }
  return 0;
}

static int sweep_directory(void *context, const char *name, struct error *error) {
  struct sweep sweep = {.archive = context};
  char segments[PATH_BYTES];
  if (strlen(name) != 2)
    return 0;
  path_join(segments, sweep.archive->dir, "segments");
  path_join(sweep.directory, segments, name);
  int result = io_list_directory(sweep.archive->io, sweep.directory, sweep_file, &sweep, error);
  if (result || !sweep.removed)
    return result;
  return archive_sync_directory(sweep.archive, sweep.directory, error); /* after a clean stop nobody looks again */
}

int recovery_run(struct archive *archive, struct error *error) {
  bool rebuild, current = false, damaged = false;
  char conversations[PATH_BYTES], segments[PATH_BYTES];
  path_join(conversations, archive->dir, "conversations");
  path_join(segments, archive->dir, "segments");
  int result = open_catalog(archive, &rebuild, error);
  if (!result && !rebuild)
    result = check_current(archive, &current, error);
  if (!result && !current)
    result = rebuild_run(archive, &damaged, error);
  if (!result)
    result = clear_mark(archive, error);
  if (!result)
    result = io_list_directory(archive->io, conversations, finish_deleted, archive, error);
  if (!result && !current && !damaged)
    result = io_list_directory(archive->io, segments, sweep_directory, archive, error);
  return result;
}
