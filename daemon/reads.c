// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
#include "daemon/reads.h"

#include "daemon/request.h"

/* A read of this cost or more takes milliseconds, and so much in a window is a part of a processor that others
 * notice. */
#define HEAVY_COST (UINT64_C(1) << 20)
#define MUCH_COST (UINT64_C(1) << 22)
#define WINDOW_MS 250u
/* A client that has been the only one for so long has all threads to itself. */
#define ALONE_MS 1000u
/* Reads with the threads, for each of them: one that it works on, one for when that is done. Heavy ones need not wait
 * there. */
#define READS_PER_THREAD 2u

void reads_init(struct server *server) { TAILQ_INIT(&server->reads.connections); }

void reads_init_queue(struct read_queue *queue) { queue->end = &queue->first; }

static bool is_heavy(struct server *server, struct connection *connection) {
  struct read_queue *queue = &connection->reads;
  uint64_t now_ms = uv_now(&server->loop);
  if (now_ms - server->reads.other_ms > ALONE_MS)
    return false;
  if (now_ms - queue->window_ms >= WINDOW_MS) {
    queue->window_ms = now_ms;
    queue->window_cost = 0;
  }
  return queue->first->cost >= HEAVY_COST || queue->window_cost >= MUCH_COST;
}

static bool may_give(struct server *server, bool heavy) {
  uint32_t threads = server->options->threads;
  return heavy ? server->reads.heavy_out < threads : server->reads.out < READS_PER_THREAD * threads;
}

static bool may_give_of(struct server *server, struct connection *connection) {
  bool heavy = is_heavy(server, connection);
  return may_give(server, heavy) && !(heavy && connection->reads.heavy_out);
}

/* The connection that was served least, of those whose first read may be given out. */
static struct connection *least_served(struct server *server) {
  struct connection *best = NULL, *connection;
  if (!may_give(server, false) && !may_give(server, true))
    return NULL;
  TAILQ_FOREACH(connection, &server->reads.connections, reads.entry)
    if ((!best || connection->reads.served < best->reads.served) && may_give_of(server, connection))
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
  bool heavy = is_heavy(server, connection);
  struct request *request = take_first(connection);
  server->reads.now = queue->served;
  queue->served += request->cost;
  queue->window_cost += request->cost;
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
  while ((connection = least_served(server)) != NULL)
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
    server->reads.last = connection;
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
  if (request->heavy) {
    server->reads.heavy_out--;
    request->connection->reads.heavy_out--;
  } else {
    server->reads.out--;
  }
  give_out(server);
}
