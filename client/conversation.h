// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// A conversation in this process. Token indices, ascending:
//
//     0 .. handed    encoded: stored by the daemon, or in the backlog until the daemon says `durable`
//     held_first ..  in the ring of the hot window, exact; held_first <= handed once tokens >= handed
//     tokens         the next index to be fed; below `handed` only while a resumed conversation is rebuilt
#ifndef COLDKV_CLIENT_CONVERSATION_H
#define COLDKV_CLIENT_CONVERSATION_H

#include "client/backlog.h"
#include "client/coldkv.h"
#include "client/cuda/device.h"
#include "client/hot.h"
#include "client/model.h"
#include "client/patience.h"
#include "client/retrieve.h"

enum conv_link {
  CONV_AWAY,    /* not open on this connection */
  CONV_OPENING, /* asked for */
  CONV_READY,
};

/* What coldkv_resume wants fed: [0, sinks), [tail, count) and the ids ahead of them, [count, end). */
struct plan {
  uint64_t sinks, tail, end;
  uint32_t *ids; /* of the first two ranges, then of the third; NULL when there is nothing to feed */
};

/* The open block. */
struct block {
  bool open;
  uint64_t first;     /* index of its first token */
  uint32_t count;
  uint64_t hot_start; /* rows attend exactly from here on */
  bool packed;
  bool rotated;       /* q and k come after RoPE, for `positions` */
  float rows[COLDKV_BLOCK_MAX][ROPE_ROW_MAX];    /* rotations of the tokens' own indices */
  float unrotate[COLDKV_BLOCK_MAX][ROPE_ROW_MAX]; /* of `positions` */
  uint8_t *done;       /* [layers]: keys and values are there */
  uint8_t *prefetched; /* [layers]: and not looked up since; behind `done` */
};

/* A sync append under way (sync.c). */
struct sync {
  bool wanted, in_flight, done;
  uint64_t retry_at_ms;
  struct error trouble;
};

struct coldkv_conv {
  struct coldkv_conv *next;
  struct coldkv_client *client;
  struct coldkv_model *model;
  char name[LIMIT_NAME_BYTES_MAX + 1];
  uint8_t id[LIMIT_ID_BYTES];
  struct frozen *frozen; /* that the daemon has bound it to; NULL while there is none */
  uint32_t k, candidates;
  enum lookup_mode mode;

  enum conv_link link;
  uint64_t link_made; /* connection that `handle` belongs to */
  uint64_t link_retry_ms, handle, reconnects;
  struct error link_reason; /* why it could not be opened again */
  struct error fatal;       /* code != 0: nothing can be stored any more */
  struct error last;        /* what went wrong last, though it may be over; code 0: nothing has */

  uint64_t tokens, handed, held_first, stored, durable;
  struct plan plan;
  struct backlog backlog;
  struct sync sync;
  struct hot hot;
  struct device *device; /* NULL: the processor keeps the hot window, encodes and attends */
  bool device_frozen;    /* the device has the means */
  struct frame *encoding; /* on the device, from `handed` on; not in the backlog yet */
  struct block block;

  uint64_t lookups, lookups_missed, bad_records, prefetches, prefetches_used;
  struct patience patience;
  struct retrieved retrieved;
  float *scratch; /* of attend.c */
  size_t scratch_count;
};

/* --- link.c: open on the daemon, and again after every reconnect -------------------------------------------------- */

/* Fills in the parameters of conversation.open; model NULL: without one. */
void link_describe(const struct coldkv_conv *conv, const struct frozen *model, struct msg_open *open);

/* Takes the handle and the counts of an answer of conversation.open, after checking that it is still the same
 * conversation, with this model (NULL: any), and that nothing is missing. */
int link_accept(struct coldkv_conv *conv, const struct msg_open_ok *answer, const struct frozen *frozen,
                struct error *error);

/* Opens it again when the connection is new and it is time to. */
void link_drive(struct coldkv_conv *conv);

/* True while requests can be sent with conv->handle. */
bool link_ready(const struct coldkv_conv *conv);

/* The daemon does not know the handle any more. */
void link_lost(struct coldkv_conv *conv);

/* From now on every begin and sync fails with this error. */
void link_fatal(struct coldkv_conv *conv, const struct error *error);

/* What keeps it from being connected; code 0 when nothing does. */
const struct error *link_trouble(const struct coldkv_conv *conv);

/* --- conversation.c, sync.c, resume.c, block.c -------------------------------------------------------------------- */

/* Sends what is due. Called at every turn of the client. */
void conversation_drive(struct coldkv_conv *conv);

/* One past the last token, whether fed already or not. */
uint64_t conversation_end(const struct coldkv_conv *conv);

/* Ids of tokens from `first` (>= handed, or in a frame) on, at most `max`; returns how many there are. */
uint32_t conversation_ids(const struct coldkv_conv *conv, uint64_t first, uint32_t *ids, uint32_t max);

/* First token of the hot window of a block that begins at `first`, by the rule of 64. */
uint64_t conversation_hot_first(uint64_t first);

/* Sends the append that makes everything durable, once everything else was sent. */
void sync_drive(struct coldkv_conv *conv);
void sync_lost(struct coldkv_conv *conv);

/* Gets the ids that a conversation with a past begins with. `ahead` is u32 [n]. */
int resume_plan(struct coldkv_conv *conv, uint64_t count, struct span ahead, uint64_t deadline_ms,
                struct error *error);

/* Tokens that are still to be fed before new ones, and the first of them; 0 when the past is rebuilt. */
uint64_t resume_left(const struct coldkv_conv *conv);

/* End of the range of the plan that conv->tokens lies in. */
uint64_t resume_range_end(const struct coldkv_conv *conv);

/* Id that the plan has for a token in it. */
uint32_t resume_id(const struct coldkv_conv *conv, uint64_t token);

/* After a block: goes on from the sinks to the tail. */
void resume_step(struct coldkv_conv *conv);

/* --- handover.c, calibrate.c -------------------------------------------------------------------------------------- */

/* Encodes the tokens [handed, end) and puts them in the backlog. Returns 1 when that is not possible yet, for want of
 * frozen means: they stay in the ring. -ERR_BACKLOG: nothing has changed. */
int handover_run(struct coldkv_conv *conv, uint64_t end, struct error *error);

/* Puts what a device encodes in the backlog: waits for it, or only if it is there. -ERR_NOT_FINITE, -ERR_IO: nothing of
 * it is handed over. */
int handover_settle(struct coldkv_conv *conv, struct error *error);
int handover_poll(struct coldkv_conv *conv, struct error *error);

/* One past the last token that is handed over or being encoded. */
uint64_t handover_end(const struct coldkv_conv *conv);

/* Forgets what is being encoded. */
void handover_drop(struct coldkv_conv *conv);

/* Freezes the means of the tokens held and binds the conversation to the model. */
int calibrate_run(struct coldkv_conv *conv, uint64_t deadline_ms, struct error *error);

/* Binds the conversation to a frozen model. */
int conversation_bind(struct coldkv_conv *conv, struct frozen *frozen, uint64_t deadline_ms, struct error *error);

#endif
