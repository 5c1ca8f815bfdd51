// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
#include "daemon/connection.h"

#include <stdlib.h>
#include <string.h>

#include "daemon/request.h"

#define READ_BYTES 65536
#define MESSAGE_BYTES_FIRST 1024

/* What a read hands over is looked at before the next read, so that all connections can share one buffer. */
static char read_buffer[READ_BYTES];

struct output {
  uv_write_t write;
  struct connection *connection;
  char *data;
};

struct connection *connection_create(struct server *server) {
  struct connection *connection = calloc(1, sizeof *connection);
  if (!connection)
    return NULL;
  connection->server = server;
  connection->waiting_end = &connection->waiting;
  connection->pipe.data = connection;
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
}

static void close_if_idle(struct connection *connection) {
  if (connection->ending && !connection->requests && !uv_stream_get_write_queue_size((uv_stream_t *)&connection->pipe))
    connection_close(connection);
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
  close_if_idle(connection);
}

/* Bytes came that can be no message: say why, and hang up. */
static void say_goodbye(struct connection *connection, const struct error *error) {
  atomic_fetch_add(&connection->server->counters.bad_messages, 1);
  msgpack_sbuffer buffer;
  msgpack_packer packer;
  msgpack_sbuffer_init(&buffer);
  msgpack_packer_init(&packer, &buffer, msgpack_sbuffer_write);
  if (rpc_pack_goodbye(&packer, error) == 0)
    connection_send(connection, &buffer);
  msgpack_sbuffer_destroy(&buffer);
  connection_end(connection);
}

/* --- reading ------------------------------------------------------------------------------------------------------ */

/* True when the client has to take answers before it may send more. */
static bool at_limit(const struct connection *connection) {
  return connection->requests >= LIMIT_REQUESTS_PER_CONNECTION_MAX ||
         connection->charged + uv_stream_get_write_queue_size((const uv_stream_t *)&connection->pipe) >=
             LIMIT_OUTPUT_BYTES_PER_CONNECTION_MAX;
}

static int keep_bytes(struct connection *connection, const uint8_t *data, size_t size, struct error *error) {
  size_t wanted = connection->message_size + size;
  if (wanted > connection->message_capacity) {
    size_t capacity = connection->message_capacity ? connection->message_capacity : MESSAGE_BYTES_FIRST;
    while (capacity < wanted)
      capacity *= 2;
    uint8_t *grown = realloc(connection->message, capacity);
    if (!grown)
      return error_set(error, ERR_MEMORY, "out of memory for a message of %zu bytes", wanted);
    connection->message = grown;
    connection->message_capacity = capacity;
  }
  memcpy(connection->message + connection->message_size, data, size);
  connection->message_size = wanted;
  return 0;
}

static int finish_message(struct connection *connection, struct error *error) {
  uint8_t *message = connection->message;
  size_t size = connection->message_size;
  connection->message = NULL;
  connection->message_size = connection->message_capacity = 0;
  validator_init(&connection->validator, &validator_limits_default);
  return request_start(connection, message, size, error);
}

/* Looks at bytes until they end, a limit is reached or the connection ends; returns how many it took. */
static size_t consume(struct connection *connection, const uint8_t *data, size_t size) {
  struct error error = {0};
  size_t at = 0;
  connection->consuming = true;
  while (at < size && !connection->ending && !at_limit(connection)) {
    size_t used;
    int result = validator_feed(&connection->validator, data + at, size - at, &used, &error);
    if (!result)
      result = keep_bytes(connection, data + at, used, &error);
    at += result ? 0 : used;
    if (!result && connection->validator.done)
      result = finish_message(connection, &error);
    if (result)
      say_goodbye(connection, &error);
  }
  connection->consuming = false;
  return at;
}

static void on_allocate(uv_handle_t *handle, size_t suggested, uv_buf_t *buffer) {
  (void)handle;
  (void)suggested;
  *buffer = uv_buf_init(read_buffer, sizeof read_buffer);
}

static void on_read(uv_stream_t *pipe, ssize_t size, const uv_buf_t *buffer) {
  struct connection *connection = pipe->data;
  if (size == UV_EOF) {
    connection_end(connection);
    return;
  }
  if (size < 0) {
    connection_close(connection);
    return;
  }
  size_t taken = consume(connection, (const uint8_t *)buffer->base, (size_t)size);
  if (connection->ending)
    return;
  if (at_limit(connection)) {
    uv_read_stop(pipe);
    connection->reading = false;
  }
  size_t left = (size_t)size - taken;
  if (!left)
    return;
  connection->stash = malloc(left);
  if (!connection->stash) {
    connection_close(connection);
    return;
  }
  memcpy(connection->stash, buffer->base + taken, left);
  connection->stash_size = left;
  connection->stash_at = 0;
}

/* Goes on where a limit stopped. */
static void resume(struct connection *connection) {
  if (connection->consuming || connection->ending || connection->reading)
    return;
  if (connection->stash) {
    connection->stash_at += consume(connection, connection->stash + connection->stash_at,
                                    connection->stash_size - connection->stash_at);
    if (connection->ending || connection->stash_at < connection->stash_size)
      return;
    free(connection->stash);
    connection->stash = NULL;
  }
  if (!at_limit(connection))
    connection_start(connection);
}

void connection_start(struct connection *connection) {
  connection->reading = uv_read_start((uv_stream_t *)&connection->pipe, on_allocate, on_read) == 0;
  if (!connection->reading)
    connection_close(connection);
}

/* --- writing ------------------------------------------------------------------------------------------------------ */

static void on_written(uv_write_t *write, int status) {
  struct output *output = write->data;
  struct connection *connection = output->connection;
  free(output->data);
  free(output);
  if (connection->closed)
    return;
  if (status < 0) {
    connection_close(connection);
    return;
  }
  close_if_idle(connection);
  if (!connection->closed)
    resume(connection);
}

void connection_send(struct connection *connection, msgpack_sbuffer *buffer) {
  if (connection->closed)
    return;
  size_t size = buffer->size;
  char *data = msgpack_sbuffer_release(buffer);
  uv_buf_t part = uv_buf_init(data, (unsigned)size);
  int sent = uv_try_write((uv_stream_t *)&connection->pipe, &part, 1);
  if (sent >= 0 && (size_t)sent == size) {
    free(data);
    return;
  }
  struct output *output = calloc(1, sizeof *output);
  if (!output || (sent < 0 && sent != UV_EAGAIN)) {
    free(output);
    free(data);
    connection_close(connection);
    return;
  }
  output->connection = connection;
  output->data = data;
  output->write.data = output;
  size_t skip = sent > 0 ? (size_t)sent : 0;
  part = uv_buf_init(data + skip, (unsigned)(size - skip));
  int status = uv_write(&output->write, (uv_stream_t *)&connection->pipe, &part, 1, on_written);
  if (status < 0) {
    free(data);
    free(output);
    connection_close(connection);
  }
}

/* --- handles and requests ----------------------------------------------------------------------------------------- */

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
  if (session->writer == connection)
    session->writer = NULL;
  session_drop(session);
}

void connection_request_done(struct connection *connection, uint64_t charge) {
  connection->requests--;
  connection->charged -= charge;
  if (connection->closed) {
    free_if_unused(connection);
    return;
  }
  close_if_idle(connection);
  if (!connection->closed)
    resume(connection);
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
