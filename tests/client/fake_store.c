// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
#include "tests/client/fake_store.h"

#include <stdlib.h>

#include "client/codec.h"
#include "proto/record.h"

void fake_hello(const struct fake_orders *orders, struct msg_hello_ok *hello) {
  *hello = (struct msg_hello_ok){
      .protocol = orders->protocol ? orders->protocol : PROTOCOL_VERSION,
      .server = span_str("fake"),
      .backend = span_str("memory"),
      .kernel = span_str("brute"),
      .durability = span_str("always"),
      .message_bytes_max = orders->message_bytes_max ? orders->message_bytes_max : LIMIT_MESSAGE_BYTES_MAX,
      .append_tokens_max = LIMIT_APPEND_TOKENS_MAX,
      .ahead_max = LIMIT_AHEAD_MAX,
      .rows_max = LIMIT_ROWS_MAX,
      .k_max = LIMIT_K_MAX,
      .candidates_max = LIMIT_CANDIDATES_MAX,
      .segment_tokens = LIMIT_SEGMENT_TOKENS,
  };
}

void fake_keep_model(struct fake_model *m, const struct msg_model *wanted) {
  memcpy(m->fingerprint, wanted->fingerprint.data, sizeof m->fingerprint);
  memcpy(m->freqs, wanted->geometry.rope_freqs.data, wanted->geometry.rope_freqs.size);
  m->means = malloc(wanted->mean_k.size + wanted->mean_v.size);
  fake_must(m->means, "malloc");
  memcpy(m->means, wanted->mean_k.data, wanted->mean_k.size);
  memcpy((uint8_t *)m->means + wanted->mean_k.size, wanted->mean_v.data, wanted->mean_v.size);
  m->description = *wanted;
  m->description.id = span_of(m->id, sizeof m->id);
  m->description.name = span_str("");
  m->description.basis = span_str("hadamard");
  m->description.fingerprint = span_of(m->fingerprint, sizeof m->fingerprint);
  m->description.geometry.rope_freqs.data = (const uint8_t *)m->freqs;
  m->description.mean_k.data = (const uint8_t *)m->means;
  m->description.mean_v.data = (const uint8_t *)m->means + wanted->mean_k.size;
}

int fake_check_append(const struct fake_conversation *c, const struct msg_append *append,
                      struct fake_counters *counters, struct error *error) {
  uint64_t n = append->ids.size / 4, bytes = c->blocks * RECORD_BYTES;
  if (append->first > c->count) {
    counters->gaps++;
    return error_set(error, ERR_GAP, "append starts after the next token");
  }
  fake_must(append->first + n <= FAKE_TOKENS_MAX, "tokens");
  if (n && !c->model)
    return error_set(error, ERR_NO_MODEL, "no model yet");
  if (append->records.size != n * bytes)
    return error_set(error, ERR_BAD_PARAMS, "records do not fit");
  for (uint64_t i = 0; i < n && append->first + i < c->count; i++) {
    uint64_t token = append->first + i;
    counters->repeats++;
    if (load_u32(append->ids.data + 4 * i) != c->ids[token] ||
        memcmp(append->records.data + i * bytes, c->records + token * bytes, bytes) != 0) {
      counters->conflicts++;
      return error_set(error, ERR_CONFLICT, "append repeats stored tokens with other bytes");
    }
  }
  for (uint64_t i = 0; i < n * c->blocks; i++) {
    uint64_t block = i % c->blocks, heads = c->model->description.geometry.kv_heads;
    if (!record_check(append->records.data + i * RECORD_BYTES, (uint32_t)(block / heads), (uint32_t)(block % heads),
                      append->first + i / c->blocks))
      return error_set(error, ERR_BAD_RECORD, "a record's CRC is wrong for its place");
  }
  return 0;
}

