// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
#include "daemon/budget.h"

#include <stdlib.h>

#include "daemon/connection.h"

struct user *user_of(struct server *server, uint32_t uid) {
  struct user *user = server->users;
  while (user && user->uid != uid)
    user = user->next;
  if (user)
    return user;
  user = calloc(1, sizeof *user);
  if (!user)
    return NULL;
  user->uid = uid;
  user->next = server->users;
  server->users = user;
  return user;
}

void user_release(struct server *server, struct user *user) {
  if (user->connections)
    return;
  struct user **link = &server->users;
  while (*link != user)
    link = &(*link)->next;
  *link = user->next;
  free(user);
}

uint64_t budget_bytes(const struct connection *connection) {
  return connection->charged + connection->message_capacity +
         uv_stream_get_write_queue_size((const uv_stream_t *)&connection->pipe);
}

/* --- who may hold more than a share ------------------------------------------------------------------------------- */

static void want_large(struct connection *connection, bool wanted) {
  if (connection->want_large == wanted)
    return;
  connection->want_large = wanted;
  connection->user->want_large += wanted ? 1u : -1u;
}

/* What has begun may go on; something new is begun only when nobody waits for the place. */
static bool may_be_large(const struct connection *connection, bool begun) {
  const struct user *user = connection->user;
  if (connection->large)
    return begun || !user->want_large;
  return user->large < LIMIT_LARGE_PER_USER_MAX && (connection->want_large || !user->want_large);
}

bool budget_allows(const struct connection *connection, uint64_t more, bool begun) {
  const struct server *server = connection->server;
  uint64_t bytes = budget_bytes(connection);
  if (!begun && connection->user->requests >= server->options->user_requests)
    return false;
  if (bytes + more <= server->connection_bytes)
    return true;
  bool alone = begun && connection->requests == 1 && bytes == connection->charged;
  return (bytes + more <= LIMIT_OUTPUT_BYTES_PER_CONNECTION_MAX || alone) && may_be_large(connection, begun);
}

bool budget_take(struct connection *connection, uint64_t more, bool begun) {
  bool much = budget_bytes(connection) + more > connection->server->connection_bytes;
  if (!budget_allows(connection, more, begun)) {
    want_large(connection, much && !connection->large);
    return false;
  }
  if (much && !connection->large) {
    connection->large = true;
    connection->user->large++;
  }
  want_large(connection, false);
  return true;
}

/* --- the line ----------------------------------------------------------------------------------------------------- */

static void leave_line(struct connection *connection) {
  if (!connection->in_line)
    return;
  connection->in_line = false;
  TAILQ_REMOVE(&connection->server->line, connection, line);
}

void budget_wait(struct connection *connection) {
  if (connection->in_line)
    return;
  connection->in_line = true;
  TAILQ_INSERT_TAIL(&connection->server->line, connection, line);
}

/* Lets all who wait try, in their order; who cannot go on keeps his place. Runs from the loop itself, never out of the
 * middle of another connection's work. */
static void on_wake(uv_idle_t *wake) {
  struct server *server = wake->data;
  uint32_t tries = server->connection_count;
  uv_idle_stop(wake);
  for (struct connection *connection = TAILQ_FIRST(&server->line), *next; connection && tries--; connection = next) {
    next = TAILQ_NEXT(connection, line);
    if (!connection_may_go_on(connection))
      continue;
    leave_line(connection);
    connection_resume(connection);
  }
}

static void wake_line(struct server *server) {
  if (!TAILQ_EMPTY(&server->line))
    uv_idle_start(&server->line_wake, on_wake);
}

void budget_freed(struct connection *connection) {
  struct server *server = connection->server;
  if (connection->large && budget_bytes(connection) <= server->connection_bytes) {
    connection->large = false;
    connection->user->large--;
  }
  wake_line(server);
}

void budget_leave(struct connection *connection) {
  want_large(connection, false);
  leave_line(connection);
  if (connection->large) {
    connection->large = false;
    connection->user->large--;
  }
  wake_line(connection->server);
}

void budget_init(struct server *server) {
  TAILQ_INIT(&server->line);
  uv_idle_init(&server->loop, &server->line_wake);
  server->line_wake.data = server;
}

void budget_finish(struct server *server) { uv_close((uv_handle_t *)&server->line_wake, NULL); }
