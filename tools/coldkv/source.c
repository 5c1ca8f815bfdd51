// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
#include "tools/coldkv/source.h"

int source_daemon(const struct options *options, struct rpc_connection **connection, struct error *error) {
  *connection = NULL;
  if (!options->socket[0])
    return error_set(error, ERR_ARGUMENT, "no place for the daemon's socket; give --socket");
  int result = rpc_connect(connection, options->socket, options->socket_given, error);
  return result > 0 ? -ERR_UNREACHABLE : result;
}

int source_open(const struct options *options, struct rpc_connection **connection, struct error *error) {
  *connection = NULL;
  if (options->socket_given)
    return source_daemon(options, connection, error);
  if (!options->data_given && options->socket[0]) {
    int result = rpc_connect(connection, options->socket, options->socket_given, error);
    if (result <= 0)
      return result;
  }
  if (!options->data[0])
    return error_set(error, ERR_ARGUMENT, "no place for the archive; give --data DIR, or set HOME");
  *error = (struct error){0};
  return 0;
}
