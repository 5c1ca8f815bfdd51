// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// The check of the whole archive that the method `verify` starts on the background thread, and its progress.
#ifndef COLDKV_DAEMON_VERIFIER_H
#define COLDKV_DAEMON_VERIFIER_H

#include <pthread.h>
#include <stdatomic.h>

#include "daemon/job.h"
#include "proto/messages.h"
#include "store/verify.h"

#define VERIFIER_PROBLEMS_MAX 100
#define VERIFIER_TEXT_BYTES 512

struct server;

struct verifier {
  struct job job;
  struct server *server;
  bool running; /* loop only */
  uint64_t finished_s;
  atomic_bool stop; /* asks the thread to end early */

  pthread_mutex_t lock; /* guards what follows: the thread writes, the loop reads */
  struct verify_report report;
  uint32_t problem_count;
  char paths[VERIFIER_PROBLEMS_MAX][VERIFIER_TEXT_BYTES];
  char whats[VERIFIER_PROBLEMS_MAX][VERIFIER_TEXT_BYTES];
};

int verifier_init(struct verifier *verifier, struct server *server, struct error *error);
void verifier_finish(struct verifier *verifier);

/* Starts a check unless one runs, or who asks `waits` to hear how the last one ended: whoever was told that one runs
 * does, until it has. What others started and did not wait for says nothing about the archive of now. */
void verifier_ask(struct verifier *verifier, bool *waits);

/* Packs the progress as the answer of `verify`; 0 or -ERR_MEMORY. */
int verifier_pack(struct verifier *verifier, msgpack_packer *packer, uint32_t id);

#endif
