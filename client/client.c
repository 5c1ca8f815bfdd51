// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
#include "client/client.h"

#include <stdlib.h>

#include "client/clock.h"
#include "client/coldkv.h"
#include "client/conversation.h"
#include "client/error.h"
#include "client/tuning.h"
#include "proto/defaults.h"

int coldkv_client_create(coldkv_client **client, const char *socket_path,
                         const struct coldkv_client_options *options) {
  if (!client)
    return api_fail(ERR_ARGUMENT, "coldkv_client_create needs a place for the client");
  *client = NULL;
  char path[4096];
  if (!socket_path && default_socket_path(path, sizeof path))
    return api_fail(ERR_ARGUMENT, "the socket path of the environment is too long");
  struct coldkv_client *made = calloc(1, sizeof *made);
  if (!made)
    return api_fail(ERR_MEMORY, "out of memory for a client");
  static const struct coldkv_client_options defaults;
  const struct coldkv_client_options *wanted = options ? options : &defaults;
  made->timeout_ms = wanted->timeout_ms ? wanted->timeout_ms : DEFAULT_TIMEOUT_MS;
  made->sync_timeout_ms = wanted->sync_timeout_ms ? wanted->sync_timeout_ms : DEFAULT_SYNC_TIMEOUT_MS;
  made->block_timeout_ms = wanted->block_timeout_ms ? wanted->block_timeout_ms : DEFAULT_BLOCK_TIMEOUT_MS;
  made->backlog_bytes = wanted->backlog_bytes ? wanted->backlog_bytes : DEFAULT_BACKLOG_BYTES;
  struct error error = {0};
  int result = connection_init(&made->connection, socket_path ? socket_path : path, made->timeout_ms, &error);
  made->connection.spin_us = wanted->spin_us;
  if (result) {
    connection_finish(&made->connection);
    free(made);
    return api_result(result, &error);
  }
  connection_try(&made->connection, true);
  *client = made;
  return 0;
}

void coldkv_client_destroy(coldkv_client *client) {
  if (!client)
    return;
  connection_finish(&client->connection);
  free(client);
}

static void drive(struct coldkv_client *client) {
  for (struct coldkv_conv *conv = client->conversations; conv; conv = conv->next)
    conversation_drive(conv);
}

void client_turn(struct coldkv_client *client, uint32_t timeout_ms) {
  drive(client);
  connection_pump(&client->connection, timeout_ms);
  drive(client);
}

bool client_turn_until(struct coldkv_client *client, uint64_t deadline_ms) {
  uint64_t now = clock_ms();
  if (now >= deadline_ms) {
    client_turn(client, 0);
    return false;
  }
  uint64_t wait = deadline_ms - now;
  /* conversations have dates of their own (a lease to ask for again, an append to retry) */
  client_turn(client, wait > REOPEN_MS ? REOPEN_MS : (uint32_t)wait);
  return true;
}

struct call {
  bool done;
  take_fn *take;
  void *context;
  struct connection *connection;
  struct error *error;
  int result;
};

static void call_replied(void *context, uint64_t tag, const msgpack_object *result, const struct error *error) {
  (void)tag;
  struct call *call = context;
  call->done = true;
  if (!result) {
    *call->error = *error;
    call->result = -error->code;
  } else if (call->take) {
    call->result = call->take(call->context, result, call->error);
    if (call->result == -ERR_BAD_MESSAGE || call->result == -ERR_BAD_PARAMS) {
      connection_distrust(call->connection, call->error);
      call->error->code = ERR_BAD_MESSAGE;
      call->result = -ERR_BAD_MESSAGE;
    }
  }
}

/* Waits until the connection is up. */
static int wait_up(struct coldkv_client *client, uint64_t deadline_ms, struct error *error) {
  struct connection *c = &client->connection;
  client_turn(client, 0); /* notices when the daemon has gone */
  connection_try(c, true);
  while (c->state == LINK_GREETING) {
    if (!client_turn_until(client, deadline_ms) && c->state == LINK_GREETING)
      return error_set(error, ERR_TIMEOUT, "the daemon at %s took the connection but does not answer", c->path);
  }
  if (c->state == LINK_UP)
    return 0;
  bool lasting = c->reason.code == ERR_VERSION || c->reason.code == ERR_STATE;
  return error_set(error, lasting ? c->reason.code : ERR_UNREACHABLE, "%s", c->reason.text);
}

int client_call(struct coldkv_client *client, enum method_id method, const void *params, take_fn *take, void *context,
                uint64_t deadline_ms, struct error *error) {
  int result = wait_up(client, deadline_ms, error);
  if (result)
    return result;
  struct connection *c = &client->connection;
  struct call call = {.take = take, .context = context, .connection = c, .error = error};
  result = connection_send(c, method, params, call_replied, &call, 0, error);
  if (result)
    return result;
  while (!call.done)
    if (!client_turn_until(client, deadline_ms) && !call.done) {
      connection_forget(c, call_replied, &call);
      return error_set(error, ERR_TIMEOUT, "the daemon at %s did not answer %s in time", c->path,
                       methods[method].name);
    }
  return call.result;
}
