// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// conversation.lookup, on the lookup threads.
#include <sched.h>
#include <stdatomic.h>
#include <sys/resource.h>

#include "daemon/log.h"
#include "daemon/request.h"
#include "daemon/worker.h"
#include "store/mapped_fault.h"

#define HEAD_OVERHEAD_BYTES 128u
#define RESCORE_COST 16u /* of one candidate, in scores of the scan */
#define GPU_GAIN 16u /* so many times less is to be done for a score that a GPU computes */
#define GPU_SPINS 4096u /* before others have the processor */
#define THREADS_PER_HEAD 4u /* waking so many for each head costs more than they save */
#define SHARED_SCORES_MIN 32768u /* fewer are done before a second thread has woken up */

int request_check_layer(struct request *request, uint64_t layer, uint64_t head) {
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

/* Scores of the scan, and those of the candidates, which take longer. */
static void set_cost(struct request *request, uint64_t heads) {
  const struct msg_lookup *lookup = &request->params.lookup;
  uint64_t count = conversation_count(request->session->conversation);
  uint64_t before = lookup->before < count ? lookup->before : count;
  uint64_t range = lookup->from < before ? before - lookup->from : 0;
  uint64_t candidates = lookup->candidates ? lookup->candidates : lookup_default_candidates(range);
  if (candidates > range)
    candidates = range;
  struct backend *backend = &request->server->backend;
  if (backend_wants(backend, range, heads * lookup->rows) && backend_gpu(backend))
    range /= GPU_GAIN;
  request->cost = lookup->rows * heads * (range + RESCORE_COST * candidates + 1);
}

int lookup_check(struct request *request) {
  const struct msg_lookup *lookup = &request->params.lookup;
  const struct msg_geometry *geometry = conversation_geometry(request->session->conversation);
  if (request_check_layer(request, lookup->layer, 0))
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
  set_cost(request, geometry->kv_heads);
  request->answer_bytes = layout_of(lookup, geometry->kv_heads).total_bytes +
                          geometry->kv_heads * HEAD_OVERHEAD_BYTES + MESSAGE_OVERHEAD_BYTES;
  if (request->answer_bytes > LIMIT_MESSAGE_BYTES_MAX)
    return error_set(&request->error, ERR_LIMIT,
                     "conversation.lookup: the answer could take %llu bytes of at most %u; ask for fewer rows or k",
                     (unsigned long long)request->answer_bytes, LIMIT_MESSAGE_BYTES_MAX);
  return 0;
}

/* Columns of one (layer, head) of all parts that overlap the range. A damaged part is left out: it is on the list of
 * damage, its tokens in the range are counted in *missed, and the rest goes on serving. */
static uint32_t gather_parts(struct request *request, struct lookup_worker *worker, uint32_t head, uint64_t *missed) {
  const struct msg_lookup *lookup = &request->params.lookup;
  uint32_t count = 0;
  *missed = 0;
  for (uint32_t part = 0; part < view_parts(request->view); part++) {
    struct record_columns *columns = &worker->parts[count];
    worker->part_numbers[count] = part;
    bool bad = view_columns(request->view, part, (uint32_t)lookup->layer, head, columns, NULL) != 0;
    uint64_t end = columns->first + columns->count < lookup->before ? columns->first + columns->count : lookup->before;
    uint64_t begin = columns->first > lookup->from ? columns->first : lookup->from;
    if (begin < end && bad)
      *missed += end - begin;
    else if (begin < end)
      count++;
  }
  return count;
}

/* --- one kv head ------------------------------------------------------------------------------------------------- */

/* A team over the pool's threads: the scan of one head cut into lanes. */
struct pool_team {
  struct lookup_team team;
  struct job_pool *pool;
  void *worker;
};

/* Of a scan on the GPU. */
enum gpu_state { GPU_NONE, GPU_PENDING, GPU_FOUND };

/* One lookup, seen by all threads that take a part in it. */
struct lookup_work {
  struct request *request;
  struct answer_layout layout;
  uint8_t *buffer; /* of the thread that answers */
  struct pool_team team;
  struct backend_found found; /* by the GPU */
  atomic_int gpu;             /* enum gpu_state */
  bool use_team; /* each head is shared out to it */
  struct msg_lookup_head *heads;
  _Atomic uint64_t scanned, missed; /* the same for each head: the scan pages of a layer are checked together */
  atomic_bool failed;
  struct error error; /* of the head that failed first */
};

/* What fetch_want has to know beside the address. */
struct cold_reads {
  struct request *request;
  struct lookup_worker *worker;
  uint32_t pages;
};

static void want_bytes(void *context, const struct record_columns *part, const void *address, size_t size) {
  struct cold_reads *reads = context;
  uint32_t number = reads->worker->part_numbers[part - reads->worker->parts];
  fetch_want(reads->worker->fetch, reads->request->view, number, address, size);
}

static void fetch_bytes(void *context) {
  struct cold_reads *reads = context;
  reads->pages += fetch_run(reads->worker->fetch);
}

static long major_faults(void) {
  struct rusage usage;
  return getrusage(RUSAGE_THREAD, &usage) ? 0 : usage.ru_majflt;
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

/* Asking the kernel what is in memory costs more than a lookup in memory does, so it is asked only while the
 * conversation is cold: until some lookups in a row had nothing to read, and again after one had to wait for a page. */
static int run_cold_or_warm(struct request *request, struct lookup_worker *worker, struct lookup_request *wanted,
                            uint32_t parts, struct lookup_answer *answer, struct error *error) {
  atomic_uint *warm = &request->session->warm;
  struct cold_reads reads = {.request = request, .worker = worker};
  struct lookup_fetch fetch = {.want = want_bytes, .run = fetch_bytes, .context = &reads};
  bool cold = session_cold(request->session);
  wanted->fetch = cold ? &fetch : NULL;
  fetch_begin(worker->fetch);
  long faults = major_faults();
  int result = lookup_run(worker->scratch, wanted, worker->parts, parts, answer, error);
  wanted->fetch = NULL;
  if (reads.pages || major_faults() != faults)
    atomic_store(warm, 0);
  else if (cold)
    atomic_fetch_add(warm, 1);
  atomic_fetch_add(&request->server->counters.cold_pages, reads.pages);
  return result;
}

/* A part that the disk could not give all of fails the lookup that met it; those that come later leave it out. */
static int check_parts(struct request *request, const struct lookup_worker *worker, uint32_t count,
                       struct error *error) {
  int result = 0;
  for (uint32_t i = 0; i < count && !result; i++)
    result = view_check_part(request->view, worker->part_numbers[i], error);
  return result ? error_prefix(error, "lookup in \"%s\"", conversation_name(request->session->conversation)) : 0;
}

/* Whether the GPU has found something; another thread waits for it, and this has woken up meanwhile. */
static bool wait_for_gpu(struct lookup_work *work) {
  int state;
  for (uint32_t i = 1; (state = atomic_load_explicit(&work->gpu, memory_order_acquire)) == GPU_PENDING; i++)
    if (i % GPU_SPINS)
      job_pause();
    else
      sched_yield();
  return state == GPU_FOUND;
}

/* Runs one kv head into its place of the buffer. */
static int lookup_head(struct lookup_work *work, uint32_t head, struct lookup_worker *worker, struct error *error) {
  struct request *request = work->request;
  const struct msg_lookup *lookup = &request->params.lookup;
  const struct msg_geometry *geometry = conversation_geometry(request->session->conversation);
  struct lookup_answer answer = {.tokens = (uint64_t *)(void *)(work->buffer + head * work->layout.head_bytes)};
  answer.index = (uint32_t *)(void *)(answer.tokens + work->layout.places);
  answer.scores = (float *)(void *)(answer.index + work->layout.places);
  answer.records = (uint8_t *)(answer.scores + work->layout.places);
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
      .team = work->use_team ? &work->team.team : NULL,
  };
  struct lookup_found found;
  int result = lookup_worker_reserve_parts(worker, view_parts(request->view), error);
  if (result)
    return result;
  uint64_t missed;
  uint32_t parts = gather_parts(request, worker, head, &missed);
  if (wait_for_gpu(work)) {
    found = backend_head(&work->found, head);
    wanted.found = &found;
  }
  mapped_guard_begin();
  result = run_cold_or_warm(request, worker, &wanted, parts, &answer, error);
  mapped_guard_end();
  if (!result)
    result = check_parts(request, worker, parts, error);
  if (result)
    return result;
  count_head(request->server, lookup, &answer);
  atomic_store(&work->scanned, answer.scanned + missed);
  atomic_store(&work->missed, missed);
  work->heads[head] = (struct msg_lookup_head){
      .tokens = span_of(answer.tokens, answer.count * sizeof *answer.tokens),
      .records = span_of(answer.records, (size_t)answer.count * RECORD_BYTES),
      .index = span_of(answer.index, work->layout.places * sizeof *answer.index),
      .scores = span_of(answer.scores, work->layout.places * sizeof *answer.scores),
  };
  return 0;
}

static void head_task(void *context, uint32_t head, void *worker) {
  struct lookup_work *work = context;
  struct error error = {0};
  if (lookup_head(work, head, worker, &error) && !atomic_exchange(&work->failed, true))
    work->error = error;
}

/* The first task waits for the GPU, the others are the kv heads. */
static void gpu_task(void *context, uint32_t index, void *worker) {
  struct lookup_work *work = context;
  if (index > 0) {
    head_task(work, index - 1, worker);
    return;
  }
  bool found = backend_finish(&work->request->server->backend, work->request, worker, &work->found);
  atomic_store_explicit(&work->gpu, found ? GPU_FOUND : GPU_NONE, memory_order_release);
}

/* --- all kv heads ------------------------------------------------------------------------------------------------ */

struct lane_call {
  void (*task)(void *context, uint32_t index);
  void *context;
};

static void lane_task(void *context, uint32_t index, void *worker) {
  (void)worker;
  struct lane_call *call = context;
  mapped_guard_begin();
  call->task(call->context, index);
  mapped_guard_end();
}

static void run_lanes(const struct lookup_team *team, uint32_t tasks, void (*task)(void *context, uint32_t index),
                      void *context) {
  const struct pool_team *pool_team = (const struct pool_team *)(const void *)team;
  struct lane_call call = {task, context};
  job_pool_share(pool_team->pool, tasks, lane_task, &call, pool_team->worker);
}

static void set_team(struct lookup_work *work, uint32_t lanes, struct lookup_worker *worker) {
  struct job_pool *pool = &work->request->server->lookups;
  work->team = (struct pool_team){.team = {.lanes = lanes, .run = run_lanes}, .pool = pool, .worker = worker};
  work->use_team = lanes > 1;
}

/* With the GPU at work: the threads that help wake up meanwhile. */
static void run_heads_after_gpu(struct lookup_work *work, uint32_t heads, struct lookup_worker *worker) {
  struct job_pool *pool = &work->request->server->lookups;
  atomic_store(&work->gpu, GPU_PENDING);
  if (!work->request->heavy) {
    job_pool_share(pool, heads + 1, gpu_task, work, worker);
    return;
  }
  for (uint32_t index = 0; index <= heads; index++)
    gpu_task(work, index, worker);
}

/* Heavy lookups, and short ones, stay on this thread. Longer ones are shared out by kv head; where there are far fewer
 * of these than threads, head after head is, by range, if that is long enough for more. */
static void run_heads(struct lookup_work *work, uint32_t heads, struct lookup_worker *worker) {
  struct job_pool *pool = &work->request->server->lookups;
  uint64_t tokens = view_count(work->request->view), scores = tokens * heads * work->request->params.lookup.rows;
  if (work->request->heavy) {
    for (uint32_t head = 0; head < heads; head++)
      head_task(work, head, worker);
    return;
  }
  bool few = heads * THREADS_PER_HEAD < pool->thread_count && heads < lookup_lanes(pool->thread_count, tokens);
  if (scores >= SHARED_SCORES_MIN && !few) {
    job_pool_share(pool, heads, head_task, work, worker);
    return;
  }
  set_team(work, pool->thread_count, worker);
  for (uint32_t head = 0; head < heads; head++)
    head_task(work, head, worker);
}

static size_t answer_bytes(const struct msg_lookup_head *heads, uint32_t count) {
  size_t bytes = MESSAGE_OVERHEAD_BYTES;
  for (uint32_t i = 0; i < count; i++)
    bytes += heads[i].tokens.size + heads[i].records.size + heads[i].index.size + heads[i].scores.size +
             HEAD_OVERHEAD_BYTES;
  return bytes;
}

void lookup_run_job(struct job *job, void *worker_state) {
  struct request *request = request_of(job);
  struct lookup_worker *worker = worker_state;
  const struct msg_lookup *lookup = &request->params.lookup;
  uint32_t heads = (uint32_t)conversation_geometry(request->session->conversation)->kv_heads;
  struct msg_lookup_head answers[LIMIT_KV_HEADS_MAX];
  struct lookup_work work = {.request = request, .layout = layout_of(lookup, heads), .heads = answers};
  if (lookup_worker_reserve(worker, work.layout.total_bytes, &request->error))
    return;
  work.buffer = worker->buffer;
  struct backend *backend = &request->server->backend;
  if (backend_start(backend, request, worker, &work.found))
    run_heads_after_gpu(&work, heads, worker);
  else
    run_heads(&work, heads, worker);
  backend_release(backend, &work.found);
  if (work.failed) {
    request->error = work.error;
    return;
  }
  struct msg_lookup_ok answer = {
      .k = lookup->k,
      .candidates = lookup->candidates ? lookup->candidates : lookup_default_candidates(work.scanned - work.missed),
      .scanned = work.scanned,
      .missed = work.missed,
      .heads = {.count = heads, .items = answers},
  };
  atomic_fetch_add(&request->server->counters.lookups, 1);
  atomic_fetch_add(&request->server->counters.lookup_rows, lookup->rows);
  request_expect(request, answer_bytes(answers, heads));
  request_answer(request, &answer);
}
