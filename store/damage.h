// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// What has been found damaged in an archive while it was open: by an open, a lookup, a read or the scrub. FORMAT.md
// tells what becomes of each kind of piece. The list is kept in memory and is bounded; nothing on disk depends on it.
#ifndef COLDKV_STORE_DAMAGE_H
#define COLDKV_STORE_DAMAGE_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "proto/error.h"
#include "proto/limits.h"

enum {
  DAMAGE_MAX = 1000, /* entries; what is found beyond them is counted */
  DAMAGE_PATH_BYTES = 160,
};

/* Whose tokens a damaged piece holds, as far as that is known. */
struct damage_place {
  bool owned; /* the next three are known */
  uint8_t conversation[LIMIT_ID_BYTES];
  char name[LIMIT_NAME_BYTES_MAX + 1]; /* "" when only the id is known */
  uint32_t uid;
  uint64_t first, count; /* tokens; count 0: not known */
  uint32_t page;         /* of a segment, or 0 */
};

struct damage {
  char path[DAMAGE_PATH_BYTES]; /* relative to the archive */
  char what[ERROR_TEXT_BYTES];
  struct damage_place place;
  bool by_open; /* found when its conversation was opened: it stays until an open finds nothing */
  uint64_t found_s, seen_s; /* Unix times: first and last */
};

struct damage_list {
  pthread_mutex_t lock;
  struct damage *entries;
  uint32_t count, room;
  uint64_t left_out; /* found when the list was full */
};

void damage_list_init(struct damage_list *list);
void damage_list_finish(struct damage_list *list);

/* Adds a piece, or notes that it was seen again: the same path, page and first token. True when it is new. Any
 * thread. */
bool damage_list_add(struct damage_list *list, const struct damage *damage);

/* Drops what an open of that conversation had found. */
void damage_list_clear(struct damage_list *list, const uint8_t conversation[LIMIT_ID_BYTES]);

/* Drops what a check of everything that began at `since_s` has not seen again. */
void damage_list_expire(struct damage_list *list, uint64_t since_s);

/* Calls `visit` for each, the list locked, until it returns nonzero, which is returned. */
typedef int damage_visit_fn(void *context, const struct damage *damage);
int damage_list_each(struct damage_list *list, damage_visit_fn *visit, void *context);

#endif
