// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// Retrieval as the client sees it: queries at their expected distance, one lookup per block and layer (several where
// the answer would not fit a message), and the wait for it.
#include "client/retrieve.h"

#include <math.h>
#include <stdlib.h>

#include "client/clock.h"
#include "client/conversation.h"
#include "client/slots.h"
#include "client/tuning.h"

enum { HEAD_OVERHEAD_BYTES = 128 }; /* names and lengths of one kv head's map in an answer */

/* One lookup under way: rows first .. first + rows - 1 of the block. */
struct lookup {
  struct coldkv_conv *conv;
  struct slots_wanted wanted;
  bool done;
  struct error error; /* code 0 when it was answered well */
};

/* --- queries ----------------------------------------------------------------------------------------------------- */

/* The query of one row and kv head: sum over the group, rotated to the mean expected distance, through the codec. */
int retrieve_query(const struct coldkv_conv *conv, const float *expected, const float *q, float *out) {
  const struct coldkv_model *model = conv->model;
  uint32_t d = model->head_dim;
  float sum[LIMIT_HEAD_DIM_MAX] = {0}, moved[LIMIT_HEAD_DIM_MAX];
  for (uint32_t j = 0; j < model->group; j++)
    for (uint32_t c = 0; c < d; c++)
      sum[c] += q[(size_t)j * d + c];
  rope_apply(&model->rope, expected, 1, 1, sum, moved);
  codec_query(&conv->frozen->codec, moved, out);
  for (uint32_t c = 0; c < RECORD_SIGNATURE_BITS; c++)
    if (!isfinite(out[c]))
      return -ERR_NOT_FINITE;
  return 0;
}

/* f32 [rows][kv_heads][128] of the whole block; *made has to be freed. */
static int make_queries(struct coldkv_conv *conv, const float *q, float **made, struct error *error) {
  struct coldkv_model *model = conv->model;
  uint32_t rows = conv->block.count, heads = model->kv_heads;
  const float *expected = model_expected(model, conv->block.first + rows);
  float *queries = *made = malloc((size_t)rows * heads * RECORD_SIGNATURE_BITS * sizeof(float));
  if (!queries) {
    error_set(error, ERR_MEMORY, "out of memory for the queries of a lookup");
    return -ERR_MEMORY;
  }
  for (uint32_t row = 0; row < rows; row++)
    for (uint32_t head = 0; head < heads; head++) {
      size_t place = (size_t)row * heads + head;
      if (retrieve_query(conv, expected, q + place * model->group * model->head_dim,
                         queries + place * RECORD_SIGNATURE_BITS)) {
        error_set(error, ERR_NOT_FINITE, "the lookup query of row %u, kv head %u is not finite", row, head);
        return -ERR_NOT_FINITE;
      }
    }
  return 0;
}

/* --- waiting ----------------------------------------------------------------------------------------------------- */

/* Waits until the handed over tokens were sent, so that a lookup sent next sees them. */
static int wait_to_send(struct coldkv_conv *conv, uint64_t deadline_ms) {
  bool in_time = true;
  while (!link_ready(conv) || !backlog_settled(&conv->backlog)) {
    if (conv->client->connection.state == LINK_DOWN || conv->fatal.code)
      return -ERR_UNREACHABLE;
    if (!in_time)
      return -ERR_TIMEOUT;
    in_time = client_turn_until(conv->client, deadline_ms);
  }
  return 0;
}

static void lookup_replied(void *context, uint64_t tag, const msgpack_object *result, const struct error *error) {
  (void)tag;
  struct lookup *lookup = context;
  lookup->done = true;
  if (!result) {
    lookup->error = *error;
    if (error->code == ERR_NOT_OPEN)
      link_lost(lookup->conv);
    return;
  }
  int failed = slots_take(&lookup->conv->retrieved, &lookup->wanted, result, &lookup->error);
  if (!failed)
    connection_worked(&lookup->conv->client->connection);
  else if (failed != -ERR_MEMORY)
    connection_distrust(&lookup->conv->client->connection, &lookup->error);
}

