// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// The Unix socket that the daemon listens on: who may reach it, and who is at the other end.
#ifndef COLDKV_DAEMON_SOCKET_H
#define COLDKV_DAEMON_SOCKET_H

#include <stdint.h>
#include <uv.h>

#include "proto/error.h"

/* Binds `listener` to `path` (mode 0600) and begins to listen. Makes the last directory of the path (0700) if it is not
 * there; in a directory that everybody may write to, it must then be ours. A socket file that nobody answers on is
 * replaced; ERR_BUSY when a daemon answers on it. */
int socket_listen(uv_pipe_t *listener, const char *path, uv_connection_cb on_connection, struct error *error);

/* The user at the other end of an accepted connection. */
int socket_peer(const uv_pipe_t *pipe, uint32_t *uid, struct error *error);

#endif
