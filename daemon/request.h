// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// One request from its bytes to its answer.
#ifndef COLDKV_DAEMON_REQUEST_H
#define COLDKV_DAEMON_REQUEST_H

#include "daemon/connection.h"
#include "daemon/session.h"
#include "proto/rpc.h"

struct request {
  struct job job;     /* the way to a thread and back */
  struct job applied; /* an append's first way back: written, not yet synced */
  struct request *next; /* in connection.waiting or connection.reads */
  struct server *server;
  struct connection *connection;
  uint64_t charge;
  uint64_t answer_bytes; /* that the answer will take at most; charged when `admitted` is called */
  void (*admitted)(struct request *request);
  uint64_t cost; /* of a read: scores to be computed, about */
  bool heavy;    /* a read for the threads of those that take long */

  uint8_t *bytes; /* the message; parameters point into it */
  msgpack_zone zone;
  msgpack_object root;
  struct rpc rpc;
  enum method_id method;
  bool effect;          /* counted in effects_sent, and not yet in effects_done */
  uint64_t effects_before; /* effects sent before this read, which have to happen first */
  union {
    struct msg_hello hello;
    struct msg_model model;
    struct msg_model_get model_get;
    struct msg_list list;
    struct msg_open open;
    struct msg_name name;
    struct msg_handle handle;
    struct msg_delete delete;
    struct msg_append append;
    struct msg_lookup lookup;
    struct msg_read read;
    struct msg_tokens tokens;
    struct msg_empty empty;
  } params;

  struct session *session; /* held while the request lives */
  struct view *view;       /* of reads */
  struct conversation *opened; /* by conversation.open, until a session has it */
  struct msg_open_ok open_ok;
  uint32_t ahead[LIMIT_AHEAD_MAX], ahead_count;
  bool appended, wrote; /* set before `applied` comes back; `error` and `reply` stay the committer's until `job` does */

  struct error error; /* code 0: the answer is in `reply` */
  msgpack_sbuffer reply;
  msgpack_packer packer;
};

/* Makes a request of a complete message of so many elements and starts it. Takes over `bytes` (malloc'd). Returns 0, or
 * an error after which the connection cannot go on (-ERR_BAD_MESSAGE, -ERR_MEMORY); bytes are freed then. */
int request_start(struct connection *connection, uint8_t *bytes, size_t size, uint32_t elements, struct error *error);

/* Sends a read (lookup, read, tokens) on its way, now that every effect before it has happened. */
void request_read(struct request *request);

/* Answers (with the error, if one is set) and frees the request. Loop only. */
void request_finish(struct request *request);

/* The effect has happened (or failed): reads behind it may go on. Loop only; harmless the second time. */
void request_effect_done(struct request *request);

/* Sends it to a thread; `run` there, `done` back on the loop. Reads go by reads_put. */
void request_commit(struct request *request, void (*run)(struct job *, void *), void (*done)(struct job *));
void request_lookup(struct request *request);

static inline struct request *request_of(struct job *job) {
  return (struct request *)(void *)((char *)job - offsetof(struct request, job));
}

/* Says how a step of the request ended: 0 clears an error that was dealt with on the way. Returns `result`. */
static inline int request_result(struct request *request, int result) {
  if (!result)
    request->error.code = 0;
  return result;
}

/* Makes room for an answer of so many bytes, that it need not grow to them; without memory for it nothing happens, and
 * the answer grows as far as it can. Any thread. */
void request_expect(struct request *request, size_t bytes);

/* Packs the answer of a request that succeeded; out of memory turns into its error. Any thread. */
void request_answer(struct request *request, const void *result);

/* What an answer takes beside its bulk data, at most. */
#define MESSAGE_OVERHEAD_BYTES 4096u

/* -ERR_RANGE when the conversation's model has no such layer or kv head. */
int request_check_layer(struct request *request, uint64_t layer, uint64_t head);

/* Handlers of methods.c, lookup_request.c and read_request.c: each checks what the tables cannot, and finishes or
 * forwards the request. */
void method_dispatch(struct request *request);
void lookup_run_job(struct job *job, void *worker);
void read_run_job(struct job *job, void *worker);
void tokens_run_job(struct job *job, void *worker);
void method_status(struct request *request);
/* Set answer_bytes and cost; -ERR_LIMIT when the answer could not be sent. */
int lookup_check(struct request *request);
int read_check(struct request *request);

/* The committer's thread: runs jobs in order, and syncs all appends that wait with one fdatasync per conversation. */
int committer_start(struct server *server, struct error *error);
void committer_stop(struct server *server);
/* The run function of appends, which the committer treats as a group. */
void committer_append(struct job *job, void *worker);

#endif
