// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// A query at its expected distance, as the design defines it; computed here on its own, apart from the library's.
#ifndef COLDKV_TOOLS_BENCH_EXPECTED_H
#define COLDKV_TOOLS_BENCH_EXPECTED_H

#include "tools/demo/llama.h"

enum { EXPECTED_PAIRS_MAX = 64 };

struct expected {
  uint32_t pairs, end; /* end: distances averaged are 256 .. end - 1 */
  double cosines[EXPECTED_PAIRS_MAX], sines[EXPECTED_PAIRS_MAX]; /* their means */
};

/* For a conversation of `tokens` tokens; does nothing when that changes nothing. */
void expected_update(struct expected *expected, const struct llama_config *config, uint32_t tokens);

/* Turns q [head_dim] by the mean rotation, times scale; half-split RoPE. */
void expected_apply(const struct expected *expected, const float *q, float scale, float *out);

#endif
