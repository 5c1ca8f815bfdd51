// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
#include "store/repair.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "store/repair_internal.h"

/* --- models ------------------------------------------------------------------------------------------------------- */

/* Nothing else holds the means: only a backup helps. */
static int check_model(void *context, const char *name, struct error *error) {
  struct repair *r = context;
  char path[PATH_BYTES];
  uint8_t id[LIMIT_ID_BYTES];
  struct model_file model;
  struct error reason;
  (void)error;
  if (!path_id_parse(name, id))
    return 0;
  path_model(path, r->dir, id);
  if (model_read(r->io, path, &model, &reason))
    return repair_left(r, NULL, path, "%s; its conversations cannot be opened until it is restored from a backup, and "
                       "nothing of them is lost meanwhile", reason.text);
  bool same = memcmp(model.message.id.data, id, LIMIT_ID_BYTES) == 0;
  model_file_finish(&model);
  return same ? 0 : repair_left(r, NULL, path, "is the file of another model; restore it from a backup");
}

/* --- conversations ------------------------------------------------------------------------------------------------ */

int id_list_add(struct id_list *list, const uint8_t id[LIMIT_ID_BYTES], struct error *error) {
  if (list->count == list->room) {
    size_t room = list->room ? 2 * list->room : 64;
    uint8_t(*grown)[LIMIT_ID_BYTES] = realloc(list->ids, room * sizeof *grown);
    if (!grown)
      return error_set(error, ERR_MEMORY, "out of memory for a list of segments");
    list->ids = grown;
    list->room = room;
  }
  memcpy(list->ids[list->count++], id, LIMIT_ID_BYTES);
  return 0;
}

static int compare_ids(const void *a, const void *b) { return memcmp(a, b, LIMIT_ID_BYTES); }

static void id_list_sort(struct id_list *list) {
  if (list->count)
    qsort(list->ids, list->count, sizeof list->ids[0], compare_ids);
}

static int keep_listed(struct repair *r, const struct meta *meta, struct error *error) {
  int result = 0;
  for (uint32_t i = 0; i < meta->extent_count && !result; i++)
    result = id_list_add(&r->listed, meta->extents[i].id.data, error);
  return result;
}

static int count_logs(void *context, const char *name, struct error *error) {
  uint64_t first;
  (void)error;
  *(uint32_t *)context += path_log_parse(name, &first);
  return 0;
}

/* A directory without meta and logs is what a crash left of making it, and the next start's business. */
static bool being_made(struct repair *r, const struct patient *p) {
  char path[PATH_BYTES];
  uint32_t logs = 0;
  struct error ignored;
  path_meta(path, r->dir, p->id);
  if (io_exists(r->io, path) || p->known)
    return false;
  path_conversation(path, r->dir, p->id);
  return io_list_directory(r->io, path, count_logs, &logs, &ignored) == 0 && logs == 0;
}

static int read_meta(struct repair *r, struct patient *p, struct error *error) {
  char path[PATH_BYTES];
  struct error reason;
  path_meta(path, r->dir, p->id);
  int result = meta_read(r->io, path, &p->meta, &reason);
  if (!result && memcmp(p->meta.message.id.data, p->id, LIMIT_ID_BYTES) != 0) {
    meta_finish(&p->meta);
    result = error_set(&reason, ERR_CORRUPT, "%s is the file of another conversation", path);
  }
  if (!result)
    return 0;
  if (result == -ERR_MEMORY)
    return error_set(error, ERR_MEMORY, "%s", reason.text);
  if (result == -ERR_VERSION) {
    result = repair_left(r, p, path, "%s; if no newer one wrote it, it is damaged: restore it from a backup",
                         reason.text);
    return result ? result : 1;
  }
  return repair_meta(r, p, &reason, error);
}

static int repair_conversation(void *context, const char *name, struct error *error) {
  struct repair *r = context;
  struct patient p = {.sealed = 0};
  if (!path_id_parse(name, p.id))
    return 0;
  for (size_t i = 0; i < r->known_count; i++)
    if (memcmp(r->known[i].id, p.id, LIMIT_ID_BYTES) == 0)
      p.known = &r->known[i];
  if (being_made(r, &p))
    return 0;
  r->report->conversations++;
  int result = read_meta(r, &p, error);
  if (result == 1) {
    r->meta_left = true;
    return 0;
  }
  if (!result)
    result = repair_segments(r, &p, error);
  if (!result)
    result = repair_logs(r, &p, error);
  if (!result)
    result = keep_listed(r, &p.meta, error);
  meta_finish(&p.meta);
  return result;
}

