// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// Checking a whole archive, whether a daemon works on it or not. What a daemon changes between two looks is looked at
// again before it is called a problem.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "store/verify_internal.h"

enum { LOOKS_MAX = 4, LOOK_PAUSE_NS = 20 * 1000 * 1000 };

/* Makes room for one more element of an array in struct found. */
static int grow(void *array, size_t count, size_t *room, size_t size, struct error *error) {
  void *old;
  if (count < *room)
    return 0;
  memcpy(&old, array, sizeof old);
  size_t more = *room ? 2 * *room : 64;
  void *grown = realloc(old, more * size);
  if (!grown)
    return error_set(error, ERR_MEMORY, "out of memory while checking an archive");
  memcpy(array, &grown, sizeof grown);
  *room = more;
  return 0;
}

/* Calls `visit` for each name in DIR/<name>; a directory that is not there is empty. */
static int each_in(struct verify *v, const char *name, io_visit_fn *visit, void *context, struct error *error) {
  char path[PATH_BYTES];
  path_join(path, v->dir, name);
  return io_exists(v->io, path) ? io_list_directory(v->io, path, visit, context, error) : 0;
}

/* --- first walk ------------------------------------------------------------------------------------------------- */

static int count_model(void *context, const char *name, struct error *error) {
  struct verify *v = context;
  uint8_t id[LIMIT_ID_BYTES];
  (void)error;
  v->report->files_total += path_id_parse(name, id);
  return 0;
}

static int count_conversation(void *context, const char *name, struct error *error) {
  struct verify *v = context;
  char path[PATH_BYTES];
  uint8_t id[LIMIT_ID_BYTES];
  struct log_list logs;
  (void)error;
  if (!path_id_parse(name, id))
    return 0;
  path_conversation(path, v->dir, id);
  if (log_list_read(v->io, path, &logs, NULL) == 0) {
    v->report->files_total += 1 + logs.count;
    log_list_finish(&logs);
  }
  return 0;
}

static int count_segment(void *context, const char *name, struct error *error) {
  struct verify *v = context;
  uint8_t id[LIMIT_ID_BYTES];
  (void)error;
  v->report->files_total += path_segment_parse(name, id);
  return 0;
}

static int count_segments(void *context, const char *name, struct error *error) {
  char path[PATH_BYTES];
  snprintf(path, sizeof path, "segments/%.2s", name);
  return strlen(name) == 2 ? each_in(context, path, count_segment, context, error) : 0;
}

static int count_files(struct verify *v, struct error *error) {
  int result = each_in(v, "models", count_model, v, error);
  if (!result)
    result = each_in(v, "conversations", count_conversation, v, error);
  if (!result)
    result = each_in(v, "segments", count_segments, v, error);
  v->report->files_total++; /* the catalog */
  return result ? result : verify_progress(v, v->dir);
}

/* --- models ----------------------------------------------------------------------------------------------------- */

static int check_model(void *context, const char *name, struct error *error) {
  struct verify *v = context;
  struct found *found = v->found;
  char path[PATH_BYTES];
  uint8_t id[LIMIT_ID_BYTES];
  if (!path_id_parse(name, id))
    return 0;
  int result = grow(&found->models, found->model_count, &found->model_room, sizeof found->models[0], error);
  if (result)
    return result;
  struct found_model *model = &found->models[found->model_count++];
  *model = (struct found_model){.good = false};
  memcpy(model->id, id, sizeof id);
  path_model(path, v->dir, id);
  v->place = (struct damage_place){.owned = false};
  result = verify_model(v, path, model, error);
  v->report->files_done++;
  return result;
}

/* --- conversations ---------------------------------------------------------------------------------------------- */

/* One look at how a conversation's files fit together. */
struct look {
  struct meta meta;
  struct log_list logs;
  uint64_t sealed;
  uint32_t log_from; /* logs before this one are sealed already */
  char culprit[PATH_BYTES]; /* the file that a failure is about */
  bool gone;         /* there is no such conversation, or not yet */
};

static void look_finish(struct look *look) {
  meta_finish(&look->meta);
  log_list_finish(&look->logs);
}

