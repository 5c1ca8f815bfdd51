// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
#include "client/connection.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#include "client/clock.h"
#include "client/tuning.h"

enum { READ_BYTES = 256 * 1024, READS_PER_PUMP_MAX = 256 };

int connection_init(struct connection *c, const char *path, uint32_t greet_timeout_ms, struct error *error) {
  memset(c, 0, sizeof *c);
  c->fd = -1;
  c->owner = getpid();
  c->greet_timeout_ms = greet_timeout_ms;
  msgpack_sbuffer_init(&c->out);
  if (strlen(path) >= sizeof c->path)
    return error_set(error, ERR_ARGUMENT, "socket path of %zu bytes is longer than a socket address holds (%zu): %s",
                     strlen(path), sizeof c->path - 1, path);
  memcpy(c->path, path, strlen(path) + 1);
  error_set(&c->reason, ERR_UNREACHABLE, "no daemon answers at %s", c->path);
  return 0;
}

/* A fork of this process may hold a copy of the socket: the daemon is told all the same, and frees what it held. */
static void close_socket(struct connection *c) {
  if (c->fd < 0)
    return;
  if (c->owner == getpid())
    shutdown(c->fd, SHUT_RDWR);
  close(c->fd);
  c->fd = -1;
}

/* Closes the socket and tells everybody who waits. */
static void drop(struct connection *c, uint32_t wait_ms_min) {
  struct pending pending[LIMIT_REQUESTS_PER_CONNECTION_MAX];
  uint32_t count = c->pending_count;
  memcpy(pending, c->pending, count * sizeof pending[0]);
  close_socket(c);
  c->state = LINK_DOWN;
  c->distrusted = false;
  c->pending_count = 0;
  msgpack_sbuffer_clear(&c->out);
  c->out_sent = c->in_start = c->in_checked = c->in_size = 0;
  c->retry_at_ms = clock_ms() + (c->backoff_ms > wait_ms_min ? c->backoff_ms : wait_ms_min);
  c->backoff_ms = c->backoff_ms ? c->backoff_ms * 2 : RECONNECT_MS_MIN;
  if (c->backoff_ms > RECONNECT_MS_MAX)
    c->backoff_ms = RECONNECT_MS_MAX;
  struct error lost;
  error_set(&lost, ERR_UNREACHABLE, "%s", c->reason.text);
  for (uint32_t i = 0; i < count; i++)
    if (pending[i].reply)
      pending[i].reply(pending[i].context, pending[i].tag, NULL, &lost);
}

void connection_finish(struct connection *c) {
  close_socket(c);
  msgpack_sbuffer_destroy(&c->out);
  free(c->in);
}

bool connection_forked(struct connection *c) {
  if (c->owner == getpid())
    return false;
  if (c->reason.code != ERR_STATE) {
    error_set(&c->reason, ERR_STATE,
              "this process was forked from the one that connected to the daemon at %s: make a client of its own",
              c->path);
    drop(c, 0);
  }
  return true;
}

void connection_worked(struct connection *c) { c->backoff_ms = 0; }

size_t connection_queued(const struct connection *c) { return c->out.size - c->out_sent; }

void connection_distrust(struct connection *c, const struct error *error) {
  error_set(&c->reason, ERR_BAD_MESSAGE, "the answer of the daemon at %s makes no sense: %s", c->path, error->text);
  c->distrusted = true;
}

void connection_forget(struct connection *c, reply_fn *reply, const void *context) {
  for (uint32_t i = 0; i < c->pending_count; i++)
    if (c->pending[i].reply == reply && c->pending[i].context == context)
      c->pending[i].reply = NULL;
}

/* --- sending ----------------------------------------------------------------------------------------------------- */

/* Gives up the bytes in front that were sent: a backlog that goes out in one stream would pile up otherwise. */
static void shift_output(struct connection *c) {
  if (c->out_sent <= c->out.size / 2)
    return;
  memmove(c->out.data, c->out.data + c->out_sent, connection_queued(c));
  c->out.size -= c->out_sent;
  c->out_sent = 0;
}

static bool id_pending(const struct connection *c, uint32_t id) {
  for (uint32_t i = 0; i < c->pending_count; i++)
    if (c->pending[i].id == id)
      return true;
  return false;
}

