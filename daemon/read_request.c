// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// conversation.read and conversation.tokens, on a lookup thread.
#include "daemon/request.h"
#include "daemon/worker.h"

/* Copying a record and checking its CRC takes about as long as computing so many scores. */
#define READ_COST 32u

int read_check(struct request *request) {
  const struct msg_read *read = &request->params.read;
  if (request_check_layer(request, read->layer, read->head))
    return -request->error.code;
  request->cost = read->count * READ_COST;
  request->answer_bytes = read->count * RECORD_BYTES + MESSAGE_OVERHEAD_BYTES;
  if (request->answer_bytes > LIMIT_MESSAGE_BYTES_MAX)
    return error_set(&request->error, ERR_LIMIT, "conversation.read: more than %u records at a time",
                     (LIMIT_MESSAGE_BYTES_MAX - MESSAGE_OVERHEAD_BYTES) / RECORD_BYTES);
  return 0;
}

void read_run_job(struct job *job, void *worker_state) {
  struct request *request = request_of(job);
  struct lookup_worker *worker = worker_state;
  const struct msg_read *read = &request->params.read;
  uint64_t stored = view_count(request->view);
  if (read->first + read->count > stored) {
    error_set(&request->error, ERR_RANGE, "conversation.read: tokens %llu to %llu of %llu",
              (unsigned long long)read->first, (unsigned long long)read->first + read->count,
              (unsigned long long)stored);
    return;
  }
  size_t bytes = (size_t)read->count * RECORD_BYTES;
  if (lookup_worker_reserve(worker, bytes, &request->error) ||
      view_records(request->view, (uint32_t)read->layer, (uint32_t)read->head, read->first, read->count,
                   worker->buffer, &request->error))
    return;
  struct msg_read_ok answer = {.first = read->first, .count = read->count, .records = span_of(worker->buffer, bytes)};
  request_answer(request, &answer);
}

/* Ids that are stored, then those ahead. */
void tokens_run_job(struct job *job, void *worker_state) {
  struct request *request = request_of(job);
  struct lookup_worker *worker = worker_state;
  const struct msg_tokens *tokens = &request->params.tokens;
  uint64_t stored = view_count(request->view);
  if (lookup_worker_reserve(worker, tokens->count * sizeof(uint32_t), &request->error))
    return;
  uint32_t *ids = (uint32_t *)(void *)worker->buffer;
  uint64_t from_store = tokens->first >= stored               ? 0
                        : tokens->count < stored - tokens->first ? tokens->count
                                                                 : stored - tokens->first;
  if (from_store && view_tokens(request->view, tokens->first, from_store, ids, &request->error))
    return;
  uint64_t count = from_store;
  uint64_t next = tokens->first + from_store;
  for (; count < tokens->count && next >= stored && next < stored + request->ahead_count; count++, next++)
    ids[count] = request->ahead[next - stored];
  struct msg_tokens_ok answer = {.first = tokens->first, .ids = span_of(ids, count * sizeof *ids)};
  request_answer(request, &answer);
}
