// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
#include "tools/demo/memory.h"

/* What the Llama calls in every layer, in place of an attention of its own. */
static int attend(void *context, uint32_t layer, uint32_t n, const float *q, const float *k, const float *v,
                  float *out) {
  struct memory *memory = context;
  (void)n; /* coldkv_begin has been told */
  return coldkv_attend(memory->conv, layer, q, k, v, out);
}

/* One block of at most COLDKV_BLOCK_MAX tokens. */
static int feed_block(struct memory *memory, const uint32_t *ids, uint32_t n, float *logits) {
  int result = coldkv_begin(memory->conv, ids, n);
  if (result)
    return result;
  result = llama_forward(memory->llama, ids, n, attend, memory, logits, logits ? 1 : 0);
  if (result) {
    coldkv_abort(memory->conv);
    return result;
  }
  return coldkv_end(memory->conv);
}

int memory_feed(struct memory *memory, const uint32_t *ids, uint32_t n, uint32_t slots, float *logits) {
  int result = coldkv_set_slots(memory->conv, slots);
  while (n && !result) {
    uint32_t size = n < COLDKV_BLOCK_MAX ? n : COLDKV_BLOCK_MAX;
    result = feed_block(memory, ids, size, size == n ? logits : NULL);
    ids += size;
    n -= size;
  }
  return result;
}

struct coldkv_model_description memory_describe(struct llama *llama) {
  const struct llama_config *config = llama_config(llama);
  return (struct coldkv_model_description){
      .layers = config->layers,
      .kv_heads = config->kv_heads,
      .group = config->heads / config->kv_heads,
      .head_dim = config->head_dim,
      .window = config->window,
      .rope = COLDKV_ROPE_HALF,
      .rope_theta = config->rope_theta,
  };
}

/* Tells coldkv the shape of the model. The fingerprint keeps conversations of different weights apart. */
static int create_model(struct memory *memory) {
  const struct llama_config *config = llama_config(memory->llama);
  struct coldkv_model_description description = memory_describe(memory->llama);
  uint64_t size;
  const void *weights = llama_weights(memory->llama, &size);
  description.name = "tiny-llama-passkey";
  coldkv_fingerprint(description.fingerprint, weights, size);
  coldkv_fingerprint(description.fingerprint, &config->rope_theta, sizeof config->rope_theta);
  return coldkv_model_create(&memory->model, memory->client, &description);
}

/* Feeds what coldkv asks for until the sinks and the hot window of a stored conversation are there again. */
static int resume(struct memory *memory) {
  uint32_t ids[COLDKV_BLOCK_MAX];
  int n, result = 0;
  while (!result && (n = coldkv_resume(memory->conv, ids)) != 0)
    result = n < 0 ? n : feed_block(memory, ids, (uint32_t)n, NULL);
  return result;
}

int memory_open(struct memory *memory, struct llama *llama, const char *socket, const char *name, uint32_t device) {
  struct coldkv_conv_options options = {.device = device};
  *memory = (struct memory){.llama = llama};
  int result = coldkv_client_create(&memory->client, socket, NULL);
  if (!result)
    result = create_model(memory);
  if (!result)
    result = coldkv_open(&memory->conv, memory->model, name, &options);
  if (!result)
    result = resume(memory);
  return result;
}

void memory_close(struct memory *memory) {
  coldkv_close(memory->conv);
  coldkv_model_destroy(memory->model);
  coldkv_client_destroy(memory->client);
  *memory = (struct memory){0};
}
