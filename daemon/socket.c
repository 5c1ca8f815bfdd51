// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
#include "daemon/socket.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "daemon/log.h"

#define BACKLOG 1024 /* clients that all start at once wait here, not in an error */

static int address_of(const char *path, struct sockaddr_un *address, struct error *error) {
  memset(address, 0, sizeof *address);
  address->sun_family = AF_UNIX;
  if (strlen(path) >= sizeof address->sun_path)
    return error_set(error, ERR_ARGUMENT, "socket path %s is longer than %zu bytes; choose another with --socket", path,
                     sizeof address->sun_path - 1);
  memcpy(address->sun_path, path, strlen(path));
  return 0;
}

static int make_directory(const char *path, bool shared, struct error *error) {
  char dir[PATH_MAX];
  snprintf(dir, sizeof dir, "%s", path);
  char *slash = strrchr(dir, '/');
  if (!slash || slash == dir)
    return 0;
  *slash = 0;
  if (mkdir(dir, 0700)) /* less what the umask takes */
    return errno == EEXIST ? 0 : error_set_errno(error, errno, "cannot make the socket's directory %s", dir);
  return chmod(dir, shared ? 0711 : 0700) ? error_set_errno(error, errno, "cannot set the mode of %s", dir) : 0;
}

/* /tmp/coldkv-UID may have been made by somebody else to lure clients. */
static int check_directory(const char *path, struct error *error) {
  char dir[PATH_MAX];
  snprintf(dir, sizeof dir, "%s", path);
  char *slash = strrchr(dir, '/');
  if (!slash || slash == dir)
    return 0;
  *slash = 0;
  struct stat status;
  if (stat(dir, &status))
    return error_set_errno(error, errno, "cannot look at the socket's directory %s", dir);
  if (status.st_uid != geteuid() && status.st_uid != 0)
    return error_set(error, ERR_DENIED, "the socket's directory %s belongs to user %u; choose another with --socket",
                     dir, (unsigned)status.st_uid);
  return 0;
}

static int remove_stale(const char *path, const struct sockaddr_un *address, struct error *error) {
  struct stat status;
  if (lstat(path, &status))
    return errno == ENOENT ? 0 : error_set_errno(error, errno, "cannot look at %s", path);
  if (!S_ISSOCK(status.st_mode))
    return error_set(error, ERR_ARGUMENT, "%s is there and is no socket; choose another with --socket", path);
  int probe = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (probe < 0)
    return error_set_errno(error, errno, "cannot make a socket");
  int answered = connect(probe, (const struct sockaddr *)address, sizeof *address) == 0;
  close(probe);
  if (answered)
    return error_set(error, ERR_BUSY, "another daemon answers on %s", path);
  if (unlink(path))
    return error_set_errno(error, errno, "cannot remove the stale socket %s", path);
  return 0;
}

/* Other users have to get as far as the socket. */
static void warn_unreachable(const char *path) {
  char dir[PATH_MAX];
  snprintf(dir, sizeof dir, "%s", path);
  char *slash = strrchr(dir, '/');
  struct stat status;
  if (!slash || slash == dir)
    return;
  *slash = 0;
  if (stat(dir, &status) == 0 && !(status.st_mode & S_IXOTH))
    log_line("%s keeps other users out (mode %03o): those that allow-users and allow-groups name cannot reach the "
             "socket in it", dir, (unsigned)status.st_mode & 0777u);
}

static int bind_socket(int fd, const char *path, const struct sockaddr_un *address, bool shared,
                       struct error *error) {
  if (bind(fd, (const struct sockaddr *)address, sizeof *address))
    return error_set_errno(error, errno, "cannot make the socket %s", path);
  /* nobody can connect before listen() */
  if (chmod(path, shared ? 0666 : 0600) || listen(fd, BACKLOG)) {
    int result = error_set_errno(error, errno, "cannot listen on %s", address->sun_path);
    unlink(path);
    return result;
  }
  return 0;
}

int socket_listen(const char *path, bool shared, int *fd, struct error *error) {
  struct sockaddr_un address;
  int result = address_of(path, &address, error);
  if (!result)
    result = make_directory(path, shared, error);
  if (!result)
    result = check_directory(path, error);
  if (!result)
    result = remove_stale(path, &address, error);
  if (result)
    return result;
  *fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  if (*fd < 0)
    return error_set_errno(error, errno, "cannot make a socket");
  result = bind_socket(*fd, path, &address, shared, error);
  if (result) {
    close(*fd);
    *fd = -1;
  } else if (shared) {
    warn_unreachable(path);
  }
  return result;
}
