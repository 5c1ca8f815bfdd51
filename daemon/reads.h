// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// Whose lookup is next, and on which threads. Threads are given little more than they work on; what else there is waits
// at its connection, and the connection that has used least lately goes first (decay usage scheduling: Hellerstein,
// 1993). While several clients are active, lookups that take long, and those of a client that has asked for much
// lately, are for threads of their own, which have what processor time the others leave, one of a connection at a time.
// So a client that sends many or large lookups waits for its own, not others for it, and keeps the loop no busier than
// one that waits for each answer. Loop only.
#ifndef COLDKV_DAEMON_READS_H
#define COLDKV_DAEMON_READS_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/queue.h>

struct connection;
struct request;
struct server;

/* Part of a connection. */
struct read_queue {
  struct request *first, **end;
  double used;        /* cost of what was given out, of older ones less, as of used_ms */
  uint64_t used_ms;
  uint32_t waiting;   /* reads in it */
  uint32_t heavy_out; /* with the threads for heavy ones */
  bool queued;
  TAILQ_ENTRY(connection) entry;
};

/* Part of the server. */
struct read_schedule {
  TAILQ_HEAD(read_connections, connection) connections; /* that have reads waiting; who was served last is last */
  uint32_t out, heavy_out;       /* with the threads; the heavy ones are with those of their own */
  const struct connection *last; /* that a read came from; NULL once it is closed */
  uint64_t last_ms, other_ms;    /* when one came from it, and last from another; 0: never */
};

void reads_init(struct server *server);
void reads_init_queue(struct read_queue *queue);

/* True when enough of a connection's reads wait: what it sends next is better left in the socket, since the loop would
 * have less time for others meanwhile. */
bool reads_enough(const struct read_queue *queue);
/* Takes a read whose turn in its own connection has come; request->cost tells how much work it is. */
void reads_put(struct request *request);
/* The connection is closed: reads that wait are not worth doing any more. */
void reads_drop(struct connection *connection);
/* A read is back from the threads. */
void reads_done(struct request *request);

#endif
