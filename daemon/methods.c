// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// What each method does: checks that need no disk on the loop, the rest on the committer or a lookup thread.
#include <stdlib.h>
#include <string.h>

#include "daemon/log.h"
#include "daemon/request.h"
#include "retrieval/lookup.h"

/* --- answers that are ready on the loop --------------------------------------------------------------------------- */

static void method_hello(struct request *request) {
  if (request->params.hello.protocol != PROTOCOL_VERSION) {
    error_set(&request->error, ERR_VERSION, "this daemon speaks protocol %u, the client %llu", PROTOCOL_VERSION,
              (unsigned long long)request->params.hello.protocol);
    request_finish(request);
    return;
  }
  struct msg_hello_ok answer = {
      .protocol = PROTOCOL_VERSION,
      .server = span_str("coldkvd " COLDKV_VERSION_STRING),
      .backend = span_str(backend_name(&request->server->backend)),
      .device = span_str(backend_device(&request->server->backend)),
      .kernel = span_str(lookup_kernel_name()),
      .durability = span_str(durability_names[request->server->options->durability]),
      .cold_pages = span_str(fetch_method_name(request->server->fetch_method)),
      .message_bytes_max = LIMIT_MESSAGE_BYTES_MAX,
      .append_tokens_max = LIMIT_APPEND_TOKENS_MAX,
      .ahead_max = LIMIT_AHEAD_MAX,
      .rows_max = LIMIT_ROWS_MAX,
      .k_max = LIMIT_K_MAX,
      .candidates_max = LIMIT_CANDIDATES_MAX,
      .segment_tokens = LIMIT_SEGMENT_TOKENS,
  };
  request_answer(request, &answer);
  request_finish(request);
}

static void method_stats(struct request *request) {
  struct msg_stats answer;
  server_stats(request->server, request->connection->user, &answer);
  request_answer(request, &answer);
  request_finish(request);
}

/* It reads everything there is and names files of all users. */
static void method_verify(struct request *request) {
  if (!access_operator(request->connection->user->uid)) {
    error_set(&request->error, ERR_DENIED, "verify: only the user that runs the daemon may");
    request_finish(request);
    return;
  }
  verifier_ask(&request->server->verifier, &request->connection->verifying);
  if (verifier_pack(&request->server->verifier, &request->packer, request->rpc.id))
    error_set(&request->error, ERR_MEMORY, "verify: out of memory for the answer");
  request_finish(request);
}

/* --- the committer's: the catalog and the list of models and conversations ---------------------------------------- */

static void done_commit(struct job *job) {
  struct request *request = request_of(job);
  struct server *server = request->server;
  request_finish(request);
  server_job_returned(server);
}

static void answer_model(struct request *request, struct model *model) {
  request_answer(request, model_description(model));
  model_release(model);
}

static void run_calibrate(struct job *job, void *worker) {
  (void)worker;
  struct request *request = request_of(job);
  const struct msg_model *wanted = &request->params.model;
  struct server *server = request->server;
  uint32_t uid = request->connection->user->uid;
  struct model *model;
  struct error full = {0}, ignored;
  if (quota_take(&server->quota, server->archive, uid, usage_of_model(&wanted->geometry), &full)) {
    if (model_find(server->archive, uid, wanted->fingerprint.data, &model, &ignored)) {
      request->error = full;
      return;
    }
    model_release(model); /* it is there already: nothing will be stored */
  }
  if (model_freeze(server->archive, uid, wanted, &model, &request->error) == 0)
    answer_model(request, model);
}

