// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// Who may connect: the daemon's own user, and those that allow-users and allow-groups name.
#ifndef COLDKV_DAEMON_ACCESS_H
#define COLDKV_DAEMON_ACCESS_H

#include <stdbool.h>
#include <stdint.h>

#include "proto/error.h"

#define ACCESS_IDS_MAX 64u

struct access {
  uint32_t users[ACCESS_IDS_MAX], groups[ACCESS_IDS_MAX];
  uint32_t user_count, group_count;
};

/* Read a list of names or numbers with commas between them, in place of the one there was; an empty one allows nobody.
 * -ERR_ARGUMENT names the entry that is unknown. */
int access_set_users(struct access *access, const char *list, struct error *error);
int access_set_groups(struct access *access, const char *list, struct error *error);

/* True when others than the daemon's own user may connect. */
bool access_shared(const struct access *access);

/* Tells who is at the other end of a connected Unix socket, as the kernel saw it when it connected, and whether that
 * user may be there: 0, or -ERR_DENIED with a sentence for that user, or -ERR_IO. A group counts when it is the peer's
 * primary group or one of its supplementary groups. */
int access_check(const struct access *access, int fd, uint32_t *uid, struct error *error);

/* True for users that see figures of all users and may start a check of everything: the daemon's own, and root. */
bool access_operator(uint32_t uid);

#endif
