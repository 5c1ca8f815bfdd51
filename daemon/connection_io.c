// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// A connection's bytes: reading and writing, when neither goes on, and for how long.
#include <stdlib.h>
#include <string.h>

#include "daemon/log.h"
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

void connection_close_if_idle(struct connection *connection) {
  if (connection->ending && !connection->requests && !uv_stream_get_write_queue_size((uv_stream_t *)&connection->pipe))
    connection_close(connection);
}

void connection_dismiss(struct connection *connection, const struct error *error) {
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

/* True when the client may go on sending; false when it, or its user, has to take answers first. */
static bool may_read(struct connection *connection) {
  return connection_may_ask(connection) && budget_take(connection, 1, connection->message_size > 0);
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
  uint32_t elements = connection->validator.elements;
  connection->message = NULL;
  connection->message_size = connection->message_capacity = 0;
  connection->message_ms = 0;
  connection->greeted = true;
  validator_init(&connection->validator, &validator_limits_default);
  return request_start(connection, message, size, elements, error);
}

/* Looks at bytes until they end, a limit is reached or the connection ends; returns how many it took. */
static size_t consume(struct connection *connection, const uint8_t *data, size_t size) {
  struct error error = {0};
  size_t at = 0;
  connection->consuming = true;
  while (at < size && !connection->ending && may_read(connection)) {
    size_t used;
    int result = validator_feed(&connection->validator, data + at, size - at, &used, &error);
    if (!result)
      result = keep_bytes(connection, data + at, used, &error);
    at += result ? 0 : used;
    if (!result && connection->validator.done)
      result = finish_message(connection, &error);
    if (result) { /* bytes that can be no message */
      atomic_fetch_add(&connection->server->counters.bad_messages, 1);
      connection_dismiss(connection, &error);
    }
  }
  connection->consuming = false;
  return at;
}

static void on_allocate(uv_handle_t *handle, size_t suggested, uv_buf_t *buffer) {
  (void)handle;
  (void)suggested;
  *buffer = uv_buf_init(read_buffer, sizeof read_buffer);
}

/* Keeps what was read and may not be looked at yet; false when it had to hang up. */
static bool keep_rest(struct connection *connection, const char *data, size_t size) {
  connection->stash = malloc(size);
  if (!connection->stash) {
    connection_close(connection);
    return false;
  }
  memcpy(connection->stash, data, size);
  connection->stash_size = size;
  connection->stash_at = 0;
  return true;
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
  size_t left = (size_t)size - taken;
  if (!left && may_read(connection))
    return;
  uv_read_stop(pipe);
  connection->reading = false;
  if (!left || keep_rest(connection, buffer->base + taken, left))
    budget_wait(connection);
}

void connection_read_on(struct connection *connection) {
  if (connection->ending || connection->reading)
    return;
  if (connection->stash) {
    connection->stash_at += consume(connection, connection->stash + connection->stash_at,
                                    connection->stash_size - connection->stash_at);
    if (connection->ending)
      return;
    if (connection->stash_at < connection->stash_size) {
      budget_wait(connection);
      return;
    }
    free(connection->stash);
    connection->stash = NULL;
  }
  if (may_read(connection))
    connection_start(connection);
  else
    budget_wait(connection);
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
  connection->outputs--;
  connection->output_ms = uv_now(&connection->server->loop);
  if (status < 0) {
    connection_close(connection);
    return;
  }
  budget_freed(connection);
  connection_close_if_idle(connection);
  if (!connection->closed)
    connection_resume(connection);
}

static void queue_output(struct connection *connection, char *data, size_t skip, size_t size) {
  struct output *output = calloc(1, sizeof *output);
  if (!output) {
    free(data);
    connection_close(connection);
    return;
  }
  output->connection = connection;
  output->data = data;
  output->write.data = output;
  uv_buf_t part = uv_buf_init(data + skip, (unsigned)(size - skip));
  if (uv_write(&output->write, (uv_stream_t *)&connection->pipe, &part, 1, on_written) < 0) {
    free(data);
    free(output);
    connection_close(connection);
    return;
  }
  if (!connection->outputs++)
    connection->output_ms = uv_now(&connection->server->loop);
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
  } else if (sent < 0 && sent != UV_EAGAIN) {
    free(data);
    connection_close(connection);
  } else {
    queue_output(connection, data, sent > 0 ? (size_t)sent : 0, size);
  }
}

/* --- time --------------------------------------------------------------------------------------------------------- */

void connection_check_time(struct connection *connection, uint64_t tick_ms) {
  struct server *server = connection->server;
  uint64_t timeout_s = server->options->client_timeout_s, limit_ms = timeout_s * 1000;
  struct error error = {0};
  if (!timeout_s || connection->closed)
    return;
  if (connection->reading && (connection->message_size || !connection->greeted))
    connection->message_ms += tick_ms; /* while the daemon itself does not read, the client's time stands still */
  bool slow_writer = connection->message_ms > limit_ms;
  bool slow_reader = connection->outputs && uv_now(&server->loop) - connection->output_ms > limit_ms;
  if (!slow_writer && !slow_reader)
    return;
  atomic_fetch_add(&server->counters.timed_out, 1);
  if (log_may(&server->timeout_log, uv_now(&server->loop)))
    log_line("user %u %s within %llu s: hung up", connection->user->uid,
             slow_reader ? "did not take an answer" : "sent no whole message", (unsigned long long)timeout_s);
  if (slow_reader) {
    connection_close(connection);
    return;
  }
  error_set(&error, ERR_LIMIT, "no whole message within %llu s", (unsigned long long)timeout_s);
  connection_dismiss(connection, &error);
}
