// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// Checks every version of every kernel against the plain C one, and times them.
#ifndef COLDKV_TESTS_RETRIEVAL_CHECK_H
#define COLDKV_TESTS_RETRIEVAL_CHECK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "tests/proto/random.h"

/* One set of instructions to check. */
struct check_level {
  const char *name;
  unsigned flags;
};

/* Tells whether a version was right; a failure is counted, and the first one of each kernel printed. */
void check_report(const char *kernel, const char *level, bool right);

/* True when --bench was given. */
bool check_bench(void);

typedef void check_body(void *context);

/* Times `body` warm, best of several runs, and prints nanoseconds per unit (and GB/s where a unit has `bytes`). */
void check_time(const char *kernel, const char *level, check_body *body, void *context, double units, double bytes);

/* Each checks its kernels for one level; c is the level of plain C. */
void check_scan(const struct check_level *level);
void check_rescore(const struct check_level *level);
void check_select(const struct check_level *level);
void check_codec(const struct check_level *level);

/* Lookups, encoding and decoding as a whole; times only, for the machine's own level (see COLDKV_CPU_MASK). */
void check_lookup(void);
void check_encode(void);

#endif
