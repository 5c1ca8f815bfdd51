// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
#include "daemon/server.h"

#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "daemon/connection.h"
#include "daemon/log.h"
#include "daemon/request.h"
#include "daemon/session.h"
#include "daemon/socket.h"
#include "daemon/worker.h"
#include "store/mapped_fault.h"

/* A client that does not take its answers delays a stop by this much. */
#define STOP_PATIENCE_MS 5000u

/* --- jobs --------------------------------------------------------------------------------------------------------- */

void server_commit(struct server *server, struct job *job) {
  server->jobs_out++;
  job_queue_put(&server->commits, job);
}

void server_lookup(struct server *server, struct job *job) {
  server->jobs_out++;
  job_pool_put(&server->lookups, job);
}

void server_background(struct server *server, struct job *job) {
  server->jobs_out++;
  job_pool_put(&server->background, job);
}

void server_job_returned(struct server *server) {
  server->jobs_out--;
  if (server->stopping)
    server_stop(server);
}

/* --- connections -------------------------------------------------------------------------------------------------- */

static void on_connection(uv_stream_t *listener, int status) {
  struct server *server = listener->data;
  if (status < 0) {
    log_line("cannot accept a connection: %s", uv_strerror(status));
    return;
  }
  struct connection *connection = connection_create(server);
  if (!connection) {
    log_line("cannot accept a connection: out of memory");
    return;
  }
  struct error error = {0};
  if (uv_accept(listener, (uv_stream_t *)&connection->pipe)) {
    connection_close(connection);
    return;
  }
  atomic_fetch_add(&server->counters.connections_total, 1);
  if (socket_peer(&connection->pipe, &connection->uid, &error)) {
    log_line("%s", error.text);
    connection_close(connection);
  } else if (connection->uid != geteuid()) {
    log_line("user %u is not allowed to connect", connection->uid);
    connection_close(connection);
  } else if (server->connection_count > LIMIT_CONNECTIONS_MAX || server->stopping) {
    log_line("more than %u connections: one was refused", LIMIT_CONNECTIONS_MAX);
    connection_close(connection);
  } else {
    connection_start(connection);
  }
}

static void on_interval(uv_timer_t *timer) { session_sync_all(timer->data); }

/* --- stopping ----------------------------------------------------------------------------------------------------- */

static void on_patience_over(uv_timer_t *timer) {
  struct server *server = timer->data;
  for (struct connection *connection = server->connections, *next; connection; connection = next) {
    next = connection->next;
    connection_close(connection);
  }
}

static void begin_stop(struct server *server) {
  server->stopping = true;
  atomic_store(&server->verifier.stop, true);
  uv_close((uv_handle_t *)&server->listener, NULL); /* libuv removes the socket file */
  uv_timer_stop(&server->interval);
  uv_timer_start(&server->interval, on_patience_over, STOP_PATIENCE_MS, 0);
  for (struct connection *connection = server->connections, *next; connection; connection = next) {
    next = connection->next;
    connection_end(connection);
  }
}

void server_stop(struct server *server) {
  if (!server->stopping)
    begin_stop(server);
  if (server->connections || server->sessions || server->jobs_out ||
      uv_is_closing((uv_handle_t *)&server->interval))
    return;
  uv_close((uv_handle_t *)&server->interval, NULL);
  uv_close((uv_handle_t *)&server->on_term, NULL);
  uv_close((uv_handle_t *)&server->on_int, NULL);
  job_returns_close(&server->returns);
}

static void on_signal(uv_signal_t *handle, int number) {
  struct server *server = handle->data;
  log_line("stopping on %s", number == SIGTERM ? "SIGTERM" : "SIGINT");
  server_stop(server);
}

/* --- start -------------------------------------------------------------------------------------------------------- */

static void on_archive_line(void *context, const char *line) {
  (void)context;
  log_line("%s", line);
}

/* Each lookup thread owns its scratch memory. */
static int start_lookups(struct server *server, void **workers, struct error *error) {
  int result = 0;
  server->fetch_method = server->options->io_uring ? fetch_best() : FETCH_ADVISE;
  for (unsigned i = 0; i < server->options->threads && !result; i++) {
    struct lookup_worker *worker = NULL;
    result = lookup_worker_create(&worker, server->fetch_method, error);
    workers[i] = worker;
  }
  return result ? result
                : job_pool_start(&server->lookups, server->options->threads, workers, &server->returns, error);
}

static int start_threads(struct server *server, void **workers, struct error *error) {
  int result = job_returns_init(&server->returns, &server->loop, error);
  if (result)
    return result;
  result = start_lookups(server, workers, error);
  if (!result)
    result = job_pool_start(&server->background, 1, NULL, &server->returns, error);
  return result ? result : committer_start(server, error);
}

/* Handles that server_stop closes; none of these calls fails on a fresh loop. */
static void init_handles(struct server *server) {
  uv_pipe_init(&server->loop, &server->listener, 0);
  uv_signal_init(&server->loop, &server->on_term);
  uv_signal_init(&server->loop, &server->on_int);
  uv_timer_init(&server->loop, &server->interval);
  server->listener.data = server->on_term.data = server->on_int.data = server->interval.data = server;
}

