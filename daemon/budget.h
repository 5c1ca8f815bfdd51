// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// What clients may make the daemon hold, and who goes on when. Loop only.
//
// Every byte of a message that is not complete, of a request under way, of the answer it will get and of answers that
// are not taken yet is held by its connection. Each connection may hold its share at any time; at most
// LIMIT_LARGE_PER_USER_MAX connections of a user may hold more, up to LIMIT_OUTPUT_BYTES_PER_CONNECTION_MAX. Who would
// pass that is not read from until there is room, and waits in line for it; so a user never holds more than
// user-queue-mb, and nobody who takes little waits for somebody who takes much.
#ifndef COLDKV_DAEMON_BUDGET_H
#define COLDKV_DAEMON_BUDGET_H

#include <stdbool.h>
#include <stdint.h>

struct connection;
struct server;

struct user {
  struct user *next;
  uint32_t uid;
  uint32_t connections;
  uint32_t conversations; /* open handles */
  uint32_t requests;      /* under way */
  uint32_t large;         /* connections that may hold more than their share */
  uint32_t want_large;    /* connections that wait to be one of these */
  uint64_t connections_total, requests_total, errors;
};

/* The user with that id, made if need be; it lives while it has connections. NULL when out of memory. */
struct user *user_of(struct server *server, uint32_t uid);
/* Frees the user if it has no connection. */
void user_release(struct server *server, struct user *user);

/* Bytes that the connection holds now. */
uint64_t budget_bytes(const struct connection *connection);

/* True when `more` bytes may come on top. `begun`: they belong to a message or an answer that has begun. An answer that
 * alone is more than a connection may hold is allowed when it is all that the connection holds. */
bool budget_allows(const struct connection *connection, uint64_t more, bool begun);
/* The same, and then makes the connection one of those that hold much, if that takes it; otherwise notes that it wants
 * to be one. */
bool budget_take(struct connection *connection, uint64_t more, bool begun);

/* Puts the connection in line: connection_resume is called when something has become free. */
void budget_wait(struct connection *connection);
/* Something has become free; `connection` may have gone below its share. */
void budget_freed(struct connection *connection);
/* The connection ends: it gives up what it has, and its place in line. */
void budget_leave(struct connection *connection);

void budget_init(struct server *server);
void budget_finish(struct server *server);

#endif