/* Everything about a model that the field tables cannot tell. */
static int check_model(const struct msg_model *model, struct error *error) {
  if (geometry_check(&model->geometry, error))
    return -error->code;
  if (model->basis.size != 8 || memcmp(model->basis.data, "hadamard", 8) != 0)
    return error_set(error, ERR_NOT_SUPPORTED, "model.calibrate: basis '%.*s': this version knows 'hadamard'",
                     (int)model->basis.size, (const char *)model->basis.data);
  const struct span means[2] = {model->mean_k, model->mean_v};
  for (int i = 0; i < 2; i++) {
    if (means[i].size != geometry_mean_bytes(&model->geometry))
      return error_set(error, ERR_BAD_PARAMS, "model.calibrate: '%s' has %zu bytes, wanted %llu",
                       i ? "mean_v" : "mean_k", means[i].size,
                       (unsigned long long)geometry_mean_bytes(&model->geometry));
    for (size_t at = 0; at < means[i].size; at += 4)
      if ((load_u32(means[i].data + at) & 0x7f800000u) == 0x7f800000u)
        return error_set(error, ERR_BAD_PARAMS, "model.calibrate: '%s'[%zu] is not finite", i ? "mean_v" : "mean_k",
                         at / 4);
  }
  return 0;
}

static void method_calibrate(struct request *request) {
  if (check_model(&request->params.model, &request->error))
    request_finish(request);
  else
    request_commit(request, run_calibrate, done_commit);
}

static void run_model_get(struct job *job, void *worker) {
  (void)worker;
  struct request *request = request_of(job);
  struct archive *archive = request->server->archive;
  const struct msg_model_get *wanted = &request->params.model_get;
  uint32_t uid = request->connection->user->uid;
  struct model *model;
  int result = wanted->id.size ? model_get(archive, uid, wanted->id.data, &model, &request->error)
                               : model_find(archive, uid, wanted->fingerprint.data, &model, &request->error);
  if (result == 0)
    answer_model(request, model);
}

static void method_model_get(struct request *request) {
  const struct msg_model_get *wanted = &request->params.model_get;
  if ((wanted->id.size != 0) == (wanted->fingerprint.size != 0)) {
    error_set(&request->error, ERR_BAD_PARAMS, "model.get: wanted either 'id' or 'fingerprint'");
    request_finish(request);
  } else {
    request_commit(request, run_model_get, done_commit);
  }
}

/* A page of a list. Entries are packed one by one as the catalog shows them; the array's length is known at the end, so
 * its header is written last, in front. */
struct page {
  struct request *request;
  const struct message *type;
  uint64_t limit;
  uint32_t count;
  bool more, failed;
  msgpack_sbuffer items;
  msgpack_packer packer;
};

static int page_add(struct page *page, const void *item) {
  if (page->count == page->limit || page->items.size > LIMIT_MESSAGE_BYTES_MAX / 2) {
    page->more = true;
    return 1;
  }
  page->failed = message_pack(&page->packer, page->type, item) != 0;
  page->count++;
  return page->failed;
}

static int add_model(void *context, const struct msg_model *model) { return page_add(context, model); }

static int add_conversation(void *context, const struct msg_conversation *entry) {
  struct page *page = context;
  struct msg_conversation item = *entry;
  return page_add(page, &item);
}

/* {"models" or "conversations": [items], "more": true if there are more} */
static int page_pack(struct page *page, const char *name) {
  msgpack_packer *packer = &page->request->packer;
  bool bad = msgpack_pack_array(packer, 4) || msgpack_pack_uint8(packer, RPC_RESPONSE) ||
             msgpack_pack_uint32(packer, page->request->rpc.id) || msgpack_pack_nil(packer) ||
             msgpack_pack_map(packer, page->more ? 2 : 1) || msgpack_pack_str(packer, strlen(name)) ||
             msgpack_pack_str_body(packer, name, strlen(name)) || msgpack_pack_array(packer, page->count) ||
             msgpack_sbuffer_write(&page->request->reply, page->items.data, page->items.size);
  if (!bad && page->more)
    bad = msgpack_pack_str(packer, 4) || msgpack_pack_str_body(packer, "more", 4) || msgpack_pack_true(packer);
  return bad ? -ERR_MEMORY : 0;
}

