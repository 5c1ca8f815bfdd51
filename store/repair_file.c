// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// What every repair of a file needs: telling of it, and keeping its bytes.
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "store/repair_internal.h"

enum { COPY_BYTES = 1 << 16, BLOCK_BYTES = 4096, NAMES_MAX = 10000 };

static int tell(struct repair *r, const struct patient *p, struct repair_line *line, const char *path) {
  size_t size = strlen(r->dir);
  line->path = strncmp(path, r->dir, size) == 0 && path[size] == '/' ? path + size + 1 : path;
  if (p) {
    line->place.owned = true;
    memcpy(line->place.conversation, p->id, LIMIT_ID_BYTES);
    if (p->meta.message.name.size)
      memcpy(line->place.name, p->meta.message.name.data, p->meta.message.name.size);
    else if (p->known)
      memcpy(line->place.name, p->known->name, sizeof line->place.name);
  }
  return r->tell ? r->tell(r->context, line) : 0;
}

int repair_mended(struct repair *r, const struct patient *p, const char *path, const char *format, ...) {
  char what[ERROR_TEXT_BYTES + 128];
  struct repair_line line = {.kind = REPAIR_MENDED, .what = what, .layer = REPAIR_ALL, .head = REPAIR_ALL};
  va_list args;
  va_start(args, format);
  vsnprintf(what, sizeof what, format, args);
  va_end(args);
  r->report->mended++;
  return tell(r, p, &line, path);
}

int repair_left(struct repair *r, const struct patient *p, const char *path, const char *format, ...) {
  char what[ERROR_TEXT_BYTES + 128];
  struct repair_line line = {.kind = REPAIR_LEFT, .what = what, .layer = REPAIR_ALL, .head = REPAIR_ALL};
  va_list args;
  va_start(args, format);
  vsnprintf(what, sizeof what, format, args);
  va_end(args);
  r->report->left++;
  return tell(r, p, &line, path);
}

int repair_lost(struct repair *r, const struct patient *p, const char *path, uint64_t first, uint64_t count,
                uint32_t layer, uint32_t head, const char *what) {
  struct repair_line line = {.kind = REPAIR_LOST, .what = what, .layer = layer, .head = head};
  line.place.first = first;
  line.place.count = count;
  return tell(r, p, &line, path);
}

/* --- keeping bytes ------------------------------------------------------------------------------------------------ */

/* DIR/quarantine/<path in the archive, + for />, with a number when there is one of that name. */
static int name_copy(struct repair *r, const char *path, char copy[PATH_BYTES], struct error *error) {
  char directory[PATH_BYTES], name[512];
  path_join(directory, r->dir, PATH_QUARANTINE);
  snprintf(name, sizeof name, "%s", path + strlen(r->dir) + 1);
  for (char *c = name; *c; c++)
    *c = *c == '/' ? '+' : *c;
  int result = io_make_directory(r->io, directory, error);
  if (!result)
    result = io_sync_directory(r->io, r->dir, NULL, error);
  for (int i = 0; i < NAMES_MAX && !result; i++) {
    if (i)
      snprintf(copy, PATH_BYTES, "%.3900s/%s.%d", directory, name, i);
    else
      snprintf(copy, PATH_BYTES, "%.3900s/%s", directory, name);
    if (!io_exists(r->io, copy))
      return 0;
  }
  return result ? result : error_set(error, ERR_LIMIT, "%s has no free name for a copy of %s", directory, path);
}

/* Reads a chunk; blocks that the disk cannot give are zeros. Returns bytes, 0 at the end. */
static size_t read_chunk(const struct io *io, int fd, uint8_t *chunk, off_t offset, off_t size) {
  size_t wanted = size - offset < COPY_BYTES ? (size_t)(size - offset) : COPY_BYTES;
  struct error ignored;
  if (!wanted || io_read_all(io, fd, chunk, wanted, offset, "", &ignored) == 0)
    return wanted;
  memset(chunk, 0, wanted);
  for (size_t at = 0; at < wanted; at += BLOCK_BYTES) {
    size_t some = wanted - at < BLOCK_BYTES ? wanted - at : BLOCK_BYTES;
    if (io_read_all(io, fd, chunk + at, some, offset + (off_t)at, "", &ignored))
      memset(chunk + at, 0, some);
  }
  return wanted;
}

