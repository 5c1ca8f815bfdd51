// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
#include "daemon/backend.h"

#include <string.h>

#include "daemon/log.h"
#include "daemon/request.h"
#include "daemon/worker.h"
#include "retrieval/kernels.h"
#include "store/mapped_fault.h"

/* Fewer new tokens than that are quicker scanned than brought to the GPU. */
#define GROW_TOKENS 1024u
/* That one lookup brings there: a millisecond's work. */
#define STEP_BYTES (UINT64_C(8) << 20)
/* Winners of a row that may be bad before the processor has to do a lookup that the GPU has rescored once more. */
#define SPARE_WINNERS 16u
/* A conversation that was looked up more recently stays on the GPU. */
#define IDLE_MS 2000u

/* --- start and stop ---------------------------------------------------------------------------------------------- */

static int open_gpu(struct backend *backend, const struct options *options, struct error *error) {
  int result = gpu_create(&backend->gpu, 0, error);
  if (result)
    return result;
  gpu_info(backend->gpu, &backend->info);
  backend->limit_bytes = options->vram_limit ? options->vram_limit << 20 : backend->info.memory_bytes / 2;
  bool told = options->vram_codes_limit != VRAM_CODES_DEFAULT;
  backend->code_limit_bytes = told ? options->vram_codes_limit << 20 : backend->info.memory_bytes / 4;
  backend->tokens_min = options->gpu_tokens_min;
  const struct resident_options wanted = {
      .limit_bytes = backend->limit_bytes,
      .code_limit_bytes = backend->code_limit_bytes,
      .tokens_min = (uint32_t)options->gpu_tokens_min,
      .grow_tokens = GROW_TOKENS,
      .step_bytes = STEP_BYTES,
      .idle_ms = IDLE_MS,
  };
  return resident_create(&backend->resident, backend->gpu, &wanted, error);
}

int backend_open(struct backend *backend, const struct options *options, struct error *error) {
  struct error reason = {0};
  memset(backend, 0, sizeof *backend);
  if (options->backend == BACKEND_CPU)
    return 0;
  int result = open_gpu(backend, options, &reason);
  if (!result)
    return 0;
  backend_close(backend);
  if (options->backend == BACKEND_CUDA) {
    *error = reason;
    return error_prefix(error, "backend cuda");
  }
  log_line("scans run on the processor: %s", reason.text);
  return 0;
}

void backend_close(struct backend *backend) {
  resident_destroy(backend->resident);
  gpu_destroy(backend->gpu);
  backend->resident = NULL;
  backend->gpu = NULL;
}

/* --- what there is to say ---------------------------------------------------------------------------------------- */

const char *backend_name(const struct backend *backend) { return backend->resident ? "cuda" : "cpu"; }

const char *backend_device(const struct backend *backend) { return backend->resident ? backend->info.name : ""; }

bool backend_gpu(struct backend *backend) {
  struct resident_figures figures = {.off = true};
  if (backend->resident)
    resident_figures(backend->resident, &figures);
  return !figures.off;
}

void backend_stats(struct backend *backend, struct msg_stats *stats) {
  struct resident_figures figures;
  if (!backend->resident)
    return;
  resident_figures(backend->resident, &figures);
  stats->gpu_bytes = figures.bytes;
  stats->gpu_bytes_max = backend->limit_bytes;
  stats->gpu_code_bytes = figures.code_bytes;
  stats->gpu_code_bytes_max = backend->code_limit_bytes;
  stats->gpu_rescored = figures.rescored;
  stats->gpu_conversations = figures.conversations;
  stats->gpu_lookups = figures.lookups;
  stats->gpu_dropped = figures.dropped;
  stats->gpu_errors = figures.errors;
}

static void tell(struct backend *backend, const struct error *error) {
  if (!atomic_exchange(&backend->told, true))
    log_line("the processor does a lookup that the GPU failed (told once; see gpu_errors of stats): %s", error->text);
}

bool backend_id(struct request *request, const char *name, uint8_t id[LIMIT_ID_BYTES]) {
  struct conversation_entry entry;
  struct error error;
  if (!request->server->backend.resident ||
      conversation_describe(request->server->archive, request->connection->user->uid, name, &entry, &error))
    return false;
  memcpy(id, entry.id, LIMIT_ID_BYTES);
  conversation_entry_finish(&entry);
  return true;
}

/* --- a lookup ---------------------------------------------------------------------------------------------------- */

