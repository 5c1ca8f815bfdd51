// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
#include "client/backlog.h"

#include <stdlib.h>

#include "client/clock.h"
#include "client/conversation.h"
#include "client/tuning.h"

_Static_assert(FRAME_TOKENS_MAX < 256, "a frame's tag has 8 bits for the count");

uint64_t frame_bytes(uint32_t count, uint64_t token_bytes) {
  return sizeof(struct frame) + count * (sizeof(uint32_t) + token_bytes);
}

struct frame *frame_create(uint64_t first, uint32_t count, uint64_t token_bytes) {
  struct frame *frame = malloc(frame_bytes(count, token_bytes));
  if (!frame)
    return NULL;
  *frame = (struct frame){.first = first, .count = count, .bytes = frame_bytes(count, token_bytes)};
  frame->ids = (uint32_t *)(void *)(frame + 1);
  frame->records = (uint8_t *)(frame->ids + count);
  return frame;
}

void backlog_push(struct backlog *backlog, struct frame *frame) {
  if (backlog->tail)
    backlog->tail->next = frame;
  else
    backlog->head = frame;
  backlog->tail = frame;
  if (!backlog->cursor)
    backlog->cursor = frame;
  backlog->bytes += frame->bytes;
}

static void pop(struct backlog *backlog) {
  struct frame *frame = backlog->head;
  backlog->head = frame->next;
  if (!backlog->head)
    backlog->tail = NULL;
  backlog->bytes -= frame->bytes;
  free(frame);
}

void backlog_finish(struct backlog *backlog) {
  while (backlog->head)
    pop(backlog);
  backlog->cursor = NULL;
}

bool append_error_passes(int code) {
  switch (code) {
  case ERR_NO_SPACE:
  case ERR_READ_ONLY:
  case ERR_IO:
  case ERR_MEMORY:
  case ERR_BUSY:
  case ERR_LIMIT:
  case ERR_SHUTTING_DOWN:
  case ERR_INTERNAL:
  case ERR_CORRUPT:
  case ERR_DENIED:
    return true;
  default:
    return false;
  }
}

int backlog_acknowledge(struct coldkv_conv *conv, uint64_t end, uint64_t stored, uint64_t durable,
                        struct error *error) {
  struct backlog *backlog = &conv->backlog;
  if (stored < end || stored > conv->handed || durable > stored)
    return error_set(error, ERR_BAD_MESSAGE,
                     "an append up to token %llu of '%s' is answered by %llu stored and %llu durable",
                     (unsigned long long)end, conv->name, (unsigned long long)stored, (unsigned long long)durable);
  if (stored > conv->stored)
    conv->stored = stored;
  if (durable > conv->durable) {
    conv->durable = durable;
    connection_worked(&conv->client->connection);
  }
  while (backlog->head && backlog->head != backlog->cursor &&
         backlog->head->first + backlog->head->count <= conv->durable)
    pop(backlog);
  backlog->trouble.code = 0;
  return 0;
}

/* A frame's tag carries both ends of it: the frame may be gone when the answer comes. */
static uint64_t frame_tag(const struct frame *frame) { return frame->first << 8 | frame->count; }

static void refused(struct coldkv_conv *conv, uint64_t first, const struct error *error);

static void append_replied(void *context, uint64_t tag, const msgpack_object *result, const struct error *error) {
  struct coldkv_conv *conv = context;
  uint64_t first = tag >> 8, end = first + (tag & 0xff);
  struct msg_append_ok answer;
  struct error bad = {0};
  conv->backlog.in_flight--;
  if (!result) {
    refused(conv, first, error);
    return;
  }
  if (message_unpack(&message_append_ok, result, &answer, &bad) ||
      backlog_acknowledge(conv, end, answer.stored, answer.durable, &bad))
    connection_distrust(&conv->client->connection, &bad);
}

/* Sends the frames again that reach past token `from`. Answers under way do not matter any more: repeats are taken. */
static void send_again(struct coldkv_conv *conv, uint64_t from) {
  struct backlog *backlog = &conv->backlog;
  connection_forget(&conv->client->connection, append_replied, conv);
  backlog->in_flight = 0;
  backlog->cursor = backlog->head;
  while (backlog->cursor && backlog->cursor->first + backlog->cursor->count <= from)
    backlog->cursor = backlog->cursor->next;
}

/* The daemon refused the frame at `first`. Those behind it are refused too, so all that is not stored goes again. */
static void refused(struct coldkv_conv *conv, uint64_t first, const struct error *error) {
  struct backlog *backlog = &conv->backlog;
  if (error->code == ERR_UNREACHABLE)
    return; /* backlog_lost follows */
  if (error->code == ERR_NOT_OPEN) {
    link_lost(conv);
    return;
  }
  if (append_error_passes(error->code)) {
    backlog->trouble = conv->last = *error;
    backlog->retry_at_ms = clock_ms() + APPEND_RETRY_MS;
    send_again(conv, conv->stored);
    return;
  }
  if (error->code == ERR_GAP && first > conv->stored) { /* answers may overtake each other: one before was refused */
    send_again(conv, conv->stored);
    backlog->retry_at_ms = clock_ms() + REOPEN_MS;
    return;
  }
  struct error fatal;
  error_set(&fatal, error->code == ERR_GAP ? ERR_CONFLICT : error->code,
            "the daemon refuses the tokens of '%s' from %llu on: %s", conv->name, (unsigned long long)conv->stored,
            error->text);
  link_fatal(conv, &fatal);
}

void backlog_lost(struct coldkv_conv *conv) {
  conv->backlog.retry_at_ms = 0;
  send_again(conv, 0);
}

bool backlog_settled(const struct backlog *backlog) {
  return !backlog->cursor || clock_ms() < backlog->retry_at_ms;
}

static int send_frame(struct coldkv_conv *conv, const struct frame *frame) {
  struct connection *c = &conv->client->connection;
  struct error error;
  uint32_t ahead[LIMIT_AHEAD_MAX];
  uint64_t end = frame->first + frame->count;
  uint32_t count = conversation_ids(conv, end, ahead, (uint32_t)c->ahead_max);
  struct msg_append append = {
      .conversation = conv->handle,
      .first = frame->first,
      .ids = span_of(frame->ids, frame->count * sizeof(uint32_t)),
      .ahead = span_of(ahead, count * sizeof(uint32_t)),
      .records = span_of(frame->records, frame->count * model_token_bytes(conv->model)),
  };
  return connection_send(c, METHOD_APPEND, &append, append_replied, conv, frame_tag(frame), &error);
}

void backlog_drive(struct coldkv_conv *conv) {
  struct backlog *backlog = &conv->backlog;
  const struct connection *c = &conv->client->connection;
  while (backlog->cursor && backlog->in_flight < APPENDS_IN_FLIGHT_MAX && c->pending_count < APPENDS_PENDING_MAX &&
         clock_ms() >= backlog->retry_at_ms && connection_queued(c) <= OUTPUT_BYTES_QUEUED) {
    if (send_frame(conv, backlog->cursor))
      return; /* no memory or too many requests under way: the next turn tries again */
    backlog->in_flight++;
    backlog->cursor = backlog->cursor->next;
  }
}
