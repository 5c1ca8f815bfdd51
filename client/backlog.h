// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// The backlog: encoded tokens that the daemon has not called durable yet, as the frames they are sent in. After a
// reconnect every frame is sent again; the daemon takes repeats of the same bytes.
#ifndef COLDKV_CLIENT_BACKLOG_H
#define COLDKV_CLIENT_BACKLOG_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "proto/error.h"

struct coldkv_conv;

struct frame {
  struct frame *next;
  uint64_t first;
  uint32_t count;
  size_t bytes; /* of the whole frame, this struct included */
  uint32_t *ids;    /* [count], behind the struct */
  uint8_t *records; /* [count][layers][kv_heads][104], behind the ids */
};

struct backlog {
  struct frame *head, *tail;
  struct frame *cursor; /* the next to be sent; NULL when all were */
  uint64_t bytes;
  uint32_t in_flight;
  uint64_t retry_at_ms; /* after a refusal */
  struct error trouble; /* the last refusal; code 0 after an append that was taken */
};

/* A frame with room for `count` tokens of token_bytes each, not in the list yet. NULL when out of memory. */
struct frame *frame_create(uint64_t first, uint32_t count, uint64_t token_bytes);

/* Bytes that frame_create takes. */
uint64_t frame_bytes(uint32_t count, uint64_t token_bytes);

/* Adds a frame at the end; the backlog owns it. */
void backlog_push(struct backlog *backlog, struct frame *frame);

void backlog_finish(struct backlog *backlog);

/* Sends frames, as many as may be under way. */
void backlog_drive(struct coldkv_conv *conv);

/* The connection was lost: everything has to be sent again. */
void backlog_lost(struct coldkv_conv *conv);

/* True when nothing more can be sent now: all was, or the daemon takes nothing. */
bool backlog_settled(const struct backlog *backlog);

/* What the daemon answered an append with; -ERR_BAD_MESSAGE when it makes no sense. `end`: of the append's tokens. */
int backlog_acknowledge(struct coldkv_conv *conv, uint64_t end, uint64_t stored, uint64_t durable,
                        struct error *error);

/* True for errors that another attempt may not meet: disk full, read-only, busy, stopping, or what a person can put
 * right (rights, a damaged file) without this process losing its tokens. */
bool append_error_passes(int code);

#endif