static void run_list(struct job *job, void *worker) {
  (void)worker;
  struct request *request = request_of(job);
  const struct msg_list *list = &request->params.list;
  bool models = request->method == METHOD_MODEL_LIST;
  struct page page = {.request = request,
                      .type = models ? &message_model : &message_conversation,
                      .limit = list->limit};
  char after[LIMIT_NAME_BYTES_MAX + 1] = "";
  if (list->after.size)
    memcpy(after, list->after.data, list->after.size);
  msgpack_sbuffer_init(&page.items);
  msgpack_packer_init(&page.packer, &page.items, msgpack_sbuffer_write);
  struct archive *archive = request->server->archive;
  uint32_t uid = request->connection->user->uid;
  int result = models ? model_each(archive, uid, after, add_model, &page, &request->error)
                      : conversation_each(archive, uid, after, add_conversation, &page, &request->error);
  request_result(request, result >= 0 ? 0 : result);
  if (result >= 0 && (page.failed || page_pack(&page, models ? "models" : "conversations")))
    error_set(&request->error, ERR_MEMORY, "%s: out of memory for the answer", methods[request->method].name);
  msgpack_sbuffer_destroy(&page.items);
}

static void copy_name(char name[LIMIT_NAME_BYTES_MAX + 1], struct span span) {
  memcpy(name, span.data, span.size);
  name[span.size] = 0;
}

static void run_info(struct job *job, void *worker) {
  (void)worker;
  struct request *request = request_of(job);
  char name[LIMIT_NAME_BYTES_MAX + 1];
  copy_name(name, request->params.name.name);
  struct conversation_entry entry;
  if (conversation_describe(request->server->archive, request->connection->user->uid, name, &entry, &request->error))
    return;
  request_answer(request, &entry.message);
  conversation_entry_finish(&entry);
}

static void run_delete(struct job *job, void *worker) {
  (void)worker;
  struct request *request = request_of(job);
  char name[LIMIT_NAME_BYTES_MAX + 1];
  copy_name(name, request->params.delete.name);
  struct msg_empty answer = {0};
  uint8_t id[LIMIT_ID_BYTES];
  bool known = backend_id(request, name, id);
  if (conversation_delete(request->server->archive, request->connection->user->uid, name, &request->error))
    return;
  if (known)
    resident_drop(request->server->backend.resident, id);
  request_answer(request, &answer);
}

static void method_delete(struct request *request) {
  struct span name = request->params.delete.name, confirm = request->params.delete.confirm;
  if (name.size != confirm.size || memcmp(name.data, confirm.data, name.size) != 0) {
    error_set(&request->error, ERR_BAD_PARAMS, "conversation.delete: 'confirm' must repeat 'name'");
    request_finish(request);
  } else {
    request_commit(request, run_delete, done_commit);
  }
}

/* --- open, close, append ------------------------------------------------------------------------------------------ */

/* At the quota what is there can be opened, and nothing made. */
static int open_within_quota(struct request *request, bool *created) {
  struct server *server = request->server;
  uint32_t uid = request->connection->user->uid;
  struct msg_open wanted = request->params.open;
  struct error full = {0};
  if (wanted.create && quota_take(&server->quota, server->archive, uid, usage_of_conversation(), &full))
    wanted.create = false;
  int result = conversation_open(server->archive, uid, &wanted, &request->opened, created, &request->error);
  if (result == -ERR_NO_CONVERSATION && full.code)
    request->error = full;
  return result;
}

static void run_open(struct job *job, void *worker) {
  (void)worker;
  struct request *request = request_of(job);
  struct msg_open_ok *answer = &request->open_ok;
  bool created;
  if (open_within_quota(request, &created))
    return;
  struct conversation *conversation = request->opened;
  if (conversation_load(conversation, &request->error)) {
    conversation_release(conversation);
    request->opened = NULL;
    return;
  }
  const uint8_t *model = conversation_model(conversation);
  *answer = (struct msg_open_ok){
      .id = span_of(conversation_id(conversation), LIMIT_ID_BYTES),
      .model = span_of(model, model ? LIMIT_ID_BYTES : 0),
      .count = conversation_count(conversation),
      .durable = conversation_durable(conversation),
      .created = created,
  };
  request_result(request, 0);
  request->ahead_count = conversation_ahead(conversation, request->ahead);
  answer->ahead = span_of(request->ahead, request->ahead_count * sizeof request->ahead[0]);
}

