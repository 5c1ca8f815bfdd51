// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// Opening and closing conversations, and what is known about them.
#include "client/conversation.h"

#include <stdlib.h>

#include "client/clock.h"
#include "client/error.h"
#include "client/tuning.h"

void conversation_drive(struct coldkv_conv *conv) {
  link_drive(conv);
  if (!link_ready(conv))
    return;
  backlog_drive(conv);
  sync_drive(conv);
}

uint64_t conversation_end(const struct coldkv_conv *conv) {
  return conv->tokens > conv->plan.end ? conv->tokens : conv->plan.end;
}

uint32_t conversation_ids(const struct coldkv_conv *conv, uint64_t first, uint32_t *ids, uint32_t max) {
  uint64_t end = conversation_end(conv);
  const struct frame *frame = conv->backlog.head;
  uint32_t count = 0;
  for (uint64_t token = first; token < end && count < max; token++, count++) {
    while (frame && frame->first + frame->count <= token)
      frame = frame->next;
    if (frame && frame->first <= token)
      ids[count] = frame->ids[token - frame->first];
    else if (token < conv->tokens)
      ids[count] = conv->hot.ids[token % HOT_RING];
    else
      ids[count] = resume_id(conv, token);
  }
  return count;
}

/* --- open --------------------------------------------------------------------------------------------------------- */

struct opening {
  struct coldkv_conv *conv;
  const struct frozen *frozen;
  uint32_t ahead_count;
  uint32_t ahead[LIMIT_AHEAD_MAX];
  bool has_model;
  uint8_t model[LIMIT_ID_BYTES];
};

static int take_opened(void *context, const msgpack_object *result, struct error *error) {
  struct opening *opening = context;
  struct coldkv_conv *conv = opening->conv;
  struct msg_open_ok answer;
  int failed = message_unpack(&message_open_ok, result, &answer, error);
  if (failed)
    return failed;
  memcpy(conv->id, answer.id.data, sizeof conv->id);
  conv->handed = answer.count;
  opening->has_model = answer.model.size == LIMIT_ID_BYTES;
  if (opening->has_model)
    memcpy(opening->model, answer.model.data, LIMIT_ID_BYTES);
  if (answer.count && !opening->has_model)
    return error_set(error, ERR_BAD_MESSAGE, "conversation.open answers tokens without a model");
  opening->ahead_count = (uint32_t)(answer.ahead.size / sizeof(uint32_t));
  if (opening->ahead_count)
    memcpy(opening->ahead, answer.ahead.data, answer.ahead.size);
  return link_accept(conv, &answer, NULL, error);
}

/* Asks for the writer's lease, again and again for a while: after a crash the old one is held for a moment. */
static int open_first(struct coldkv_conv *conv, bool create, struct opening *opening, uint64_t deadline_ms,
                      struct error *error) {
  uint64_t busy_until = clock_ms() + conv->client->timeout_ms;
  struct msg_open open;
  link_describe(conv, NULL, &open);
  open.create = create;
  for (;;) {
    int result = client_call(conv->client, METHOD_OPEN, &open, take_opened, opening, deadline_ms, error);
    uint64_t now = clock_ms();
    if (result != -ERR_BUSY || now >= busy_until)
      return result;
    for (uint64_t pause = now + REOPEN_MS; clock_ms() < pause;)
      client_turn_until(conv->client, pause);
  }
}

static int take_bound(void *context, const msgpack_object *result, struct error *error) {
  const struct opening *opening = context;
  struct msg_open_ok answer;
  int failed = message_unpack(&message_open_ok, result, &answer, error);
  return failed ? failed : link_accept(opening->conv, &answer, opening->frozen, error);
}

int conversation_bind(struct coldkv_conv *conv, struct frozen *frozen, uint64_t deadline_ms, struct error *error) {
  struct msg_open open;
  struct opening opening = {.conv = conv, .frozen = frozen};
  link_describe(conv, frozen, &open);
  int result = client_call(conv->client, METHOD_OPEN, &open, take_bound, &opening, deadline_ms, error);
  if (!result)
    conv->frozen = frozen;
  return result;
}