/* The parts of a conversation as one lookup sees them; worker->parts has those that can be read, of kv head 0. */
struct survey {
  struct request *request;
  struct lookup_worker *worker;
  uint32_t parts;    /* in a row from token 0 on */
  uint64_t readable; /* tokens in them */
  bool hole;
  uint64_t tokens; /* of all parts that can be read, in the lookup's range */
};

/* Number of the part that holds a token below `readable`. */
static uint32_t part_of(const struct survey *survey, uint64_t token) {
  uint32_t low = 0, high = survey->parts;
  while (high - low > 1) {
    uint32_t middle = low + (high - low) / 2;
    if (survey->worker->parts[middle].first <= token)
      low = middle;
    else
      high = middle;
  }
  return low;
}

static bool columns_of(void *context, uint32_t head, uint64_t token, struct record_columns *columns) {
  struct survey *survey = context;
  uint32_t layer = (uint32_t)survey->request->params.lookup.layer;
  return token < survey->readable &&
         view_columns(survey->request->view, part_of(survey, token), layer, head, columns, NULL) == 0 &&
         token - columns->first < columns->count;
}

/* Key codes are in no memory that the daemon keeps: with many at a time, the disk is asked for all of them at once. */
static void expect(void *context, uint64_t first, uint64_t end) {
  struct survey *survey = context;
  struct request *request = survey->request;
  uint32_t heads = (uint32_t)conversation_geometry(request->session->conversation)->kv_heads;
  uint32_t layer = (uint32_t)request->params.lookup.layer;
  fetch_begin(survey->worker->fetch);
  for (uint32_t part = part_of(survey, first); part < survey->parts && survey->worker->parts[part].first < end; part++)
    for (uint32_t head = 0; head < heads; head++) {
      struct record_columns columns;
      if (view_columns(request->view, part, layer, head, &columns, NULL) != 0)
        continue;
      uint64_t from = first > columns.first ? first - columns.first : 0;
      uint64_t to = end - columns.first < columns.count ? end - columns.first : columns.count;
      if (from < to)
        fetch_want(survey->worker->fetch, request->view, part, columns.k_mag + from * RECORD_K_MAG_BYTES,
                   (to - from) * RECORD_K_MAG_BYTES);
    }
  atomic_fetch_add(&request->server->counters.cold_pages, fetch_run(survey->worker->fetch));
}

static bool sound(void *context, uint64_t first, uint64_t end) {
  struct survey *survey = context;
  for (uint32_t part = part_of(survey, first); part < survey->parts && survey->worker->parts[part].first < end; part++)
    if (view_check_part(survey->request->view, part, NULL))
      return false;
  return true;
}

/* Looks at all parts; their scan pages are checked the first time. */
static int look_at_parts(struct survey *survey, struct error *error) {
  struct request *request = survey->request;
  const struct msg_lookup *lookup = &request->params.lookup;
  uint32_t count = view_parts(request->view);
  int result = lookup_worker_reserve_parts(survey->worker, count, error);
  if (result)
    return result;
  for (uint32_t part = 0; part < count; part++) {
    struct record_columns *columns = &survey->worker->parts[part];
    bool bad = view_columns(request->view, part, (uint32_t)lookup->layer, 0, columns, NULL) != 0;
    survey->hole |= bad || columns->first != survey->readable;
    if (!survey->hole) {
      survey->parts++;
      survey->readable += columns->count;
    }
    if (!bad)
      survey->tokens += lookup_tokens(columns, 1, lookup->from, lookup->before);
  }
  return 0;
}

static int prepare_queries(struct request *request, struct lookup_worker *worker, struct error *error) {
  const struct msg_lookup *lookup = &request->params.lookup;
  const struct msg_geometry *geometry = conversation_geometry(request->session->conversation);
  uint64_t heads = geometry->kv_heads;
  int result = worker_memory_reserve(&worker->queries, heads * lookup->rows * sizeof(struct query), error);
  struct query *query = worker->queries.data;
  for (uint64_t head = 0; head < heads && !result; head++)
    for (uint64_t row = 0; row < lookup->rows && !result; row++)
      if (!lookup_kernels()->prepare(query++, (uint32_t)geometry->head_dim,
                                     lookup->queries.data + (row * heads + head) * QUERY_FLOATS * sizeof(float)))
        result = error_set(error, ERR_BAD_PARAMS, "a query that is not finite"); /* lookup_check has seen to that */
  return result;
}

/* While pages come from disk, or a thread that yields to others goes on, the GPU's memory is given to others: what was
 * found goes to the worker's. */
