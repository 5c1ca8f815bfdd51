// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
#include "daemon/reads.h"

#include "daemon/request.h"

/* A read of this cost or more takes a thread for long (ten milliseconds and more). */
#define HEAVY_COST (UINT64_C(1) << 22)
/* A client that has been the only one for so long may have all threads for one lookup. */
#define ALONE_MS 1000u
/* Reads with the threads, for each of them: one that it works on, one for when that is done. */
#define READS_PER_THREAD 2u

void reads_init(struct server *server) { TAILQ_INIT(&server->reads.connections); }

void reads_init_queue(struct read_queue *queue) { queue->end = &queue->first; }

/* One thread is kept free of heavy reads, so that a light one never waits for all threads to come to the end of theirs.
 * A heavy one that is alone gets the help of that thread, too (request->alone). */
static bool may_give(const struct server *server, const struct request *request) {
  return request->cost < HEAVY_COST || server->options->threads < 2 ||
         server->reads.heavy_out < server->options->threads - 1;
}

/* The connection that was served least, of those whose first read may be given out. */
static struct connection *least_served(struct server *server) {
  struct connection *best = NULL, *connection;
  TAILQ_FOREACH(connection, &server->reads.connections, reads.entry)
    if (may_give(server, connection->reads.first) && (!best || connection->reads.served < best->reads.served))
      best = connection;
  return best;
}

static struct request *take_first(struct connection *connection) {
  struct read_queue *queue = &connection->reads;
  struct request *request = queue->first;
  queue->first = request->next;
  if (!queue->first) {
    queue->end = &queue->first;
    queue->queued = false;
    TAILQ_REMOVE(&connection->server->reads.connections, connection, reads.entry);
  }
  return request;
}

static void give(struct server *server, struct connection *connection) {
  struct read_queue *queue = &connection->reads;
  struct request *request = take_first(connection);
  server->reads.now = queue->served;
  queue->served += request->cost;
  request->alone = request->cost < HEAVY_COST || uv_now(&server->loop) - server->reads.other_ms > ALONE_MS;
  server->reads.out++;
  server->reads.heavy_out += request->cost >= HEAVY_COST;
  request_lookup(request);
}

static void give_out(struct server *server) {
  const uint32_t most = READS_PER_THREAD * server->options->threads;
  struct connection *connection;
  while (server->reads.out < most && (connection = least_served(server)) != NULL)
    give(server, connection);
}

/* Nobody waits for the answer any more. */
static void drop(struct request *request) {
  error_set(&request->error, ERR_SHUTTING_DOWN, "the connection is closed");
  request_finish(request);
}

void reads_drop(struct connection *connection) {
  while (connection->reads.first)
    drop(take_first(connection));
}

void reads_put(struct request *request) {
  struct server *server = request->server;
  struct connection *connection = request->connection;
  struct read_queue *queue = &connection->reads;
  if (connection->closed) {
    drop(request);
    return;
  }
  if (server->reads.last != connection) {
    server->reads.last = connection; /* only ever compared */
    server->reads.other_ms = uv_now(&server->loop);
  }
  request->next = NULL;
  *queue->end = request;
  queue->end = &request->next;
  if (!queue->queued) {
    queue->queued = true;
    if (queue->served < server->reads.now) /* who was idle has saved nothing up */
      queue->served = server->reads.now;
    TAILQ_INSERT_TAIL(&server->reads.connections, connection, reads.entry);
  }
  give_out(server);
}

void reads_done(struct request *request) {
  struct server *server = request->server;
  server->reads.out--;
  server->reads.heavy_out -= request->cost >= HEAVY_COST;
  give_out(server);
}