/* Compares one extent with the header of its segment. What is wrong inside of the segment is told elsewhere. */
static int check_extent(struct verify *v, const struct meta *meta, uint32_t at, struct error *reason) {
  const struct msg_extent *extent = &meta->extents[at];
  const struct msg_geometry *g = &meta->message.geometry;
  struct segment *segment;
  char path[PATH_BYTES];
  path_segment(path, v->dir, extent->id.data);
  int result = segment_open(v->io, path, &segment, reason);
  if (result)
    return result;
  const struct segment_header *h = segment_header(segment);
  bool same = memcmp(h->id, extent->id.data, LIMIT_ID_BYTES) == 0 && h->layers == g->layers &&
              h->kv_heads == g->kv_heads && h->head_dim == g->head_dim && h->first == extent->origin &&
              extent->first + extent->count <= h->first + h->count && meta->message.model.size &&
              memcmp(h->model, meta->message.model.data, LIMIT_ID_BYTES) == 0;
  segment_unref(segment);
  return same ? 0 : error_set(reason, ERR_CORRUPT, "%s is not what extent %u says", path, at);
}

/* All extents of a conversation that is still there. */
static int check_extents(struct verify *v, const uint8_t *id, const struct meta *meta) {
  int result = 0;
  char path[PATH_BYTES], own[PATH_BYTES];
  path_meta(own, v->dir, id);
  for (uint32_t i = 0; i < meta->extent_count && !result; i++) {
    struct error reason;
    if (check_extent(v, meta, i, &reason) == 0 || !io_exists(v->io, own))
      continue;
    path_segment(path, v->dir, meta->extents[i].id.data);
    v->place.first = meta->extents[i].first;
    v->place.count = meta->extents[i].count;
    result = verify_problem(v, path, "%s", reason.text);
  }
  return result;
}

/* Compares a conversation with its model's file. One that cannot be read has been told of already. */
static int check_conversation_model(struct verify *v, const struct meta *meta, struct error *reason) {
  const struct msg_meta *m = &meta->message;
  char text[PATH_ID_TEXT_BYTES], path[PATH_BYTES];
  if (!m->model.size)
    return 0;
  path_id_text(m->model.data, text);
  for (size_t i = 0; i < v->found->model_count; i++) {
    const struct found_model *model = &v->found->models[i];
    if (memcmp(model->id, m->model.data, LIMIT_ID_BYTES) != 0)
      continue;
    if (model->good && (memcmp(model->fingerprint, m->fingerprint.data, LIMIT_FINGERPRINT_BYTES) != 0 ||
                        model->layers != m->geometry.layers || model->kv_heads != m->geometry.kv_heads ||
                        model->head_dim != m->geometry.head_dim))
      return error_set(reason, ERR_CORRUPT, "meta tells another fingerprint or geometry than its model %s", text);
    return 0;
  }
  path_model(path, v->dir, m->model.data);
  if (io_exists(v->io, path))
    return 0; /* made since the models were looked at */
  return error_set(reason, ERR_CORRUPT, "its model %s has no file; restore models/%s from a backup", text, text);
}

/* True for a conversation that was deleted meanwhile, or was being made when a crash came. */
static bool nothing_there(struct verify *v, const uint8_t *id) {
  char path[PATH_BYTES];
  struct log_list logs;
  path_conversation(path, v->dir, id);
  if (log_list_read(v->io, path, &logs, NULL))
    return !io_exists(v->io, path);
  bool empty = !logs.count;
  log_list_finish(&logs);
  return empty;
}

/* Reads meta, log names and segment headers. Negative with a reason when they do not fit together. */
static int look_at(struct verify *v, const uint8_t *id, struct look *look, struct error *reason) {
  char path[PATH_BYTES];
  *look = (struct look){.gone = false};
  path_meta(path, v->dir, id);
  path_meta(look->culprit, v->dir, id);
  int result = meta_read(v->io, path, &look->meta, reason);
  if (result) {
    look->gone = !io_exists(v->io, path) && nothing_there(v, id);
    return look->gone ? 0 : result;
  }
  if (memcmp(look->meta.message.id.data, id, LIMIT_ID_BYTES) != 0)
    return error_set(reason, ERR_CORRUPT, "%s is the file of another conversation", path);
  result = check_conversation_model(v, &look->meta, reason);
  if (result)
    return result;
  if (look->meta.extent_count) {
    const struct msg_extent *last = &look->meta.extents[look->meta.extent_count - 1];
    look->sealed = last->first + last->count;
  }
  path_conversation(path, v->dir, id);
  path_conversation(look->culprit, v->dir, id);
  result = log_list_read(v->io, path, &look->logs, reason);
  if (result)
    return result;
  while (look->log_from + 1 < look->logs.count && look->logs.first[look->log_from + 1] <= look->sealed)
    look->log_from++;
  if (look->log_from < look->logs.count && look->logs.first[look->log_from] != look->sealed)
    return error_set(reason, ERR_CORRUPT, "no log begins at token %llu, where the segments end",
                     (unsigned long long)look->sealed);
  return 0;
}

