// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
#include "tools/coldkv/offline.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "store/log.h"
#include "store/model_file.h"
#include "store/segment.h"

/* How often a look is repeated when files come and go meanwhile. */
enum { TRIES_MAX = 5 };

static int add_log(void *context, const char *name, struct error *error) {
  struct offline *o = context;
  uint64_t first;
  if (!path_log_parse(name, &first))
    return 0;
  if (o->log_count == o->log_room) {
    uint32_t room = o->log_room ? 2 * o->log_room : 8;
    struct offline_log *logs = realloc(o->logs, room * sizeof *logs);
    if (!logs)
      return error_set(error, ERR_MEMORY, "out of memory for a list of logs");
    o->logs = logs;
    o->log_room = room;
  }
  o->logs[o->log_count++] = (struct offline_log){.first = first};
  return 0;
}

static int by_first(const void *a, const void *b) {
  const struct offline_log *x = a, *y = b;
  return (x->first > y->first) - (x->first < y->first);
}

/* Adds size and time of a file that exists; returns 1 when it does not. */
static int add_file(struct offline *o, const char *path, uint64_t *bytes, struct error *error) {
  struct stat status;
  if (stat(path, &status))
    return errno == ENOENT ? 1 : error_set_errno(error, errno, "cannot stat %s", path);
  *bytes = (uint64_t)status.st_size;
  o->bytes += *bytes;
  if (status.st_mtime > 0 && (uint64_t)status.st_mtime > o->used_s)
    o->used_s = (uint64_t)status.st_mtime;
  return 0;
}

/* Reads the frame headers of one log. Damage is a fact to tell, not a failure. Returns 1 when the file is gone. */
static int read_log(struct offline *o, struct offline_log *log, struct error *error) {
  char path[PATH_BYTES];
  path_log(path, o->dir, o->id, log->first);
  int result = add_file(o, path, &log->bytes, error);
  if (result)
    return result;
  struct log_reader *reader;
  struct error reason = {0};
  result = log_reader_open(&io_system, path, &reader, &log->torn, &reason);
  if (!result) {
    struct log_frame frame;
    while ((result = log_reader_skip(reader, &frame, &reason)) == LOG_FRAME) {
      log->frames++;
      log->tokens += frame.count;
      o->ahead = frame.ahead;
    }
    log->torn = result == LOG_TORN;
    log_reader_close(reader);
  }
  if (result < 0 && !log->torn) {
    log->damaged = true;
    if (!o->problem.code)
      o->problem = reason;
  }
  return 0;
}

static int read_logs(struct offline *o, struct error *error) {
  o->tokens = o->sealed;
  for (uint32_t i = 0; i < o->log_count; i++) {
    struct offline_log *log = &o->logs[i];
    int result = read_log(o, log, error);
    if (result)
      return result;
    if (log->first > o->tokens && !o->problem.code)
      error_set(&o->problem, ERR_CORRUPT, "tokens %llu to %llu are missing", (unsigned long long)o->tokens,
                (unsigned long long)log->first - 1);
    uint64_t end = log->first + log->tokens;
    o->tokens = end > o->tokens ? end : o->tokens;
  }
  return 0;
}

static void read_model_name(struct offline *o) {
  char path[PATH_BYTES];
  struct model_file model;
  if (o->meta.message.model.size != LIMIT_ID_BYTES)
    return;
  path_model(path, o->dir, o->meta.message.model.data);
  if (model_read(&io_system, path, &model, NULL))
    return;
  memcpy(o->model_name, model.message.name.data, model.message.name.size);
  model_file_finish(&model);
}

static int look(struct offline *o, struct error *error) {
  char path[PATH_BYTES];
  uint64_t bytes;
  path_meta(path, o->dir, o->id);
  int result = meta_read(&io_system, path, &o->meta, error);
  if (!result)
    result = add_file(o, path, &bytes, error);
  if (result)
    return result;
  const struct msg_geometry *g = &o->meta.message.geometry;
  uint64_t pages = segment_total_pages((uint32_t)g->layers, (uint32_t)g->kv_heads);
  o->bytes += o->meta.extent_count * pages * SEGMENT_PAGE_BYTES;
  if (o->meta.extent_count) {
    const struct msg_extent *last = &o->meta.extents[o->meta.extent_count - 1];
    o->sealed = last->first + last->count;
  }
  path_conversation(path, o->dir, o->id);
  result = io_list_directory(&io_system, path, add_log, o, error);
  if (result)
    return result;
  if (o->log_count)
    qsort(o->logs, o->log_count, sizeof o->logs[0], by_first);
  return read_logs(o, error);
}

