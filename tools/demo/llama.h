// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// The forward pass of a Llama on the CPU, with attention left to whoever calls: so the same model runs on plain full
// attention (exact.h) and on coldkv (memory.h), and nothing here knows which.
#ifndef COLDKV_TOOLS_DEMO_LLAMA_H
#define COLDKV_TOOLS_DEMO_LLAMA_H

#include <stdint.h>

#include "proto/error.h"

enum { LLAMA_BLOCK_MAX = 64 }; /* tokens in one llama_forward */

/* What config.json says. */
struct llama_config {
  uint32_t layers, hidden, ffn, heads, kv_heads, head_dim, vocab;
  uint32_t window; /* trained window, tokens */
  float norm_eps;
  double rope_theta;
};

struct llama;

/* Attention of the n newest tokens in one layer. Query head h belongs to kv head h / (heads / kv_heads).
 *   q   [n][heads][head_dim]      before RoPE
 *   k,v [n][kv_heads][head_dim]   k before RoPE
 *   out [n][heads][head_dim]
 * Returns 0, or what llama_forward shall return. */
typedef int llama_attend_fn(void *context, uint32_t layer, uint32_t n, const float *q, const float *k, const float *v,
                            float *out);

/* Loads DIR/config.json and DIR/model.safetensors (F16 or F32, tied embeddings, no biases). */
int llama_load(struct llama **llama, const char *dir, struct error *error);

/* NULL is allowed. */
void llama_free(struct llama *llama);

const struct llama_config *llama_config(const struct llama *llama);

/* The bytes of all weights as they are in the file, to be hashed. They live as long as `llama`. */
const uint8_t *llama_weights(const struct llama *llama, uint64_t *size);

/* Runs n tokens, 1 to LLAMA_BLOCK_MAX, through the model. logits [logit_rows][vocab] gets those of the last logit_rows
 * tokens (0: none wanted). Returns 0 or what `attend` returned. Ids must be below vocab. */
int llama_forward(struct llama *llama, const uint32_t *ids, uint32_t n, llama_attend_fn *attend, void *context,
                  float *logits, uint32_t logit_rows);

/* Keeps the BLAS to that many threads. */
void llama_set_threads(int threads);

#endif
