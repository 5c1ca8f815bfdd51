// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
#include "proto/defaults.h"

#include <pwd.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static int put(char *path, size_t size, const char *format, ...) __attribute__((format(printf, 3, 4)));

static int put(char *path, size_t size, const char *format, ...) {
  va_list args;
  va_start(args, format);
  int length = vsnprintf(path, size, format, args);
  va_end(args);
  if (length >= 0 && (size_t)length < size)
    return 0;
  if (size)
    path[0] = '\0';
  return -1;
}

static const char *variable(const char *name) {
  const char *value = getenv(name);
  return value && value[0] ? value : NULL;
}

static const char *absolute_variable(const char *name) {
  const char *value = variable(name);
  return value && value[0] == '/' ? value : NULL;
}

int default_data_dir(char *path, size_t size) {
  const char *data = variable("COLDKV_DATA");
  if (data)
    return put(path, size, "%s", data);
  const char *xdg = absolute_variable("XDG_DATA_HOME");
  if (xdg)
    return put(path, size, "%s/coldkv", xdg);
  const char *home = absolute_variable("HOME");
  if (home)
    return put(path, size, "%s/.local/share/coldkv", home);
  char buffer[4096];
  struct passwd entry, *found = NULL;
  if (getpwuid_r(geteuid(), &entry, buffer, sizeof buffer, &found) == 0 && found && found->pw_dir[0] == '/')
    return put(path, size, "%s/.local/share/coldkv", found->pw_dir);
  if (size)
    path[0] = '\0';
  return -1;
}

int default_socket_path(char *path, size_t size) {
  const char *socket = variable("COLDKV_SOCKET");
  if (socket)
    return put(path, size, "%s", socket);
  const char *xdg = absolute_variable("XDG_RUNTIME_DIR");
  if (xdg)
    return put(path, size, "%s/coldkv.sock", xdg);
  return put(path, size, "/tmp/coldkv-%lu/coldkv.sock", (unsigned long)geteuid());
}