int offline_open(struct offline *o, const char *dir, const uint8_t id[LIMIT_ID_BYTES], struct error *error) {
  for (int tries = 0; tries < TRIES_MAX; tries++) {
    *o = (struct offline){.dir = dir};
    memcpy(o->id, id, LIMIT_ID_BYTES);
    int result = look(o, error);
    if (!result) {
      read_model_name(o);
      return 0;
    }
    offline_close(o);
    if (result < 0)
      return result;
  }
  char text[PATH_ID_TEXT_BYTES];
  path_id_text(id, text);
  return error_set(error, ERR_BUSY, "conversation %s changes all the time; try again", text);
}

void offline_close(struct offline *o) {
  meta_finish(&o->meta);
  free(o->logs);
  *o = (struct offline){0};
}

void offline_describe(const struct offline *o, struct msg_conversation *message) {
  const struct msg_meta *meta = &o->meta.message;
  const struct offline_log *open_log = o->log_count ? &o->logs[o->log_count - 1] : NULL;
  *message = (struct msg_conversation){
      .name = meta->name,
      .id = meta->id,
      .model = meta->model,
      .model_name = span_str(o->model_name),
      .uid = meta->uid,
      .tokens = o->tokens,
      .durable = o->tokens,
      .ahead = o->ahead,
      .bytes = o->bytes,
      .created_s = meta->created_s,
      .used_s = o->used_s,
      .log_first = open_log ? open_log->first : o->tokens,
      .log_tokens = open_log ? open_log->tokens : 0,
  };
}

/* --- the archive -------------------------------------------------------------------------------------------------- */

struct walk {
  const char *dir;
  offline_visit_fn *visit;
  void *context;
};

static int walk_entry(void *context, const char *name, struct error *error) {
  struct walk *walk = context;
  uint8_t id[LIMIT_ID_BYTES];
  struct offline offline;
  struct error reason = {0};
  if (!path_id_parse(name, id))
    return 0;
  int result = offline_open(&offline, walk->dir, id, &reason);
  if (result == -ERR_MEMORY)
    return error_set(error, ERR_MEMORY, "%s", reason.text);
  if (result)
    return walk->visit(walk->context, NULL, &reason, error);
  result = walk->visit(walk->context, &offline, NULL, error);
  offline_close(&offline);
  return result;
}

int offline_each(const char *dir, offline_visit_fn *visit, void *context, struct error *error) {
  char path[PATH_BYTES];
  struct walk walk = {dir, visit, context};
  if (strlen(dir) > PATH_ARCHIVE_BYTES_MAX)
    return error_set(error, ERR_ARGUMENT, "the archive's path has more than %u bytes", PATH_ARCHIVE_BYTES_MAX);
  path_join(path, dir, "conversations");
  if (access(path, F_OK))
    return error_set_errno(error, errno, "%s is no archive: cannot open its directory 'conversations'", dir);
  return io_list_directory(&io_system, path, walk_entry, &walk, error);
}

struct search {
  const char *name;
  uint8_t id[LIMIT_ID_BYTES];
};

static int search_entry(void *context, const struct offline *offline, const struct error *reason, struct error *error) {
  struct search *search = context;
  (void)reason;
  (void)error;
  if (!offline)
    return 0;
  struct span name = offline->meta.message.name;
  if (name.size != strlen(search->name) || memcmp(name.data, search->name, name.size) != 0)
    return 0;
  memcpy(search->id, offline->id, sizeof search->id);
  return 1;
}

int offline_find(struct offline *offline, const char *dir, const char *name, struct error *error) {
  struct search search = {.name = name};
  int result = offline_each(dir, search_entry, &search, error);
  if (result == 0)
    return error_set(error, ERR_NO_CONVERSATION, "no conversation '%s' in %s", name, dir);
  return result < 0 ? result : offline_open(offline, dir, search.id, error);
}
