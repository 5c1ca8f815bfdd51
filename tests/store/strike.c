// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
#include "tests/store/strike.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

struct strike strike;

/* Calls that a signal may interrupt come in two ways: interrupted, and then cut short. */
enum { PLAIN = 0, INTERRUPTIBLE = 1, SHORTABLE = 2, SYNC = 4 };

static bool strikes(const char *name, int kind) {
  bool interrupt = strike.mode == STRIKE_INTERRUPT;
  if (strike.mode == STRIKE_SHORT || (strike.error == EINTR && !interrupt && !(kind & INTERRUPTIBLE)))
    return false;
  if (interrupt && !(kind & INTERRUPTIBLE))
    return false;
  strike.calls++;
  bool now = strike.mode == STRIKE_ONCE      ? strike.calls == strike.at
             : strike.mode == STRIKE_FROM_ON ? strike.calls >= strike.at
                                             : interrupt && strike.calls % 2 == 1;
  if (!now)
    return false;
  if (strike.struck++ == 0)
    strike.name = name;
  strike.sync |= (kind & SYNC) != 0;
  errno = interrupt ? EINTR : strike.error;
  return true;
}

/* How many of `size` bytes are moved. */
static size_t allowed(const char *name, size_t size) {
  bool now = strike.mode == STRIKE_INTERRUPT;
  if (strike.mode == STRIKE_SHORT) {
    now = ++strike.calls == strike.at;
    strike.struck += now;
    strike.name = now ? name : strike.name;
  }
  return now && size > 1 ? size / 2 : size;
}

static int strike_open(const char *path, int flags, mode_t mode) {
  return strikes("open", INTERRUPTIBLE) ? -1 : open(path, flags, mode);
}

static int strike_close(int fd) {
  int result = close(fd); /* it is closed whatever close says */
  return strikes("close", INTERRUPTIBLE) ? -1 : result;
}

static ssize_t strike_pread(int fd, void *buffer, size_t size, off_t offset) {
  return strikes("pread", INTERRUPTIBLE) ? -1 : pread(fd, buffer, allowed("pread", size), offset);
}

static ssize_t strike_pwritev(int fd, const struct iovec *parts, int count, off_t offset) {
  size_t size = 0;
  for (int i = 0; i < count; i++)
    size += parts[i].iov_len;
  bool struck = strikes("pwritev", INTERRUPTIBLE);
  int reason = errno;
  if (struck && reason == EINTR)
    return -1;
  size_t some = struck ? size / 3 : allowed("pwritev", size); /* a disk that fails may have taken a part */
  uint8_t *bytes = malloc(size + 1);
  if (!bytes)
    abort();
  size_t at = 0;
  for (int i = 0; i < count; i++) {
    memcpy(bytes + at, parts[i].iov_base, parts[i].iov_len);
    at += parts[i].iov_len;
  }
  ssize_t put = pwrite(fd, bytes, some, offset);
  free(bytes);
  errno = struck ? reason : errno;
  return struck ? -1 : put;
}

static int strike_fdatasync(int fd) { return strikes("fdatasync", INTERRUPTIBLE | SYNC) ? -1 : fdatasync(fd); }
static int strike_fsync(int fd) { return strikes("fsync", INTERRUPTIBLE | SYNC) ? -1 : fsync(fd); }

static int strike_ftruncate(int fd, off_t size) {
  return strikes("ftruncate", INTERRUPTIBLE) ? -1 : ftruncate(fd, size);
}

static int strike_fstat(int fd, struct stat *status) { return strikes("fstat", PLAIN) ? -1 : fstat(fd, status); }
static int strike_rename(const char *from, const char *to) { return strikes("rename", PLAIN) ? -1 : rename(from, to); }
static int strike_unlink(const char *path) { return strikes("unlink", PLAIN) ? -1 : unlink(path); }
static int strike_mkdir(const char *path, mode_t mode) { return strikes("mkdir", PLAIN) ? -1 : mkdir(path, mode); }
static int strike_rmdir(const char *path) { return strikes("rmdir", PLAIN) ? -1 : rmdir(path); }

static void *strike_mmap(void *address, size_t size, int protection, int flags, int fd, off_t offset) {
  bool struck = strikes("mmap", PLAIN);
  strike.no_file |= struck && fd < 0;
  return struck ? MAP_FAILED : mmap(address, size, protection, flags, fd, offset);
}

static DIR *strike_opendir(const char *path) { return strikes("opendir", PLAIN) ? NULL : opendir(path); }
static struct dirent *strike_readdir(DIR *dir) { return strikes("readdir", PLAIN) ? NULL : readdir(dir); }

const struct io io_strike = {
    .open = strike_open,
    .close = strike_close,
    .pread = strike_pread,
    .pwritev = strike_pwritev,
    .fdatasync = strike_fdatasync,
    .fsync = strike_fsync,
    .ftruncate = strike_ftruncate,
    .fstat = strike_fstat,
    .rename = strike_rename,
    .unlink = strike_unlink,
    .mkdir = strike_mkdir,
    .rmdir = strike_rmdir,
    .mmap = strike_mmap,
    .munmap = munmap,
    .opendir = strike_opendir,
    .readdir = strike_readdir,
    .closedir = closedir,
};
