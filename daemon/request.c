// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
#include "daemon/request.h"

#include <stdlib.h>
#include <string.h>

/* An answer that a request will make is charged before it exists; this much for those of a few fields. */
#define ANSWER_BYTES_SMALL 1024u
#define ZONE_BYTES 4096
/* What msgpack makes of one element: a pair of a map is two objects. */
#define ELEMENT_BYTES sizeof(msgpack_object)

static void request_free(struct request *request) {
  if (request->view)
    view_release(request->view);
  if (request->session) {
    request->session->requests--;
    session_drop(request->session);
  }
  msgpack_sbuffer_destroy(&request->reply);
  msgpack_zone_destroy(&request->zone);
  free(request->bytes);
  free(request);
}

static struct request *request_create(struct connection *connection, uint8_t *bytes, size_t size, uint32_t elements,
                                      struct error *error) {
  struct request *request = calloc(1, sizeof *request);
  if (!request || !msgpack_zone_init(&request->zone, ZONE_BYTES)) {
    free(request);
    free(bytes);
    error_set(error, ERR_MEMORY, "out of memory for a request");
    return NULL;
  }
  request->server = connection->server;
  request->connection = connection;
  request->bytes = bytes;
  request->charge = size + elements * ELEMENT_BYTES + sizeof *request + ZONE_BYTES + ANSWER_BYTES_SMALL;
  msgpack_sbuffer_init(&request->reply);
  msgpack_packer_init(&request->packer, &request->reply, msgpack_sbuffer_write);
  return request;
}

/* Finds the method and reads its parameters; the request's error tells what is wrong with them. */
static int read_params(struct request *request) {
  struct error *error = &request->error;
  request->method = method_find(request->rpc.method);
  if (request->method == METHOD_COUNT)
    return error_set(error, ERR_UNKNOWN_METHOD, "there is no method '%.*s'",
                     request->rpc.method.size > 64 ? 64 : (int)request->rpc.method.size,
                     (const char *)request->rpc.method.data);
  const struct method *method = &methods[request->method];
  if (!method->params)
    return error_set(error, ERR_NOT_SUPPORTED, "%s: this version does not support it", method->name);
  return message_unpack(method->params, request->rpc.body, &request->params, error);
}

int request_start(struct connection *connection, uint8_t *bytes, size_t size, uint32_t elements, struct error *error) {
  struct request *request = request_create(connection, bytes, size, elements, error);
  if (!request)
    return -ERR_MEMORY;
  int result = rpc_parse(bytes, size, &request->zone, &request->root, &request->rpc, error);
  if (!result && request->rpc.kind == RPC_RESPONSE)
    result = error_set(error, ERR_BAD_MESSAGE, "clients send requests, not responses");
  if (result || request->rpc.kind == RPC_NOTIFICATION) { /* no notification means anything yet */
    request_free(request);
    return result;
  }
  connection_request_begun(connection, request->charge);
  atomic_fetch_add(&connection->server->counters.requests, 1);
  server_stay_awake(connection->server);
  if (read_params(request))
    request_finish(request);
  else
    method_dispatch(request);
  return 0;
}

void request_finish(struct request *request) {
  struct connection *connection = request->connection;
  if (!request->error.code && !request->reply.size)
    error_set(&request->error, ERR_INTERNAL, "no answer was made");
  if (request->error.code) {
    atomic_fetch_add(&request->server->counters.errors, 1);
    connection->user->errors++;
    request->reply.size = 0;
    if (rpc_pack_error(&request->packer, request->rpc.id, &request->error))
      request->reply.size = 0;
  }
  request_effect_done(request);
  server_stay_awake(request->server);
  if (request->reply.size)
    connection_send(connection, &request->reply);
  else
    connection_close(connection); /* not even an error fits in memory: rather hang up than never answer */
  uint64_t charge = request->charge;
  request_free(request);
  connection_request_done(connection, charge);
}

void request_effect_done(struct request *request) {
  if (!request->effect)
    return;
  request->effect = false;
  connection_effect_done(request->connection);
}

void request_commit(struct request *request, void (*run)(struct job *, void *), void (*done)(struct job *)) {
  request->job = (struct job){.run = run, .done = done};
  server_commit(request->server, &request->job);
}

static void done_lookup(struct job *job) {
  struct request *request = request_of(job);
  struct server *server = request->server;
  reads_done(request);
  request_finish(request);
  server_job_returned(server);
}

void request_lookup(struct request *request) {
  request->job = (struct job){.run = request->method == METHOD_LOOKUP ? lookup_run_job
                                     : request->method == METHOD_READ ? read_run_job
                                                                      : tokens_run_job,
                              .done = done_lookup};
  server_lookup(request->server, &request->job, request->heavy);
}

/* What only the committer may do before a read: bring the tail back to memory, and look at the ids ahead. */
static void run_prepare(struct job *job, void *worker) {
  (void)worker;
  struct request *request = request_of(job);
  struct conversation *conversation = request->session->conversation;
  if (conversation_load(conversation, &request->error))
    return;
  if (request->method == METHOD_TOKENS)
    request->ahead_count = conversation_ahead(conversation, request->ahead);
  request_result(request, view_acquire(conversation, &request->view, &request->error));
}

static void read_view(struct request *request) {
  if (request->error.code)
    request_finish(request);
  else
    reads_put(request);
}

static void done_prepare(struct job *job) {
  struct request *request = request_of(job);
  struct server *server = request->server;
  if (!request->error.code)
    request->session->loaded = true;
  read_view(request);
  server_job_returned(server);
}

void request_read(struct request *request) {
  if (!session_in_memory(request->session) || request->method == METHOD_TOKENS) {
    request_commit(request, run_prepare, done_prepare);
    return;
  }
  request_result(request, view_acquire(request->session->conversation, &request->view, &request->error));
  read_view(request);
}

void request_expect(struct request *request, size_t bytes) {
  char *data = request->reply.data ? NULL : malloc(bytes);
  if (data)
    request->reply = (msgpack_sbuffer){.data = data, .alloc = bytes};
}

void request_answer(struct request *request, const void *result) {
  request_result(request, 0);
  if (rpc_pack_result(&request->packer, request->rpc.id, methods[request->method].result, result))
    error_set(&request->error, ERR_MEMORY, "%s: out of memory for the answer", methods[request->method].name);
}
