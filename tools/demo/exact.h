// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// Plain full attention over a growing KV cache that keeps everything exact: what coldkv is measured against.
#ifndef COLDKV_TOOLS_DEMO_EXACT_H
#define COLDKV_TOOLS_DEMO_EXACT_H

#include <stdint.h>

#include "proto/error.h"
#include "tools/demo/llama.h"

struct exact;

/* A cache for up to `capacity` tokens. The token fed as number i has position i. */
int exact_create(struct exact **exact, const struct llama_config *config, uint32_t capacity, struct error *error);

/* NULL is allowed. */
void exact_destroy(struct exact *exact);

/* Runs n tokens, at most LLAMA_BLOCK_MAX, through the model; logits as in llama_forward. ERR_LIMIT when the cache has
 * no room for them. */
int exact_feed(struct exact *exact, struct llama *llama, const uint32_t *ids, uint32_t n, float *logits,
               uint32_t logit_rows, struct error *error);

/* Forgets the tokens from number `end` on. */
void exact_rewind(struct exact *exact, uint32_t end);

#endif