static int queue(struct connection *c, enum method_id method, const void *params, reply_fn *reply, void *context,
                 uint64_t tag, struct error *error) {
  if (c->pending_count == LIMIT_REQUESTS_PER_CONNECTION_MAX)
    return error_set(error, ERR_LIMIT, "%u requests wait for the daemon's answer already", c->pending_count);
  while (id_pending(c, c->next_id)) /* only after 2^32 requests, with one of the first unanswered */
    c->next_id++;
  shift_output(c);
  size_t before = c->out.size;
  msgpack_packer packer;
  msgpack_packer_init(&packer, &c->out, msgpack_sbuffer_write);
  uint32_t id = c->next_id++;
  if (rpc_pack_request(&packer, id, method, params)) {
    c->out.size = before; /* half a message must not be sent */
    return error_set(error, ERR_MEMORY, "out of memory for a request of %s", methods[method].name);
  }
  c->pending[c->pending_count++] = (struct pending){.id = id, .reply = reply, .context = context, .tag = tag};
  return 0;
}

int connection_send(struct connection *c, enum method_id method, const void *params, reply_fn *reply, void *context,
                    uint64_t tag, struct error *error) {
  if (connection_forked(c) || c->state != LINK_UP)
    return error_set(error, ERR_UNREACHABLE, "%s", c->reason.text);
  return queue(c, method, params, reply, context, tag, error);
}

/* Writes as much as the socket takes. */
static int flush(struct connection *c) {
  while (connection_queued(c)) {
    ssize_t sent = send(c->fd, c->out.data + c->out_sent, connection_queued(c), MSG_NOSIGNAL | MSG_DONTWAIT);
    if (sent < 0 && errno == EINTR)
      continue;
    if (sent < 0 && (errno == EAGAIN || errno == EWOULDBLOCK))
      return 0;
    if (sent < 0) {
      error_set(&c->reason, ERR_UNREACHABLE, "lost the daemon at %s: %s", c->path, strerror(errno));
      return -ERR_UNREACHABLE;
    }
    c->out_sent += (size_t)sent;
  }
  msgpack_sbuffer_clear(&c->out);
  c->out_sent = 0;
  return 0;
}

/* --- connecting -------------------------------------------------------------------------------------------------- */

static uint64_t at_most(uint64_t value, uint64_t limit) { return value < limit ? value : limit; }

static void greeted(void *context, uint64_t tag, const msgpack_object *result, const struct error *error) {
  (void)tag;
  struct connection *c = context;
  struct msg_hello_ok hello;
  struct error reason = {0};
  if (!result) {
    if (error->code != ERR_UNREACHABLE) { /* refused, not lost */
      connection_distrust(c, error);
      c->reason = *error;
    }
    return;
  }
  if (message_unpack(&message_hello_ok, result, &hello, &reason)) {
    connection_distrust(c, &reason);
    return;
  }
  if (hello.protocol != PROTOCOL_VERSION) {
    connection_distrust(c, &reason);
    error_set(&c->reason, ERR_VERSION,
              "the daemon at %s speaks protocol %llu, this library %u: install matching versions", c->path,
              (unsigned long long)hello.protocol, PROTOCOL_VERSION);
    return;
  }
  c->message_bytes_max = at_most(hello.message_bytes_max, LIMIT_MESSAGE_BYTES_MAX);
  c->append_tokens_max = at_most(hello.append_tokens_max, LIMIT_APPEND_TOKENS_MAX);
  c->ahead_max = at_most(hello.ahead_max, LIMIT_AHEAD_MAX);
  c->rows_max = at_most(hello.rows_max, LIMIT_ROWS_MAX);
  c->k_max = at_most(hello.k_max, LIMIT_K_MAX);
  if (c->message_bytes_max < FRAME_OVERHEAD_BYTES || !c->append_tokens_max || !c->rows_max || !c->k_max) {
    error_set(&reason, ERR_BAD_MESSAGE, "its hello allows nothing to be sent");
    connection_distrust(c, &reason);
    return;
  }
  c->state = LINK_UP;
  c->made++;
}

