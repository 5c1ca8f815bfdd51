// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
#include "daemon/session.h"

#include <stdlib.h>

#include "daemon/connection.h"
#include "daemon/log.h"

#define SEAL_PAUSE_NS UINT64_C(1000000000)
#define SEAL_PAUSE_NS_MAX (60 * SEAL_PAUSE_NS)

#define SESSION_OF(job_pointer, member)                                                                                \
  ((struct session *)(void *)((char *)(job_pointer)-offsetof(struct session, member)))

struct session *session_of(struct server *server, struct conversation *conversation) {
  for (struct session *session = server->sessions; session; session = session->next)
    if (session->conversation == conversation) {
      session->store_references++;
      session->users++;
      return session;
    }
  struct session *session = calloc(1, sizeof *session);
  if (!session)
    return NULL;
  session->server = server;
  session->conversation = conversation;
  session->store_references = 1;
  session->users = 1;
  session->next = server->sessions;
  server->sessions = session;
  return session;
}

bool session_cold(struct session *session) {
  const struct msg_geometry *geometry = conversation_geometry(session->conversation);
  return atomic_load(&session->warm) < SESSION_WARM_ROUNDS * geometry->layers * geometry->kv_heads;
}

void session_hold(struct session *session) { session->users++; }

/* Committer: what durability has put off is made up for before the conversation is let go. */
static void run_end(struct job *job, void *worker) {
  (void)worker;
  struct session *session = SESSION_OF(job, end);
  struct error error = {0};
  if (conversation_durable(session->conversation) < conversation_count(session->conversation) &&
      conversation_sync(session->conversation, &error))
    log_line("closing conversation \"%s\": %s", conversation_name(session->conversation), error.text);
  while (session->store_references--)
    conversation_release(session->conversation);
}

static void done_end(struct job *job) {
  struct session *session = SESSION_OF(job, end);
  struct server *server = session->server;
  free(session);
  server_job_returned(server);
}

void session_drop(struct session *session) {
  if (--session->users)
    return;
  struct session **link = &session->server->sessions;
  while (*link != session)
    link = &(*link)->next;
  *link = session->next;
  session->end = (struct job){.run = run_end, .done = done_end};
  server_commit(session->server, &session->end);
}

static void run_seal(struct job *job, void *worker) {
  (void)worker;
  struct session *session = SESSION_OF(job, seal);
  struct error error = {0};
  while (conversation_wants_seal(session->conversation))
    if (conversation_seal(session->conversation, &error)) {
      session->seal_failed = true;
      log_line("sealing conversation \"%s\": %s", conversation_name(session->conversation), error.text);
      return; /* the log stays and serves; an append or open after the pause tries again */
    }
}

static void done_seal(struct job *job) {
  struct session *session = SESSION_OF(job, seal);
  struct server *server = session->server;
  session->sealing = false;
  uint64_t pause_ns = session->seal_pause_ns ? 2 * session->seal_pause_ns : SEAL_PAUSE_NS;
  session->seal_pause_ns = !session->seal_failed ? 0 : pause_ns < SEAL_PAUSE_NS_MAX ? pause_ns : SEAL_PAUSE_NS_MAX;
  session->seal_not_before_ns = uv_hrtime() + session->seal_pause_ns;
  session_keep(session);
  session_drop(session);
  server_job_returned(server);
}

void session_seal(struct session *session) {
  if (session->sealing || uv_hrtime() < session->seal_not_before_ns ||
      !conversation_wants_seal(session->conversation) || session->server->stopping ||
      archive_read_only(session->server->archive))
    return;
  session->sealing = true;
  session->seal_failed = false;
  session_hold(session);
  session->seal = (struct job){.run = run_seal, .done = done_seal};
  server_background(session->server, &session->seal);
}

static void run_keep(struct job *job, void *worker) {
  (void)worker;
  struct session *session = SESSION_OF(job, keep);
  view_keep(session->keep_view, session->server->options->scan_memory_mb << 20);
  view_release(session->keep_view);
}

static void done_keep(struct job *job) {
  struct session *session = SESSION_OF(job, keep);
  struct server *server = session->server;
  session->keeping = false;
  session_drop(session);
  server_job_returned(server);
}

void session_keep(struct session *session) {
  struct error error = {0};
  if (session->keeping || !session_in_memory(session) || session->server->stopping ||
      view_acquire(session->conversation, &session->keep_view, &error))
    return;
  session->keeping = true;
  session_hold(session);
  session->keep = (struct job){.run = run_keep, .done = done_keep};
  server_background(session->server, &session->keep);
}

static void run_unload(struct job *job, void *worker) {
  (void)worker;
  struct session *session = SESSION_OF(job, unload);
  struct error error = {0};
  if (conversation_unload(session->conversation, &error))
    log_line("putting away the tail of \"%s\": %s", conversation_name(session->conversation), error.text);
}

static void done_unload(struct job *job) {
  struct session *session = SESSION_OF(job, unload);
  struct server *server = session->server;
  session->unloading = false;
  session->loaded = false; /* an open that was answered meanwhile had loaded it before this */
  session_drop(session);
  server_job_returned(server);
}

void session_shrink(struct server *server) {
  uint64_t budget = server->options->tail_memory_mb << 20;
  uint64_t held = atomic_load(&archive_counters(server->archive)->tail_bytes);
  if (held <= budget)
    return;
  struct session *oldest = NULL;
  for (struct session *session = server->sessions; session; session = session->next)
    if (session_in_memory(session) && !session->requests && !session->sealing &&
        (!oldest || session->used_ns < oldest->used_ns))
      oldest = session;
  if (!oldest)
    return;
  oldest->unloading = true; /* requests from now on load it again, after this job */
  session_hold(oldest);
  oldest->unload = (struct job){.run = run_unload, .done = done_unload};
  server_commit(server, &oldest->unload);
}

static void run_sync(struct job *job, void *worker) {
  (void)worker;
  struct session *session = SESSION_OF(job, sync);
  struct error error = {0};
  if (conversation_sync(session->conversation, &error))
    log_line("syncing conversation \"%s\": %s", conversation_name(session->conversation), error.text);
}

static void done_sync(struct job *job) {
  struct session *session = SESSION_OF(job, sync);
  struct server *server = session->server;
  session->syncing = false;
  session_drop(session);
  server_job_returned(server);
}

void session_sync_all(struct server *server) {
  for (struct session *session = server->sessions; session; session = session->next) {
    if (!session->dirty || session->syncing)
      continue;
    session->dirty = false;
    session->syncing = true;
    session_hold(session);
    session->sync = (struct job){.run = run_sync, .done = done_sync};
    server_commit(server, &session->sync);
  }
}
