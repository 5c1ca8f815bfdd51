// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// The calls by which LMDB changes its files, taken in place of the C library's, as a preloaded library would: a
// program's own functions come before those of the libraries it is linked with. LMDB maps its data file for reading
// only (no MDB_WRITEMAP), so there is no msync to note.

/* LMDB of Debian calls the plain names, not those that end in 64, which are the same where off_t has 64 bits. */
#undef _FILE_OFFSET_BITS
#include <fcntl.h>
#include <stdarg.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "tests/store/sim_trace.h"

_Static_assert(sizeof(off_t) == 8, "the plain names would cut offsets off");

#define EXPORTED __attribute__((visibility("default")))

EXPORTED int open(const char *path, int flags, ...) {
  va_list args;
  mode_t mode = 0;
  va_start(args, flags);
  if (flags & (O_CREAT | O_TMPFILE))
    mode = va_arg(args, mode_t);
  va_end(args);
  return sim_open(path, flags, mode);
}

EXPORTED ssize_t pwrite(int fd, const void *bytes, size_t size, off_t offset) {
  const struct iovec part = {.iov_base = (void *)(uintptr_t)bytes, .iov_len = size};
  return sim_pwritev(fd, &part, 1, offset);
}

EXPORTED ssize_t writev(int fd, const struct iovec *parts, int count) {
  if (!sim_traced(fd))
    return syscall(SYS_writev, fd, parts, (long)count);
  off_t at = lseek(fd, 0, SEEK_CUR);
  ssize_t put = sim_pwritev(fd, parts, count, at);
  if (put > 0 && lseek(fd, at + put, SEEK_SET) < 0)
    return -1;
  return put;
}

EXPORTED ssize_t write(int fd, const void *bytes, size_t size) {
  const struct iovec part = {.iov_base = (void *)(uintptr_t)bytes, .iov_len = size};
  return writev(fd, &part, 1);
}

EXPORTED int fdatasync(int fd) { return sim_sync(fd); }
EXPORTED int fsync(int fd) { return sim_sync(fd); }
EXPORTED int ftruncate(int fd, off_t size) { return sim_ftruncate(fd, size); }
