// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// A connection's beginning and end, its handles, and its requests under way. Bytes: connection_io.c.
#include "daemon/connection.h"

#include <stdlib.h>
#include <string.h>

#include "daemon/request.h"

struct connection *connection_create(struct server *server, struct user *user) {
  struct connection *connection = calloc(1, sizeof *connection);
  if (!connection)
    return NULL;
  connection->server = server;
  connection->user = user;
  user->connections++;
  user->connections_total++;
  connection->waiting_end = &connection->waiting;
  connection->pipe.data = connection;
  reads_init_queue(&connection->reads);
  validator_init(&connection->validator, &validator_limits_default);
  uv_pipe_init(&server->loop, &connection->pipe, 0);
  connection->next = server->connections;
  connection->link = &server->connections;
  if (connection->next)
    connection->next->link = &connection->next;
  server->connections = connection;
  server->connection_count++;
  return connection;
}

/* --- the end ------------------------------------------------------------------------------------------------------ */

static void free_if_unused(struct connection *connection) {
  if (!connection->closed || connection->requests || connection->pipe.data)
    return;
  struct server *server = connection->server;
  *connection->link = connection->next;
  if (connection->next)
    connection->next->link = connection->link;
  server->connection_count--;
  connection->user->connections--;
  user_release(server, connection->user);
  free(connection->message);
  free(connection->stash);
  free(connection);
  if (server->stopping)
    server_stop(server);
}

static void on_closed(uv_handle_t *pipe) {
  struct connection *connection = pipe->data;
  pipe->data = NULL; /* libuv is through with it */
  free_if_unused(connection);
}

void connection_close(struct connection *connection) {
  if (connection->closed)
    return;
  connection->closed = true;
  connection->ending = true;
  for (uint32_t i = 0; i < LIMIT_HANDLES_PER_CONNECTION_MAX; i++)
    if (connection->handles[i].session)
      connection_handle_close(connection, &connection->handles[i]);
  uv_close((uv_handle_t *)&connection->pipe, on_closed);
  struct request *held = connection->held;
  connection->held = NULL;
  if (held) {
    error_set(&held->error, ERR_SHUTTING_DOWN, "the connection is closed");
    request_finish(held);
  }
  reads_drop(connection);
  budget_leave(connection);
}

void connection_end(struct connection *connection) {
  if (connection->ending)
    return;
  connection->ending = true;
  if (connection->reading)
    uv_read_stop((uv_stream_t *)&connection->pipe);
  connection->reading = false;
  free(connection->stash);
  connection->stash = NULL;
  connection_close_if_idle(connection);
}

/* --- handles ------------------------------------------------------------------------------------------------------ */

struct handle *connection_handle(struct connection *connection, uint64_t number) {
  struct handle *handle = &connection->handles[number % LIMIT_HANDLES_PER_CONNECTION_MAX];
  return handle->session && handle->number == number ? handle : NULL;
}

struct handle *connection_handle_for(struct connection *connection, const struct session *session) {
  for (uint32_t i = 0; i < LIMIT_HANDLES_PER_CONNECTION_MAX; i++)
    if (connection->handles[i].session == session) {
      /* numbers are never used twice, so that a handle that was closed stays closed */
      if (!session)
        connection->handles[i].number = ++connection->next_handle * LIMIT_HANDLES_PER_CONNECTION_MAX + i;
      return &connection->handles[i];
    }
  return NULL;
}

void connection_handle_close(struct connection *connection, struct handle *handle) {
  struct session *session = handle->session;
  handle->session = NULL;
  connection->user->conversations--;
  if (session->writer == connection)
    session->writer = NULL;
  session_drop(session);
}

/* --- requests ----------------------------------------------------------------------------------------------------- */

void connection_request_begun(struct connection *connection, uint64_t charge) {
  connection->requests++;
  connection->charged += charge;
  connection->user->requests++;
  connection->user->requests_total++;
}

void connection_request_done(struct connection *connection, uint64_t charge) {
  connection->requests--;
  connection->charged -= charge;
  connection->user->requests--;
  budget_freed(connection);
  if (connection->closed) {
    free_if_unused(connection);
    return;
  }
  connection_close_if_idle(connection);
  if (!connection->closed)
    connection_resume(connection);
}

static void admit(struct connection *connection, struct request *request) {
  request->charge += request->answer_bytes;
  connection->charged += request->answer_bytes;
  request->admitted(request);
}

void connection_admit(struct connection *connection, struct request *request) {
  if (budget_take(connection, request->answer_bytes, true)) {
    admit(connection, request);
    return;
  }
  connection->held = request;
  budget_wait(connection);
}

bool connection_may_go_on(const struct connection *connection) {
  if (connection->held)
    return budget_allows(connection, connection->held->answer_bytes, true);
  return connection_may_ask(connection) && budget_allows(connection, 1, connection->message_size > 0);
}

/* Lets the request that was kept go on, if it is its turn; false while it is not. */
static bool release_held(struct connection *connection) {
  struct request *held = connection->held;
  if (!held)
    return true;
  if (!budget_take(connection, held->answer_bytes, true)) {
    budget_wait(connection);
    return false;
  }
  connection->held = NULL;
  admit(connection, held);
  return true;
}

void connection_resume(struct connection *connection) {
  if (connection->closed || connection->consuming || !release_held(connection))
    return;
  connection_read_on(connection);
}

void connection_effect_done(struct connection *connection) {
  connection->effects_done++;
  while (connection->waiting && connection->waiting->effects_before <= connection->effects_done) {
    struct request *request = connection->waiting;
    connection->waiting = request->next;
    if (!connection->waiting)
      connection->waiting_end = &connection->waiting;
    request_read(request);
  }
}