static int serve(struct server *server, struct error *error) {
  init_handles(server);
  int result = socket_listen(&server->listener, server->options->socket, on_connection, error);
  if (!result && (uv_signal_start(&server->on_term, on_signal, SIGTERM) ||
                  uv_signal_start(&server->on_int, on_signal, SIGINT)))
    result = error_set(error, ERR_IO, "cannot watch for signals");
  if (!result && server->options->durability == DURABILITY_INTERVAL)
    uv_timer_start(&server->interval, on_interval, server->options->interval_ms, server->options->interval_ms);
  if (result)
    server_stop(server);
  else
    log_line("archive %s, socket %s, durability %s, %u lookup threads, kernel %s, cold pages by %s",
             server->options->data, server->options->socket, durability_names[server->options->durability],
             server->options->threads, lookup_kernel_name(), fetch_method_name(server->fetch_method));
  uv_run(&server->loop, UV_RUN_DEFAULT);
  return result;
}

static int run_archive(struct server *server, struct error *error) {
  void **workers = calloc(server->options->threads, sizeof *workers);
  if (!workers)
    return error_set(error, ERR_MEMORY, "out of memory for %u threads", server->options->threads);
  int result = verifier_init(&server->verifier, server, error);
  if (!result) {
    result = start_threads(server, workers, error);
    if (!result)
      result = serve(server, error);
    committer_stop(server);
    job_pool_stop(&server->background);
    job_pool_stop(&server->lookups);
    verifier_finish(&server->verifier);
  }
  for (unsigned i = 0; i < server->options->threads; i++)
    lookup_worker_destroy(workers[i]);
  free(workers);
  return result;
}

/* One descriptor per open segment, and its signatures locked in memory, as far as this user may. */
static void raise_limits(void) {
  static const __rlimit_resource_t resources[] = {RLIMIT_NOFILE, RLIMIT_MEMLOCK};
  for (size_t i = 0; i < sizeof resources / sizeof resources[0]; i++) {
    struct rlimit limit;
    if (getrlimit(resources[i], &limit) == 0 && limit.rlim_cur < limit.rlim_max) {
      limit.rlim_cur = limit.rlim_max;
      setrlimit(resources[i], &limit); /* what is refused here is done with less later */
    }
  }
}

int server_run(const struct options *options, struct error *error) {
  struct server *server = calloc(1, sizeof *server);
  if (!server)
    return error_set(error, ERR_MEMORY, "out of memory");
  server->options = options;
  server->started_ns = uv_hrtime();
  signal(SIGPIPE, SIG_IGN);
  mapped_fault_install();
  raise_limits();
  struct archive_options archive_options = {.log = on_archive_line};
  int result = archive_open(&server->archive, options->data, &archive_options, error);
  if (!result && uv_loop_init(&server->loop))
    result = error_set(error, ERR_IO, "cannot make an event loop");
  if (!result) {
    result = run_archive(server, error);
    uv_loop_close(&server->loop);
  }
  archive_close(server->archive);
  free(server);
  return result;
}

/* --- figures ------------------------------------------------------------------------------------------------------ */

void server_stats(struct server *server, struct msg_stats *stats) {
  const struct archive_counters *archive = archive_counters(server->archive);
  struct counters *own = &server->counters;
  uint64_t conversations = 0;
  for (const struct session *session = server->sessions; session; session = session->next)
    conversations++;
  *stats = (struct msg_stats){
      .uptime_s = (uv_hrtime() - server->started_ns) / 1000000000u,
      .connections = server->connection_count,
      .connections_total = atomic_load(&own->connections_total),
      .requests = atomic_load(&own->requests),
      .errors = atomic_load(&own->errors),
      .bad_messages = atomic_load(&own->bad_messages),
      .conversations_open = conversations,
      .segments_mapped = atomic_load(&archive->segments_mapped),
      .tail_bytes = atomic_load(&archive->tail_bytes),
      .scan_kept_bytes = atomic_load(&archive->scan_kept_bytes),
      .appended_tokens = atomic_load(&archive->appended_tokens),
      .appended_bytes = atomic_load(&archive->appended_bytes),
      .log_syncs = atomic_load(&archive->log_syncs),
      .segments_sealed = atomic_load(&archive->segments_sealed),
      .lookups = atomic_load(&own->lookups),
      .lookup_rows = atomic_load(&own->lookup_rows),
      .scanned_bytes = atomic_load(&own->scanned_bytes),
      .fetched_bytes = atomic_load(&own->fetched_bytes),
      .fetched_candidates = atomic_load(&own->fetched_candidates),
      .cold_pages = atomic_load(&own->cold_pages),
      .winners = atomic_load(&own->winners),
      .bad_records = atomic_load(&own->bad_records),
      .bad_pages = atomic_load(&archive->bad_pages),
      .torn_frames = atomic_load(&archive->torn_frames),
      .quarantined = atomic_load(&archive->quarantined),
      .read_only = archive_read_only(server->archive),
  };
}
