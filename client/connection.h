// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// The socket to the daemon: never blocks outside connection_pump, connects again by itself, and hands every answer to
// whoever asked. What the daemon sends is untrusted: it passes the validator before msgpack-c sees it.
#ifndef COLDKV_CLIENT_CONNECTION_H
#define COLDKV_CLIENT_CONNECTION_H

#include <sys/un.h>

#include "proto/rpc.h"
#include "proto/validator.h"

/* The answer to a request: its result, or NULL and the error (-ERR_UNREACHABLE when the connection was lost). `tag` is
 * what the request was sent with. Everything lives for the call only. A handler may send, but not pump. */
typedef void reply_fn(void *context, uint64_t tag, const msgpack_object *result, const struct error *error);

struct pending {
  uint32_t id;
  reply_fn *reply; /* NULL: nobody waits any more */
  void *context;
  uint64_t tag;
};

enum link_state {
  LINK_DOWN,
  LINK_GREETING, /* connected, hello not answered yet */
  LINK_UP,
};

struct connection {
  char path[sizeof(((struct sockaddr_un *)NULL)->sun_path)];
  enum link_state state;
  int fd;
  pid_t owner; /* process that made it; a fork of it has a copy that must not be used */
  uint64_t made;        /* greeted connections so far: handles of another number are void */
  uint64_t retry_at_ms; /* when it may be tried again */
  uint64_t greeting_ms; /* when hello was sent */
  uint32_t backoff_ms;
  uint32_t greet_timeout_ms;
  uint32_t spin_us; /* that a wait begins with, before it sleeps; 0 at first */
  struct error reason; /* why it is down */
  bool distrusted;     /* drop it when the handler returns */

  /* what the daemon's hello allows, within our own limits */
  uint64_t message_bytes_max, ahead_max, rows_max, k_max, append_tokens_max;

  msgpack_sbuffer out; /* bytes out_sent .. out.size wait for the socket */
  size_t out_sent;
  uint8_t *in; /* in_start: first byte of the message under way; in_checked: up to where it was validated */
  size_t in_start, in_checked, in_size, in_capacity;
  struct validator validator;

  struct pending pending[LIMIT_REQUESTS_PER_CONNECTION_MAX];
  uint32_t pending_count, next_id;
};

/* `path` is copied; -ERR_ARGUMENT when it does not fit a socket address. Does not connect. */
int connection_init(struct connection *connection, const char *path, uint32_t greet_timeout_ms, struct error *error);
void connection_finish(struct connection *connection);

/* While down: tries to connect if it is time to, or if `now`. Never waits. */
void connection_try(struct connection *connection, bool now);

/* Sends what is queued, then waits at most timeout_ms for the socket and hands out the answers that have come. Tries to
 * connect while down. */
void connection_pump(struct connection *connection, uint32_t timeout_ms);

/* Queues a request. -ERR_UNREACHABLE while the connection is not up, -ERR_LIMIT while too many are unanswered. */
int connection_send(struct connection *connection, enum method_id method, const void *params, reply_fn *reply,
                    void *context, uint64_t tag, struct error *error);

/* Nobody waits any more for the answers that this handler was to get for this context. */
void connection_forget(struct connection *connection, reply_fn *reply, const void *context);

/* For handlers: this answer makes no sense, so the connection is dropped when the handler returns. */
void connection_distrust(struct connection *connection, const struct error *error);

/* It did what it is there for, so that the next attempts to connect come soon after a loss. A daemon that greets and
 * then hangs up does not count. */
void connection_worked(struct connection *connection);

/* True in a fork of the process that made it. The copy is closed without a word to the daemon, and stays down. */
bool connection_forked(struct connection *connection);

/* Requests under way whose answer nobody waits for any more. */
uint32_t connection_abandoned(const struct connection *connection);

/* Bytes queued and not sent. */
size_t connection_queued(const struct connection *connection);

#endif
