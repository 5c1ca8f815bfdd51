// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// The daemon as a whole. One thread, the loop, owns everything here except what is marked; it never touches the disk.
//
//   loop        sockets, parsing, handles and leases
//   committer   the one thread that changes the archive: appends with group commit, open, close, delete, lists
//   lookups     a pool that scans and rescores, over views that stay valid whatever the committer does, and another of
//               threads that yield to it, for what takes long while several clients are active (reads.h)
//   background  one thread that seals closed logs and verifies
//   scrub       one that reads everything again and again, slowly
//
// A request goes from the loop to one of these and comes back through `returns`.
#ifndef COLDKV_DAEMON_SERVER_H
#define COLDKV_DAEMON_SERVER_H

#include <stdatomic.h>
#include <uv.h>

#include "daemon/backend.h"
#include "daemon/job.h"
#include "daemon/listener.h"
#include "daemon/options.h"
#include "daemon/quota.h"
#include "daemon/reads.h"
#include "daemon/scrubber.h"
#include "daemon/verifier.h"
#include "proto/messages.h"
#include "store/archive.h"
#include "store/fetch.h"

struct connection;
struct session;
struct user;

/* Figures of struct msg_stats that the archive does not count; any thread may add. */
struct counters {
  _Atomic uint64_t connections_total, requests, errors, bad_messages, refused, timed_out;
  _Atomic uint64_t lookups, lookup_rows, scanned_bytes, fetched_bytes, fetched_candidates, cold_pages, winners;
  _Atomic uint64_t bad_records;
};

struct server {
  const struct options *options;
  uv_loop_t loop;
  struct listener listener;
  uv_signal_t on_term, on_int;
  uv_timer_t interval; /* durability "interval" */
  uv_timer_t tick;     /* looks for clients that keep the daemon waiting */
  uint64_t tick_ms;
  uv_idle_t spin; /* keeps the loop from sleeping for a while; see options.h */
  uint64_t active_ns;
  uint64_t started_ns;

  struct archive *archive;
  enum fetch_method fetch_method;
  struct backend backend; /* any thread */
  struct job_returns returns;
  struct job_pool lookups, heavy_lookups, background;
  struct job_queue commits;
  pthread_t committer;
  struct quota quota; /* the committer's */
  bool committer_started;

  struct connection *connections;
  uint32_t connection_count;
  struct user *users; /* that have connections */
  struct log_rate timeout_log;

  uint64_t connection_bytes; /* that each may hold at any time */
  TAILQ_HEAD(connection_line, connection) line; /* connections that wait for something to become free */
  uv_idle_t line_wake;
  struct read_schedule reads;
  struct session *sessions;
  uint32_t jobs_out; /* handed to threads and not returned */
  struct verifier verifier;
  struct scrubber scrubber;
  struct counters counters;
  bool stopping;
};

/* Runs the daemon until SIGTERM or SIGINT; 0 after a clean stop. */
int server_run(const struct options *options, struct error *error);

/* Hand a job to a thread; its done() runs on the loop. The server waits for all of them before it stops. */
void server_commit(struct server *server, struct job *job);
void server_lookup(struct server *server, struct job *job, bool heavy);
void server_background(struct server *server, struct job *job);
/* Every done() of such a job begins with this. */
void server_job_returned(struct server *server);

/* Something has come in or gone out: the loop does not sleep for a while, if the options say so. */
void server_stay_awake(struct server *server);

/* Begins a clean stop, or takes its next step: no new connections or requests, answers to what is under way, everything
 * synced and closed. */
void server_stop(struct server *server);

/* Figures of this moment, as far as that user may see them. */
void server_stats(struct server *server, const struct user *user, struct msg_stats *stats);

#endif
