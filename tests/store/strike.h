// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// A table of I/O functions in which any single call fails, or all from one on: reads and mappings too. What was done
// before stays done: for processes that end and machines that lose power, see fault.h.
#ifndef COLDKV_TESTS_STORE_STRIKE_H
#define COLDKV_TESTS_STORE_STRIKE_H

#include "store/io.h"

enum strike_mode {
  STRIKE_NONE,
  STRIKE_ONCE,      /* call number `at` fails */
  STRIKE_FROM_ON,   /* so do all after it */
  STRIKE_SHORT,     /* call number `at` moves fewer bytes than it could; only reads and writes count */
  STRIKE_INTERRUPT, /* every call that may be interrupted is, once, and then moves fewer bytes than it could */
};

struct strike {
  enum strike_mode mode;
  unsigned at; /* from 1 */
  int error;   /* errno */
  unsigned calls; /* that could be struck, so far */
  unsigned struck;
  bool sync;        /* a sync was struck */
  bool no_file;     /* memory was struck, which has no name */
  const char *name; /* of the call that was struck first */
};

extern struct strike strike;
extern const struct io io_strike;

#endif
