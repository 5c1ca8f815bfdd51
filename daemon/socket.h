// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// The Unix socket that the daemon listens on.
#ifndef COLDKV_DAEMON_SOCKET_H
#define COLDKV_DAEMON_SOCKET_H

#include <stdbool.h>

#include "proto/error.h"

/* Makes a non-blocking socket that listens at `path`, of mode 0600, or 0666 when it is `shared`. Makes the last
 * directory of the path (0700, or 0711) if it is not there; it must then be ours or root's. A socket file that nobody
 * answers on is replaced; ERR_BUSY when a daemon answers on it. The caller closes *fd and removes the file. */
int socket_listen(const char *path, bool shared, int *fd, struct error *error);

#endif
