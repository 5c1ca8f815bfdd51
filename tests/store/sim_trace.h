// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// A trace of everything that a run of the store asks of its disk: what goes through its table of functions, and what
// LMDB calls by itself, in this process and in the children that check the catalog. The calls are carried out, too,
// except that syncs are noted only: what they are worth is decided when the trace is replayed (sim_disk.h).
#ifndef COLDKV_TESTS_STORE_SIM_TRACE_H
#define COLDKV_TESTS_STORE_SIM_TRACE_H

#include "store/io.h"

enum { SIM_OPS_MAX = 1 << 13, SIM_NAME_BYTES = 64 };
#define SIM_DATA_BYTES_MAX ((size_t)64 << 20)

enum sim_kind {
  SIM_CREATE, /* also mkdir: `child` gets `name` in directory `inode` */
  SIM_UNLINK, /* also rmdir: `child` loses it */
  SIM_RENAME, /* `child` changes its name in directory `inode` from `name` to `to` */
  SIM_WRITE,
  SIM_TRUNCATE,
  SIM_SYNC,   /* of the file or directory `inode` */
};

struct sim_op {
  enum sim_kind kind;
  bool directory;  /* created by mkdir */
  bool durable;    /* a write that is on disk when the call returns (O_DSYNC) */
  uint64_t inode;  /* the file's, or the directory's whose entry changes */
  uint64_t child;
  uint64_t offset, size; /* of a write; the new size when truncating */
  const uint8_t *data;   /* [size], of a write */
  char name[SIM_NAME_BYTES], to[SIM_NAME_BYTES];
};

/* Lies in memory that children share. */
struct sim_trace {
  bool on;
  uint64_t device;
  size_t root_bytes, data_bytes;
  uint32_t count;
  char root[1024];
  struct sim_op ops[SIM_OPS_MAX];
  uint8_t data[];
};

struct sim_trace *sim_trace_create(void);
void sim_trace_destroy(struct sim_trace *trace);

/* Begins to note what happens below directory `root`, in place of what the trace held; at most one trace is on. */
void sim_trace_start(struct sim_trace *trace, const char *root);
void sim_trace_stop(struct sim_trace *trace);
void sim_trace_print(const struct sim_trace *trace);

/* The store's table. Calls LMDB makes by itself get to the same functions: see sim_lmdb.c. */
extern const struct io io_sim;
int sim_open(const char *path, int flags, mode_t mode);
ssize_t sim_pwritev(int fd, const struct iovec *parts, int count, off_t offset);
int sim_sync(int fd);
int sim_ftruncate(int fd, off_t size);
bool sim_traced(int fd); /* a file of the disk whose trace is on */

/* Random ids and salts follow from this from now on, so that a run can be repeated. */
void sim_random_seed(uint64_t seed);
uint64_t sim_random_next(uint64_t *state);

#endif
