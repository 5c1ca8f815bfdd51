// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// A table of I/O functions that count, fail, tear and stop on command.
#ifndef COLDKV_TESTS_STORE_FAULT_H
#define COLDKV_TESTS_STORE_FAULT_H

#include "store/io.h"

enum fault_call {
  FAULT_OPEN, /* for writing */
  FAULT_WRITE,
  FAULT_FDATASYNC,
  FAULT_FSYNC,
  FAULT_TRUNCATE,
  FAULT_RENAME,
  FAULT_UNLINK,
  FAULT_MKDIR,
  FAULT_RMDIR,
  FAULT_CALLS,
};

enum fault_mode {
  FAULT_NONE,
  FAULT_FAIL,       /* the call fails with fault.error, and all after it do */
  FAULT_FAIL_ONCE,  /* only this one fails */
  FAULT_KILL,       /* the process ends before the call */
  FAULT_TEAR,       /* a write is done by half, then the process ends */
};

enum { FAULT_EXIT = 86 }; /* exit status of a process that ended by command */

struct fault {
  enum fault_mode mode;
  unsigned at;     /* number of the call that fails, from 1, among those counted */
  unsigned only;   /* bits 1 << enum fault_call that count for `at`; 0: all */
  int error;       /* errno of failures */
  unsigned counted, calls[FAULT_CALLS];
  char order[4096]; /* a letter per call: o w d f t r u m x */
  size_t order_size;
};

extern struct fault fault;
extern const struct io io_fault;

void fault_reset(void);

/* Names of calls in `order`. */
#define FAULT_LETTERS "owdftrumx"

#endif