static int open_socket(struct connection *c) {
  struct sockaddr_un address = {.sun_family = AF_UNIX};
  memcpy(address.sun_path, c->path, sizeof address.sun_path);
  c->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  if (c->fd >= 0 && c->fd <= STDERR_FILENO) { /* the engine has closed these, and may print all the same */
    int low = c->fd;
    c->fd = fcntl(low, F_DUPFD_CLOEXEC, STDERR_FILENO + 1);
    close(low);
  }
  if (c->fd < 0)
    return error_set(&c->reason, ERR_UNREACHABLE, "no socket to reach the daemon with: %s", strerror(errno));
  /* on a Unix socket this is done at once, or fails with EAGAIN when the listener's queue is full */
  if (connect(c->fd, (struct sockaddr *)&address, sizeof address))
    return error_set(&c->reason, ERR_UNREACHABLE, "no daemon answers at %s (%s): start coldkvd, or set COLDKV_SOCKET",
                     c->path, strerror(errno));
  return 0;
}

void connection_try(struct connection *c, bool now) {
  if (connection_forked(c) || c->state != LINK_DOWN || (!now && clock_ms() < c->retry_at_ms))
    return;
  if (open_socket(c)) {
    drop(c, 0);
    return;
  }
  c->state = LINK_GREETING;
  c->greeting_ms = clock_ms();
  validator_init(&c->validator, &validator_limits_default);
  struct msg_hello hello = {.protocol = PROTOCOL_VERSION, .client = span_str("libcoldkv " COLDKV_VERSION_STRING)};
  if (queue(c, METHOD_HELLO, &hello, greeted, c, 0, &c->reason) || flush(c))
    drop(c, 0);
}

/* --- receiving --------------------------------------------------------------------------------------------------- */

static int answer(struct connection *c, const struct rpc *rpc, struct error *error) {
  uint32_t i = 0;
  while (i < c->pending_count && c->pending[i].id != rpc->id)
    i++;
  if (i == c->pending_count)
    return error_set(error, ERR_BAD_MESSAGE, "it answers request %u, which was not asked", rpc->id);
  struct pending pending = c->pending[i];
  c->pending[i] = c->pending[--c->pending_count];
  if (!pending.reply)
    return 0; /* too late */
  if (rpc->body) {
    pending.reply(pending.context, pending.tag, rpc->body, NULL);
    return 0;
  }
  struct error fault = {0};
  rpc_fault(rpc->fault, &fault);
  if (fault.code == ERR_UNREACHABLE) /* ours alone: means "connection lost" to handlers */
    fault.code = ERR_INTERNAL;
  pending.reply(pending.context, pending.tag, NULL, &fault);
  return 0;
}

/* One whole message. */
static int dispatch(struct connection *c, const uint8_t *data, size_t size, struct error *error) {
  msgpack_zone zone;
  if (!msgpack_zone_init(&zone, MSGPACK_ZONE_CHUNK_SIZE))
    return error_set(error, ERR_MEMORY, "out of memory for an answer");
  msgpack_object root;
  struct rpc rpc;
  int result = rpc_parse(data, size, &zone, &root, &rpc, error);
  if (!result && rpc.kind == RPC_RESPONSE)
    result = answer(c, &rpc, error);
  else if (!result && rpc.kind == RPC_REQUEST)
    result = error_set(error, ERR_BAD_MESSAGE, "it sent a request");
  else if (!result && rpc.method.size == 5 && memcmp(rpc.method.data, "error", 5) == 0) {
    struct error goodbye = {0};
    rpc_fault(rpc.body, &goodbye);
    error_set(&c->reason, ERR_UNREACHABLE, "the daemon at %s closed the connection: %s", c->path, goodbye.text);
    c->distrusted = true;
  }
  msgpack_zone_destroy(&zone);
  return result;
}

static bool unread(const struct connection *c) { return c->in_checked < c->in_size; }

/* Hands out the messages that are complete. A daemon that sends without end does not hold the caller: what is left then
 * waits for the next turn. */
static int take_messages(struct connection *c, uint64_t until_ms) {
  struct error error = {0};
  uint32_t taken = 0;
  while (unread(c) && (++taken % 64 || clock_ms() < until_ms)) {
    size_t used = 0;
    int result = validator_feed(&c->validator, c->in + c->in_checked, c->in_size - c->in_checked, &used, &error);
    c->in_checked += used;
    if (!result && !c->validator.done)
      break;
    if (!result) {
      result = dispatch(c, c->in + c->in_start, c->in_checked - c->in_start, &error);
      c->in_start = c->in_checked;
      validator_init(&c->validator, &validator_limits_default);
    }
    if (result)
      connection_distrust(c, &error);
    if (c->distrusted)
      return -ERR_BAD_MESSAGE;
  }
  memmove(c->in, c->in + c->in_start, c->in_size - c->in_start);
  c->in_size -= c->in_start;
  c->in_checked -= c->in_start;
  c->in_start = 0;
  return 0;
}

