// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
#include "daemon/service.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define FIRST_FD 3 /* SD_LISTEN_FDS_START */
#define MESSAGE_BYTES_MAX 512

static int check_socket(int fd, struct error *error) {
  int type = 0, listening = 0;
  struct sockaddr_storage address = {0};
  socklen_t type_size = sizeof type, listening_size = sizeof listening, address_size = sizeof address;
  if (getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &type_size) ||
      getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &listening, &listening_size) ||
      getsockname(fd, (struct sockaddr *)&address, &address_size) || address.ss_family != AF_UNIX ||
      type != SOCK_STREAM || !listening)
    return error_set(error, ERR_ARGUMENT, "descriptor %d, which the service manager handed on, is no listening Unix "
                                          "stream socket (ListenStream= with a path, Accept=no)", fd);
  int flags = fcntl(fd, F_GETFL);
  if (flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK) || fcntl(fd, F_SETFD, FD_CLOEXEC))
    return error_set_errno(error, errno, "cannot use descriptor %d of the service manager", fd);
  return 0;
}

int service_socket(int *fd, struct error *error) {
  const char *pid = getenv("LISTEN_PID"), *count = getenv("LISTEN_FDS");
  *fd = -1;
  bool ours = pid && count && strtol(pid, NULL, 10) == (long)getpid();
  long sockets = ours ? strtol(count, NULL, 10) : 0;
  unsetenv("LISTEN_PID");
  unsetenv("LISTEN_FDS");
  unsetenv("LISTEN_FDNAMES");
  if (!ours)
    return 0;
  if (sockets != 1)
    return error_set(error, ERR_ARGUMENT, "the service manager handed on %ld sockets, wanted 1", sockets);
  int result = check_socket(FIRST_FD, error);
  if (!result)
    *fd = FIRST_FD;
  return result;
}

void service_tell(const char *format, ...) {
  const char *path = getenv("NOTIFY_SOCKET");
  struct sockaddr_un address = {.sun_family = AF_UNIX};
  char message[MESSAGE_BYTES_MAX];
  if (!path || (path[0] != '/' && path[0] != '@') || strlen(path) >= sizeof address.sun_path)
    return;
  va_list args;
  va_start(args, format);
  vsnprintf(message, sizeof message, format, args);
  va_end(args);
  memcpy(address.sun_path, path, strlen(path));
  if (path[0] == '@') /* an abstract name */
    address.sun_path[0] = 0;
  int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
  if (fd < 0)
    return;
  socklen_t size = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + strlen(path));
  ssize_t sent = sendto(fd, message, strlen(message), MSG_NOSIGNAL | MSG_DONTWAIT, (struct sockaddr *)&address, size);
  (void)sent; /* a manager that does not listen is told nothing */
  close(fd);
}
