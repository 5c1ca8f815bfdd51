// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// One request at a time to the daemon over its socket, waiting for each answer.
#ifndef COLDKV_TOOLS_COLDKV_RPC_CALL_H
#define COLDKV_TOOLS_COLDKV_RPC_CALL_H

#include "proto/messages.h"

struct rpc_connection;

/* Connects to the socket at `path`. Returns 0, 1 when no daemon listens there (`error` says so too), or -code.
 * A socket of another user than this one or root is refused (ERR_DENIED) unless it was given, not guessed. */
int rpc_connect(struct rpc_connection **connection, const char *path, bool given, struct error *error);
void rpc_disconnect(struct rpc_connection *connection); /* NULL is allowed */

/* Calls `method` with `params` and unpacks its answer into `result`, whose spans and lists live until the next call on
 * this connection. Returns 0, the daemon's own error, ERR_BAD_MESSAGE for an answer that makes no sense, ERR_TIMEOUT or
 * ERR_IO; after these three the connection is of no use. */
int rpc_call(struct rpc_connection *connection, enum method_id method, const void *params, void *result,
             struct error *error);

#endif