/* Sends one lookup and waits for its answer. */
static int look_up(struct lookup *lookup, uint32_t layer, const float *queries, uint64_t deadline_ms) {
  struct coldkv_conv *conv = lookup->conv;
  struct connection *c = &conv->client->connection;
  uint64_t query_bytes = (uint64_t)conv->model->kv_heads * RECORD_SIGNATURE_BITS * sizeof(float);
  struct msg_lookup params = {
      .conversation = conv->handle,
      .layer = layer,
      .rows = lookup->wanted.rows,
      .queries = span_of((const uint8_t *)queries + lookup->wanted.row * query_bytes,
                         lookup->wanted.rows * query_bytes),
      .k = lookup->wanted.k,
      .candidates = conv->candidates && conv->candidates < lookup->wanted.k ? lookup->wanted.k : conv->candidates,
      .mode = conv->mode,
      .from = lookup->wanted.from,
      .before = lookup->wanted.before,
  };
  bool in_time = true;
  int result = connection_send(c, METHOD_LOOKUP, &params, lookup_replied, lookup, 0, &lookup->error);
  while (result == -ERR_LIMIT && in_time) { /* other conversations' appends fill the connection */
    in_time = client_turn_until(conv->client, deadline_ms);
    result = link_ready(conv)
                 ? connection_send(c, METHOD_LOOKUP, &params, lookup_replied, lookup, 0, &lookup->error)
                 : -ERR_UNREACHABLE;
  }
  if (result)
    return result == -ERR_LIMIT ? -ERR_TIMEOUT : result;
  lookup->error.code = 0;
  while (!lookup->done && in_time)
    in_time = client_turn_until(conv->client, deadline_ms);
  if (!lookup->done) {
    connection_forget(c, lookup_replied, lookup);
    return -ERR_TIMEOUT;
  }
  return -lookup->error.code;
}

/* --- one block and layer ------------------------------------------------------------------------------------------ */

/* Rows of one request, and slots per row: as many as make an answer that fits a message. */
static uint32_t rows_per_lookup(const struct coldkv_conv *conv, uint32_t *k) {
  const struct connection *c = &conv->client->connection;
  uint64_t heads = conv->model->kv_heads;
  uint64_t overhead = FRAME_OVERHEAD_BYTES + heads * HEAD_OVERHEAD_BYTES;
  uint64_t budget = c->message_bytes_max > overhead ? c->message_bytes_max - overhead : 0;
  uint64_t fit_k = budget / (heads * LOOKUP_BYTES_PER_RECORD);
  if (c->k_max < fit_k)
    fit_k = c->k_max;
  if (fit_k < *k)
    *k = (uint32_t)fit_k;
  uint64_t row_bytes = heads * (*k * LOOKUP_BYTES_PER_RECORD + RECORD_SIGNATURE_BITS * sizeof(float));
  uint64_t rows = budget / row_bytes;
  if (rows > c->rows_max)
    rows = c->rows_max;
  return rows < conv->block.count ? (uint32_t)rows : conv->block.count;
}

/* The answer of a lookup ahead of time. */
static void ahead_replied(void *context, uint64_t tag, const msgpack_object *result, const struct error *error) {
  struct coldkv_client *client = context;
  (void)tag;
  (void)result;
  (void)error;
  client->prefetching--;
}

int retrieve_ahead(struct coldkv_conv *conv, uint32_t layer, const float *queries) {
  struct connection *c = &conv->client->connection;
  struct error error;
  uint32_t k = conv->k;
  client_turn(conv->client, 0);
  if (!link_ready(conv) || conv->encoding || conv->backlog.cursor || conv->client->prefetching >= PREFETCHES_MAX ||
      c->pending_count >= APPENDS_PENDING_MAX || !rows_per_lookup(conv, &k) || !k)
    return 1;
  struct msg_lookup params = {
      .conversation = conv->handle,
      .layer = layer,
      .rows = 1,
      .queries = span_of(queries, (uint64_t)conv->model->kv_heads * RECORD_SIGNATURE_BITS * sizeof(float)),
      .k = k,
      .candidates = conv->candidates && conv->candidates < k ? k : conv->candidates,
      .mode = conv->mode,
      .from = COLDKV_SINKS,
      .before = conv->block.hot_start,
  };
  if (connection_send(c, METHOD_LOOKUP, &params, ahead_replied, conv->client, 0, &error))
    return 1;
  conv->client->prefetching++;
  conv->prefetches++;
  conv->block.prefetched[layer] = 1;
  client_turn(conv->client, 0);
  return 0;
}

