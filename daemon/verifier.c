// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
#include "daemon/verifier.h"

#include <stdio.h>
#include <string.h>
#include <time.h>

#include "daemon/log.h"
#include "daemon/server.h"
#include "proto/rpc.h"

int verifier_init(struct verifier *verifier, struct server *server, struct error *error) {
  memset(verifier, 0, sizeof *verifier);
  verifier->server = server;
  if (pthread_mutex_init(&verifier->lock, NULL))
    return error_set(error, ERR_MEMORY, "cannot make a mutex");
  return 0;
}

void verifier_finish(struct verifier *verifier) { pthread_mutex_destroy(&verifier->lock); }

static int tell(void *context, const char *path, const char *what, const struct verify_report *report) {
  struct verifier *verifier = context;
  pthread_mutex_lock(&verifier->lock);
  verifier->report = *report;
  if (what && verifier->problem_count < VERIFIER_PROBLEMS_MAX) {
    uint32_t at = verifier->problem_count++;
    snprintf(verifier->paths[at], VERIFIER_TEXT_BYTES, "%s", path);
    snprintf(verifier->whats[at], VERIFIER_TEXT_BYTES, "%s", what);
  }
  pthread_mutex_unlock(&verifier->lock);
  if (what)
    log_line("verify: %s: %s", path, what);
  return atomic_load(&verifier->stop);
}

static void run_verify(struct job *job, void *worker) {
  (void)worker;
  struct verifier *verifier = (struct verifier *)(void *)((char *)job - offsetof(struct verifier, job));
  struct verify_report report = {0};
  struct error error = {0};
  const char *dir = archive_directory(verifier->server->archive);
  if (verify_archive(&io_system, dir, &report, tell, verifier, &error) < 0) {
    report.bad++;
    tell(verifier, "", error.text, &report);
  }
  tell(verifier, NULL, NULL, &report);
}

static void done_verify(struct job *job) {
  struct verifier *verifier = (struct verifier *)(void *)((char *)job - offsetof(struct verifier, job));
  verifier->running = false;
  verifier->finished_s = (uint64_t)time(NULL);
  server_job_returned(verifier->server);
}

static void start(struct verifier *verifier) {
  verifier->running = true;
  pthread_mutex_lock(&verifier->lock);
  verifier->report = (struct verify_report){0};
  verifier->problem_count = 0;
  pthread_mutex_unlock(&verifier->lock);
  verifier->job = (struct job){.run = run_verify, .done = done_verify};
  server_background(verifier->server, &verifier->job);
}

void verifier_ask(struct verifier *verifier, bool *waits) {
  if (!verifier->running && !*waits && !verifier->server->stopping)
    start(verifier);
  *waits = verifier->running;
}

int verifier_pack(struct verifier *verifier, msgpack_packer *packer, uint32_t id) {
  struct msg_problem problems[VERIFIER_PROBLEMS_MAX];
  pthread_mutex_lock(&verifier->lock);
  for (uint32_t i = 0; i < verifier->problem_count; i++)
    problems[i] = (struct msg_problem){span_str(verifier->paths[i]), span_str(verifier->whats[i])};
  struct msg_verify_ok answer = {
      .running = verifier->running,
      .finished_s = verifier->finished_s,
      .files_total = verifier->report.files_total,
      .files_done = verifier->report.files_done,
      .bytes_done = verifier->report.bytes_done,
      .bad = verifier->report.bad,
      .problems = {.count = verifier->problem_count, .items = problems},
  };
  int result = rpc_pack_result(packer, id, &message_verify_ok, &answer);
  pthread_mutex_unlock(&verifier->lock);
  return result;
}
