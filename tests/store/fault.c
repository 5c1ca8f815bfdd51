// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
#include "tests/store/fault.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

struct fault fault;
static pthread_mutex_t fault_lock = PTHREAD_MUTEX_INITIALIZER;

static void die(void) { _exit(FAULT_EXIT); }

void fault_reset(void) {
  memset(&fault, 0, sizeof fault);
  fault.error = EIO;
}

/* Counts a call; true when it has to fail. *tear asks for half a write. */
static bool strikes(enum fault_call call, bool *tear) {
  bool fail = false;
  pthread_mutex_lock(&fault_lock);
  fault.calls[call]++;
  if (fault.order_size < sizeof fault.order - 1)
    fault.order[fault.order_size++] = FAULT_LETTERS[call];
  bool counts = !fault.only || fault.only & 1u << call;
  if (counts)
    fault.counted++;
  if (counts && fault.mode != FAULT_NONE && fault.counted >= fault.at) {
    bool now = fault.counted == fault.at;
    if (now && fault.mode == FAULT_TEAR && call == FAULT_WRITE)
      *tear = true;
    else if (now && (fault.mode == FAULT_KILL || fault.mode == FAULT_TEAR))
      die();
    fail = fault.mode == FAULT_FAIL || (now && fault.mode == FAULT_FAIL_ONCE);
  }
  pthread_mutex_unlock(&fault_lock);
  if (fail)
    errno = fault.error;
  return fail;
}

static int fault_open(const char *path, int flags, mode_t mode) {
  bool tear = false, writing = (flags & O_ACCMODE) != O_RDONLY;
  return writing && strikes(FAULT_OPEN, &tear) ? -1 : open(path, flags, mode);
}

static size_t total(const struct iovec *parts, int count) {
  size_t size = 0;
  for (int i = 0; i < count; i++)
    size += parts[i].iov_len;
  return size;
}

static ssize_t fault_pwritev(int fd, const struct iovec *parts, int count, off_t offset) {
  bool tear = false;
  if (strikes(FAULT_WRITE, &tear)) {
    if (fault.error == ENOSPC && count) { /* a full disk takes a part first */
      struct iovec some = {.iov_base = parts[0].iov_base, .iov_len = parts[0].iov_len / 2};
      if (pwritev(fd, &some, 1, offset) < 0)
        abort();
      errno = ENOSPC;
    }
    return -1;
  }
  if (tear) {
    for (size_t left = total(parts, count) / 2; left && count; parts++, count--) {
      size_t step = left < parts->iov_len ? left : parts->iov_len;
      if (pwrite(fd, parts->iov_base, step, offset) < 0)
        abort();
      offset += (off_t)step;
      left -= step;
    }
    die();
  }
  return pwritev(fd, parts, count, offset);
}

/* Syncs take time and change nothing for a process that ends. */
static int fault_fdatasync(int fd) {
  bool tear = false;
  (void)fd;
  return strikes(FAULT_FDATASYNC, &tear) ? -1 : 0;
}

static int fault_fsync(int fd) {
  bool tear = false;
  (void)fd;
  return strikes(FAULT_FSYNC, &tear) ? -1 : 0;
}

static int fault_ftruncate(int fd, off_t size) {
  bool tear = false;
  return strikes(FAULT_TRUNCATE, &tear) ? -1 : ftruncate(fd, size);
}

static int fault_rename(const char *from, const char *to) {
  bool tear = false;
  return strikes(FAULT_RENAME, &tear) ? -1 : rename(from, to);
}

static int fault_unlink(const char *path) {
  bool tear = false;
  return strikes(FAULT_UNLINK, &tear) ? -1 : unlink(path);
}

static int fault_mkdir(const char *path, mode_t mode) {
  bool tear = false;
  return strikes(FAULT_MKDIR, &tear) ? -1 : mkdir(path, mode);
}

static int fault_rmdir(const char *path) {
  bool tear = false;
  return strikes(FAULT_RMDIR, &tear) ? -1 : rmdir(path);
}

static int plain_fstat(int fd, struct stat *status) { return fstat(fd, status); }

const struct io io_fault = {
    .open = fault_open,
    .close = close,
    .pread = pread,
    .pwritev = fault_pwritev,
    .fdatasync = fault_fdatasync,
    .fsync = fault_fsync,
    .ftruncate = fault_ftruncate,
    .fstat = plain_fstat,
    .rename = fault_rename,
    .unlink = fault_unlink,
    .mkdir = fault_mkdir,
    .rmdir = fault_rmdir,
    .mmap = mmap,
    .munmap = munmap,
    .opendir = opendir,
    .readdir = readdir,
    .closedir = closedir,
};
