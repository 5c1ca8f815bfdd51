// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// Writing a log file: one write call per frame.
#ifndef COLDKV_STORE_LOG_WRITE_H
#define COLDKV_STORE_LOG_WRITE_H

#include "store/log_format.h"

struct log_writer {
  const struct io *io;
  char *path;
  int fd; /* -1: not open */
  uint64_t salt, first;
  uint64_t size;     /* bytes of good frames; what follows in the file is to be cut off */
  uint64_t synced;   /* of these, known to be on disk */
  bool entry_synced; /* the directory knows the file, on disk */
  bool overhang;     /* a failed write may have left bytes behind `size` */
};

/* Makes the log `path` with its header and its first frame, written by one call. What is at `path` is replaced: the
 * caller knows that nothing of value is there. Nothing is left on failure, unless *left (NULL allowed) says that even
 * the removal failed. */
int log_writer_create(struct log_writer *writer, const struct io *io, const char *path, const uint8_t *conversation,
                      const struct log_frame *frame, bool *left, struct error *error);

/* Opens an existing log to go on at `size`; what follows is cut off. */
int log_writer_open(struct log_writer *writer, const struct io *io, const char *path, const struct log_header *header,
                    uint64_t size, struct error *error);

void log_writer_close(struct log_writer *writer);

/* Writes one frame with one call. The frame's first, count, ahead, layers, kv_heads and pointers are the caller's. On
 * failure the file is as before, or will be before the next write. */
int log_writer_append(struct log_writer *writer, const struct log_frame *frame, struct error *error);

/* Takes back the newest frame, of which nobody was told: the file ends at `size` again. It is cut off now, or (`now`
 * false, or when that fails) before the next write. */
void log_writer_retract(struct log_writer *writer, uint64_t size, bool now);

/* fdatasync, and fsync of the directory while the file is new. *sync_failed tells whether one of these two failed,
 * which nobody may try again. */
int log_writer_sync(struct log_writer *writer, bool *sync_failed, struct error *error);

#endif