void fake_free_head(struct msg_lookup_head *answer) {
  free((void *)(uintptr_t)answer->tokens.data);
  free((void *)(uintptr_t)answer->records.data);
  free((void *)(uintptr_t)answer->index.data);
  free((void *)(uintptr_t)answer->scores.data);
}

struct scored {
  double score;
  uint64_t token;
};

static int better(const void *x, const void *y) {
  const struct scored *a = x, *b = y;
  if (a->score != b->score)
    return a->score > b->score ? -1 : 1;
  return a->token < b->token ? -1 : a->token > b->token;
}

void fake_look_up(const struct fake_conversation *c, const struct msg_lookup *lookup, uint32_t head, uint64_t before,
                  struct msg_lookup_head *answer) {
  const struct msg_geometry *g = &c->model->description.geometry;
  struct codec codec;
  fake_must(codec_init(&codec, (uint32_t)g->head_dim, c->model->description.seed, NULL) == 0, "codec");
  uint64_t n = before - lookup->from, cells = lookup->rows * lookup->k, block = lookup->layer * g->kv_heads + head;
  const float *mean_k = c->model->means + block * g->head_dim;
  const float *mean_v = mean_k + g->layers * g->kv_heads * g->head_dim;
  float(*keys)[LIMIT_HEAD_DIM_MAX] = malloc((n + 1) * sizeof *keys);
  struct scored *scored = malloc((n + 1) * sizeof *scored);
  bool *chosen = calloc(n + 1, sizeof *chosen);
  uint64_t *winners = calloc(cells + 1, sizeof *winners), *tokens = malloc((cells + 1) * sizeof *tokens);
  uint32_t *index = malloc(cells * sizeof *index), *place = calloc(n + 1, sizeof *place);
  float *scores = calloc(cells, sizeof *scores);
  uint8_t *records = malloc((cells + 1) * RECORD_BYTES);
  fake_must(keys && scored && chosen && winners && tokens && index && place && scores && records, "malloc");
  for (uint64_t i = 0; i < n; i++) {
    codec_decode(&codec, c->records + ((lookup->from + i) * c->blocks + block) * RECORD_BYTES, mean_k, mean_v, keys[i],
                 NULL);
    codec_rotate(&codec, keys[i], keys[i]);
  }
  for (uint64_t row = 0; row < lookup->rows; row++) {
    const uint8_t *query = lookup->queries.data + (row * g->kv_heads + head) * RECORD_SIGNATURE_BITS * 4;
    for (uint64_t i = 0; i < n; i++) {
      scored[i] = (struct scored){.token = i};
      for (uint64_t d = 0; d < g->head_dim; d++)
        scored[i].score += (double)load_f32(query + 4 * d) * (double)keys[i][d];
    }
    qsort(scored, n, sizeof *scored, better);
    for (uint64_t j = 0; j < lookup->k; j++) {
      winners[row * lookup->k + j] = j < n ? scored[j].token : UINT64_MAX;
      scores[row * lookup->k + j] = j < n ? (float)scored[j].score : 0;
      if (j < n)
        chosen[scored[j].token] = true;
    }
  }
  uint32_t count = 0;
  for (uint64_t i = 0; i < n; i++)
    if (chosen[i]) {
      memcpy(records + count * RECORD_BYTES, c->records + ((lookup->from + i) * c->blocks + block) * RECORD_BYTES,
             RECORD_BYTES);
      place[i] = count;
      tokens[count++] = lookup->from + i;
    }
  for (uint64_t i = 0; i < cells; i++)
    index[i] = winners[i] == UINT64_MAX ? UINT32_MAX : place[winners[i]];
  *answer = (struct msg_lookup_head){
      .tokens = span_of(tokens, count * 8),
      .records = span_of(records, count * RECORD_BYTES),
      .index = span_of(index, cells * 4),
      .scores = span_of(scores, cells * 4),
  };
  free(keys);
  free(scored);
  free(chosen);
  free(winners);
  free(place);
}

