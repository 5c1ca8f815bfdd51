// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// The one table through which the store touches the disk (LMDB's own calls aside), so that tests can make any call
// fail, tear or stop. Members take and return what the system calls of the same name do, errno included.
#ifndef COLDKV_STORE_IO_H
#define COLDKV_STORE_IO_H

#include <dirent.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>

#include "proto/error.h"

struct io {
  int (*open)(const char *path, int flags, mode_t mode);
  int (*close)(int fd);
  ssize_t (*pread)(int fd, void *buffer, size_t size, off_t offset);
  ssize_t (*pwritev)(int fd, const struct iovec *parts, int count, off_t offset);
  int (*fdatasync)(int fd);
  int (*fsync)(int fd);
  int (*ftruncate)(int fd, off_t size);
  int (*fstat)(int fd, struct stat *status);
  int (*rename)(const char *from, const char *to);
  int (*unlink)(const char *path);
  int (*mkdir)(const char *path, mode_t mode);
  int (*rmdir)(const char *path);
  void *(*mmap)(void *address, size_t size, int protection, int flags, int fd, off_t offset);
  int (*munmap)(void *address, size_t size);
  DIR *(*opendir)(const char *path);
  struct dirent *(*readdir)(DIR *dir);
  int (*closedir)(DIR *dir);
};

/* The system calls themselves. */
extern const struct io io_system;

/* Helpers over the table: they retry EINTR and go on after short counts, and name `path` in the error. */
int io_open(const struct io *io, const char *path, int flags, struct error *error); /* mode 0600; returns the fd */
int io_read_all(const struct io *io, int fd, void *buffer, size_t size, off_t offset, const char *path,
                struct error *error); /* a file that ends early is ERR_CORRUPT */
int io_write_all(const struct io *io, int fd, struct iovec *parts, int count, off_t offset, const char *path,
                 struct error *error); /* may change `parts` */
int io_close(const struct io *io, int fd);                     /* interrupted or not, it is closed */
int io_fdatasync(const struct io *io, int fd);                 /* 0, or -1 with errno */
int io_ftruncate(const struct io *io, int fd, off_t size);     /* likewise */

/* *sync_failed (NULL allowed) tells whether it was the sync itself that failed, which nobody may try again, and not the
 * opening of the directory. */
int io_sync_directory(const struct io *io, const char *path, bool *sync_failed, struct error *error);

/* The same in two steps, so that whatever cannot be opened is found out before the change that is to be synced. */
int io_open_directory(const struct io *io, const char *path, struct error *error);
int io_sync_opened(const struct io *io, int fd, const char *path, struct error *error); /* closes it, too */

/* Makes the directory (mode 0700) if it is not there; its parent must be. */
int io_make_directory(const struct io *io, const char *path, struct error *error);

/* The directory that `path` is in; `parent` has room for PATH_BYTES (store/path.h). */
void io_parent(const char *path, char *parent);

/* False only when there is no such file. */
bool io_exists(const struct io *io, const char *path);

/* Writes `size` bytes as `path` atomically: beside it, fdatasync, rename, fsync of the directory. Mode 0600. On failure
 * the old file is there, unless it was the last sync that failed. */
int io_replace_file(const struct io *io, const char *path, const void *data, size_t size, struct error *error);

/* The same; *sync_failed tells whether it was a sync that failed, which nobody may try again. */
int io_replace_file_synced(const struct io *io, const char *path, const void *data, size_t size, bool *sync_failed,
                           struct error *error);

/* Reads a whole file of at most `limit` bytes into malloc'd *data. */
int io_read_file(const struct io *io, const char *path, size_t limit, uint8_t **data, size_t *size,
                 struct error *error);

/* Calls `visit` with each name in the directory but . and .. until it returns nonzero, which is returned. */
typedef int io_visit_fn(void *context, const char *name, struct error *error);
int io_list_directory(const struct io *io, const char *path, io_visit_fn *visit, void *context, struct error *error);

#endif
