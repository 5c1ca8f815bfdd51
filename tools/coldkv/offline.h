// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// A conversation as its files tell, read without a daemon and without the lock. A daemon may be at work meanwhile: a
// log that is sealed between two looks is noticed, and the look repeated.
#ifndef COLDKV_TOOLS_COLDKV_OFFLINE_H
#define COLDKV_TOOLS_COLDKV_OFFLINE_H

#include "store/meta.h"
#include "store/path.h"

/* One log of the unsealed end. */
struct offline_log {
  uint64_t first;  /* token index that its name tells */
  uint64_t tokens; /* in good frames */
  uint64_t frames, bytes;
  bool torn;       /* its last frame was being written */
  bool damaged;    /* not all of it can be read; `problem` tells */
};

struct offline {
  const char *dir; /* the archive */
  uint8_t id[LIMIT_ID_BYTES];
  struct meta meta;
  struct offline_log *logs;
  uint32_t log_count, log_room;
  uint64_t sealed;        /* tokens in segments */
  uint64_t tokens, ahead; /* ahead: number of ids */
  uint64_t bytes, used_s;
  char model_name[LIMIT_NAME_BYTES_MAX + 1]; /* "" if there is none or its file cannot be read */
  struct error problem;   /* the first thing that is wrong with its logs; code 0: nothing */
};

/* Reads meta and the logs' frame headers of one conversation. `dir` must outlive it. */
int offline_open(struct offline *offline, const char *dir, const uint8_t id[LIMIT_ID_BYTES], struct error *error);
void offline_close(struct offline *offline);

/* What the daemon would answer to conversation.info; spans live as long as `offline`. Extents are in meta.extents. */
void offline_describe(const struct offline *offline, struct msg_conversation *message);

/* Opens the conversation of that name. ERR_NO_CONVERSATION; a conversation whose meta is damaged cannot be found. */
int offline_find(struct offline *offline, const char *dir, const char *name, struct error *error);

/* Calls `visit` for each conversation in the archive, in no order. One that cannot be read comes as NULL, with the
 * reason. Stops at a nonzero return and returns it. */
typedef int offline_visit_fn(void *context, const struct offline *offline, const struct error *reason,
                             struct error *error);
int offline_each(const char *dir, offline_visit_fn *visit, void *context, struct error *error);

#endif
