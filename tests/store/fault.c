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

#include "tests/store/fixture.h"

struct fault fault;
static pthread_mutex_t fault_lock = PTHREAD_MUTEX_INITIALIZER;

/* --- the journal: how to undo what was not synced --------------------------------------------------------------- */

enum undo_kind { UNDO_WRITE, UNDO_CREATE, UNDO_RENAME, UNDO_UNLINK, UNDO_MKDIR, UNDO_RMDIR };

struct undo {
  enum undo_kind kind;
  bool done; /* synced */
  ino_t inode;  /* of the file, or of the directory whose entry changed */
  ino_t inode2; /* a rename's other directory */
  int fd;       /* dup of the file */
  off_t offset, size; /* before */
  size_t written;
  uint8_t *bytes;
  size_t byte_count;
  char path[1024], path2[1024], stash[1024];
};

enum { UNDO_MAX = 4096 };
static struct undo *undos[UNDO_MAX];
static unsigned undo_count, stash_count;

static struct undo *undo_add(enum undo_kind kind) {
  struct undo *undo = calloc(1, sizeof *undo);
  if (!undo || undo_count == UNDO_MAX)
    abort();
  undo->kind = kind;
  undos[undo_count++] = undo;
  return undo;
}

static ino_t inode_of(const char *path) {
  struct stat status;
  return stat(path, &status) ? 0 : status.st_ino;
}

static ino_t parent_inode(const char *path) {
  char parent[1024];
  snprintf(parent, sizeof parent, "%s", path);
  *strrchr(parent, '/') = 0;
  return inode_of(parent);
}

/* Keeps a second name for a file that is about to lose its own. Not in its directory, which may have to be emptied. */
static void stash(struct undo *undo, const char *path) {
  char base[512];
  const char *archive = strstr(path, "/conversations");
  archive = archive ? archive : strstr(path, "/segments");
  archive = archive ? archive : strstr(path, "/models");
  archive = archive ? archive : strstr(path, "/catalog");
  snprintf(base, sizeof base, "%.*s", archive ? (int)(archive - path) : 0, path);
  snprintf(undo->stash, sizeof undo->stash, "%s.stash-%u-%ld", base, stash_count++, (long)getpid());
  if (!archive || link(path, undo->stash))
    undo->stash[0] = 0;
}

static void journal_write(int fd, off_t offset, size_t size) {
  struct stat status;
  if (!fault.journal || fstat(fd, &status))
    return;
  struct undo *undo = undo_add(UNDO_WRITE);
  undo->inode = status.st_ino;
  undo->fd = fcntl(fd, F_DUPFD_CLOEXEC, 0);
  undo->offset = offset;
  undo->size = status.st_size;
  undo->written = size;
  undo->bytes = calloc(1, size + 1);
  ssize_t got = undo->bytes ? pread(fd, undo->bytes, size, offset) : -1;
  undo->byte_count = got > 0 ? (size_t)got : 0;
}

static void journal_entry(enum undo_kind kind, const char *path) {
  if (!fault.journal)
    return;
  struct undo *undo = undo_add(kind);
  undo->inode = parent_inode(path);
  snprintf(undo->path, sizeof undo->path, "%s", path);
  if (kind == UNDO_UNLINK)
    stash(undo, path);
}

static void journal_rename(const char *from, const char *to) {
  if (!fault.journal)
    return;
  struct undo *undo = undo_add(UNDO_RENAME);
  undo->inode = parent_inode(from);
  undo->inode2 = parent_inode(to);
  snprintf(undo->path, sizeof undo->path, "%s", from);
  snprintf(undo->path2, sizeof undo->path2, "%s", to);
  stash(undo, to);
}

static void journal_sync(int fd, bool directory) {
  struct stat status;
  if (!fault.journal || fstat(fd, &status))
    return;
  for (unsigned i = 0; i < undo_count; i++) {
    struct undo *undo = undos[i];
    bool content = undo->kind == UNDO_WRITE;
    if (content == !directory && (undo->inode == status.st_ino || undo->inode2 == status.st_ino))
      undo->done = true;
  }
}

static void write_back(const struct undo *undo, bool zeros) {
  if (zeros) {
    struct stat status;
    uint8_t *none = calloc(1, undo->written + 1);
    size_t size = undo->written;
    if (fstat(undo->fd, &status) == 0 && status.st_size < undo->offset + (off_t)size)
      size = status.st_size > undo->offset ? (size_t)(status.st_size - undo->offset) : 0;
    if (none && pwrite(undo->fd, none, size, undo->offset) < 0)
      abort();
    free(none);
  } else if (pwrite(undo->fd, undo->bytes, undo->byte_count, undo->offset) < 0 ||
             ftruncate(undo->fd, undo->size)) {
    abort();
  }
}

