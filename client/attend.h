// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// Softmax attention of a block's rows over sinks, slots and the hot window.
#ifndef COLDKV_CLIENT_ATTEND_H
#define COLDKV_CLIENT_ATTEND_H

#include <stdint.h>

#include "proto/error.h"

struct coldkv_conv;

/* Attention of the open block in one layer, whose keys and values are in the hot window and whose slots are in
 * conv->retrieved. q [rows][kv_heads * group][d] before RoPE, out the same shape. -ERR_MEMORY. */
int attend_run(struct coldkv_conv *conv, uint32_t layer, const float *q, float *out, struct error *error);

/* conv->scratch with room for so many floats. -ERR_MEMORY. */
int attend_reserve(struct coldkv_conv *conv, size_t count, struct error *error);

#endif
