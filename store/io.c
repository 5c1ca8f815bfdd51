// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
#include "store/io.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "store/path.h"

static int system_open(const char *path, int flags, mode_t mode) { return open(path, flags, mode); }
static int system_fstat(int fd, struct stat *status) { return fstat(fd, status); }

const struct io io_system = {
    .open = system_open,
    .close = close,
    .pread = pread,
    .pwritev = pwritev,
    .fdatasync = fdatasync,
    .fsync = fsync,
    .ftruncate = ftruncate,
    .fstat = system_fstat,
    .rename = rename,
    .unlink = unlink,
    .mkdir = mkdir,
    .rmdir = rmdir,
    .mmap = mmap,
    .munmap = munmap,
    .opendir = opendir,
    .readdir = readdir,
    .closedir = closedir,
};

int io_open(const struct io *io, const char *path, int flags, struct error *error) {
  int fd;
  do
    fd = io->open(path, flags | O_CLOEXEC, 0600);
  while (fd < 0 && errno == EINTR);
  if (fd >= 0)
    return fd;
  int reason = errno;
  int result = error_set_errno(error, reason, "cannot open %s", path);
  errno = reason;
  return result;
}

bool io_exists(const struct io *io, const char *path) {
  int fd = io_open(io, path, O_RDONLY, NULL);
  if (fd >= 0)
    io->close(fd);
  return fd >= 0 || errno != ENOENT;
}

int io_read_all(const struct io *io, int fd, void *buffer, size_t size, off_t offset, const char *path,
                struct error *error) {
  uint8_t *at = buffer;
  while (size) {
    ssize_t got = io->pread(fd, at, size, offset);
    if (got < 0 && errno == EINTR)
      continue;
    if (got < 0)
      return error_set_errno(error, errno, "cannot read %s at byte %lld", path, (long long)offset);
    if (got == 0)
      return error_set(error, ERR_CORRUPT, "%s ends early, at byte %lld; restore it from a backup", path,
                       (long long)offset);
    at += got;
    offset += got;
    size -= (size_t)got;
  }
  return 0;
}

int io_write_all(const struct io *io, int fd, struct iovec *parts, int count, off_t offset, const char *path,
                 struct error *error) {
  for (;;) {
    while (count && parts->iov_len == 0) {
      parts++;
      count--;
    }
    if (!count)
      return 0;
    ssize_t put = io->pwritev(fd, parts, count, offset);
    if (put < 0 && errno == EINTR)
      continue;
    if (put <= 0)
      return error_set_errno(error, put ? errno : ENOSPC, "cannot write %s at byte %lld", path, (long long)offset);
    offset += put;
    for (size_t left = (size_t)put; left;) {
      size_t step = left < parts->iov_len ? left : parts->iov_len;
      parts->iov_base = (uint8_t *)parts->iov_base + step;
      parts->iov_len -= step;
      left -= step;
      if (left) {
        parts++;
        count--;
      }
    }
  }
}

int io_close(const struct io *io, int fd) {
  int result = io->close(fd);
  return result && errno == EINTR ? 0 : result;
}

int io_fdatasync(const struct io *io, int fd) {
  int result;
  do
    result = io->fdatasync(fd);
  while (result && errno == EINTR);
  return result;
}

int io_ftruncate(const struct io *io, int fd, off_t size) {
  int result;
  do
    result = io->ftruncate(fd, size);
  while (result && errno == EINTR);
  return result;
}

int io_open_directory(const struct io *io, const char *path, struct error *error) {
  return io_open(io, path, O_RDONLY | O_DIRECTORY, error);
}

int io_sync_opened(const struct io *io, int fd, const char *path, struct error *error) {
  int result;
  do
    result = io->fsync(fd);
  while (result && errno == EINTR);
  if (result)
    result = error_set_errno(error, errno, "cannot sync directory %s", path);
  io->close(fd);
  return result;
}

int io_sync_directory(const struct io *io, const char *path, bool *sync_failed, struct error *error) {
  if (sync_failed)
    *sync_failed = false;
  int fd = io_open_directory(io, path, error);
  if (fd < 0)
    return fd;
  int result = io_sync_opened(io, fd, path, error);
  if (sync_failed)
    *sync_failed = result != 0;
  return result;
}

int io_make_directory(const struct io *io, const char *path, struct error *error) {
  if (io->mkdir(path, 0700) == 0 || errno == EEXIST)
    return 0;
  return error_set_errno(error, errno, "cannot make directory %s", path);
}

