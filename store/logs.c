// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// The logs of one conversation as they lie on disk.
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "store/internal.h"
#include "store/log.h"

static int take_name(void *context, const char *name, struct error *error) {
  struct log_list *list = context;
  uint64_t first;
  if (!path_log_parse(name, &first))
    return 0;
  if (list->count == list->room) {
    uint32_t room = list->room ? 2 * list->room : 8;
    uint64_t *grown = realloc(list->first, room * sizeof *grown);
    if (!grown)
      return error_set(error, ERR_MEMORY, "out of memory for a list of logs");
    list->first = grown;
    list->room = room;
  }
  list->first[list->count++] = first;
  return 0;
}

static int ascending(const void *a, const void *b) {
  uint64_t x, y;
  memcpy(&x, a, sizeof x);
  memcpy(&y, b, sizeof y);
  return (x > y) - (x < y);
}

int log_list_read(const struct io *io, const char *directory, struct log_list *list, struct error *error) {
  *list = (struct log_list){0};
  int result = io_list_directory(io, directory, take_name, list, error);
  if (result)
    log_list_finish(list);
  else if (list->count)
    qsort(list->first, list->count, sizeof list->first[0], ascending);
  return result;
}

void log_list_finish(struct log_list *list) {
  free(list->first);
  *list = (struct log_list){0};
}

static int file_facts(const struct io *io, const char *path, uint64_t *bytes, uint64_t *changed_s,
                      struct error *error) {
  struct stat status;
  int fd = io_open(io, path, O_RDONLY, error);
  if (fd < 0)
    return fd;
  int result = io->fstat(fd, &status) ? error_set_errno(error, errno, "cannot stat %s", path) : 0;
  io->close(fd);
  if (result)
    return result;
  *bytes += (uint64_t)status.st_size;
  if ((uint64_t)status.st_mtime > *changed_s)
    *changed_s = (uint64_t)status.st_mtime;
  return 0;
}

/* Tokens of one log, as far as it can be read: damage is for conversation_open to find. */
static int count_log(const struct io *io, const char *path, struct log_census *census, struct error *error) {
  struct log_reader *reader;
  struct log_frame frame;
  int result = log_reader_open(io, path, &reader, NULL, error);
  if (result)
    return result == -ERR_CORRUPT || result == -ERR_VERSION ? 0 : result;
  while ((result = log_reader_skip(reader, &frame, error)) == LOG_FRAME) {
    census->tokens += frame.count;
    census->ahead = frame.ahead;
  }
  log_reader_close(reader);
  return result > 0 || result == -ERR_CORRUPT || result == -ERR_VERSION ? 0 : result;
}

int log_census(const struct io *io, const char *dir, const uint8_t *id, uint64_t sealed, struct log_census *census,
               struct error *error) {
  char path[PATH_BYTES];
  struct log_list list;
  *census = (struct log_census){0};
  path_meta(path, dir, id);
  int result = file_facts(io, path, &census->bytes, &census->changed_s, error);
  path_conversation(path, dir, id);
  if (!result)
    result = log_list_read(io, path, &list, error);
  if (result)
    return result;
  for (uint32_t i = 0; i < list.count && !result; i++) {
    bool last = i + 1 == list.count;
    if (!last && list.first[i + 1] <= sealed)
      continue; /* sealed already */
    path_log(path, dir, id, list.first[i]);
    result = file_facts(io, path, &census->bytes, &census->changed_s, error);
    if (!result && last)
      result = count_log(io, path, census, error);
    else if (!result)
      census->tokens += list.first[i + 1] - list.first[i];
  }
  log_list_finish(&list);
  return result;
}

bool segment_is_leftover(const struct io *io, const char *dir, const char *path) {
  struct segment *segment;
  struct meta meta;
  struct error ignored;
  char other[PATH_BYTES];
  if (segment_open(io, path, &segment, &ignored))
    return false;
  struct segment_header header = *segment_header(segment);
  segment_unref(segment);
  path_deleted(other, dir, header.conversation);
  if (io_exists(io, other))
    return true; /* its conversation is being deleted */
  path_meta(other, dir, header.conversation);
  if (meta_read(io, other, &meta, &ignored))
    return false;
  uint64_t sealed = 0;
  for (uint32_t i = 0; i < meta.extent_count; i++)
    sealed = meta.extents[i].first + meta.extents[i].count;
  meta_finish(&meta);
  if (sealed >= header.first + header.count)
    return true;
  path_log(other, dir, header.conversation, header.first);
  return sealed <= header.first && io_exists(io, other);
}
