// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// coldkv-bench: one command per thing worth measuring. A new one is a file with a function like bench_quality, a line
// here and a line in the table of main.c.
#ifndef COLDKV_TOOLS_BENCH_BENCH_H
#define COLDKV_TOOLS_BENCH_BENCH_H

#include <stdbool.h>
#include <stdint.h>

#include "proto/error.h"

struct bench_options {
  bool quick;          /* a short run: fewer repetitions, less steady figures */
  const char *coldkvd; /* path of the daemon; NULL: the one built with this program */
  const char *model;   /* folder of the tiny model; NULL: likewise */
  int threads;         /* of matrix products */
  bool faiss;          /* --against faiss */
  const char *backend, *spin_us, *vram_codes_limit; /* of the daemon; NULL: its defaults */
};

/* Where figures go: lines for people, or one JSON object. */
struct bench_output;

bool bench_is_json(const struct bench_output *output);

/* Each gives one figure: its name (units last, as in latency_us), its value and what it is, in words. */
void bench_integer(struct bench_output *output, const char *name, uint64_t value, const char *what);
void bench_figure(struct bench_output *output, const char *name, double value, const char *what);
void bench_text(struct bench_output *output, const char *name, const char *value, const char *what);

/* Runs one command. */
typedef int bench_command_fn(const struct bench_options *options, struct bench_output *output, struct error *error);

bench_command_fn bench_append, bench_codec, bench_cuda, bench_fetch, bench_lookup, bench_quality, bench_recall,
    bench_scan;

#endif