void io_parent(const char *path, char *parent) {
  const char *slash = strrchr(path, '/');
  size_t size = slash ? (size_t)(slash - path) : 0;
  if (slash && size == 0)
    size = 1;
  snprintf(parent, PATH_BYTES, "%.*s", (int)size, path);
  if (!slash)
    strcpy(parent, ".");
}

static int write_beside(const struct io *io, const char *beside, const void *data, size_t size, bool *sync_failed,
                        struct error *error) {
  int fd = io_open(io, beside, O_WRONLY | O_CREAT | O_TRUNC, error);
  if (fd < 0)
    return fd;
  struct iovec part = {.iov_base = (void *)(uintptr_t)data, .iov_len = size};
  int result = io_write_all(io, fd, &part, 1, 0, beside, error);
  if (!result && io_fdatasync(io, fd)) {
    result = error_set_errno(error, errno, "cannot sync %s", beside);
    *sync_failed = true;
  }
  if (io_close(io, fd) && !result)
    result = error_set_errno(error, errno, "cannot close %s", beside);
  return result;
}

int io_replace_file_synced(const struct io *io, const char *path, const void *data, size_t size, bool *sync_failed,
                           struct error *error) {
  char beside[PATH_BYTES], parent[PATH_BYTES];
  *sync_failed = false;
  if ((size_t)snprintf(beside, sizeof beside, "%s%s", path, PATH_TEMPORARY_SUFFIX) >= sizeof beside)
    return error_set(error, ERR_BAD_PARAMS, "path of more than %u bytes: %.64s...", PATH_BYTES, path);
  io_parent(path, parent);
  int directory = io_open_directory(io, parent, error);
  if (directory < 0)
    return directory;
  int result = write_beside(io, beside, data, size, sync_failed, error);
  if (!result && io->rename(beside, path))
    result = error_set_errno(error, errno, "cannot rename %s to its final name", beside);
  if (result) {
    io->unlink(beside);
    io->close(directory);
    return result;
  }
  result = io_sync_opened(io, directory, parent, error);
  *sync_failed = result != 0;
  return result;
}

int io_replace_file(const struct io *io, const char *path, const void *data, size_t size, struct error *error) {
  bool sync_failed;
  return io_replace_file_synced(io, path, data, size, &sync_failed, error);
}

static int read_open_file(const struct io *io, int fd, const char *path, size_t limit, uint8_t **data, size_t *size,
                          struct error *error) {
  struct stat status;
  if (io->fstat(fd, &status))
    return error_set_errno(error, errno, "cannot stat %s", path);
  if (!S_ISREG(status.st_mode))
    return error_set(error, ERR_IO, "%s is no regular file", path);
  if ((uint64_t)status.st_size > limit)
    return error_set(error, ERR_CORRUPT, "%s has %lld bytes, more than the %zu that such a file may have", path,
                     (long long)status.st_size, limit);
  size_t wanted = (size_t)status.st_size;
  uint8_t *bytes = malloc(wanted ? wanted : 1);
  if (!bytes)
    return error_set(error, ERR_MEMORY, "out of memory for the %zu bytes of %s", wanted, path);
  int result = io_read_all(io, fd, bytes, wanted, 0, path, error);
  if (result) {
    free(bytes);
    return result;
  }
  *data = bytes;
  *size = wanted;
  return 0;
}

int io_read_file(const struct io *io, const char *path, size_t limit, uint8_t **data, size_t *size,
                 struct error *error) {
  int fd = io_open(io, path, O_RDONLY, error);
  if (fd < 0)
    return fd;
  int result = read_open_file(io, fd, path, limit, data, size, error);
  io->close(fd);
  return result;
}

int io_list_directory(const struct io *io, const char *path, io_visit_fn *visit, void *context,
                      struct error *error) {
  DIR *dir = io->opendir(path);
  if (!dir)
    return error_set_errno(error, errno, "cannot list directory %s", path);
  int result = 0;
  while (!result) {
    errno = 0;
    const struct dirent *entry = io->readdir(dir);
    if (!entry) {
      if (errno)
        result = error_set_errno(error, errno, "cannot list directory %s", path);
      break;
    }
    if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0)
      result = visit(context, entry->d_name, error);
  }
  io->closedir(dir);
  return result;
}
