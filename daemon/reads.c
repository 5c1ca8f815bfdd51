// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
#include "daemon/reads.h"

#include <math.h>

#include "daemon/request.h"

/* A read of this cost or more takes milliseconds. */
#define HEAVY_COST (UINT64_C(1) << 20)
/* What a connection has used counts half after so long, and so much is a part of a processor that others notice. */
#define HALF_MS 100.0
#define MUCH_COST ((double)(1 << 21))
/* A client has all threads to itself when no other has asked for so long. */
#define ALONE_MS 1000u
/* Reads of a connection that wait here. */
#define WAITING_MAX 4u
/* Reads with the threads, for each of them: one that it works on, one for when that is done. Heavy ones need not wait
 * there. */
#define READS_PER_THREAD 2u

void reads_init(struct server *server) { TAILQ_INIT(&server->reads.connections); }

void reads_init_queue(struct read_queue *queue) { queue->end = &queue->first; }

bool reads_enough(const struct read_queue *queue) { return queue->waiting >= WAITING_MAX; }

/* What the connection has used lately, as of now. */
static double used(struct server *server, struct read_queue *queue) {
  uint64_t now_ms = uv_now(&server->loop);
  if (now_ms != queue->used_ms)
    queue->used *= exp2(-(double)(now_ms - queue->used_ms) / HALF_MS);
  queue->used_ms = now_ms;
  return queue->used;
}

static bool is_heavy(struct server *server, struct read_queue *queue) {
  uint64_t other_ms = server->reads.other_ms;
  if (!other_ms || uv_now(&server->loop) - other_ms > ALONE_MS)
    return false;
  return queue->first->cost >= HEAVY_COST || used(server, queue) >= MUCH_COST;
}

static bool may_give(struct server *server, bool heavy) {
  uint32_t threads = server->options->threads;
  return heavy ? server->reads.heavy_out < threads : server->reads.out < READS_PER_THREAD * threads;
}

static bool may_give_of(struct server *server, struct read_queue *queue) {
  bool heavy = is_heavy(server, queue);
  return may_give(server, heavy) && !(heavy && queue->heavy_out);
}

/* The connection that has used least, of those whose first read may be given out. */
static struct connection *least_used(struct server *server) {
  struct connection *best = NULL, *connection;
  if (!may_give(server, false) && !may_give(server, true))
    return NULL;
  TAILQ_FOREACH(connection, &server->reads.connections, reads.entry)
    if ((!best || used(server, &connection->reads) < best->reads.used) && may_give_of(server, &connection->reads))
      best = connection;
  return best;
}

static struct request *take_first(struct connection *connection) {
  struct read_queue *queue = &connection->reads;
  struct request *request = queue->first;
  struct read_schedule *reads = &connection->server->reads;
  queue->first = request->next;
  queue->waiting--;
  TAILQ_REMOVE(&reads->connections, connection, reads.entry);
  queue->queued = queue->first;
  if (queue->queued)
    TAILQ_INSERT_TAIL(&reads->connections, connection, reads.entry);
  else
    queue->end = &queue->first;
  return request;
}

static void give(struct server *server, struct connection *connection) {
  struct read_queue *queue = &connection->reads;
  bool heavy = is_heavy(server, queue);
  struct request *request = take_first(connection);
  queue->used = used(server, queue) + (double)request->cost;
  request->heavy = heavy;
  if (heavy) {
    server->reads.heavy_out++;
    queue->heavy_out++;
  } else {
    server->reads.out++;
  }
  request_lookup(request);
}

static void give_out(struct server *server) {
  struct connection *connection;
  while ((connection = least_used(server)) != NULL)
    give(server, connection);
}

/* Nobody waits for the answer any more. */
static void drop(struct request *request) {
  error_set(&request->error, ERR_SHUTTING_DOWN, "the connection is closed");
  request_finish(request);
}

void reads_drop(struct connection *connection) {
  if (connection->server->reads.last == connection)
    connection->server->reads.last = NULL;
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
  if (server->reads.last && server->reads.last != connection)
    server->reads.other_ms = server->reads.last_ms;
  server->reads.last = connection;
  server->reads.last_ms = uv_now(&server->loop);
  request->next = NULL;
  *queue->end = request;
  queue->end = &request->next;
  queue->waiting++;
  if (!queue->queued) {
    queue->queued = true;
    TAILQ_INSERT_TAIL(&server->reads.connections, connection, reads.entry);
  }
  give_out(server);
}

void reads_done(struct request *request) {
  struct server *server = request->server;
  if (request->heavy) {
    server->reads.heavy_out--;
    request->connection->reads.heavy_out--;
  } else {
    server->reads.out--;
  }
  give_out(server);
}
