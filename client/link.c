// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// Keeps a conversation open on the daemon: after every reconnect it is opened again, what the daemon holds is compared
// with what it acknowledged, and the backlog goes out once more.
#include "client/clock.h"
#include "client/conversation.h"
#include "client/tuning.h"

void link_describe(const struct coldkv_conv *conv, const struct frozen *frozen, struct msg_open *open) {
  message_init(&message_open, open);
  open->name = span_str(conv->name);
  open->fingerprint = span_of(conv->model->fingerprint, sizeof conv->model->fingerprint);
  model_geometry(conv->model, &open->geometry);
  if (frozen)
    open->model = span_of(frozen->id, sizeof frozen->id);
  open->write = 1;
}

static void open_replied(void *context, uint64_t tag, const msgpack_object *result, const struct error *error);

bool link_ready(const struct coldkv_conv *conv) {
  const struct connection *c = &conv->client->connection;
  return conv->link == CONV_READY && c->state == LINK_UP && conv->link_made == c->made && !conv->fatal.code;
}

const struct error *link_trouble(const struct coldkv_conv *conv) {
  static const struct error none, opening = {ERR_UNREACHABLE, "the daemon has not opened the conversation again yet"};
  const struct connection *c = &conv->client->connection;
  if (conv->fatal.code)
    return &conv->fatal;
  if (link_ready(conv))
    return &none;
  if (c->state != LINK_UP)
    return &c->reason;
  return conv->link_reason.code ? &conv->link_reason : &opening;
}

void link_lost(struct coldkv_conv *conv) {
  if (conv->client->connection.state != LINK_UP)
    conv->last = conv->client->connection.reason;
  connection_forget(&conv->client->connection, open_replied, conv);
  conv->link = CONV_AWAY;
  backlog_lost(conv);
  sync_lost(conv);
}

void link_fatal(struct coldkv_conv *conv, const struct error *error) {
  if (!conv->fatal.code)
    conv->fatal = conv->last = *error;
}

/* Fatal when the daemon holds what was not handed over from here, or lacks what it acknowledged as durable. */
static void check_count(struct coldkv_conv *conv, uint64_t count) {
  uint64_t needed = conv->backlog.head ? conv->backlog.head->first : conv->handed;
  struct error fatal;
  if (count > conv->handed) {
    error_set(&fatal, ERR_CONFLICT,
              "the daemon holds %llu tokens of '%s', of which this process handed over %llu: another process has "
              "written meanwhile; close the conversation and open it again",
              (unsigned long long)count, conv->name, (unsigned long long)conv->handed);
    link_fatal(conv, &fatal);
  } else if (count < needed) {
    error_set(&fatal, ERR_CONFLICT,
              "the daemon holds %llu tokens of '%s', but acknowledged %llu: has its archive been replaced? close the "
              "conversation and open it again",
              (unsigned long long)count, conv->name, (unsigned long long)needed);
    link_fatal(conv, &fatal);
  }
}

int link_accept(struct coldkv_conv *conv, const struct msg_open_ok *answer, const struct frozen *frozen,
                struct error *error) {
  if (answer->durable > answer->count)
    return error_set(error, ERR_BAD_MESSAGE, "conversation.open answers more durable tokens than stored ones");
  bool same_model = !frozen || (answer->model.size == LIMIT_ID_BYTES &&
                                memcmp(answer->model.data, frozen->id, LIMIT_ID_BYTES) == 0);
  if (memcmp(answer->id.data, conv->id, sizeof conv->id) != 0 || !same_model) {
    error_set(error, ERR_CONFLICT,
              "the daemon now has another conversation of the name '%s', or gives it another model: close it and open "
              "it again", conv->name);
    link_fatal(conv, error);
    return -error->code;
  }
  check_count(conv, answer->count);
  if (conv->fatal.code) {
    *error = conv->fatal;
    return -error->code;
  }
  conv->handle = answer->conversation;
  conv->stored = answer->count;
  conv->durable = answer->durable;
  conv->link = CONV_READY;
  conv->link_made = conv->client->connection.made;
  return 0;
}

/* The daemon does not open it again: for now, or for ever. */
static void refused(struct coldkv_conv *conv, const struct error *error) {
  conv->link_reason = conv->last = *error;
  conv->link_retry_ms = clock_ms() + (error->code == ERR_BUSY ? REOPEN_MS : APPEND_RETRY_MS);
  if (error->code == ERR_UNREACHABLE || append_error_passes(error->code))
    return;
  struct error fatal;
  error_set(&fatal, error->code,
            "the daemon does not open '%s' any more: %s. Has its archive been replaced? close the conversation and "
            "open it again", conv->name, error->text);
  link_fatal(conv, &fatal);
}

static void open_replied(void *context, uint64_t tag, const msgpack_object *result, const struct error *error) {
  (void)tag;
  struct coldkv_conv *conv = context;
  struct error bad = {0};
  struct msg_open_ok answer;
  conv->link = CONV_AWAY;
  if (!result) {
    refused(conv, error);
    return;
  }
  int failed = message_unpack(&message_open_ok, result, &answer, &bad);
  if (!failed)
    failed = link_accept(conv, &answer, conv->frozen, &bad);
  if (failed == -ERR_BAD_PARAMS || failed == -ERR_BAD_MESSAGE)
    connection_distrust(&conv->client->connection, &bad);
  if (failed)
    return;
  conv->reconnects++;
  conv->link_reason.code = 0;
  conv->patience.until_ms = 0;
}

void link_drive(struct coldkv_conv *conv) {
  struct connection *c = &conv->client->connection;
  if (connection_forked(c))
    link_fatal(conv, &c->reason);
  if (conv->link != CONV_AWAY && (c->state != LINK_UP || conv->link_made != c->made))
    link_lost(conv);
  if (conv->link != CONV_AWAY || c->state != LINK_UP || conv->fatal.code || clock_ms() < conv->link_retry_ms)
    return;
  struct msg_open open;
  struct error error;
  link_describe(conv, conv->frozen, &open);
  if (connection_send(c, METHOD_OPEN, &open, open_replied, conv, 0, &error))
    return;
  conv->link = CONV_OPENING;
  conv->link_made = c->made;
}
