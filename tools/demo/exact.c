// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
#include "tools/demo/exact.h"

#include <cblas.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

struct exact {
  struct llama_config config;
  uint32_t capacity, count; /* count: tokens before the block under way */
  float *keys, *values;     /* [layers][capacity][kv_heads][head_dim], keys rotated */
  float *rotations;         /* [capacity][head_dim]: cosines of the head_dim/2 angles, then their sines */
  float *query;             /* [LLAMA_BLOCK_MAX][head_dim] */
  float *weights;           /* [LLAMA_BLOCK_MAX][capacity] */
};

/* Half-split RoPE: coordinate i is paired with i + d/2. */
static void rotate(const struct exact *e, float *x, uint32_t position) {
  const uint32_t half = e->config.head_dim / 2;
  const float *cosines = e->rotations + (size_t)position * e->config.head_dim, *sines = cosines + half;
  for (uint32_t i = 0; i < half; i++) {
    float a = x[i], b = x[i + half];
    x[i] = a * cosines[i] - b * sines[i];
    x[i + half] = b * cosines[i] + a * sines[i];
  }
}

static void fill_rotations(struct exact *e) {
  const uint32_t half = e->config.head_dim / 2;
  for (uint32_t i = 0; i < half; i++) {
    double frequency = pow(e->config.rope_theta, -(double)i / half);
    for (uint32_t position = 0; position < e->capacity; position++) {
      float *place = e->rotations + (size_t)position * e->config.head_dim + i;
      place[0] = (float)cos(position * frequency);
      place[half] = (float)sin(position * frequency);
    }
  }
}

/* Softmax over the first `visible` scores of a row; the others get no weight. */
static void softmax(float *scores, uint32_t visible, uint32_t count) {
  float largest = scores[0], sum = 0;
  for (uint32_t i = 1; i < visible; i++)
    if (scores[i] > largest)
      largest = scores[i];
  for (uint32_t i = 0; i < visible; i++)
    sum += scores[i] = expf(scores[i] - largest);
  for (uint32_t i = 0; i < visible; i++)
    scores[i] /= sum;
  memset(scores + visible, 0, (count - visible) * sizeof *scores);
}

/* The llama_attend_fn: stores the new keys and values, then lets every row see all tokens up to itself. */
static int attend(void *context, uint32_t layer, uint32_t n, const float *q, const float *k, const float *v,
                  float *out) {
  struct exact *e = context;
  const struct llama_config *c = &e->config;
  const uint32_t d = c->head_dim, q_size = c->heads * d, kv_size = c->kv_heads * d, count = e->count + n;
  float *keys = e->keys + (size_t)layer * e->capacity * kv_size;
  float *values = e->values + (size_t)layer * e->capacity * kv_size;
  memcpy(keys + (size_t)e->count * kv_size, k, (size_t)n * kv_size * sizeof *k);
  memcpy(values + (size_t)e->count * kv_size, v, (size_t)n * kv_size * sizeof *v);
  for (uint32_t row = 0; row < n; row++)
    for (uint32_t head = 0; head < c->kv_heads; head++)
      rotate(e, keys + (size_t)(e->count + row) * kv_size + (size_t)head * d, e->count + row);

  for (uint32_t head = 0; head < c->heads; head++) {
    uint32_t kv_head = head / (c->heads / c->kv_heads);
    for (uint32_t row = 0; row < n; row++) {
      memcpy(e->query + (size_t)row * d, q + (size_t)row * q_size + (size_t)head * d, d * sizeof *q);
      rotate(e, e->query + (size_t)row * d, e->count + row);
    }
    cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, (int)n, (int)count, (int)d, 1.0f / sqrtf((float)d), e->query,
                (int)d, keys + (size_t)kv_head * d, (int)kv_size, 0.0f, e->weights, (int)count);
    for (uint32_t row = 0; row < n; row++)
      softmax(e->weights + (size_t)row * count, e->count + row + 1, count);
    cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, (int)n, (int)d, (int)count, 1.0f, e->weights, (int)count,
                values + (size_t)kv_head * d, (int)kv_size, 0.0f, out + (size_t)head * d, (int)q_size);
  }
  return 0;
}

int exact_create(struct exact **exact, const struct llama_config *config, uint32_t capacity, struct error *error) {
  size_t d = config->head_dim, cache = (size_t)config->layers * capacity * config->kv_heads * d;
  struct exact *e = calloc(1, sizeof *e);
  if (e) {
    e->config = *config;
    e->capacity = capacity;
    e->keys = malloc(cache * sizeof(float));
    e->values = malloc(cache * sizeof(float));
    e->rotations = malloc(capacity * d * sizeof(float));
    e->query = malloc(LLAMA_BLOCK_MAX * d * sizeof(float));
    e->weights = malloc(LLAMA_BLOCK_MAX * (size_t)capacity * sizeof(float));
  }
  if (!e || !e->keys || !e->values || !e->rotations || !e->query || !e->weights) {
    exact_destroy(e);
    *exact = NULL;
    return error_set(error, ERR_MEMORY, "no memory for an exact KV cache of %u tokens", capacity);
  }
  fill_rotations(e);
  *exact = e;
  return 0;
}

void exact_destroy(struct exact *exact) {
  if (!exact)
    return;
  free(exact->keys);
  free(exact->values);
  free(exact->rotations);
  free(exact->query);
  free(exact->weights);
  free(exact);
}

int exact_feed(struct exact *exact, struct llama *llama, const uint32_t *ids, uint32_t n, float *logits,
               uint32_t logit_rows, struct error *error) {
  if (n > exact->capacity - exact->count)
    return error_set(error, ERR_LIMIT, "the exact KV cache is full at %u tokens", exact->capacity);
  int result = llama_forward(llama, ids, n, attend, exact, logits, logit_rows);
  if (!result)
    exact->count += n;
  return result;
}

void exact_rewind(struct exact *exact, uint32_t end) {
  if (end < exact->count)
    exact->count = end;
}
