// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// coldkv_sync: an append of no tokens that is answered once everything before it is durable, and that carries the ids
// of the hot window.
#include "client/clock.h"
#include "client/conversation.h"
#include "client/error.h"
#include "client/tuning.h"

static void sync_replied(void *context, uint64_t end, const msgpack_object *result, const struct error *error) {
  struct coldkv_conv *conv = context;
  struct connection *c = &conv->client->connection;
  struct sync *sync = &conv->sync;
  sync->in_flight = false;
  if (!result) {
    sync->retry_at_ms = clock_ms() + REOPEN_MS;
    if (error->code == ERR_NOT_OPEN)
      link_lost(conv);
    else if (append_error_passes(error->code))
      sync->trouble = conv->last = *error;
    else if (error->code != ERR_UNREACHABLE && error->code != ERR_GAP) /* a gap: a frame before was refused */
      link_fatal(conv, error);
    return;
  }
  struct msg_append_ok answer;
  struct error bad = {0};
  if (message_unpack(&message_append_ok, result, &answer, &bad) ||
      backlog_acknowledge(conv, end, answer.stored, answer.durable, &bad))
    connection_distrust(c, &bad);
  else if (answer.durable < end)
    error_set(&sync->trouble, ERR_IO, "the daemon answered a sync of '%s' without making it durable", conv->name);
  else
    sync->done = true;
}

void sync_lost(struct coldkv_conv *conv) {
  connection_forget(&conv->client->connection, sync_replied, conv);
  conv->sync.in_flight = false;
  conv->sync.retry_at_ms = 0;
}

void sync_drive(struct coldkv_conv *conv) {
  struct sync *sync = &conv->sync;
  if (!sync->wanted || sync->in_flight || sync->done || conv->backlog.cursor || clock_ms() < sync->retry_at_ms)
    return;
  struct connection *c = &conv->client->connection;
  struct error error;
  uint32_t ahead[LIMIT_AHEAD_MAX];
  uint32_t count = conversation_ids(conv, conv->handed, ahead, (uint32_t)c->ahead_max);
  struct msg_append append = {
      .conversation = conv->handle,
      .first = conv->handed,
      .ahead = span_of(ahead, count * sizeof(uint32_t)),
      .sync = 1,
  };
  if (connection_send(c, METHOD_APPEND, &append, sync_replied, conv, conv->handed, &error) == 0)
    sync->in_flight = true;
}

/* What keeps a sync from being done, for the sentence at its deadline. */
static int late(const struct coldkv_conv *conv, struct error *error) {
  const struct connection *c = &conv->client->connection;
  const struct error *trouble = link_trouble(conv);
  if (trouble->code)
    return error_set(error, c->state == LINK_UP ? trouble->code : ERR_UNREACHABLE, "'%s' is not durable: %s",
                     conv->name, trouble->text);
  return error_set(error, ERR_TIMEOUT, "'%s' is not durable yet: the daemon at %s has acknowledged %llu of %llu tokens",
                   conv->name, c->path, (unsigned long long)conv->durable, (unsigned long long)conv->handed);
}

static int wait_durable(struct coldkv_conv *conv, uint64_t deadline_ms, struct error *error) {
  struct sync *sync = &conv->sync;
  for (bool in_time = true; in_time;) {
    in_time = client_turn_until(conv->client, deadline_ms);
    if (conv->fatal.code) {
      *error = conv->fatal;
      return -error->code;
    }
    if (sync->done)
      return 0;
    const struct error *trouble = sync->trouble.code ? &sync->trouble : &conv->backlog.trouble;
    if (trouble->code == ERR_NO_SPACE || trouble->code == ERR_READ_ONLY || trouble->code == ERR_IO ||
        trouble->code == ERR_CORRUPT || trouble->code == ERR_DENIED)
      return error_set(error, trouble->code, "'%s' is not durable: %s", conv->name, trouble->text);
  }
  return late(conv, error);
}

int coldkv_sync(coldkv_conv *conv) {
  if (!conv)
    return api_fail(ERR_ARGUMENT, "coldkv_sync needs a conversation");
  if (conv->block.open)
    return api_fail(ERR_STATE, "coldkv_sync inside a block of '%s': call coldkv_end first", conv->name);
  struct error error = {0};
  conv->backlog.trouble.code = 0;
  conv->backlog.retry_at_ms = 0; /* what was refused may be taken now */
  connection_try(&conv->client->connection, true);
  sync_lost(conv);
  conv->sync = (struct sync){.wanted = true};
  int result = handover_settle(conv, &error);
  if (!result)
    result = wait_durable(conv, clock_ms() + conv->client->sync_timeout_ms, &error);
  sync_lost(conv);
  conv->sync = (struct sync){.wanted = false};
  return api_result(result, &error);
}