/* The conversation's own model, or the one of the same fingerprint that is frozen already, or none yet. */
static int open_model(struct coldkv_conv *conv, const struct opening *opening, uint64_t deadline_ms,
                      struct error *error) {
  struct frozen *frozen = NULL;
  int result =
      model_fetch(conv->model, opening->has_model ? opening->model : NULL, deadline_ms, &frozen, error);
  if (result == -ERR_NO_MODEL && !opening->has_model)
    return 0; /* the first tokens to leave the hot window will calibrate it */
  if (result)
    return result;
  if (!opening->has_model)
    return conversation_bind(conv, frozen, deadline_ms, error);
  conv->frozen = frozen;
  return 0;
}

static int open_on_daemon(struct coldkv_conv *conv, bool create, struct error *error) {
  uint64_t deadline = clock_ms() + conv->client->sync_timeout_ms;
  struct opening *opening = calloc(1, sizeof *opening);
  if (!opening)
    return error_set(error, ERR_MEMORY, "out of memory to open '%s'", conv->name);
  opening->conv = conv;
  int result = open_first(conv, create, opening, deadline, error);
  if (!result)
    result = open_model(conv, opening, deadline, error);
  if (!result)
    result = resume_plan(conv, conv->handed, span_of(opening->ahead, opening->ahead_count * sizeof(uint32_t)),
                         deadline, error);
  free(opening);
  return result;
}

static void free_conversation(struct coldkv_conv *conv) {
  backlog_finish(&conv->backlog);
  retrieved_finish(&conv->retrieved);
  hot_finish(&conv->hot);
  device_destroy(conv->device);
  free(conv->encoding);
  free(conv->plan.ids);
  free(conv->block.done);
  free(conv->scratch);
  free(conv);
}

/* Gives the lease back; nobody waits for the answer. */
static void release(struct coldkv_conv *conv) {
  struct error error;
  struct msg_handle handle = {.conversation = conv->handle};
  struct connection *c = &conv->client->connection;
  bool ready = conv->link == CONV_READY && c->state == LINK_UP && conv->link_made == c->made;
  link_lost(conv); /* no answer may reach it from here on */
  if (ready && connection_send(c, METHOD_CLOSE, &handle, NULL, NULL, 0, &error) == 0)
    connection_pump(c, 0);
}

static int check_open(const coldkv_model *model, const char *name, const struct coldkv_conv_options *options,
                      struct error *error) {
  if (!*name || strlen(name) > LIMIT_NAME_BYTES_MAX)
    return error_set(error, ERR_ARGUMENT, "a conversation's name has 1 to %u bytes", LIMIT_NAME_BYTES_MAX);
  if (options && options->hot_type > COLDKV_BF16)
    return error_set(error, ERR_ARGUMENT, "hot_type %u is none of enum coldkv_type", options->hot_type);
  if (options && (options->k > LIMIT_K_MAX || options->candidates > LIMIT_CANDIDATES_MAX))
    return error_set(error, ERR_ARGUMENT, "k %u and candidates %u: wanted at most %u and %u", options->k,
                     options->candidates, LIMIT_K_MAX, LIMIT_CANDIDATES_MAX);
  for (const struct coldkv_conv *other = model->client->conversations; other; other = other->next)
    if (strcmp(other->name, name) == 0)
      return error_set(error, ERR_BUSY, "'%s' is open in this process already", name);
  return 0;
}

/* The hot window, here or on a device. */
static int make_hot(struct coldkv_conv *conv, const struct coldkv_conv_options *options, struct error *error) {
  const struct coldkv_model *model = conv->model;
  if (!options || !options->device)
    return hot_init(&conv->hot, model->layers, model->kv_heads, model->head_dim, error);
  struct device_shape shape = {.layers = model->layers, .heads = model->kv_heads, .group = model->group,
                               .head_dim = model->head_dim, .hot_type = options->hot_type, .rope = &model->rope,
                               .softmax_scale = model->softmax_scale};
  return device_create(&conv->device, options->device - 1, &shape, error);
}

