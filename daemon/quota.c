// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
#include "daemon/quota.h"

#include <stdlib.h>
#include <uv.h>

#define KNOWN_MS 10000u           /* a sum is good for so long, */
#define KNOWN_BYTES (64u << 20)   /* and until so much was added to it */

struct quota_user {
  struct quota_user *next;
  uint32_t uid;
  uint64_t bytes, added; /* by the archive; since then */
  uint64_t known_ms;     /* 0: not yet */
};

static struct quota_user *find(struct quota *quota, uint32_t uid) {
  struct quota_user *user = quota->users;
  while (user && user->uid != uid)
    user = user->next;
  if (user)
    return user;
  user = calloc(1, sizeof *user);
  if (!user)
    return NULL;
  user->uid = uid;
  user->next = quota->users;
  quota->users = user;
  return user;
}

int quota_take(struct quota *quota, struct archive *archive, uint32_t uid, uint64_t more, struct error *error) {
  if (!quota->bytes || !more)
    return 0;
  struct quota_user *user = find(quota, uid);
  if (!user)
    return error_set(error, ERR_MEMORY, "out of memory for a quota");
  uint64_t now_ms = uv_hrtime() / 1000000;
  bool known = user->known_ms && now_ms - user->known_ms < KNOWN_MS && user->added < KNOWN_BYTES;
  if (!known || user->bytes + user->added + more > quota->bytes) {
    int result = archive_usage(archive, uid, &user->bytes, error);
    if (result)
      return result;
    user->added = 0;
    user->known_ms = now_ms;
  }
  if (user->bytes + user->added + more > quota->bytes)
    return error_set(error, ERR_NO_SPACE,
                     "user %u has %llu KiB in the archive, and %llu more would pass the quota of %llu KiB; delete "
                     "conversations, or have quota-mb raised",
                     uid, (unsigned long long)(user->bytes >> 10), (unsigned long long)(more >> 10),
                     (unsigned long long)(quota->bytes >> 10));
  user->added += more;
  return 0;
}

void quota_finish(struct quota *quota) {
  for (struct quota_user *user = quota->users, *next; user; user = next) {
    next = user->next;
    free(user);
  }
  quota->users = NULL;
}