/* --- segments that nobody names ----------------------------------------------------------------------------------- */

static int check_orphan(void *context, const char *name, struct error *error) {
  struct repair *r = context;
  char path[PATH_BYTES];
  uint8_t id[LIMIT_ID_BYTES];
  if (!path_segment_parse(name, id))
    return 0;
  if (r->listed.count && bsearch(id, r->listed.ids, r->listed.count, sizeof r->listed.ids[0], compare_ids))
    return 0;
  path_segment(path, r->dir, id);
  int result = repair_mended(r, NULL, path, "belongs to no conversation; it goes into quarantine");
  return result || r->dry_run ? result : repair_take_away(r, path, error);
}

static int check_orphans(void *context, const char *name, struct error *error) {
  struct repair *r = context;
  char segments[PATH_BYTES], path[PATH_BYTES];
  if (strlen(name) != 2)
    return 0;
  path_join(segments, r->dir, "segments");
  path_join(path, segments, name);
  return io_list_directory(r->io, path, check_orphan, r, error);
}

/* --- all of it ---------------------------------------------------------------------------------------------------- */

/* The next start makes it again; before that, nothing it said is believed. */
static int drop_catalog(struct repair *r, struct error *error) {
  char directory[PATH_BYTES], path[PATH_BYTES], lock[PATH_BYTES];
  if (!r->catalog_bad && !r->catalog_stale)
    return 0;
  path_join(directory, r->dir, "catalog");
  path_join(path, directory, CATALOG_DATA_NAME);
  path_join(lock, directory, "lock.mdb");
  int result = !io_exists(r->io, path)
                   ? 0
                   : repair_mended(r, NULL, path, r->catalog_bad ? "is damaged; the next start makes it again"
                                                                 : "tells of what was; the next start makes it again");
  if (result || r->dry_run || !io_exists(r->io, path))
    return result;
  r->io->unlink(lock);
  return repair_take_away(r, path, error);
}

/* Of conversations the number of tokens was compared where they were looked at. */
static bool catalog_agrees(const struct repair *r) {
  return r->known_count == r->report->conversations && r->listed.count == r->indexed.count &&
         (!r->listed.count || memcmp(r->listed.ids, r->indexed.ids, r->listed.count * LIMIT_ID_BYTES) == 0);
}

static int each_in(struct repair *r, const char *name, io_visit_fn *visit, struct error *error) {
  char path[PATH_BYTES];
  path_join(path, r->dir, name);
  return io_exists(r->io, path) ? io_list_directory(r->io, path, visit, r, error) : 0;
}

static int run(struct repair *r, struct error *error) {
  int result = repair_read_catalog(r, error);
  if (!result)
    result = each_in(r, "models", check_model, error);
  if (!result)
    result = each_in(r, "conversations", repair_conversation, error);
  id_list_sort(&r->listed);
  id_list_sort(&r->indexed);
  if (!result && !r->meta_left)
    result = each_in(r, "segments", check_orphans, error);
  r->catalog_stale |= r->catalog_clean && !catalog_agrees(r);
  /* while a meta is left, the catalog is the only one to know its name */
  return result || r->meta_left ? result : drop_catalog(r, error);
}

int repair_archive(const struct io *io, const char *dir, bool dry_run, repair_fn *tell, void *context,
                   struct repair_report *report, struct error *error) {
  struct repair r = {
      .io = io ? io : &io_system, .dir = dir, .dry_run = dry_run, .tell = tell, .context = context, .report = report};
  char path[PATH_BYTES];
  int lock;
  *report = (struct repair_report){0};
  if (strlen(dir) > PATH_ARCHIVE_BYTES_MAX)
    return error_set(error, ERR_BAD_PARAMS, "the archive's path has more than %u bytes", PATH_ARCHIVE_BYTES_MAX);
  path_join(path, dir, "conversations");
  if (!io_exists(r.io, path))
    return error_set(error, ERR_BAD_PARAMS, "%s is no archive: there is no directory 'conversations' in it", dir);
  int result = archive_take_lock(r.io, dir, &lock, error);
  if (result)
    return result;
  result = run(&r, error);
  io_close(r.io, lock);
  free(r.known);
  free(r.listed.ids);
  free(r.indexed.ids);
  return result;
}
