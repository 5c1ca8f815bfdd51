// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// The bound on what a user has in the archive. What it has is added up from the catalog, again and again: what is known
// from the last time only saves adding up before every append, and nobody is refused because of it. The committer's.
#ifndef COLDKV_DAEMON_QUOTA_H
#define COLDKV_DAEMON_QUOTA_H

#include "store/archive.h"

struct quota_user;

struct quota {
  uint64_t bytes; /* 0: no bound */
  struct quota_user *users;
};

/* 0 when the user may store `more` bytes, which are then taken as stored; -ERR_NO_SPACE when that would pass the
 * quota. */
int quota_take(struct quota *quota, struct archive *archive, uint32_t uid, uint64_t more, struct error *error);
void quota_finish(struct quota *quota);

#endif
