// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
#include "store/log_write.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>

#include "proto/crc32c.h"
#include "store/path.h"

enum { FRAME_PARTS = 5, PARTS_MAX = 1 + FRAME_PARTS };

/* The head and the CRC of a frame that is being written. */
struct frame_bytes {
  uint8_t head[LOG_FRAME_HEADER_BYTES];
  uint8_t crc[LOG_FRAME_CRC_BYTES];
};

static struct iovec part_of(const void *bytes, size_t size) {
  return (struct iovec){.iov_base = (void *)(uintptr_t)bytes, .iov_len = size};
}

/* Fills FRAME_PARTS parts with the frame as it will stand at the writer's end. Returns its size. */
static uint64_t frame_parts(const struct log_writer *w, const struct log_frame *wanted, struct frame_bytes *bytes,
                            struct iovec *parts) {
  struct log_frame frame = *wanted;
  frame.offset = w->size;
  frame.synced = w->synced;
  frame.size = log_frame_size(frame.count, frame.ahead, frame.layers, frame.kv_heads);
  log_frame_pack(&frame, w->salt, bytes->head);
  parts[0] = part_of(bytes->head, sizeof bytes->head);
  parts[1] = part_of(frame.ids, 4 * (size_t)frame.count);
  parts[2] = part_of(frame.ahead_ids, 4 * (size_t)frame.ahead);
  parts[3] = part_of(frame.records, (size_t)frame.count * frame.layers * frame.kv_heads * RECORD_BYTES);
  uint32_t crc = log_frame_seed(w->salt, frame.offset);
  for (int i = 0; i < FRAME_PARTS - 1; i++)
    if (parts[i].iov_len)
      crc = crc32c(crc, parts[i].iov_base, parts[i].iov_len);
  store_u32(bytes->crc, crc);
  parts[4] = part_of(bytes->crc, sizeof bytes->crc);
  return frame.size;
}

static int writer_init(struct log_writer *w, const struct io *io, const char *path, struct error *error) {
  *w = (struct log_writer){.io = io, .path = strdup(path), .fd = -1};
  return w->path ? 0 : error_set(error, ERR_MEMORY, "out of memory for %s", path);
}

void log_writer_close(struct log_writer *w) {
  if (w->path && w->fd >= 0)
    w->io->close(w->fd);
  free(w->path);
  *w = (struct log_writer){.fd = -1};
}

static int write_first(struct log_writer *w, const uint8_t *conversation, const struct log_frame *frame,
                       struct error *error) {
  struct log_header header = {
      .version = LOG_VERSION, .salt = w->salt, .first = w->first, .created_s = (uint64_t)time(NULL)};
  uint8_t head[LOG_HEADER_BYTES];
  struct frame_bytes bytes;
  struct iovec parts[PARTS_MAX];
  memcpy(header.conversation, conversation, LIMIT_ID_BYTES);
  log_header_pack(&header, head);
  parts[0] = part_of(head, sizeof head);
  w->size = LOG_HEADER_BYTES;
  uint64_t size = frame_parts(w, frame, &bytes, parts + 1);
  int result = io_write_all(w->io, w->fd, parts, PARTS_MAX, 0, w->path, error);
  w->size += size;
  return result;
}

int log_writer_create(struct log_writer *w, const struct io *io, const char *path, const uint8_t *conversation,
                      const struct log_frame *frame, bool *left, struct error *error) {
  if (left)
    *left = false;
  int result = writer_init(w, io, path, error);
  if (result)
    return result;
  w->first = frame->first;
  if (getrandom(&w->salt, sizeof w->salt, 0) != (ssize_t)sizeof w->salt)
    result = error_set_errno(error, errno, "cannot get random bytes for %s", path);
  if (!result)
    result = w->fd = io_open(io, path, O_RDWR | O_CREAT | O_TRUNC, error);
  if (result >= 0) {
    result = write_first(w, conversation, frame, error);
    if (result && io->unlink(path) && left)
      *left = true;
  }
  if (result)
    log_writer_close(w);
  return result;
}

int log_writer_open(struct log_writer *w, const struct io *io, const char *path, const struct log_header *header,
                    uint64_t size, struct error *error) {
  struct stat status;
  int result = writer_init(w, io, path, error);
  if (result)
    return result;
  w->first = header->first;
  w->salt = header->salt;
  w->size = size;
  result = w->fd = io_open(io, path, O_RDWR, error);
  if (result >= 0) {
    result = 0;
    if (io->fstat(w->fd, &status))
      result = error_set_errno(error, errno, "cannot stat %s", path);
    else if ((uint64_t)status.st_size > size && io_ftruncate(io, w->fd, (off_t)size))
      result = error_set_errno(error, errno, "cannot cut off the torn end of %s", path);
  }
  if (result)
    log_writer_close(w);
  return result;
}

void log_writer_retract(struct log_writer *w, uint64_t size, bool now) {
  w->size = size;
  if (w->synced > size)
    w->synced = size;
  w->overhang = !now || io_ftruncate(w->io, w->fd, (off_t)size) != 0;
}

int log_writer_append(struct log_writer *w, const struct log_frame *frame, struct error *error) {
  struct frame_bytes bytes;
  struct iovec parts[FRAME_PARTS];
  /* leftovers longer than the new frame would be taken for damage later */
  if (w->overhang && io_ftruncate(w->io, w->fd, (off_t)w->size))
    return error_set_errno(error, errno, "cannot cut off what a failed write left in %s", w->path);
  w->overhang = false;
  uint64_t size = frame_parts(w, frame, &bytes, parts);
  int result = io_write_all(w->io, w->fd, parts, FRAME_PARTS, (off_t)w->size, w->path, error);
  if (result)
    log_writer_retract(w, w->size, true);
  else
    w->size += size;
  return result;
}

int log_writer_sync(struct log_writer *w, bool *sync_failed, struct error *error) {
  *sync_failed = false;
  if (w->synced != w->size) {
    *sync_failed = io_fdatasync(w->io, w->fd) != 0;
    if (*sync_failed)
      return error_set_errno(error, errno, "cannot sync %s", w->path);
    w->synced = w->size;
  }
  if (!w->entry_synced) {
    char parent[PATH_BYTES];
    snprintf(parent, sizeof parent, "%.*s", (int)(strrchr(w->path, '/') - w->path), w->path);
    int result = io_sync_directory(w->io, parent, sync_failed, error);
    if (result)
      return result;
    w->entry_synced = true;
  }
  return 0;
}
