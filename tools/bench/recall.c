// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
#include "tools/bench/recall.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "tools/bench/expected.h"

enum { ROW_STEP = 8 }; /* every eighth row of a block is measured */

struct recall {
  struct llama_config config;
  uint32_t tokens;
  float *keys, *values;   /* [layers][tokens][kv_heads][head_dim], exact, keys before RoPE */
  unsigned char *decoded; /* [layers][tokens][kv_heads]: this record has been compared */
  double *scores;         /* [tokens] */
  double *sorted;         /* [tokens] */
  struct expected expected;
  float *sum, *query;     /* [head_dim] */
  double mass_sum, cos_k_sum, cos_v_sum;
  uint64_t rows, records;
};

int recall_create(struct recall **recall, const struct llama_config *config, uint32_t tokens, struct error *error) {
  size_t places = (size_t)config->layers * tokens * config->kv_heads;
  struct recall *r = calloc(1, sizeof *r);
  if (r) {
    r->config = *config;
    r->tokens = tokens;
    r->keys = malloc(places * config->head_dim * sizeof(float));
    r->values = malloc(places * config->head_dim * sizeof(float));
    r->decoded = calloc(places, 1);
    r->scores = malloc(tokens * sizeof(double));
    r->sorted = malloc(tokens * sizeof(double));
    r->sum = malloc(config->head_dim * sizeof(float));
    r->query = malloc(config->head_dim * sizeof(float));
  }
  if (!r || !r->keys || !r->values || !r->decoded || !r->scores || !r->sorted || !r->sum ||
      !r->query) {
    recall_destroy(r);
    return error_set(error, ERR_MEMORY, "no memory for the exact keys of %u tokens", tokens);
  }
  *recall = r;
  return 0;
}

void recall_destroy(struct recall *recall) {
  if (!recall)
    return;
  free(recall->keys);
  free(recall->values);
  free(recall->decoded);
  free(recall->scores);
  free(recall->sorted);
  free(recall->sum);
  free(recall->query);
  free(recall);
}

void recall_restart(struct recall *recall) {
  memset(recall->decoded, 0, (size_t)recall->config.layers * recall->tokens * recall->config.kv_heads);
}

/* Number of the place (layer, token, kv head 0). */
static size_t place(const struct recall *r, uint32_t layer, uint64_t token) {
  return ((size_t)layer * r->tokens + token) * r->config.kv_heads;
}

void recall_keep(struct recall *recall, uint32_t layer, uint32_t first, uint32_t n, const float *k, const float *v) {
  size_t d = recall->config.head_dim, at = place(recall, layer, first) * d;
  size_t bytes = (size_t)n * recall->config.kv_heads * d * sizeof(float);
  memcpy(recall->keys + at, k, bytes);
  memcpy(recall->values + at, v, bytes);
}

static double dot(const float *a, const float *b, uint32_t d) {
  double sum = 0;
  for (uint32_t i = 0; i < d; i++)
    sum += (double)a[i] * b[i];
  return sum;
}

static double cosine(const float *a, const float *b, uint32_t d) {
  return dot(a, b, d) / sqrt(dot(a, a, d) * dot(b, b, d));
}

/* Compares the decoded keys and values that have not been seen yet. */
static void compare_records(struct recall *r, uint32_t layer, const struct coldkv_slots *slots) {
  const uint32_t d = r->config.head_dim;
  for (uint32_t head = 0; head < slots->kv_heads; head++)
    for (uint32_t i = 0; i < slots->count[head]; i++) {
      size_t at = place(r, layer, slots->tokens[head][i]) + head;
      if (r->decoded[at])
        continue;
      r->decoded[at] = 1;
      r->cos_k_sum += cosine(slots->keys[head] + (size_t)i * d, r->keys + at * d, d);
      r->cos_v_sum += cosine(slots->values[head] + (size_t)i * d, r->values + at * d, d);
      r->records++;
    }
}

/* Adds up the queries of one group, [group][head_dim], and turns them to their expected distance. */
static void expect(struct recall *r, const float *q) {
  const uint32_t d = r->config.head_dim, group = r->config.heads / r->config.kv_heads;
  memset(r->sum, 0, d * sizeof *r->sum);
  for (uint32_t head = 0; head < group; head++)
    for (uint32_t i = 0; i < d; i++)
      r->sum[i] += q[(size_t)head * d + i];
  expected_apply(&r->expected, r->sum, 1, r->query);
}

static int descending(const void *a, const void *b) {
  double x = *(const double *)a, y = *(const double *)b;
  return (x < y) - (x > y);
}

/* The share for one row and kv head: mass of what was returned over mass of as many exact best. */
static double measure_row(struct recall *r, uint32_t layer, uint32_t row, uint32_t head,
                          const struct coldkv_slots *slots) {
  const uint32_t d = r->config.head_dim, first = COLDKV_SINKS;
  const uint32_t count = (uint32_t)slots->hot_first - first;
  double largest = -INFINITY, best = 0, got = 0;
  for (uint32_t i = 0; i < count; i++) {
    r->scores[i] = dot(r->query, r->keys + (place(r, layer, first + i) + head) * d, d) / sqrt((double)d);
    if (r->scores[i] > largest)
      largest = r->scores[i];
  }
  for (uint32_t i = 0; i < count; i++)
    r->sorted[i] = r->scores[i] = exp(r->scores[i] - largest); /* the sum of all cancels out */
  qsort(r->sorted, count, sizeof *r->sorted, descending);
  const uint32_t *index = slots->index + ((size_t)row * slots->kv_heads + head) * slots->k;
  for (uint32_t i = 0; i < slots->k; i++) {
    best += r->sorted[i];
    if (index[i] != UINT32_MAX)
      got += r->scores[slots->tokens[head][index[i]] - first];
  }
  return got / best;
}

void recall_measure(struct recall *recall, uint32_t layer, uint32_t first, const float *q,
                    const struct coldkv_slots *slots) {
  const struct llama_config *c = &recall->config;
  const uint32_t group = c->heads / c->kv_heads;
  compare_records(recall, layer, slots);
  if (slots->hot_first < COLDKV_SINKS + 2ull * slots->k) /* too few to choose from: any choice is good */
    return;
  expected_update(&recall->expected, c, first + slots->rows);
  for (uint32_t row = 0; row < slots->rows; row += ROW_STEP)
    for (uint32_t head = 0; head < slots->kv_heads; head++) {
      expect(recall, q + ((size_t)row * c->heads + (size_t)head * group) * c->head_dim);
      recall->mass_sum += measure_row(recall, layer, row, head, slots);
      recall->rows++;
    }
}

struct recall_result recall_result(const struct recall *recall) {
  double rows = (double)recall->rows, records = (double)recall->records;
  return (struct recall_result){.mass = recall->mass_sum / rows,
                                .cos_k = recall->cos_k_sum / records,
                                .cos_v = recall->cos_v_sum / records,
                                .rows = recall->rows,
                                .records = recall->records};
}
