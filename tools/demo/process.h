// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// Starting, stopping and killing a coldkvd of one's own, in a scratch directory that leaves nothing behind.
#ifndef COLDKV_TOOLS_DEMO_PROCESS_H
#define COLDKV_TOOLS_DEMO_PROCESS_H

#include <limits.h>
#include <stdint.h>
#include <sys/types.h>

#include "proto/error.h"

/* Writes the path of a file that lies at `relative` from the folder of the running program. */
int process_beside(char path[PATH_MAX], const char *relative, struct error *error);

/* Makes a fresh directory in $TMPDIR or /tmp, and removes it with all that is in it. */
int scratch_create(char path[PATH_MAX], struct error *error);
void scratch_remove(const char *path);

/* Bytes of all files below a directory. */
uint64_t directory_bytes(const char *path);

/* A daemon; fill in the paths and leave pid 0. */
struct service {
  char program[PATH_MAX]; /* coldkvd */
  char data[PATH_MAX], socket[PATH_MAX];
  char log[PATH_MAX]; /* gets what it prints */
  const char *backend, *spin_us, *vram_codes_limit; /* its options of these names; NULL: its defaults */
  pid_t pid;          /* 0 while it does not run */
};

/* Fills in socket, log and, unless `data` is given, the data directory: all in `scratch`. `program` NULL: the coldkvd
 * that was built with this program. */
int service_init(struct service *service, const char *program, const char *scratch, const char *data,
                 struct error *error);

/* Starts it and waits until its socket takes connections. It dies with this process. */
int service_start(struct service *service, struct error *error);

/* SIGKILL, as a crash would be. Nothing to do when it does not run. */
void service_kill(struct service *service);

/* SIGTERM, and SIGKILL when it has not gone after ten seconds. An error when its exit status is not 0. */
int service_stop(struct service *service, struct error *error);

/* In a forked child: to die with its parent. */
void process_follow(pid_t parent);

#endif
