// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// The reads of a conversation, on a lookup thread: lookup, read, tokens.
#include <stdlib.h>
#include <string.h>

#include "daemon/log.h"
#include "daemon/request.h"
#include "retrieval/lookup.h"

#define MESSAGE_OVERHEAD_BYTES 4096u
#define HEAD_OVERHEAD_BYTES 128u

/* What one thread keeps from one request to the next; it grows to what the largest one needed. */
struct lookup_worker {
  struct lookup_scratch *scratch;
  struct record_columns *parts;
  uint32_t part_capacity;
  uint8_t *buffer;
  size_t buffer_size;
};

int lookup_worker_create(struct lookup_worker **worker, struct error *error) {
  *worker = calloc(1, sizeof **worker);
  if (!*worker)
    return error_set(error, ERR_MEMORY, "out of memory for a lookup thread");
  int result = lookup_scratch_create(&(*worker)->scratch, error);
  if (result) {
    free(*worker);
    *worker = NULL;
  }
  return result;
}

void lookup_worker_destroy(struct lookup_worker *worker) {
  if (!worker)
    return;
  lookup_scratch_destroy(worker->scratch);
  free(worker->parts);
  free(worker->buffer);
  free(worker);
}

static int check_layer(struct request *request, uint64_t layer, uint64_t head) {
  const struct msg_geometry *geometry = conversation_geometry(request->session->conversation);
  if (layer >= geometry->layers || head >= geometry->kv_heads)
    return error_set(&request->error, ERR_RANGE, "%s: layer %llu, kv head %llu: the model has %llu and %llu",
                     methods[request->method].name, (unsigned long long)layer, (unsigned long long)head,
                     (unsigned long long)geometry->layers, (unsigned long long)geometry->kv_heads);
  return 0;
}

/* Places of one answer in the worker's buffer: [heads] of tokens, records, index and scores. */
struct answer_layout {
  uint64_t places; /* rows x k */
  uint64_t head_bytes, total_bytes;
};

static struct answer_layout layout_of(const struct msg_lookup *lookup, uint64_t heads) {
  struct answer_layout layout = {.places = lookup->rows * lookup->k};
  layout.head_bytes = layout.places * (sizeof(uint64_t) + RECORD_BYTES + sizeof(uint32_t) + sizeof(float));
  layout.total_bytes = layout.head_bytes * heads;
  return layout;
}

int lookup_check(struct request *request, uint64_t *answer_bytes) {
  const struct msg_lookup *lookup = &request->params.lookup;
  const struct msg_geometry *geometry = conversation_geometry(request->session->conversation);
  if (check_layer(request, lookup->layer, 0))
    return -request->error.code;
  uint64_t wanted = lookup->rows * geometry->kv_heads * RECORD_SIGNATURE_BITS * sizeof(float);
  if (lookup->queries.size != wanted)
    return error_set(&request->error, ERR_BAD_PARAMS, "conversation.lookup: 'queries' has %zu bytes, wanted %llu",
                     lookup->queries.size, (unsigned long long)wanted);
  if (lookup->candidates && lookup->candidates < lookup->k)
    return error_set(&request->error, ERR_BAD_PARAMS, "conversation.lookup: fewer 'candidates' than 'k'");
  for (size_t at = 0; at < lookup->queries.size; at += 4)
    if ((load_u32(lookup->queries.data + at) & 0x7f800000u) == 0x7f800000u)
      return error_set(&request->error, ERR_BAD_PARAMS, "conversation.lookup: 'queries'[%zu] is not finite", at / 4);
  *answer_bytes = layout_of(lookup, geometry->kv_heads).total_bytes + geometry->kv_heads * HEAD_OVERHEAD_BYTES +
                  MESSAGE_OVERHEAD_BYTES;
  if (*answer_bytes > LIMIT_MESSAGE_BYTES_MAX)
    return error_set(&request->error, ERR_LIMIT,
                     "conversation.lookup: the answer could take %llu bytes of at most %u; ask for fewer rows or k",
                     (unsigned long long)*answer_bytes, LIMIT_MESSAGE_BYTES_MAX);
  return 0;
}

int read_check(struct request *request, uint64_t *answer_bytes) {
  const struct msg_read *read = &request->params.read;
  if (check_layer(request, read->layer, read->head))
    return -request->error.code;
  *answer_bytes = read->count * RECORD_BYTES + MESSAGE_OVERHEAD_BYTES;
  if (*answer_bytes > LIMIT_MESSAGE_BYTES_MAX)
    return error_set(&request->error, ERR_LIMIT, "conversation.read: more than %u records at a time",
                     (LIMIT_MESSAGE_BYTES_MAX - MESSAGE_OVERHEAD_BYTES) / RECORD_BYTES);
  return 0;
}

static int reserve(struct lookup_worker *worker, uint32_t parts, size_t bytes, struct error *error) {
  if (parts > worker->part_capacity) {
    struct record_columns *grown = realloc(worker->parts, parts * sizeof *grown);
    if (!grown)
      return error_set(error, ERR_MEMORY, "out of memory for %u segments", parts);
    worker->parts = grown;
    worker->part_capacity = parts;
  }
  if (bytes > worker->buffer_size) {
    free(worker->buffer);
    worker->buffer_size = 0;
    worker->buffer = malloc(bytes);
    if (!worker->buffer)
      return error_set(error, ERR_MEMORY, "out of memory for an answer of %zu bytes", bytes);
    worker->buffer_size = bytes;
  }
  return 0;
}