static int check_logs(struct verify *v, const uint8_t *id, const struct look *look, struct found_conversation *c,
                      struct error *error) {
  const struct msg_meta *meta = &look->meta.message;
  struct log_expected wanted = {.conversation = id};
  struct log_found found;
  int result = 0;
  if (meta->model.size) {
    wanted.layers = (uint32_t)meta->geometry.layers;
    wanted.kv_heads = (uint32_t)meta->geometry.kv_heads;
  }
  for (uint32_t i = 0; i < look->logs.count && !result; i++) {
    uint64_t bad = v->report->bad;
    char path[PATH_BYTES];
    wanted.first = look->logs.first[i];
    wanted.last = i + 1 == look->logs.count;
    path_log(path, v->dir, id, wanted.first);
    if (i >= look->log_from) {
      result = verify_log(v, path, &wanted, &found, error);
      c->tokens += found.tokens;
      c->log_first = wanted.first;
      c->log_bytes = found.bytes;
      if (!result && !wanted.last && bad == v->report->bad &&
          found.tokens != look->logs.first[i + 1] - wanted.first && io_exists(v->io, path))
        result = verify_problem(v, path, "holds %llu tokens although the next log begins at token %llu",
                                (unsigned long long)found.tokens, (unsigned long long)look->logs.first[i + 1]);
    }
    v->report->files_done++;
  }
  return result;
}

static int keep_conversation(struct found *found, const struct meta *meta, const struct found_conversation *seen,
                             struct error *error) {
  int result = grow(&found->conversations, found->conversation_count, &found->conversation_room,
                    sizeof found->conversations[0], error);
  if (result)
    return result;
  struct found_conversation *c = &found->conversations[found->conversation_count++];
  *c = *seen;
  c->uid = (uint32_t)meta->message.uid;
  memcpy(c->id, meta->message.id.data, LIMIT_ID_BYTES);
  memcpy(c->name, meta->message.name.data, meta->message.name.size);
  for (uint32_t i = 0; i < meta->extent_count; i++) {
    result = grow(&found->extents, found->extent_count, &found->extent_room, sizeof found->extents[0], error);
    if (result)
      return result;
    memcpy(found->extents[found->extent_count++].segment, meta->extents[i].id.data, LIMIT_ID_BYTES);
  }
  return 0;
}

/* Its meta, or how its files fit together: unless it was deleted meanwhile. */
static int tell_unreadable(struct verify *v, const uint8_t *id, const char *culprit, const struct error *reason,
                           struct error *error) {
  char path[PATH_BYTES];
  path_conversation(path, v->dir, id);
  if (reason->code == ERR_MEMORY || !io_exists(v->io, path))
    return verify_failure(v, path, reason, error);
  return verify_problem(v, culprit, "%s", reason->text);
}

static void set_place(struct verify *v, const uint8_t *id, const struct meta *meta) {
  v->place = (struct damage_place){.owned = true};
  memcpy(v->place.conversation, id, LIMIT_ID_BYTES);
  if (!meta->message.name.size)
    return; /* cannot be read */
  memcpy(v->place.name, meta->message.name.data, meta->message.name.size);
  v->place.uid = (uint32_t)meta->message.uid;
}

