// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
#include "tools/bench/peer.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tools/bench/columns.h"
#include "tools/bench/measure.h"

enum { SEAL_WAIT_S = 120, SEAL_POLL_US = 20000 };

int shape_init(struct shape *shape, uint32_t layers, uint32_t kv_heads, uint32_t head_dim, struct error *error) {
  size_t bytes = (size_t)layers * kv_heads * head_dim * sizeof(float);
  shape->means = calloc(1, bytes);
  if (!shape->means)
    return error_set(error, ERR_MEMORY, "no memory for the means of a model");
  for (uint32_t i = 0; i < head_dim / 2; i++)
    shape->rope_freqs[i] = pow(10000, -2.0 * i / head_dim);
  memset(shape->fingerprint, 7, sizeof shape->fingerprint);
  message_init(&message_model, &shape->model);
  shape->model.name = span_str("bench");
  shape->model.fingerprint = span_of(shape->fingerprint, sizeof shape->fingerprint);
  shape->model.geometry = (struct msg_geometry){
      .layers = layers, .kv_heads = kv_heads, .group = 4, .head_dim = head_dim, .window = 8192,
      .rope_layout = ROPE_HALF, .rope_dims = head_dim,
      .rope_freqs = span_of(shape->rope_freqs, head_dim / 2 * sizeof(double))};
  shape->model.basis = span_str("hadamard");
  shape->model.codec = 1;
  shape->model.seed = 1;
  shape->model.tokens = 192;
  shape->model.mean_k = shape->model.mean_v = span_of(shape->means, bytes);
  return 0;
}

void shape_finish(struct shape *shape) {
  free(shape->means);
  shape->means = NULL;
}

/* hello, model.calibrate, conversation.open. */
static int greet(struct peer *peer, struct error *error) {
  struct msg_hello hello = {.protocol = PROTOCOL_VERSION, .client = span_str("coldkv-bench")};
  struct msg_hello_ok welcome;
  struct msg_model frozen;
  struct msg_open open;
  struct msg_open_ok opened;
  uint8_t id[LIMIT_ID_BYTES];
  int result = rpc_call(peer->rpc, METHOD_HELLO, &hello, &welcome, error);
  if (!result)
    snprintf(peer->backend, sizeof peer->backend, "%.*s", (int)welcome.backend.size,
             (const char *)welcome.backend.data);
  if (!result)
    result = rpc_call(peer->rpc, METHOD_MODEL_CALIBRATE, &peer->shape.model, &frozen, error);
  if (result)
    return result;
  memcpy(id, frozen.id.data, sizeof id);
  message_init(&message_open, &open);
  open.name = span_str("bench");
  open.fingerprint = peer->shape.model.fingerprint;
  open.geometry = peer->shape.model.geometry;
  open.model = span_of(id, sizeof id);
  open.create = open.write = 1;
  result = rpc_call(peer->rpc, METHOD_OPEN, &open, &opened, error);
  peer->handle = result ? 0 : opened.conversation;
  return result;
}

int peer_start(struct peer *peer, const struct bench_options *options, uint32_t layers, uint32_t kv_heads,
               uint32_t head_dim, struct error *error) {
  *peer = (struct peer){.state = 5};
  int result = shape_init(&peer->shape, layers, kv_heads, head_dim, error);
  if (!result)
    result = scratch_create(peer->scratch, error);
  if (!result)
    result = service_init(&peer->service, options->coldkvd, peer->scratch, NULL, error);
  peer->service.backend = options->backend;
  peer->service.spin_us = options->spin_us;
  peer->service.vram_codes_limit = options->vram_codes_limit;
  if (!result)
    result = service_start(&peer->service, error);
  if (!result && rpc_connect(&peer->rpc, peer->service.socket, true, error))
    result = -error->code;
  return result ? result : greet(peer, error);
}

void peer_stop(struct peer *peer) {
  rpc_disconnect(peer->rpc);
  service_kill(&peer->service);
  scratch_remove(peer->scratch);
  shape_finish(&peer->shape);
  free(peer->records);
  free(peer->ids);
  *peer = (struct peer){0};
}

static int make_records(struct peer *peer, uint32_t tokens, struct error *error) {
  const struct msg_geometry *geometry = &peer->shape.model.geometry;
  size_t size = (size_t)tokens * geometry->layers * geometry->kv_heads * RECORD_BYTES;
  if (size > peer->records_size) {
    free(peer->records);
    free(peer->ids);
    peer->records = malloc(size);
    peer->ids = calloc(tokens, sizeof *peer->ids);
    peer->records_size = peer->records && peer->ids ? size : 0;
    if (!peer->records_size)
      return error_set(error, ERR_MEMORY, "no memory for the records of %u tokens", tokens);
  }
  uint8_t *record = peer->records;
  for (uint32_t t = 0; t < tokens; t++)
    for (uint32_t layer = 0; layer < geometry->layers; layer++)
      for (uint32_t head = 0; head < geometry->kv_heads; head++, record += RECORD_BYTES)
        random_record(&peer->state, layer, head, peer->count + t, record);
  return 0;
}

int peer_append(struct peer *peer, uint32_t tokens, double *seconds, struct error *error) {
  const struct msg_geometry *geometry = &peer->shape.model.geometry;
  int result = make_records(peer, tokens, error);
  if (result)
    return result;
  struct msg_append_ok answer;
  const struct msg_append append = {
      .conversation = peer->handle, .first = peer->count, .ids = span_of(peer->ids, tokens * sizeof *peer->ids),
      .records = span_of(peer->records, (size_t)tokens * geometry->layers * geometry->kv_heads * RECORD_BYTES),
      .sync = 1};
  double start = now_s();
  result = rpc_call(peer->rpc, METHOD_APPEND, &append, &answer, error);
  if (seconds)
    *seconds = now_s() - start;
  if (!result && answer.durable != peer->count + tokens)
    result = error_set(error, ERR_INTERNAL, "%llu of %llu tokens are durable", (unsigned long long)answer.durable,
                       (unsigned long long)peer->count + tokens);
  peer->count += tokens;
  return result;
}

int peer_wait_sealed(struct peer *peer, uint64_t segments, struct error *error) {
  struct msg_empty nothing = {0};
  struct msg_stats stats = {0};
  for (double start = now_s(); now_s() - start < SEAL_WAIT_S; usleep(SEAL_POLL_US)) {
    int result = rpc_call(peer->rpc, METHOD_STATS, &nothing, &stats, error);
    if (result || stats.segments_sealed >= segments)
      return result;
  }
  return error_set(error, ERR_TIMEOUT, "%llu of %llu segments were sealed in time",
                   (unsigned long long)stats.segments_sealed, (unsigned long long)segments);
}