static void run_release_opened(struct job *job, void *worker) {
  (void)worker;
  conversation_release(request_of(job)->opened);
}

/* Why this connection cannot have the handle (NULL when none is free) that it asked for; 0 when it can. */
static int check_handle(const struct request *request, const struct session *session, const struct handle *handle,
                        struct error *error) {
  if (request->connection->closed)
    return error_set(error, ERR_SHUTTING_DOWN, "the connection is closed");
  if (request->params.open.write && session->writer && session->writer != request->connection)
    return error_set(error, ERR_BUSY, "conversation \"%s\" is being written by another process",
                     conversation_name(session->conversation));
  if (!handle)
    return error_set(error, ERR_LIMIT, "more than %u conversations open on one connection",
                     LIMIT_HANDLES_PER_CONNECTION_MAX);
  const struct user *user = request->connection->user;
  uint64_t most = request->server->options->user_conversations;
  if (!handle->session && user->conversations >= most)
    return error_set(error, ERR_LIMIT, "user %u has %llu conversations open, as many as one user may", user->uid,
                     (unsigned long long)most);
  return 0;
}

/* Gives the opened conversation a session and a handle, and the writer's lease if asked for. */
static int take_handle(struct request *request) {
  struct connection *connection = request->connection;
  struct session *session = session_of(request->server, request->opened);
  if (!session)
    return error_set(&request->error, ERR_MEMORY, "conversation.open: out of memory");
  request->opened = NULL;
  session->loaded = true;
  session->used_ns = uv_hrtime();
  struct handle *handle = connection_handle_for(connection, session);
  bool held = handle != NULL;
  if (!held)
    handle = connection_handle_for(connection, NULL);
  int result = check_handle(request, session, handle, &request->error);
  if (!result) {
    connection->user->conversations += !held;
    handle->session = session;
    handle->write = request->params.open.write || (held && handle->write);
    if (request->params.open.write)
      session->writer = connection;
    request->open_ok.conversation = handle->number;
    session_seal(session);
    session_keep(session);
  }
  if (result || held)
    session_drop(session); /* a handle that was there before holds it already */
  session_shrink(request->server);
  return result;
}

static void done_open(struct job *job) {
  struct request *request = request_of(job);
  struct server *server = request->server;
  if (!request->error.code && take_handle(request) == 0)
    request_answer(request, &request->open_ok);
  if (request->opened)
    request_commit(request, run_release_opened, done_commit);
  else
    request_finish(request);
  server_job_returned(server);
}

static void method_open(struct request *request) {
  if (geometry_check(&request->params.open.geometry, &request->error))
    request_finish(request);
  else
    request_commit(request, run_open, done_open);
}

/* Sets the request's session from a handle. */
static int use_handle(struct request *request, uint64_t number, bool write) {
  const char *name = methods[request->method].name;
  struct handle *handle = connection_handle(request->connection, number);
  if (!handle)
    return error_set(&request->error, ERR_NOT_OPEN, "%s: conversation %llu is not open on this connection", name,
                     (unsigned long long)number);
  if (write && !handle->write)
    return error_set(&request->error, ERR_NOT_OPEN, "%s: conversation \"%s\" was opened for reading", name,
                     conversation_name(handle->session->conversation));
  request->session = handle->session;
  request->session->requests++;
  request->session->used_ns = uv_hrtime();
  session_hold(request->session);
  return 0;
}

static void method_close(struct request *request) {
  if (use_handle(request, request->params.handle.conversation, false) == 0) {
    struct msg_empty answer = {0};
    connection_handle_close(request->connection,
                            connection_handle(request->connection, request->params.handle.conversation));
    request_answer(request, &answer);
  }
  request_finish(request);
}

static void done_applied(struct job *job) {
  struct request *request = (struct request *)(void *)((char *)job - offsetof(struct request, applied));
  if (request->appended) {
    request->session->loaded = true;
    request->session->dirty |= request->wrote;
    session_seal(request->session);
    session_shrink(request->server);
  }
  request_effect_done(request);
}

