// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// The scrub: a thread that reads the whole archive again and again, slowly, so that rot is found while there are copies
// elsewhere to restore from. It puts what it finds on the archive's list of damage. Nothing about it is kept on disk.
#ifndef COLDKV_DAEMON_SCRUBBER_H
#define COLDKV_DAEMON_SCRUBBER_H

#include <pthread.h>

#include "proto/messages.h"
#include "store/verify.h"

struct archive;

struct scrubber {
  struct archive *archive;
  uint64_t bytes_per_s, pause_s;
  bool started;
  pthread_t thread;

  pthread_mutex_t lock; /* guards what follows */
  pthread_cond_t wake;  /* told to stop */
  bool stop, running;
  struct verify_report report; /* of the cycle that is under way, or the last one */
  uint64_t cycles, finished_s, bytes_total;
  uint64_t began_ns;
};

/* Starts it, unless mb_per_s is 0. `archive` has to outlive it. */
int scrubber_start(struct scrubber *scrubber, struct archive *archive, uint64_t mb_per_s, uint64_t pause_s,
                   struct error *error);

/* Ends it soon; harmless when it was not started. */
void scrubber_stop(struct scrubber *scrubber);

/* Fills in the members of a status, and of the figures, that tell of the scrub. */
void scrubber_status(struct scrubber *scrubber, struct msg_status *status);
void scrubber_stats(struct scrubber *scrubber, struct msg_stats *stats);

#endif
