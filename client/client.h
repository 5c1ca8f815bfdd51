// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// A client: one connection, the conversations that use it, and how callers wait.
#ifndef COLDKV_CLIENT_CLIENT_H
#define COLDKV_CLIENT_CLIENT_H

#include "client/connection.h"

struct coldkv_conv;

struct coldkv_client {
  struct connection connection;
  uint32_t timeout_ms, sync_timeout_ms, block_timeout_ms;
  uint64_t backlog_bytes;
  struct coldkv_conv *conversations; /* linked by their `next` */
  uint32_t models;
  uint32_t prefetching; /* lookups ahead of time that are not answered */
};

/* One turn: every conversation sends what it has to, the connection waits at most timeout_ms for the socket, answers
 * are handed out, and what they allow is sent. Connects again when it is time to. */
void client_turn(struct coldkv_client *client, uint32_t timeout_ms);

/* The same, waiting at most until the deadline. Returns false when it has passed. */
bool client_turn_until(struct coldkv_client *client, uint64_t deadline_ms);

/* Reads the result of a call into what `context` points to. */
typedef int take_fn(void *context, const msgpack_object *result, struct error *error);

/* Waits for the connection, sends one request and waits for its answer, which `take` (NULL: nobody) reads. When nobody
 * listens it fails at once with -ERR_UNREACHABLE; at the deadline with -ERR_TIMEOUT. An answer that `take` refuses
 * costs the connection. */
int client_call(struct coldkv_client *client, enum method_id method, const void *params, take_fn *take, void *context,
                uint64_t deadline_ms, struct error *error);

#endif
