// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// Text for a model to read: source code in the manner of Python that nobody has to licence. It means nothing, but its
// names, numbers and shapes vary enough that a model has to read on to know what comes next.
#ifndef COLDKV_TOOLS_DEMO_FILLER_H
#define COLDKV_TOOLS_DEMO_FILLER_H

#include <stddef.h>
#include <stdint.h>

/* splitmix64: the next of a fixed sequence of random numbers. */
uint64_t random_next(uint64_t *state);

/* A number below `bound`, which is small. */
uint32_t random_below(uint64_t *state, uint32_t bound);

/* Writes exactly `size` bytes of filler, lines that end in a newline, the last one maybe cut short. The same seed gives
 * the same bytes everywhere. */
void filler_write(uint64_t seed, char *out, size_t size);

#endif
