// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// A key for a slot that stays empty. llama.cpp's mask is the same for all layers and heads, so a slot that only some of
// them fill cannot be masked; but the row that sees it is known, and so are its queries.
#ifndef COLDKV_CLIENT_LLAMA_NEUTRAL_H
#define COLDKV_CLIENT_LLAMA_NEUTRAL_H

#include <stdint.h>

/* Writes the shortest key [head_dim] whose dot product with each of the queries [group][head_dim] is so low that a
 * softmax gives it nothing; zeros where there is none, as for queries that point in opposite directions. work is
 * [group * (group + 1)]. */
void neutral_key(const float *queries, uint32_t group, uint32_t head_dim, double *work, float *key);

#endif
