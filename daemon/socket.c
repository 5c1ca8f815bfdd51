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

#define BACKLOG 128

static int address_of(const char *path, struct sockaddr_un *address, struct error *error) {
  memset(address, 0, sizeof *address);
  address->sun_family = AF_UNIX;
  if (strlen(path) >= sizeof address->sun_path)
    return error_set(error, ERR_ARGUMENT, "socket path %s is longer than %zu bytes; choose another with --socket", path,
                     sizeof address->sun_path - 1);
  memcpy(address->sun_path, path, strlen(path));
  return 0;
}

static int make_directory(const char *path, struct error *error) {
  char dir[PATH_MAX];
  snprintf(dir, sizeof dir, "%s", path);
  char *slash = strrchr(dir, '/');
  if (!slash || slash == dir)
    return 0;
  *slash = 0;
  if (mkdir(dir, 0700) == 0)
    return 0;
  if (errno != EEXIST)
    return error_set_errno(error, errno, "cannot make the socket's directory %s", dir);
  return 0;
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

int socket_listen(uv_pipe_t *listener, const char *path, uv_connection_cb on_connection, struct error *error) {
  struct sockaddr_un address;
  int result = address_of(path, &address, error);
  if (!result)
    result = make_directory(path, error);
  if (!result)
    result = check_directory(path, error);
  if (!result)
    result = remove_stale(path, &address, error);
  if (result)
    return result;
  mode_t mask = umask(0177);
  int status = uv_pipe_bind(listener, path);
  umask(mask);
  if (!status)
    status = uv_listen((uv_stream_t *)listener, BACKLOG, on_connection);
  return status ? error_set(error, ERR_IO, "cannot listen on %s: %s", path, uv_strerror(status)) : 0;
}

int socket_peer(const uv_pipe_t *pipe, uint32_t *uid, struct error *error) {
  uv_os_fd_t fd;
  struct ucred peer;
  socklen_t size = sizeof peer;
  if (uv_fileno((const uv_handle_t *)pipe, &fd) || getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &size))
    return error_set_errno(error, errno, "cannot tell who connected");
  *uid = peer.uid;
  return 0;
}
