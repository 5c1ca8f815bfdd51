// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
#include "daemon/access.h"

#include <ctype.h>
#include <errno.h>
#include <grp.h>
#include <pwd.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define NAME_BYTES_MAX 256u
#define ENTRY_BYTES 65536u /* for a line of passwd or group with many members */
#define GROUPS_FIRST 64u
#define OVERFLOW_UID 65534u

/* 0 when the text is a number of 32 bits less the last one, which means "nobody said". */
static int number_of(const char *text, uint32_t *id) {
  char *end;
  errno = 0;
  unsigned long long number = strtoull(text, &end, 10);
  if (!isdigit((unsigned char)text[0]) || *end || errno || number >= UINT32_MAX)
    return -1;
  *id = (uint32_t)number;
  return 0;
}

static int find_user(const char *name, char *buffer, uint32_t *id) {
  struct passwd entry, *found = NULL;
  if (getpwnam_r(name, &entry, buffer, ENTRY_BYTES, &found) || !found)
    return -1;
  *id = entry.pw_uid;
  return 0;
}

static int find_group(const char *name, char *buffer, uint32_t *id) {
  struct group entry, *found = NULL;
  if (getgrnam_r(name, &entry, buffer, ENTRY_BYTES, &found) || !found)
    return -1;
  *id = entry.gr_gid;
  return 0;
}

typedef int find_fn(const char *name, char *buffer, uint32_t *id);

static int add_entry(const char *begin, size_t size, find_fn *find, char *buffer, uint32_t *ids, uint32_t *count,
                     const char *key, struct error *error) {
  char name[NAME_BYTES_MAX];
  while (size && isspace((unsigned char)*begin)) {
    begin++;
    size--;
  }
  while (size && isspace((unsigned char)begin[size - 1]))
    size--;
  if (!size)
    return 0;
  if (size >= sizeof name)
    return error_set(error, ERR_ARGUMENT, "%s: a name of %zu bytes", key, size);
  memcpy(name, begin, size);
  name[size] = 0;
  if (*count == ACCESS_IDS_MAX)
    return error_set(error, ERR_ARGUMENT, "%s: more than %u", key, ACCESS_IDS_MAX);
  if (number_of(name, &ids[*count]) && find(name, buffer, &ids[*count]))
    return error_set(error, ERR_ARGUMENT, "%s: there is no '%.40s' on this machine", key, name);
  (*count)++;
  return 0;
}

static int set_list(const char *list, find_fn *find, uint32_t *ids, uint32_t *count, const char *key,
                    struct error *error) {
  char *buffer = malloc(ENTRY_BYTES);
  if (!buffer)
    return error_set(error, ERR_MEMORY, "%s: out of memory", key);
  int result = 0;
  *count = 0;
  while (!result) {
    size_t size = strcspn(list, ",");
    result = add_entry(list, size, find, buffer, ids, count, key, error);
    if (!list[size])
      break;
    list += size + 1;
  }
  free(buffer);
  return result;
}

int access_set_users(struct access *access, const char *list, struct error *error) {
  return set_list(list, find_user, access->users, &access->user_count, "allow-users", error);
}

int access_set_groups(struct access *access, const char *list, struct error *error) {
  return set_list(list, find_group, access->groups, &access->group_count, "allow-groups", error);
}

bool access_shared(const struct access *access) { return access->user_count || access->group_count; }

bool access_operator(uint32_t uid) { return uid == geteuid() || uid == 0; }

static bool has(const uint32_t *ids, uint32_t count, uint32_t id) {
  for (uint32_t i = 0; i < count; i++)
    if (ids[i] == id)
      return true;
  return false;
}

/* Supplementary groups from the kernel, not from the group file: no lookup that may block, and what that process is in
 * counts. */
static bool in_groups(const struct access *access, int fd) {
  socklen_t size = GROUPS_FIRST * sizeof(gid_t);
  gid_t *groups = malloc(size);
  bool found = false;
  int status = groups ? getsockopt(fd, SOL_SOCKET, SO_PEERGROUPS, groups, &size) : -1;
  if (groups && status && errno == ERANGE) { /* `size` is what it takes now */
    free(groups);
    groups = malloc(size);
    status = groups ? getsockopt(fd, SOL_SOCKET, SO_PEERGROUPS, groups, &size) : -1;
  }
  for (size_t i = 0; !status && i < size / sizeof(gid_t) && !found; i++)
    found = has(access->groups, access->group_count, groups[i]);
  free(groups);
  return found;
}

/* In a user namespace (a container, systemd's PrivateUsers=) all users that it does not know look like one, `nobody`:
 * then that one is no user. */
static bool is_anybody(uint32_t uid) {
  unsigned inside = 0, outside = 0, count = 0;
  if (uid != OVERFLOW_UID)
    return false;
  FILE *map = fopen("/proc/self/uid_map", "re");
  int fields = map ? fscanf(map, "%u %u %u", &inside, &outside, &count) : 0;
  if (map)
    fclose(map);
  return fields != 3 || inside || outside || count != UINT32_MAX;
}

int access_check(const struct access *access, int fd, uint32_t *uid, struct error *error) {
  struct ucred peer;
  socklen_t size = sizeof peer;
  if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &size))
    return error_set_errno(error, errno, "cannot tell who connected");
  *uid = peer.uid;
  if (peer.uid != geteuid() && is_anybody(peer.uid))
    return error_set(error, ERR_DENIED, "in this user namespace the daemon cannot tell who you are");
  if (peer.uid == geteuid() || has(access->users, access->user_count, peer.uid) ||
      (access->group_count && (has(access->groups, access->group_count, peer.gid) || in_groups(access, fd))))
    return 0;
  return error_set(error, ERR_DENIED, "user %u may not connect; the daemon's allow-users and allow-groups say who may",
                   peer.uid);
}