static int check_conversation(void *context, const char *name, struct error *error) {
  struct verify *v = context;
  struct look look;
  struct error reason;
  uint8_t id[LIMIT_ID_BYTES];
  if (!path_id_parse(name, id))
    return 0;
  int result = look_at(v, id, &look, &reason);
  for (int i = 1; result && i < LOOKS_MAX; i++) {
    const struct timespec pause = {.tv_nsec = LOOK_PAUSE_NS};
    nanosleep(&pause, NULL); /* a daemon may be in the middle of something */
    look_finish(&look);
    result = look_at(v, id, &look, &reason);
  }
  struct found_conversation seen = {.tokens = look.sealed};
  uint64_t bad = v->report->bad;
  v->report->files_done++;
  set_place(v, id, &look.meta);
  if (!result && !look.gone) {
    v->report->metas++;
    v->report->bytes_done += look.meta.file.size;
    result = check_extents(v, id, &look.meta);
    if (!result)
      result = check_logs(v, id, &look, &seen, error);
  } else if (result) {
    v->found->bad_meta = true;
    result = tell_unreadable(v, id, look.culprit, &reason, error);
  }
  if (v->report->bad > bad)
    seen.tokens = seen.log_bytes = UINT64_MAX;
  if (!result && look.meta.message.id.size)
    result = keep_conversation(v->found, &look.meta, &seen, error);
  look_finish(&look);
  return result;
}

/* --- segments --------------------------------------------------------------------------------------------------- */

static int compare_extents(const void *a, const void *b) { return memcmp(a, b, LIMIT_ID_BYTES); }

static int check_segment(void *context, const char *name, struct error *error) {
  struct verify *v = context;
  const struct found *found = v->found;
  uint8_t id[LIMIT_ID_BYTES];
  char path[PATH_BYTES];
  if (!path_segment_parse(name, id))
    return 0;
  path_segment(path, v->dir, id);
  int result = verify_segment(v, path, error);
  v->report->files_done++;
  if (result || found->bad_meta ||
      (found->extent_count &&
       bsearch(id, found->extents, found->extent_count, sizeof found->extents[0], compare_extents)))
    return result;
  if (!io_exists(v->io, path) || segment_is_leftover(v->io, v->dir, path))
    return 0; /* being sealed now, or the next start removes it */
  return verify_problem(v, path, "belongs to no conversation");
}

static int check_segments(void *context, const char *name, struct error *error) {
  char path[PATH_BYTES];
  snprintf(path, sizeof path, "segments/%.2s", name);
  return strlen(name) == 2 ? each_in(context, path, check_segment, context, error) : 0;
}

static int check_all(struct verify *v, struct error *error) {
  struct found *found = v->found;
  int result = count_files(v, error);
  if (!result)
    result = each_in(v, "models", check_model, v, error);
  if (!result)
    result = each_in(v, "conversations", check_conversation, v, error);
  if (found->extent_count)
    qsort(found->extents, found->extent_count, sizeof found->extents[0], compare_extents);
  if (!result)
    result = each_in(v, "segments", check_segments, v, error);
  v->place = (struct damage_place){.owned = false};
  if (!result && !v->scrub)
    result = verify_catalog(v, error);
  v->report->files_done++;
  return result ? result : verify_progress(v, v->dir);
}

static int run(const struct io *io, const char *dir, bool scrub, struct verify_report *report, verify_fn *tell,
               void *context, struct error *error) {
  struct found found = {0};
  char path[PATH_BYTES];
  struct verify v = {.io = io ? io : &io_system,
                     .dir = dir,
                     .report = report,
                     .tell = tell,
                     .context = context,
                     .found = &found,
                     .scrub = scrub};
  *report = (struct verify_report){0};
  if (strlen(dir) > PATH_ARCHIVE_BYTES_MAX)
    return error_set(error, ERR_BAD_PARAMS, "the archive's path has more than %u bytes", PATH_ARCHIVE_BYTES_MAX);
  path_join(path, dir, "conversations");
  if (!io_exists(v.io, path))
    return error_set(error, ERR_BAD_PARAMS, "%s is no archive: there is no directory 'conversations' in it", dir);
  int result = check_all(&v, error);
  free(found.models);
  free(found.conversations);
  free(found.extents);
  return result;
}

int verify_archive(const struct io *io, const char *dir, struct verify_report *report, verify_fn *tell, void *context,
                   struct error *error) {
  return run(io, dir, false, report, tell, context, error);
}

int verify_scrub(const struct io *io, const char *dir, struct verify_report *report, verify_fn *tell, void *context,
                 struct error *error) {
  return run(io, dir, true, report, tell, context, error);
}
