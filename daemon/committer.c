// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
#include "daemon/request.h"

/* Writes the frame and lets lookups see it; the answer follows once it is as durable as it has to be. */
void committer_append(struct job *job, void *worker) {
  (void)worker;
  struct request *request = request_of(job);
  struct conversation *conversation = request->session->conversation;
  struct server *server = request->server;
  int result = conversation_loaded(conversation) ? 0 : conversation_load(conversation, &request->error);
  if (!result)
    result = quota_take(&server->quota, server->archive, request->connection->user->uid,
                        usage_of_append(conversation, &request->params.append), &request->error);
  if (!result)
    result = conversation_append(conversation, &request->params.append, &request->wrote, &request->error);
  request->appended = request_result(request, result) == 0;
  job_return(&server->returns, &request->applied);
}

/* The first append of a conversation in a group syncs for all of them; the others find nothing left to do. */
static void answer_append(struct request *request) {
  struct conversation *conversation = request->session->conversation;
  bool sync = request->server->options->durability == DURABILITY_ALWAYS || request->params.append.sync;
  if (request->error.code || (sync && conversation_sync(conversation, &request->error)))
    return;
  struct msg_append_ok answer = {
      .stored = conversation_count(conversation),
      .durable = conversation_durable(conversation),
  };
  request_answer(request, &answer);
}

static void *committer_main(void *argument) {
  struct server *server = argument;
  for (struct job *jobs; (jobs = job_queue_take_all(&server->commits)) != NULL;) {
    struct job *written = NULL, **end = &written;
    for (struct job *job = jobs, *next; job; job = next) {
      next = job->next;
      job->next = NULL;
      job->run(job, NULL);
      if (job->run == committer_append) {
        *end = job;
        end = &job->next;
      } else {
        job_return(&server->returns, job);
      }
    }
    for (struct job *job = written, *next; job; job = next) {
      next = job->next;
      answer_append(request_of(job));
      job_return(&server->returns, job);
    }
  }
  return NULL;
}

int committer_start(struct server *server, struct error *error) {
  int result = job_queue_init(&server->commits, error);
  if (result)
    return result;
  int status = pthread_create(&server->committer, NULL, committer_main, server);
  if (status) {
    job_queue_finish(&server->commits);
    return error_set_errno(error, status, "cannot start a thread");
  }
  server->committer_started = true;
  return 0;
}

void committer_stop(struct server *server) {
  if (!server->committer_started)
    return;
  job_queue_stop(&server->commits);
  pthread_join(server->committer, NULL);
  job_queue_finish(&server->commits);
  server->committer_started = false;
}
