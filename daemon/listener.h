// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// Accepting connections: from whom, how many, and what happens when descriptors run out. Loop only.
#ifndef COLDKV_DAEMON_LISTENER_H
#define COLDKV_DAEMON_LISTENER_H

#include <stdbool.h>
#include <sys/types.h>
#include <uv.h>

#include "daemon/log.h"
#include "proto/error.h"

struct server;

struct listener {
  struct server *server;
  int fd;              /* -1: none yet */
  bool made;           /* the socket file is ours, to be removed */
  dev_t device;        /* of that file: another one in its place is left alone */
  ino_t inode;
  uv_poll_t poll;
  uv_timer_t pause;    /* descriptors have run out: accepting goes on when it is over */
  struct log_rate log; /* of refusals */
};

/* Listens on the socket that listener->fd is, or on options->socket. */
int listener_open(struct listener *listener, struct server *server, struct error *error);
/* Closes the socket and removes its file; harmless when it was never opened. */
void listener_close(struct listener *listener);

#endif
