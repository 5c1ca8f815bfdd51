// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// Reading memory and doing nothing with it, as fast as one core can: several loops, of which the fastest counts.
#ifndef COLDKV_TOOLS_BENCH_READ_H
#define COLDKV_TOOLS_BENCH_READ_H

#include <stddef.h>
#include <stdint.h>

#include "tools/bench/bench.h"

enum { READ_LOOPS_MAX = 8 };

struct read_loop {
  const char *name;
  uint64_t (*run)(const uint8_t *data, size_t size); /* size: a multiple of 64 KiB, data: of 64 bytes */
};

/* The loops that this processor runs; returns how many. */
int read_loops(struct read_loop loops[READ_LOOPS_MAX]);

/* Measures the fastest of them over 256 MiB, as the figure read_gb_s, for commands that do not compare with it closely.
 * *rate becomes bytes per second, of processor time. */
int read_measure(struct bench_output *output, double *rate, struct error *error);

#endif
