// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// A daemon of one's own with an empty archive, a connection to it, and a conversation of random records.
#ifndef COLDKV_TOOLS_BENCH_PEER_H
#define COLDKV_TOOLS_BENCH_PEER_H

#include "proto/messages.h"
#include "tools/bench/bench.h"
#include "tools/coldkv/rpc_call.h"
#include "tools/demo/process.h"

/* The description of a model of some shape, means of zero. */
struct shape {
  struct msg_model model;
  uint8_t fingerprint[LIMIT_FINGERPRINT_BYTES];
  double rope_freqs[LIMIT_HEAD_DIM_MAX / 2];
  float *means;
};
int shape_init(struct shape *shape, uint32_t layers, uint32_t kv_heads, uint32_t head_dim, struct error *error);
void shape_finish(struct shape *shape);

struct peer {
  struct service service;
  char backend[16]; /* that lookups use */
  struct rpc_connection *rpc;
  struct shape shape;
  char scratch[PATH_MAX];
  uint64_t handle, count; /* of the conversation: on this connection, its tokens */
  uint64_t state;         /* of the random numbers */
  uint8_t *records;
  uint32_t *ids;
  size_t records_size;
};

/* Starts the daemon, connects, freezes a model of that shape and opens a conversation. `peer` may be stopped whatever
 * this returns. */
int peer_start(struct peer *peer, const struct bench_options *options, uint32_t layers, uint32_t kv_heads,
               uint32_t head_dim, struct error *error);
void peer_stop(struct peer *peer);

/* Appends `tokens` random tokens in one request and waits until they are durable. *seconds, if given, is what the
 * request took. */
int peer_append(struct peer *peer, uint32_t tokens, double *seconds, struct error *error);

/* Waits until every closed log has become a segment, of which there are `segments` then. */
int peer_wait_sealed(struct peer *peer, uint64_t segments, struct error *error);

#endif
