// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// What a service manager (systemd) and the daemon tell each other: sd_notify(3) and sd_listen_fds(3), by the protocols
// that these pages describe. They are a datagram and two variables, less than linking a library for them would take.
#ifndef COLDKV_DAEMON_SERVICE_H
#define COLDKV_DAEMON_SERVICE_H

#include "proto/error.h"

/* The listening Unix socket that the daemon was started with, non-blocking, or -1 when there is none. -ERR_ARGUMENT
 * when it is something else, or more than one. Takes the variables away, so that no child sees them. */
int service_socket(int *fd, struct error *error);

/* Sends lines of "VARIABLE=VALUE" (READY=1, STATUS=..., STOPPING=1) to the manager; does nothing when there is none. */
void service_tell(const char *format, ...) __attribute__((format(printf, 1, 2)));

#endif
