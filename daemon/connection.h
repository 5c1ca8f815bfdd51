// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// One client's socket: bytes to messages, messages to requests, answers to bytes. What a client can make the daemon
// hold is charged to its connection; past the limits nothing more is read from it until it has taken its answers. Loop
// only.
#ifndef COLDKV_DAEMON_CONNECTION_H
#define COLDKV_DAEMON_CONNECTION_H

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
  uv_pipe_t pipe;
  uint32_t uid;

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
  bool reading, consuming, ending, closed; /* ending: no more reading, close when all is answered and written */
};

/* Takes over an accepted pipe of the server; NULL when out of memory. */
struct connection *connection_create(struct server *server);
/* Begins to read. */
void connection_start(struct connection *connection);
/* Stops reading, lets answers go out, then closes. */
void connection_end(struct connection *connection);
/* Closes at once; requests under way finish without an answer. */
void connection_close(struct connection *connection);

/* Writes a packed message and takes over its memory. */
void connection_send(struct connection *connection, msgpack_sbuffer *buffer);

/* The open handle of that number, or NULL. */
struct handle *connection_handle(struct connection *connection, uint64_t number);
/* The handle of that session, or a free one (session NULL), or NULL when all are taken. */
struct handle *connection_handle_for(struct connection *connection, const struct session *session);
/* Gives up a handle, and the writer's lease with it. */
void connection_handle_close(struct connection *connection, struct handle *handle);

/* Called by a request that is through. */
void connection_request_done(struct connection *connection, uint64_t charge);
/* Called when an effect has happened: reads that waited for it go on. */
void connection_effect_done(struct connection *connection);

#endif