static int put_by(struct backend *backend, struct lookup_worker *worker, uint32_t heads, struct backend_found *found,
                  struct error *error) {
  struct resident_found *from = &found->found;
  size_t jobs = (size_t)heads * found->rows, places = from->best ? from->best : from->candidates;
  size_t keys_bytes = jobs * places * sizeof *from->keys;
  int result = worker_memory_reserve(&worker->found, keys_bytes + jobs * sizeof *from->counts, error);
  if (!result) {
    uint8_t *to = worker->found.data;
    memcpy(to, from->keys, keys_bytes);
    memcpy(to + keys_bytes, from->counts, jobs * sizeof *from->counts);
    from->keys = (const uint64_t *)(const void *)to;
    from->counts = (const uint32_t *)(const void *)(to + keys_bytes);
  }
  resident_release(backend->resident, from);
  found->held = false;
  return result;
}

static int start(struct backend *backend, struct survey *survey, struct backend_found *found, struct error *error) {
  struct request *request = survey->request;
  const struct msg_lookup *lookup = &request->params.lookup;
  const struct msg_geometry *geometry = conversation_geometry(request->session->conversation);
  uint64_t candidates = lookup->candidates ? lookup->candidates : lookup_default_candidates(survey->tokens);
  candidates = candidates < survey->tokens ? candidates : survey->tokens;
  const struct resident_lookup wanted = {
      .conversation = conversation_id(request->session->conversation),
      .mode = (enum lookup_mode)lookup->mode,
      .layers = (uint32_t)geometry->layers,
      .kv_heads = (uint32_t)geometry->kv_heads,
      .layer = (uint32_t)lookup->layer,
      .rows = (uint32_t)lookup->rows,
      .queries = survey->worker->queries.data,
      .candidates = (uint32_t)candidates,
      .best = (uint32_t)(lookup->k + SPARE_WINNERS < candidates ? lookup->k + SPARE_WINNERS : candidates),
      .head_dim = (uint32_t)geometry->head_dim,
      .from = lookup->from,
      .before = lookup->before,
      .tokens = survey->tokens,
      .readable = survey->readable,
      .hole = survey->hole,
      .now_ms = uv_hrtime() / 1000000u,
      .source = {.expect = expect, .columns = columns_of, .sound = sound, .context = survey},
  };
  mapped_guard_begin();
  int result = resident_start(backend->resident, &wanted, &found->found, error);
  mapped_guard_end();
  return result;
}

bool backend_wants(const struct backend *backend, uint64_t tokens, uint64_t jobs) {
  return backend->resident && tokens >= backend->tokens_min && jobs <= RESIDENT_JOBS_MAX;
}

bool backend_start(struct backend *backend, struct request *request, struct lookup_worker *worker,
                   struct backend_found *found) {
  const struct msg_lookup *lookup = &request->params.lookup;
  const struct msg_geometry *geometry = conversation_geometry(request->session->conversation);
  struct survey survey = {.request = request, .worker = worker};
  struct error error = {0};
  uint64_t end = view_count(request->view) < lookup->before ? view_count(request->view) : lookup->before;
  *found = (struct backend_found){.rows = (uint32_t)lookup->rows};
  if (lookup->from >= end || !backend_wants(backend, end - lookup->from, geometry->kv_heads * lookup->rows))
    return false;
  int result = look_at_parts(&survey, &error);
  if (!result && survey.tokens == 0)
    return false;
  if (!result)
    result = prepare_queries(request, worker, &error);
  if (!result)
    result = start(backend, &survey, found, &error);
  if (result < 0)
    tell(backend, &error);
  return result > 0;
}

bool backend_finish(struct backend *backend, struct request *request, struct lookup_worker *worker,
                    struct backend_found *found) {
  struct error error = {0};
  int result = resident_finish(backend->resident, &found->found, &error);
  found->held = result == 0;
  if (!result && (request->heavy || session_cold(request->session)))
    result = put_by(backend, worker, (uint32_t)conversation_geometry(request->session->conversation)->kv_heads, found,
                    &error);
  if (result)
    tell(backend, &error);
  return result == 0;
}

struct lookup_found backend_head(const struct backend_found *found, uint32_t head) {
  const struct resident_found *from = &found->found;
  return (struct lookup_found){
      .first = from->first,
      .count = from->count,
      .candidates = from->candidates,
      .best = from->best,
      .keys = from->keys + (size_t)head * found->rows * (from->best ? from->best : from->candidates),
      .counts = from->counts + (size_t)head * found->rows,
  };
}

void backend_release(struct backend *backend, const struct backend_found *found) {
  if (found->held)
    resident_release(backend->resident, &found->found);
}
