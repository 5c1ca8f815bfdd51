// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
#include "daemon/server.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "daemon/connection.h"
#include "daemon/log.h"
#include "daemon/loop_memory.h"
#include "daemon/request.h"
#include "daemon/service.h"
#include "daemon/session.h"
#include "daemon/thread.h"
#include "daemon/worker.h"
#include "store/mapped_fault.h"

/* A client that does not take its answers delays a stop by this much. */
#define STOP_PATIENCE_MS 5000u
#define HEAVY_NICE 10
#define TICK_MS_MAX 1000u
#define TICKS_PER_TIMEOUT 8u

/* --- jobs --------------------------------------------------------------------------------------------------------- */

void server_commit(struct server *server, struct job *job) {
  server->jobs_out++;
  job_queue_put(&server->commits, job);
}

void server_lookup(struct server *server, struct job *job, bool heavy) {
  server->jobs_out++;
  job_pool_put(heavy ? &server->heavy_lookups : &server->lookups, job);
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

/* --- time --------------------------------------------------------------------------------------------------------- */

static void on_interval(uv_timer_t *timer) { session_sync_all(timer->data); }

static void on_spin(uv_idle_t *spin) {
  struct server *server = spin->data;
  if (uv_hrtime() - server->active_ns > server->options->spin_us * 1000)
    uv_idle_stop(spin);
}

void server_stay_awake(struct server *server) {
  if (!server->options->spin_us || server->stopping)
    return;
  server->active_ns = uv_hrtime();
  uv_idle_start(&server->spin, on_spin);
}

static void on_tick(uv_timer_t *timer) {
  struct server *server = timer->data;
  for (struct connection *connection = server->connections, *next; connection; connection = next) {
    next = connection->next;
    connection_check_time(connection, server->tick_ms);
  }
}

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
  service_tell("STOPPING=1\nSTATUS=Answering what is under way and syncing");
  listener_close(&server->listener);
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
  uv_close((uv_handle_t *)&server->tick, NULL);
  uv_close((uv_handle_t *)&server->spin, NULL);
  budget_finish(server);
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

static void begin_heavy(void) { thread_be_patient(HEAVY_NICE); }

static void begin_background(void) { thread_be_patient(0); }

/* Each lookup thread owns its scratch memory. The second half of `workers` is for the heavy ones. */
static int start_lookups(struct server *server, void **workers, struct error *error) {
  unsigned threads = server->options->threads;
  int result = 0;
  server->fetch_method = server->options->io_uring ? fetch_best() : FETCH_ADVISE;
  for (unsigned i = 0; i < 2 * threads && !result; i++) {
    struct lookup_worker *worker = NULL;
    result = lookup_worker_create(&worker, server->fetch_method, error);
    workers[i] = worker;
  }
  if (!result)
    result = job_pool_start(&server->lookups, threads, NULL, workers, &server->returns, error);
  if (!result)
    job_pool_set_spin(&server->lookups, server->options->spin_us);
  if (!result)
    result = job_pool_start(&server->heavy_lookups, threads, begin_heavy, workers + threads, &server->returns, error);
  return result;
}

static int start_threads(struct server *server, void **workers, struct error *error) {
  int result = job_returns_init(&server->returns, &server->loop, error);
  if (result)
    return result;
  result = start_lookups(server, workers, error);
  if (!result)
    result = job_pool_start(&server->background, 1, begin_background, NULL, &server->returns, error);
  return result ? result : committer_start(server, error);
}

/* Handles that server_stop closes; none of these calls fails on a fresh loop. */
static void init_handles(struct server *server) {
  uv_signal_init(&server->loop, &server->on_term);
  uv_signal_init(&server->loop, &server->on_int);
  uv_timer_init(&server->loop, &server->interval);
  uv_timer_init(&server->loop, &server->tick);
  uv_idle_init(&server->loop, &server->spin);
  budget_init(server);
  reads_init(server);
  server->spin.data = server->tick.data = server->on_term.data = server->on_int.data = server->interval.data = server;
}

static void announce(struct server *server) {
  const struct options *options = server->options;
  const char *cold = fetch_method_name(server->fetch_method);
  if (options->io_uring && server->fetch_method != FETCH_IO_URING)
    log_line("io_uring is not allowed here or not built in: cold pages are read by %s", cold);
  log_line("archive %s, socket %s%s, durability %s, %u lookup threads, kernel %s, cold pages by %s", options->data,
           server->listener.made ? options->socket : "of the service manager",
           access_shared(&options->access) ? " (shared)" : "", durability_names[options->durability],
           options->threads, lookup_kernel_name(), cold);
  log_line("backend %s%s%s", backend_name(&server->backend), server->backend.resident ? ": " : "",
           backend_device(&server->backend));
  log_line("at most %llu connections; of one user %llu, with %llu MiB for messages and answers",
           (unsigned long long)options->connections, (unsigned long long)options->user_connections,
           (unsigned long long)options->user_queue_mb);
  service_tell("READY=1\nSTATUS=Serving the archive %s; kernel %s, cold pages by %s", options->data,
               lookup_kernel_name(), cold);
}

static int serve(struct server *server, struct error *error) {
  const struct options *options = server->options;
  init_handles(server);
  int result = listener_open(&server->listener, server, error);
  if (!result && (uv_signal_start(&server->on_term, on_signal, SIGTERM) ||
                  uv_signal_start(&server->on_int, on_signal, SIGINT)))
    result = error_set(error, ERR_IO, "cannot watch for signals");
  if (!result && options->durability == DURABILITY_INTERVAL)
    uv_timer_start(&server->interval, on_interval, options->interval_ms, options->interval_ms);
  server->tick_ms = options->client_timeout_s * 1000 / TICKS_PER_TIMEOUT;
  server->tick_ms = server->tick_ms > TICK_MS_MAX ? TICK_MS_MAX : server->tick_ms;
  if (server->tick_ms)
    uv_timer_start(&server->tick, on_tick, server->tick_ms, server->tick_ms);
  if (result)
    server_stop(server);
  else
    announce(server);
  uv_run(&server->loop, UV_RUN_DEFAULT);
  return result;
}

static int run_archive(struct server *server, struct error *error) {
  void **workers = calloc(2 * (size_t)server->options->threads, sizeof *workers);
  if (!workers)
    return error_set(error, ERR_MEMORY, "out of memory for %u threads", server->options->threads);
  int result = verifier_init(&server->verifier, server, error);
  if (!result) {
    result = start_threads(server, workers, error);
    if (!result)
      result = scrubber_start(&server->scrubber, server->archive, server->options->scrub_mb_s,
                              server->options->scrub_pause_s, error);
    if (!result)
      result = serve(server, error);
    scrubber_stop(&server->scrubber);
    committer_stop(server);
    job_pool_stop(&server->background);
    job_pool_stop(&server->heavy_lookups);
    job_pool_stop(&server->lookups);
    job_returns_finish(&server->returns);
    verifier_finish(&server->verifier);
  }
  for (unsigned i = 0; i < 2 * server->options->threads; i++)
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

/* An archive that was made by hand, or by a copy, may be open to others. */
static int close_directory(const char *path, struct error *error) {
  struct stat status;
  if (stat(path, &status))
    return errno == ENOENT ? 0 : error_set_errno(error, errno, "cannot look at the archive %s", path);
  if (!S_ISDIR(status.st_mode) || !(status.st_mode & 077))
    return 0;
  if (chmod(path, 0700))
    return error_set_errno(error, errno, "the archive %s is open to other users (mode %03o): cannot set its mode", path,
                           (unsigned)status.st_mode & 0777u);
  log_line("the archive %s was open to other users (mode %03o); it is not any more", path,
           (unsigned)status.st_mode & 0777u);
  return 0;
}

int server_run(const struct options *options, struct error *error) {
  struct server *server = calloc(1, sizeof *server);
  if (!server)
    return error_set(error, ERR_MEMORY, "out of memory");
  int result = loop_memory_init(error);
  if (result) {
    free(server);
    return result;
  }
  server->options = options;
  server->started_ns = uv_hrtime();
  server->connection_bytes = options_connection_bytes(options);
  server->quota.bytes = options->quota_mb << 20;
  signal(SIGPIPE, SIG_IGN);
  mapped_fault_install();
  umask(077); /* whatever it was: directories get 0700, files 0600 */
  raise_limits();
  thread_be_prompt();
  struct archive_options archive_options = {.log = on_archive_line};
  result = service_socket(&server->listener.fd, error);
  if (!result)
    result = close_directory(options->data, error);
  if (!result)
    result = archive_open(&server->archive, options->data, &archive_options, error);
  if (!result) /* after the archive, which forks */
    result = backend_open(&server->backend, options, error);
  if (!result && uv_loop_init(&server->loop))
    result = error_set(error, ERR_IO, "cannot make an event loop");
  if (!result) {
    result = run_archive(server, error);
    uv_loop_close(&server->loop);
  }
  loop_memory_finish();
  backend_close(&server->backend);
  archive_close(server->archive);
  quota_finish(&server->quota);
  free(server);
  return result;
}