/* Room for READ_BYTES more; the buffer grows with what really arrives, not with what is announced. */
static int reserve(struct connection *c) {
  if (c->in_capacity - c->in_size >= READ_BYTES)
    return 0;
  size_t capacity = c->in_capacity ? 2 * c->in_capacity : 2 * READ_BYTES;
  uint8_t *in = realloc(c->in, capacity);
  if (!in)
    return error_set(&c->reason, ERR_UNREACHABLE, "out of memory for an answer of the daemon at %s", c->path);
  c->in = in;
  c->in_capacity = capacity;
  return 0;
}

static int receive(struct connection *c) {
  uint64_t until = clock_ms() + READ_MS_MAX;
  int result = unread(c) ? take_messages(c, until) : 0;
  if (result || unread(c))
    return result;
  for (uint32_t i = 0; i < READS_PER_PUMP_MAX; i++) {
    if (reserve(c))
      return -ERR_UNREACHABLE;
    ssize_t got = recv(c->fd, c->in + c->in_size, READ_BYTES, MSG_DONTWAIT);
    if (got < 0 && errno == EINTR)
      continue;
    if (got < 0 && (errno == EAGAIN || errno == EWOULDBLOCK))
      return 0;
    if (got <= 0)
      return error_set(&c->reason, ERR_UNREACHABLE, "lost the daemon at %s: %s", c->path,
                       got ? strerror(errno) : "it closed the connection");
    c->in_size += (size_t)got;
    result = take_messages(c, until);
    if (result || unread(c) || clock_ms() >= until)
      return result;
  }
  return 0;
}

uint32_t connection_abandoned(const struct connection *c) {
  uint32_t abandoned = 0;
  for (uint32_t i = 0; i < c->pending_count; i++)
    abandoned += c->pending[i].reply == NULL;
  return abandoned;
}

/* A daemon that leaves many requests without an answer will leave all: their places are needed. */
static int check_abandoned(struct connection *c) {
  uint32_t abandoned = connection_abandoned(c);
  if (abandoned <= ABANDONED_REQUESTS_MAX)
    return 0;
  return error_set(&c->reason, ERR_UNREACHABLE, "the daemon at %s has left %u requests unanswered", c->path, abandoned);
}

/* Waits for the socket, first without sleeping, all in all as long as asked for. */
static int wait_ready(const struct connection *c, struct pollfd *wanted, uint32_t timeout_ms) {
  uint64_t left_us = (uint64_t)timeout_ms * 1000, awake_us = at_most(c->spin_us, left_us);
  if (awake_us) {
    uint64_t began_us = clock_us(), waited_us = 0;
    int ready = 0;
    while ((ready = poll(wanted, 1, 0)) == 0 && waited_us < awake_us)
      waited_us = clock_us() - began_us;
    left_us -= at_most(waited_us, left_us);
    if (ready || !left_us)
      return ready;
  }
  return poll(wanted, 1, (int)at_most((left_us + 999) / 1000, INT32_MAX));
}

void connection_pump(struct connection *c, uint32_t timeout_ms) {
  connection_try(c, false);
  if (c->state == LINK_DOWN) {
    uint64_t now = clock_ms(), wait = c->retry_at_ms > now ? c->retry_at_ms - now : 0;
    if (timeout_ms)
      poll(NULL, 0, (int)at_most(wait, timeout_ms));
    return;
  }
  if (flush(c)) {
    receive(c); /* what it said before it closed may tell why */
    drop(c, 0);
    return;
  }
  struct pollfd wanted = {.fd = c->fd, .events = POLLIN};
  if (connection_queued(c))
    wanted.events |= POLLOUT;
  int ready = wait_ready(c, &wanted, unread(c) ? 0 : timeout_ms);
  int result = ready > 0 ? flush(c) : 0;
  if ((ready > 0 || unread(c)) && !result)
    result = receive(c);
  if (!result && c->state == LINK_GREETING && clock_ms() - c->greeting_ms > c->greet_timeout_ms)
    result = error_set(&c->reason, ERR_UNREACHABLE, "the daemon at %s took the connection but does not answer",
                       c->path);
  if (!result)
    result = check_abandoned(c);
  if (result)
    drop(c, result == -ERR_BAD_MESSAGE ? RECONNECT_MS_DISTRUST : 0);
}
