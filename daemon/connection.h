// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// One client's socket: bytes to messages, messages to requests, answers to bytes. What a client can make the daemon
// hold is charged to its connection and its user (budget.h); past the limits nothing more is read from it until it has
// taken its answers. Loop only.
#ifndef COLDKV_DAEMON_CONNECTION_H
#define COLDKV_DAEMON_CONNECTION_H

#include "daemon/budget.h"
#include "daemon/server.h"
#include "proto/validator.h"

struct request;

struct handle {
  struct session *session; /* NULL: free */
  uint64_t number;
  bool write;
};

struct connection {
  struct connection *next, **link;
  struct server *server;
  struct user *user;
  uv_pipe_t pipe;

  struct validator validator;
  uint8_t *message; /* bytes of the unfinished message */
  size_t message_size, message_capacity;
  uint8_t *stash; /* read from the socket, not yet looked at: kept while at a limit */
  size_t stash_size, stash_at;

  struct handle handles[LIMIT_HANDLES_PER_CONNECTION_MAX];
  uint64_t next_handle;

  uint32_t requests;         /* under way */
  uint64_t charged;          /* bytes that these hold or will answer */
  uint64_t effects_sent, effects_done; /* they happen in the order sent */
  struct request *waiting, **waiting_end; /* reads that were sent after effects which have not happened yet */
  struct request *held; /* until there is room for its answer; nothing behind it is looked at */
  struct read_queue reads; /* that wait for a lookup thread */

  bool large, want_large, in_line; /* budget.h */
  TAILQ_ENTRY(connection) line;

  uint64_t message_ms;  /* that the daemon has been reading the unfinished message, or waiting for the first one */
  uint32_t outputs;     /* answers that the socket has not taken yet */
  uint64_t output_ms;   /* when the first of these became the first */
  bool greeted;         /* has sent a whole message */
  bool verifying;       /* was told of a check that runs, and not yet how it ended */
  bool reading, consuming, ending, closed; /* ending: no more reading, close when all is answered and written */
};

/* A connection of that user, to be opened on an accepted socket; NULL when out of memory. */
struct connection *connection_create(struct server *server, struct user *user);
/* Begins to read. */
void connection_start(struct connection *connection);
/* Stops reading, lets answers go out, then closes. */
void connection_end(struct connection *connection);
/* Closes at once; requests under way finish without an answer. */
void connection_close(struct connection *connection);
/* Tells why, then ends. */
void connection_dismiss(struct connection *connection, const struct error *error);
/* Hangs up if the client has kept the daemon waiting for too long; called every `tick_ms`. */
void connection_check_time(struct connection *connection, uint64_t tick_ms);

/* True when one more request of the client's may be looked at, as far as their number goes. */
static inline bool connection_may_ask(const struct connection *connection) {
  return !connection->held && connection->requests < LIMIT_REQUESTS_PER_CONNECTION_MAX &&
         !reads_enough(&connection->reads);
}

/* Goes on where a limit stopped, and whether that would help. */
void connection_resume(struct connection *connection);
bool connection_may_go_on(const struct connection *connection);

/* Writes a packed message and takes over its memory. */
void connection_send(struct connection *connection, msgpack_sbuffer *buffer);

/* The open handle of that number, or NULL. */
struct handle *connection_handle(struct connection *connection, uint64_t number);
/* The handle of that session, or a free one (session NULL), or NULL when all are taken. */
struct handle *connection_handle_for(struct connection *connection, const struct session *session);
/* Gives up a handle, and the writer's lease with it. */
void connection_handle_close(struct connection *connection, struct handle *handle);

/* Called by a request that begins, and that is through. */
void connection_request_begun(struct connection *connection, uint64_t charge);
void connection_request_done(struct connection *connection, uint64_t charge);
/* Keeps a request until `answer_bytes` more may be held, then calls its `admitted`; at once if that is now. */
void connection_admit(struct connection *connection, struct request *request);
/* Called when an effect has happened: reads that waited for it go on. */
void connection_effect_done(struct connection *connection);

/* --- connection_io.c ---------------------------------------------------------------------------------------------- */

/* Closes when it is ending and nothing is left to do. */
void connection_close_if_idle(struct connection *connection);
/* Reads and looks at messages until the next limit. */
void connection_read_on(struct connection *connection);

#endif
