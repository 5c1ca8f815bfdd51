// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// Whom a command asks: the daemon, or the files of an archive.
#ifndef COLDKV_TOOLS_COLDKV_SOURCE_H
#define COLDKV_TOOLS_COLDKV_SOURCE_H

#include "tools/coldkv/command.h"
#include "tools/coldkv/rpc_call.h"

/* Decides whom to ask: a daemon, unless --data was given without --socket, and unless none answers and no --socket was
 * given. *connection is NULL for the files. ERR_UNREACHABLE, ERR_ARGUMENT when there is neither. */
int source_open(const struct options *options, struct rpc_connection **connection, struct error *error);

/* Connects to the daemon for what only it can do. */
int source_daemon(const struct options *options, struct rpc_connection **connection, struct error *error);

#endif
