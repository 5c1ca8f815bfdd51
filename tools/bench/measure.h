// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// Timing on a machine that others use too: what is compared runs in turns, many rounds, and medians count.
#ifndef COLDKV_TOOLS_BENCH_MEASURE_H
#define COLDKV_TOOLS_BENCH_MEASURE_H

#include <stddef.h>
#include <stdint.h>

#include "tools/bench/bench.h"

/* Seconds on a clock that only goes forward. */
double now_s(void);

/* Seconds that the calling thread has had a processor. For what one thread computes: when others wanted the processor
 * too does not count. */
double core_s(void);

/* Sorts the samples; the value below which `part` (0 to 1) of them lie. NAN when there are none. */
double quantile(double *samples, size_t count, double part);
double median(double *samples, size_t count);

/* Median over the rounds of a[i] / b[i], which a machine that slows down for a while spoils less than a ratio of
 * medians. At most 1024 rounds. */
double ratio_median(const double *a, const double *b, size_t count);

/* Keeps the calling thread on the processor it is on. *other becomes another one that it could have used, -1 when there
 * is none. */
void pin_here(int *other);

/* Keeps the calling thread on that processor, if it can; figures are less steady otherwise, and nothing else. */
void pin_to(int core);

/* Random numbers: 64 bits, and a float from about a unit Gaussian. Same on every machine. */
uint64_t noise_u64(uint64_t *state);
float noise_gauss(uint64_t *state);
void noise_bytes(uint64_t *state, void *data, size_t size);

/* Memory, faulted in, in small pages as those of a mapped file are. NULL: none left. */
void *pages_alloc(size_t size);
void pages_free(void *pages, size_t size);

/* Figures about the run itself: command, processor, how many, load. */
void bench_machine(struct bench_output *output, const char *command, const char *what);

#endif