static int copy_bytes(const struct io *io, int from, off_t size, int to, const char *path, struct error *error) {
  uint8_t *chunk = malloc(COPY_BYTES);
  if (!chunk)
    return error_set(error, ERR_MEMORY, "out of memory for a copy of %s", path);
  int result = 0;
  size_t got;
  for (off_t offset = 0; !result && (got = read_chunk(io, from, chunk, offset, size)) != 0; offset += (off_t)got) {
    struct iovec part = {.iov_base = chunk, .iov_len = got};
    result = io_write_all(io, to, &part, 1, offset, path, error);
  }
  free(chunk);
  if (!result && io_fdatasync(io, to))
    result = error_set_errno(error, errno, "cannot sync %s", path);
  return result;
}

int repair_keep_copy(struct repair *r, const char *path, struct error *error) {
  char copy[PATH_BYTES], directory[PATH_BYTES];
  struct stat status;
  if (!io_exists(r->io, path))
    return 0;
  int result = name_copy(r, path, copy, error);
  if (result)
    return result;
  int from = io_open(r->io, path, O_RDONLY, error);
  if (from < 0)
    return from;
  int to = io_open(r->io, copy, O_WRONLY | O_CREAT | O_EXCL, error);
  result = to < 0 ? to : r->io->fstat(from, &status) ? error_set_errno(error, errno, "cannot stat %s", path) : 0;
  if (!result)
    result = copy_bytes(r->io, from, status.st_size, to, copy, error);
  if (to >= 0 && io_close(r->io, to) && !result)
    result = error_set_errno(error, errno, "cannot close %s", copy);
  io_close(r->io, from);
  path_join(directory, r->dir, PATH_QUARANTINE);
  return result ? result : io_sync_directory(r->io, directory, NULL, error);
}

static int sync_parent(struct repair *r, const char *path, struct error *error) {
  char parent[PATH_BYTES];
  snprintf(parent, sizeof parent, "%.*s", (int)(strrchr(path, '/') - path), path);
  return io_sync_directory(r->io, parent, NULL, error);
}

int repair_take_away(struct repair *r, const char *path, struct error *error) {
  int result = repair_keep_copy(r, path, error);
  if (!result && r->io->unlink(path) && errno != ENOENT)
    result = error_set_errno(error, errno, "cannot remove %s", path);
  return result ? result : sync_parent(r, path, error);
}

int repair_put(struct repair *r, const char *from, const char *path, struct error *error) {
  if (r->io->rename(from, path))
    return error_set_errno(error, errno, "cannot rename %s to its final name", from);
  return sync_parent(r, path, error);
}

/* --- purge -------------------------------------------------------------------------------------------------------- */

struct purge {
  const struct io *io;
  char directory[PATH_BYTES];
  uint64_t files;
};

static int purge_one(void *context, const char *name, struct error *error) {
  struct purge *purge = context;
  char path[PATH_BYTES];
  path_join(path, purge->directory, name);
  if (purge->io->unlink(path))
    return error_set_errno(error, errno, "cannot remove %s", path);
  purge->files++;
  return 0;
}

int repair_purge(const struct io *io, const char *dir, uint64_t *files, struct error *error) {
  struct purge purge = {.io = io ? io : &io_system};
  path_join(purge.directory, dir, PATH_QUARANTINE);
  int result = io_exists(purge.io, purge.directory)
                   ? io_list_directory(purge.io, purge.directory, purge_one, &purge, error)
                   : 0;
  *files = purge.files;
  return result;
}