/* All lookups of the block; any that fails makes the whole a miss. */
static int look_up_rows(struct coldkv_conv *conv, uint32_t layer, const float *queries, uint64_t deadline_ms) {
  struct error error;
  int result = handover_settle(conv, &error);
  if (!result)
    result = wait_to_send(conv, deadline_ms);
  else
    conv->last = error;
  if (result)
    return result;
  uint32_t k = conv->k, rows = rows_per_lookup(conv, &k);
  if (!k || !rows)
    return -ERR_LIMIT;
  for (uint32_t row = 0; row < conv->block.count; row += rows) {
    uint32_t left = conv->block.count - row;
    struct lookup lookup = {
        .conv = conv,
        .wanted = {.row = row, .rows = left < rows ? left : rows, .k = k, .from = COLDKV_SINKS,
                   .before = conv->block.hot_start},
    };
    result = look_up(&lookup, layer, queries, deadline_ms);
    if (result) {
      if (lookup.error.code && lookup.error.code != ERR_UNREACHABLE)
        conv->last = lookup.error;
      return result;
    }
  }
  return 0;
}

static int look_up_all(struct coldkv_conv *conv, uint32_t layer, const float *queries) {
  client_turn(conv->client, 0);
  if (!patience_left(conv))
    return -ERR_TIMEOUT;
  uint64_t began = clock_ms();
  int result = look_up_rows(conv, layer, queries, patience_deadline(conv));
  if (result == -ERR_TIMEOUT)
    error_set(&conv->last, ERR_TIMEOUT, "the daemon at %s did not answer a lookup of '%s' in time",
              conv->client->connection.path, conv->name);
  patience_waited(conv, began, result == -ERR_TIMEOUT ? PATIENCE_IN_VAIN : result ? PATIENCE_OTHERWISE
                                                                                  : PATIENCE_ANSWERED);
  return result;
}

bool retrieve_wanted(const struct coldkv_conv *conv) {
  return conv->k && conv->block.hot_start > COLDKV_SINKS && conv->frozen;
}

int retrieve_run(struct coldkv_conv *conv, uint32_t layer, const struct query_source *source, struct error *error) {
  struct retrieved *retrieved = &conv->retrieved;
  int result = slots_clear(retrieved, conv->block.count, conv->k, error);
  if (result)
    return result;
  if (!conv->k || conv->block.hot_start <= COLDKV_SINKS) {
    client_turn(conv->client, 0); /* what was handed over goes on its way all the same */
    return 0;
  }
  conv->lookups++;
  if (!conv->frozen) { /* then nothing is stored either */
    conv->lookups_missed++;
    return 0;
  }
  float *made = NULL;
  const float *queries = NULL;
  if (source->q) {
    result = make_queries(conv, source->q, &made, error);
    queries = made;
  } else {
    result = device_query_wait(conv->device, &queries, error);
  }
  if (result) {
    free(made);
    return result;
  }
  conv->prefetches_used += conv->block.prefetched[layer];
  conv->block.prefetched[layer] = 0;
  int missed = look_up_all(conv, layer, queries);
  free(made);
  if (missed) {
    conv->lookups_missed++;
    return slots_clear(retrieved, conv->block.count, conv->k, error);
  }
  struct slots_place place = {.layer = layer, .head_dim = conv->model->head_dim, .frozen = conv->frozen,
                              .keep_records = source->keep_records};
  uint64_t bad = 0;
  result = slots_finish(retrieved, &place, &bad, error);
  conv->bad_records += bad;
  return result;
}