static struct coldkv_conv *make_conversation(coldkv_model *model, const char *name,
                                             const struct coldkv_conv_options *options, struct error *error) {
  struct coldkv_conv *conv = calloc(1, sizeof *conv);
  if (!conv) {
    error_set(error, ERR_MEMORY, "out of memory for a conversation");
    return NULL;
  }
  conv->client = model->client;
  conv->model = model;
  memcpy(conv->name, name, strlen(name) + 1);
  conv->k = options && options->k ? options->k : DEFAULT_SLOTS;
  conv->candidates = options ? options->candidates : 0;
  conv->mode = options && options->hamming ? LOOKUP_HAMMING : LOOKUP_WEIGHTED;
  conv->block.done = calloc(2, model->layers);
  if (conv->block.done && retrieved_init(&conv->retrieved, model->kv_heads, error) == 0 &&
      make_hot(conv, options, error) == 0) {
    conv->block.prefetched = conv->block.done + model->layers;
    return conv;
  }
  if (!conv->block.done)
    error_set(error, ERR_MEMORY, "out of memory for a conversation");
  free_conversation(conv);
  return NULL;
}

int coldkv_open(coldkv_conv **conv, coldkv_model *model, const char *name,
                const struct coldkv_conv_options *options) {
  if (!conv || !model || !name)
    return api_fail(ERR_ARGUMENT, "coldkv_open needs a model and a name");
  *conv = NULL;
  struct error error = {0};
  int result = check_open(model, name, options, &error);
  if (result)
    return api_result(result, &error);
  struct coldkv_conv *made = make_conversation(model, name, options, &error);
  if (!made)
    return api_result(-error.code, &error);
  result = open_on_daemon(made, !(options && options->must_exist), &error);
  if (result) {
    release(made);
    free_conversation(made);
    return api_result(result, &error);
  }
  made->next = model->client->conversations;
  model->client->conversations = made;
  model->conversations++;
  *conv = made;
  return 0;
}

void coldkv_close(coldkv_conv *conv) {
  if (!conv)
    return;
  struct error error;
  struct coldkv_conv **at = &conv->client->conversations;
  handover_settle(conv, &error);
  client_turn(conv->client, 0); /* what is in the backlog goes out as far as the socket takes it */
  while (*at != conv)
    at = &(*at)->next;
  *at = conv->next;
  conv->model->conversations--;
  release(conv);
  free_conversation(conv);
}

/* --- settings and figures ----------------------------------------------------------------------------------------- */

int coldkv_set_slots(coldkv_conv *conv, uint32_t k) {
  if (!conv || k > LIMIT_K_MAX)
    return api_fail(ERR_ARGUMENT, "coldkv_set_slots of %u: wanted at most %u", k, LIMIT_K_MAX);
  conv->k = k;
  return 0;
}

int coldkv_get_status(const coldkv_conv *conv, struct coldkv_status *status) {
  if (!conv || !status)
    return api_fail(ERR_ARGUMENT, "coldkv_get_status needs a conversation and a place for the status");
  uint64_t records = conv->stored * conv->model->layers * conv->model->kv_heads;
  uint64_t hot_first = conversation_hot_first(conv->tokens);
  const struct error *trouble = link_trouble(conv);
  struct device_bytes used = conv->device ? device_usage(conv->device) : (struct device_bytes){0};
  if (!trouble->code)
    trouble = &conv->backlog.trouble;
  *status = (struct coldkv_status){
      .tokens = conversation_end(conv),
      .stored = conv->stored,
      .durable = conv->durable,
      .backlog = conv->handed - conv->stored,
      .hot_first = hot_first > conv->held_first ? hot_first : conv->held_first,
      .resume_left = resume_left(conv),
      .connected = link_ready(conv),
      .lookups = conv->lookups,
      .lookups_missed = conv->lookups_missed,
      .bad_records = conv->bad_records,
      .reconnects = conv->reconnects,
      .record_bytes = records * RECORD_BYTES,
      .signature_bytes = records * (RECORD_SIGNATURE_BYTES + RECORD_K_SCALE_BYTES),
      .hot_bytes = conv->device ? used.hot : conv->hot.bytes,
      .device_bytes = used.device,
      .pinned_bytes = used.pinned,
      .prefetches = conv->prefetches,
      .prefetches_used = conv->prefetches_used,
      .backlog_bytes = conv->backlog.bytes,
      .backlog_bytes_max = conv->client->backlog_bytes,
      .waited_ms_max = conv->patience.waited_ms_max,
      .trouble = api_code(trouble->code),
      .last_error = conv->last.text,
  };
  return 0;
}