static void method_append(struct request *request) {
  if (use_handle(request, request->params.append.conversation, true)) {
    request_finish(request);
    return;
  }
  request->applied = (struct job){.done = done_applied};
  request_commit(request, committer_append, done_commit);
}

/* --- reads -------------------------------------------------------------------------------------------------------- */

/* There is room for its answer: waits until the effects that were sent before have happened. */
static void read_admitted(struct request *request) {
  struct connection *connection = request->connection;
  request->effects_before = connection->effects_sent;
  if (request->effects_before <= connection->effects_done) {
    request_read(request);
    return;
  }
  request->next = NULL;
  *connection->waiting_end = request;
  connection->waiting_end = &request->next;
}

static void method_read(struct request *request) {
  uint64_t number = request->method == METHOD_LOOKUP ? request->params.lookup.conversation
                    : request->method == METHOD_READ ? request->params.read.conversation
                                                     : request->params.tokens.conversation;
  int result = use_handle(request, number, false);
  if (!result && request->method == METHOD_LOOKUP)
    result = lookup_check(request);
  if (!result && request->method == METHOD_READ)
    result = read_check(request);
  if (!result && request->method == METHOD_TOKENS)
    request->cost = request->answer_bytes = request->params.tokens.count * sizeof(uint32_t);
  if (result) {
    request_finish(request);
    return;
  }
  request->admitted = read_admitted;
  connection_admit(request->connection, request);
}

static void method_list(struct request *request) { request_commit(request, run_list, done_commit); }
static void method_info(struct request *request) { request_commit(request, run_info, done_commit); }

#define LIST_ANSWER_BYTES (2u << 20)  /* LIMIT_LIST_MAX models with their RoPE */
#define INFO_ANSWER_BYTES (256u << 10)
#define MODEL_ANSWER_BYTES (2u * LIMIT_BLOCKS_MAX * LIMIT_HEAD_DIM_MAX * 4u + MESSAGE_OVERHEAD_BYTES)

/* `effect`: reads that the same connection sends later wait until it has happened. `answer_bytes`: of answers that are
 * not small; reads find out for themselves. */
static const struct {
  void (*start)(struct request *request);
  bool effect;
  uint32_t answer_bytes;
} method_table[METHOD_COUNT] = {
    [METHOD_HELLO] = {method_hello, false, 0},
    [METHOD_MODEL_CALIBRATE] = {method_calibrate, true, MODEL_ANSWER_BYTES},
    [METHOD_MODEL_LIST] = {method_list, false, LIST_ANSWER_BYTES},
    [METHOD_MODEL_GET] = {method_model_get, false, MODEL_ANSWER_BYTES},
    [METHOD_OPEN] = {method_open, true, 0},
    [METHOD_LIST] = {method_list, false, LIST_ANSWER_BYTES},
    [METHOD_INFO] = {method_info, false, INFO_ANSWER_BYTES},
    [METHOD_CLOSE] = {method_close, false, 0},
    [METHOD_DELETE] = {method_delete, true, 0},
    [METHOD_APPEND] = {method_append, true, 0},
    [METHOD_LOOKUP] = {method_read, false, 0},
    [METHOD_READ] = {method_read, false, 0},
    [METHOD_TOKENS] = {method_read, false, 0},
    [METHOD_STATS] = {method_stats, false, 0},
    [METHOD_VERIFY] = {method_verify, false, INFO_ANSWER_BYTES},
    [METHOD_STATUS] = {method_status, false, LIST_ANSWER_BYTES},
};

static void start(struct request *request) {
  request->effect = method_table[request->method].effect;
  request->connection->effects_sent += request->effect;
  method_table[request->method].start(request);
}

void method_dispatch(struct request *request) {
  if (request->server->stopping) {
    error_set(&request->error, ERR_SHUTTING_DOWN, "the daemon is stopping");
    request_finish(request);
    return;
  }
  request->answer_bytes = method_table[request->method].answer_bytes;
  request->admitted = start;
  if (request->answer_bytes)
    connection_admit(request->connection, request);
  else
    start(request);
}
