// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
#include "tests/store/sim_trace.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "tests/store/fixture.h"

/* The trace that is on, if any. A child of fork notes into it, too: its parent waits for it meanwhile. */
static struct sim_trace *active;

static size_t trace_bytes(void) { return sizeof(struct sim_trace) + SIM_DATA_BYTES_MAX; }

struct sim_trace *sim_trace_create(void) {
  struct sim_trace *trace =
      mmap(NULL, trace_bytes(), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (trace == MAP_FAILED)
    abort();
  return trace;
}

void sim_trace_destroy(struct sim_trace *trace) { munmap(trace, trace_bytes()); }

void sim_trace_start(struct sim_trace *trace, const char *root) {
  struct stat status;
  if (stat(root, &status) || active)
    abort();
  trace->count = 0;
  trace->data_bytes = 0;
  trace->device = status.st_dev;
  trace->root_bytes = (size_t)snprintf(trace->root, sizeof trace->root, "%s", root);
  trace->on = true;
  active = trace;
}

void sim_trace_stop(struct sim_trace *trace) {
  trace->on = false;
  active = NULL;
}

/* --- noting ----------------------------------------------------------------------------------------------------- */

static struct sim_op *add(enum sim_kind kind, uint64_t inode) {
  if (active->count == SIM_OPS_MAX)
    abort();
  struct sim_op *op = &active->ops[active->count++];
  *op = (struct sim_op){.kind = kind, .inode = inode};
  return op;
}

/* True when the trace is on and `path` lies below its root; then *parent is its directory's inode. */
static bool ours(const char *path, uint64_t *parent) {
  struct stat status;
  char directory[4096];
  if (!active || strncmp(path, active->root, active->root_bytes) != 0 || path[active->root_bytes] != '/')
    return false;
  snprintf(directory, sizeof directory, "%s", path);
  *strrchr(directory, '/') = 0;
  if (stat(directory, &status))
    return false;
  *parent = status.st_ino;
  return true;
}

static uint64_t inode_of(const char *path) {
  struct stat status;
  return stat(path, &status) ? 0 : status.st_ino;
}

static void set_name(char name[SIM_NAME_BYTES], const char *path) {
  if ((size_t)snprintf(name, SIM_NAME_BYTES, "%s", strrchr(path, '/') + 1) >= SIM_NAME_BYTES)
    abort();
}

/* True for a file or directory of the traced disk. */
static bool ours_fd(int fd, struct stat *status) {
  return active && fstat(fd, status) == 0 && status->st_dev == active->device &&
         (S_ISREG(status->st_mode) || S_ISDIR(status->st_mode));
}

bool sim_traced(int fd) {
  struct stat status;
  return ours_fd(fd, &status);
}

static void note_write(int fd, const struct stat *status, const struct iovec *parts, size_t size, off_t offset) {
  struct sim_op *op = add(SIM_WRITE, status->st_ino);
  int flags = fcntl(fd, F_GETFL);
  if (active->data_bytes + size > SIM_DATA_BYTES_MAX)
    abort();
  uint8_t *at = active->data + active->data_bytes;
  op->data = at;
  op->offset = (uint64_t)offset;
  op->size = size;
  op->durable = (flags & O_DSYNC) != 0;
  active->data_bytes += size;
  for (size_t left = size; left; parts++) {
    size_t step = left < parts->iov_len ? left : parts->iov_len;
    if (step)
      memcpy(at, parts->iov_base, step);
    at += step;
    left -= step;
  }
}

/* --- the calls -------------------------------------------------------------------------------------------------- */

int sim_open(const char *path, int flags, mode_t mode) {
  struct stat before;
  uint64_t parent;
  bool noted = ours(path, &parent), there = noted && stat(path, &before) == 0;
  int fd = (int)syscall(SYS_openat, AT_FDCWD, path, flags, mode);
  if (fd < 0 || !noted)
    return fd;
  if (!there && flags & O_CREAT) {
    struct sim_op *op = add(SIM_CREATE, parent);
    op->child = inode_of(path);
    set_name(op->name, path);
  } else if (there && flags & O_TRUNC && before.st_size) {
    add(SIM_TRUNCATE, before.st_ino);
  }
  return fd;
}

ssize_t sim_pwritev(int fd, const struct iovec *parts, int count, off_t offset) {
  struct stat status;
  ssize_t put = syscall(SYS_pwritev, fd, parts, (long)count, (long)offset, 0L);
  if (put > 0 && ours_fd(fd, &status))
    note_write(fd, &status, parts, (size_t)put, offset);
  return put;
}

int sim_sync(int fd) {
  struct stat status;
  if (ours_fd(fd, &status))
    add(SIM_SYNC, status.st_ino);
  return 0;
}

int sim_ftruncate(int fd, off_t size) {
  struct stat status;
  int result = (int)syscall(SYS_ftruncate, fd, (long)size);
  if (result == 0 && ours_fd(fd, &status))
    add(SIM_TRUNCATE, status.st_ino)->size = (uint64_t)size;
  return result;
}

static int sim_rename(const char *from, const char *to) {
  uint64_t parent, other;
  bool noted = ours(from, &parent);
  if (noted && (!ours(to, &other) || other != parent))
    abort(); /* the store renames within a directory; a trace of anything else would need two */
  uint64_t child = noted ? inode_of(from) : 0;
  int result = rename(from, to);
  if (result == 0 && noted) {
    struct sim_op *op = add(SIM_RENAME, parent);
    op->child = child;
    set_name(op->name, from);
    set_name(op->to, to);
  }
  return result;
}

static int removed(const char *path, int (*call)(const char *)) {
  uint64_t parent;
  bool noted = ours(path, &parent);
  uint64_t child = noted ? inode_of(path) : 0;
  int result = call(path);
  if (result == 0 && noted) {
    struct sim_op *op = add(SIM_UNLINK, parent);
    op->child = child;
    set_name(op->name, path);
  }
  return result;
}

static int sim_unlink(const char *path) { return removed(path, unlink); }
static int sim_rmdir(const char *path) { return removed(path, rmdir); }

static int sim_mkdir(const char *path, mode_t mode) {
  uint64_t parent;
  int result = mkdir(path, mode);
  if (result == 0 && ours(path, &parent)) {
    struct sim_op *op = add(SIM_CREATE, parent);
    op->directory = true;
    op->child = inode_of(path);
    set_name(op->name, path);
  }
  return result;
}

static int plain_fstat(int fd, struct stat *status) { return fstat(fd, status); }

const struct io io_sim = {
    .open = sim_open,
    .close = close,
    .pread = pread,
    .pwritev = sim_pwritev,
    .fdatasync = sim_sync,
    .fsync = sim_sync,
    .ftruncate = sim_ftruncate,
    .fstat = plain_fstat,
    .rename = sim_rename,
    .unlink = sim_unlink,
    .mkdir = sim_mkdir,
    .rmdir = sim_rmdir,
    .mmap = mmap,
    .munmap = munmap,
    .opendir = opendir,
    .readdir = readdir,
    .closedir = closedir,
};

/* --- random numbers that can be repeated ------------------------------------------------------------------------ */

static uint64_t random_state;

void sim_random_seed(uint64_t seed) { random_state = seed; }

uint64_t sim_random_next(uint64_t *state) { /* splitmix64 */
  uint64_t x = *state += UINT64_C(0x9e3779b97f4a7c15);
  x = (x ^ x >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
  x = (x ^ x >> 27) * UINT64_C(0x94d049bb133111eb);
  return x ^ x >> 31;
}

/* Takes the place of the C library's for the whole program. */
ssize_t getrandom(void *buffer, size_t size, unsigned flags) {
  uint8_t *bytes = buffer;
  (void)flags;
  for (size_t i = 0; i < size; i++)
    bytes[i] = (uint8_t)sim_random_next(&random_state);
  return (ssize_t)size;
}

void sim_trace_print(const struct sim_trace *trace) {
  static const char *const kinds[] = {"create", "unlink", "rename", "write", "truncate", "sync"};
  for (uint32_t i = 0; i < trace->count; i++) {
    const struct sim_op *op = &trace->ops[i];
    print_message("    %4u %-8s %llu %s %s %llu+%llu%s\n", i + 1, kinds[op->kind], (unsigned long long)op->inode,
                  op->name, op->to, (unsigned long long)op->offset, (unsigned long long)op->size,
                  op->durable ? " durable" : "");
  }
}