/* Columns of one (layer, head) of all parts that overlap the range. A damaged part is left out: it was logged and
 * counted, and the rest goes on serving. */
static uint32_t gather_parts(struct request *request, struct lookup_worker *worker, uint32_t head) {
  const struct msg_lookup *lookup = &request->params.lookup;
  uint32_t count = 0;
  for (uint32_t part = 0; part < view_parts(request->view); part++) {
    struct record_columns *columns = &worker->parts[count];
    struct error error = {0};
    if (view_columns(request->view, part, (uint32_t)lookup->layer, head, columns, &error))
      log_line("lookup in \"%s\": %s", conversation_name(request->session->conversation), error.text);
    else if (columns->first < lookup->before && columns->first + columns->count > lookup->from)
      count++;
  }
  return count;
}

static void count_head(struct server *server, const struct msg_lookup *lookup, const struct lookup_answer *answer) {
  struct counters *counters = &server->counters;
  uint64_t scan_bytes = RECORD_SIGNATURE_BYTES + (lookup->mode == LOOKUP_WEIGHTED ? RECORD_K_SCALE_BYTES : 0);
  atomic_fetch_add(&counters->scanned_bytes, answer->scanned * scan_bytes);
  atomic_fetch_add(&counters->fetched_candidates, answer->rescored);
  atomic_fetch_add(&counters->fetched_bytes, answer->rescored * (RECORD_K_MAG_BYTES + RECORD_K_SCALE_BYTES) +
                                                 (answer->count + answer->bad_records) * RECORD_BYTES);
  atomic_fetch_add(&counters->winners, answer->count);
  atomic_fetch_add(&counters->bad_records, answer->bad_records);
}

/* Runs one kv head into its place of the worker's buffer. */
static int lookup_head(struct request *request, struct lookup_worker *worker, uint32_t head, uint64_t *scanned,
                       struct msg_lookup_head *out) {
  const struct msg_lookup *lookup = &request->params.lookup;
  const struct msg_geometry *geometry = conversation_geometry(request->session->conversation);
  struct answer_layout layout = layout_of(lookup, geometry->kv_heads);
  uint8_t *place = worker->buffer + head * layout.head_bytes;
  struct lookup_answer answer = {.tokens = (uint64_t *)(void *)place};
  answer.index = (uint32_t *)(void *)(answer.tokens + layout.places);
  answer.scores = (float *)(void *)(answer.index + layout.places);
  answer.records = (uint8_t *)(answer.scores + layout.places);
  struct lookup_request wanted = {
      .mode = (enum lookup_mode)lookup->mode,
      .head_dim = (uint32_t)geometry->head_dim,
      .layer = (uint32_t)lookup->layer,
      .head = head,
      .rows = (uint32_t)lookup->rows,
      .k = (uint32_t)lookup->k,
      .candidates = (uint32_t)lookup->candidates,
      .from = lookup->from,
      .before = lookup->before,
      .queries = lookup->queries.data + (size_t)head * RECORD_SIGNATURE_BITS * sizeof(float),
      .row_stride = geometry->kv_heads * RECORD_SIGNATURE_BITS * sizeof(float),
  };
  uint32_t parts = gather_parts(request, worker, head);
  int result = lookup_run(worker->scratch, &wanted, worker->parts, parts, &answer, &request->error);
  if (result)
    return result;
  count_head(request->server, lookup, &answer);
  *scanned = answer.scanned;
  *out = (struct msg_lookup_head){
      .tokens = span_of(answer.tokens, answer.count * sizeof *answer.tokens),
      .records = span_of(answer.records, (size_t)answer.count * RECORD_BYTES),
      .index = span_of(answer.index, layout.places * sizeof *answer.index),
      .scores = span_of(answer.scores, layout.places * sizeof *answer.scores),
  };
  return 0;
}

void lookup_run_job(struct job *job, void *worker_state) {
  struct request *request = request_of(job);
  struct lookup_worker *worker = worker_state;
  const struct msg_lookup *lookup = &request->params.lookup;
  uint32_t heads = (uint32_t)conversation_geometry(request->session->conversation)->kv_heads;
  struct answer_layout layout = layout_of(lookup, heads);
  struct msg_lookup_head answers[LIMIT_KV_HEADS_MAX];
  if (reserve(worker, view_parts(request->view), layout.total_bytes, &request->error))
    return;
  uint64_t scanned = 0;
  for (uint32_t head = 0; head < heads; head++)
    if (lookup_head(request, worker, head, &scanned, &answers[head]))
      return;
  struct msg_lookup_ok answer = {
      .k = lookup->k,
      .candidates = lookup->candidates ? lookup->candidates : lookup_default_candidates(scanned),
      .scanned = scanned,
      .heads = {.count = heads, .items = answers},
  };
  atomic_fetch_add(&request->server->counters.lookups, 1);
  atomic_fetch_add(&request->server->counters.lookup_rows, lookup->rows);
  request_answer(request, &answer);
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
  if (reserve(worker, 0, bytes, &request->error) ||
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
  if (reserve(worker, 0, tokens->count * sizeof(uint32_t), &request->error))
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