/* Takes back, newest first, everything that no sync has made safe. */
static void lose_power(bool zeros) {
  for (unsigned i = undo_count; i-- > 0;) {
    struct undo *undo = undos[i];
    if (undo->done)
      continue;
    if (undo->kind == UNDO_WRITE) {
      write_back(undo, zeros);
      continue;
    }
    if (zeros)
      continue;
    if (undo->kind == UNDO_CREATE)
      unlink(undo->path);
    else if (undo->kind == UNDO_MKDIR)
      test_tree_remove(undo->path); /* without its name, what was synced in it is gone, too */
    else if (undo->kind == UNDO_RMDIR)
      mkdir(undo->path, 0700);
    else if (undo->kind == UNDO_UNLINK && undo->stash[0])
      rename(undo->stash, undo->path);
    else if (undo->kind == UNDO_RENAME) {
      rename(undo->path2, undo->path);
      if (undo->stash[0])
        rename(undo->stash, undo->path2);
    }
  }
}

static void unstash(void) {
  for (unsigned i = 0; i < undo_count; i++)
    if (undos[i]->stash[0])
      unlink(undos[i]->stash);
}

static void die(bool power, bool zeros) {
  if (power)
    lose_power(zeros);
  unstash();
  _exit(FAULT_EXIT);
}

/* --- the table -------------------------------------------------------------------------------------------------- */

void fault_reset(void) {
  unstash();
  for (unsigned i = 0; i < undo_count; i++) {
    if (undos[i]->kind == UNDO_WRITE)
      close(undos[i]->fd);
    free(undos[i]->bytes);
    free(undos[i]);
  }
  undo_count = 0;
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
      die(false, false);
    else if (now && (fault.mode == FAULT_POWER || fault.mode == FAULT_POWER_ZERO))
      die(true, fault.mode == FAULT_POWER_ZERO);
    fail = fault.mode == FAULT_FAIL || (now && fault.mode == FAULT_FAIL_ONCE);
  }
  pthread_mutex_unlock(&fault_lock);
  if (fail)
    errno = fault.error;
  return fail;
}

static int fault_open(const char *path, int flags, mode_t mode) {
  bool tear = false, writing = (flags & O_ACCMODE) != O_RDONLY;
  if (writing && strikes(FAULT_OPEN, &tear))
    return -1;
  bool fresh = flags & O_CREAT && access(path, F_OK) != 0;
  if (writing && flags & O_TRUNC && !fresh && fault.journal) {
    int old = open(path, O_RDWR | O_CLOEXEC);
    struct stat status;
    if (old >= 0 && fstat(old, &status) == 0)
      journal_write(old, 0, (size_t)status.st_size);
    if (old >= 0)
      close(old);
  }
  int fd = open(path, flags, mode);
  if (fd >= 0 && fresh)
    journal_entry(UNDO_CREATE, path);
  return fd;
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
  size_t size = total(parts, count);
  journal_write(fd, offset, size);
  if (tear) {
    for (size_t left = size / 2; left && count; parts++, count--) {
      size_t step = left < parts->iov_len ? left : parts->iov_len;
      if (pwrite(fd, parts->iov_base, step, offset) < 0)
        abort();
      offset += (off_t)step;
      left -= step;
    }
    die(false, false);
  }
  return pwritev(fd, parts, count, offset);
}

static int fault_fdatasync(int fd) {
  bool tear = false;
  if (strikes(FAULT_FDATASYNC, &tear))
    return -1;
  journal_sync(fd, false);
  return 0; /* what a sync does for the disk is the journal's here, which is quicker */
}

static int fault_fsync(int fd) {
  bool tear = false;
  if (strikes(FAULT_FSYNC, &tear))
    return -1;
  journal_sync(fd, true);
  return 0;
}

static int fault_ftruncate(int fd, off_t size) {
  bool tear = false;
  struct stat status;
  if (strikes(FAULT_TRUNCATE, &tear))
    return -1;
  if (fault.journal && fstat(fd, &status) == 0)
    journal_write(fd, size < status.st_size ? size : status.st_size,
                  (size_t)(size < status.st_size ? status.st_size - size : 0));
  return ftruncate(fd, size);
}

static int fault_rename(const char *from, const char *to) {
  bool tear = false;
  if (strikes(FAULT_RENAME, &tear))
    return -1;
  journal_rename(from, to);
  return rename(from, to);
}

static int fault_unlink(const char *path) {
  bool tear = false;
  if (strikes(FAULT_UNLINK, &tear))
    return -1;
  if (access(path, F_OK) == 0)
    journal_entry(UNDO_UNLINK, path);
  return unlink(path);
}

static int fault_mkdir(const char *path, mode_t mode) {
  bool tear = false;
  if (strikes(FAULT_MKDIR, &tear))
    return -1;
  int result = mkdir(path, mode);
  if (!result)
    journal_entry(UNDO_MKDIR, path);
  return result;
}

static int fault_rmdir(const char *path) {
  bool tear = false;
  if (strikes(FAULT_RMDIR, &tear))
    return -1;
  int result = rmdir(path);
  if (!result)
    journal_entry(UNDO_RMDIR, path);
  return result;
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
