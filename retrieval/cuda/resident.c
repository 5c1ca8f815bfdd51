// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// Everything goes to the GPU's default stream under one lock, so that columns may be dropped and grown while scans of
// them are under way; only the wait for a scan is outside of it.
#include "retrieval/cuda/resident.h"

#include <pthread.h>
#include <stdlib.h>
#include <sys/queue.h>

enum { BUCKETS = 256 };

#define RECORD_SCAN_BYTES (RECORD_SIGNATURE_BYTES + RECORD_K_SCALE_BYTES)

/* One conversation. */
struct entry {
  TAILQ_ENTRY(entry) used; /* most recently used first */
  struct entry *next;      /* in its bucket */
  uint8_t id[LIMIT_ID_BYTES];
  uint64_t used_ms;
  uint64_t bytes, code_bytes;
  uint32_t layers, kv_heads;
  struct gpu_columns *columns[]; /* [layers][kv_heads]; NULL where nothing has come yet */
};

struct resident {
  struct gpu *gpu;
  struct resident_options options;
  pthread_mutex_t lock;
  pthread_cond_t released;
  pthread_mutex_t told_lock;
  struct resident_figures told; /* a copy of the figures */
  struct gpu_scan *scans[RESIDENT_SCANS];
  bool taken[RESIDENT_SCANS];
  TAILQ_HEAD(entries, entry) entries;
  struct entry *buckets[BUCKETS];
  uint32_t failures; /* in a row */
  bool codes_failed; /* what came last was codes */
  struct resident_figures figures;
  struct gpu_scan_job jobs[RESIDENT_JOBS_MAX]; /* of the start under way */
};

/* Lookups hold the lock while megabytes go to the GPU, some of them on threads that yield to others: who wants figures
 * is not to wait for that. */
static void unlock(struct resident *resident) {
  pthread_mutex_lock(&resident->told_lock);
  resident->told = resident->figures;
  pthread_mutex_unlock(&resident->told_lock);
  pthread_mutex_unlock(&resident->lock);
}

/* --- conversations ----------------------------------------------------------------------------------------------- */

static struct entry **find(struct resident *resident, const uint8_t *id) {
  struct entry **link = &resident->buckets[id[0] % BUCKETS]; /* ids are random */
  while (*link && memcmp((*link)->id, id, LIMIT_ID_BYTES) != 0)
    link = &(*link)->next;
  return link;
}

static void drop_codes(struct resident *resident, struct entry *entry) {
  for (uint32_t i = 0; i < entry->layers * entry->kv_heads && entry->code_bytes; i++)
    if (entry->columns[i])
      gpu_columns_drop_codes(entry->columns[i], NULL);
  resident->figures.code_bytes -= entry->code_bytes;
  entry->code_bytes = 0;
}

static void drop(struct resident *resident, struct entry **link) {
  struct entry *entry = *link;
  if (!entry)
    return;
  for (uint32_t i = 0; i < entry->layers * entry->kv_heads; i++)
    gpu_columns_destroy(entry->columns[i], NULL);
  *link = entry->next;
  TAILQ_REMOVE(&resident->entries, entry, used);
  resident->figures.bytes -= entry->bytes;
  resident->figures.code_bytes -= entry->code_bytes;
  resident->figures.conversations--;
  resident->figures.dropped += entry->bytes > 0;
  free(entry);
}

static void drop_all(struct resident *resident) {
  for (struct entry *entry; (entry = TAILQ_FIRST(&resident->entries)) != NULL;)
    drop(resident, find(resident, entry->id));
}

/* The lookup's conversation, made if need be and now the one used last. NULL when out of memory. */
static struct entry *use(struct resident *resident, const struct resident_lookup *lookup) {
  struct entry **link = find(resident, lookup->conversation), *entry = *link;
  if (entry && (entry->layers != lookup->layers || entry->kv_heads != lookup->kv_heads)) {
    drop(resident, link);
    entry = NULL;
  }
  if (entry) {
    TAILQ_REMOVE(&resident->entries, entry, used);
  } else {
    size_t blocks = (size_t)lookup->layers * lookup->kv_heads;
    entry = calloc(1, sizeof *entry + blocks * sizeof entry->columns[0]);
    if (!entry)
      return NULL;
    memcpy(entry->id, lookup->conversation, LIMIT_ID_BYTES);
    entry->layers = lookup->layers;
    entry->kv_heads = lookup->kv_heads;
    link = find(resident, lookup->conversation);
    *link = entry;
    resident->figures.conversations++;
  }
  TAILQ_INSERT_HEAD(&resident->entries, entry, used);
  entry->used_ms = lookup->now_ms;
  return entry;
}

static struct gpu_columns **layer_of(struct entry *entry, const struct resident_lookup *lookup) {
  return entry->columns + (size_t)lookup->layer * entry->kv_heads;
}

/* What of a column is there: signatures and scales, or key codes. */
struct what {
  uint32_t (*count)(const struct gpu_columns *columns);
  uint64_t (*bytes)(uint32_t count);
  uint64_t record_bytes;
};
static const struct what scan_columns = {gpu_columns_count, gpu_columns_bytes, RECORD_SCAN_BYTES};
static const struct what key_codes = {gpu_columns_codes, gpu_codes_bytes, RECORD_K_MAG_BYTES};

/* Tokens that all kv heads of the layer have there. */
static uint32_t covered(struct entry *entry, const struct resident_lookup *lookup, const struct what *what) {
  struct gpu_columns **columns = layer_of(entry, lookup);
  uint32_t least = UINT32_MAX;
  for (uint32_t h = 0; h < entry->kv_heads; h++) {
    uint32_t count = columns[h] ? what->count(columns[h]) : 0;
    least = count < least ? count : least;
  }
  return least;
}

/* --- bringing records to the GPU --------------------------------------------------------------------------------- */

/* What the layer takes when it has that many tokens. */
static uint64_t layer_bytes(struct entry *entry, const struct resident_lookup *lookup, const struct what *what,
                            uint32_t tokens) {
  struct gpu_columns **columns = layer_of(entry, lookup);
  uint64_t bytes = 0;
  for (uint32_t h = 0; h < entry->kv_heads; h++) {
    uint32_t count = columns[h] ? what->count(columns[h]) : 0;
    bytes += what->bytes(count > tokens ? count : tokens);
  }
  return bytes;
}

/* What it takes more when tokens up to `end` are there. */
static uint64_t bytes_more(struct entry *entry, const struct resident_lookup *lookup, const struct what *what,
                           uint32_t end) {
  return layer_bytes(entry, lookup, what, end) - layer_bytes(entry, lookup, what, 0);
}

static bool in_use(const struct resident *resident, const struct entry *entry, uint64_t now_ms) {
  return entry == TAILQ_FIRST(&resident->entries) || entry->used_ms + resident->options.idle_ms > now_ms;
}

/* Drops conversations that were not used lately until there is room for so many bytes more. */
static bool make_room(struct resident *resident, uint64_t more, uint64_t now_ms) {
  while (resident->figures.bytes + more > resident->options.limit_bytes) {
    struct entry *oldest = TAILQ_LAST(&resident->entries, entries); /* the one that it is for is the first */
    if (in_use(resident, oldest, now_ms) || more > resident->options.limit_bytes)
      return false;
    drop(resident, find(resident, oldest->id));
  }
  return true;
}

/* The same for codes, and nothing else of the conversations goes. */
static bool make_code_room(struct resident *resident, uint64_t more, uint64_t now_ms) {
  while (resident->figures.code_bytes + more > resident->options.code_limit_bytes) {
    struct entry *oldest = TAILQ_LAST(&resident->entries, entries);
    while (oldest && !oldest->code_bytes)
      oldest = TAILQ_PREV(oldest, entries, used);
    if (!oldest || in_use(resident, oldest, now_ms) || more > resident->options.code_limit_bytes)
      return false;
    drop_codes(resident, oldest);
  }
  return true;
}

static int append_head(struct resident *resident, struct gpu_columns **columns, const struct resident_lookup *lookup,
                       const struct what *what, uint32_t head, uint32_t end, struct error *error) {
  int result = *columns ? 0 : gpu_columns_create(resident->gpu, columns, error);
  while (!result && what->count(*columns) < end) {
    struct record_columns part;
    uint32_t at = what->count(*columns);
    if (!lookup->source.columns(lookup->source.context, head, at, &part))
      return error_set(error, ERR_INTERNAL, "no columns of token %u, kv head %u", at, head);
    size_t skip = (size_t)(at - part.first);
    uint64_t there = part.count - skip;
    uint32_t count = there < end - at ? (uint32_t)there : end - at;
    if (what == &key_codes)
      result = gpu_columns_append_codes(*columns, part.k_mag + skip * RECORD_K_MAG_BYTES, count, NULL, error);
    else
      result = gpu_columns_append(*columns, part.signature + skip * RECORD_SIGNATURE_BYTES,
                                  part.k_scale + skip * RECORD_K_SCALE_BYTES, count, NULL, error);
  }
  return result;
}

/* How far this lookup brings its layer: nowhere while fewer than `least` tokens are missing, and at most a step. */
static uint32_t next_end(const struct resident *resident, const struct resident_lookup *lookup, const struct what *what,
                         uint32_t have, uint32_t least) {
  uint64_t readable = lookup->readable < UINT32_MAX ? lookup->readable : UINT32_MAX;
  uint64_t step = resident->options.step_bytes / (what->record_bytes * lookup->kv_heads) + 1;
  if (readable < have + (uint64_t)(have ? least : 1))
    return have;
  return (uint32_t)(readable - have < step ? readable : have + step);
}

static uint32_t next_scan_end(const struct resident *resident, struct entry *entry,
                              const struct resident_lookup *lookup) {
  bool codes = covered(entry, lookup, &key_codes) > 0; /* they are of use only when nothing is missing */
  return next_end(resident, lookup, &scan_columns, covered(entry, lookup, &scan_columns),
                  codes ? 1 : resident->options.grow_tokens);
}

/* Codes follow the signatures of earlier lookups, `before`, which is what expect_codes has had read; a few that have
 * just come are brought at once. */
static uint32_t next_code_end(const struct resident *resident, struct entry *entry,
                              const struct resident_lookup *lookup, uint32_t have, uint32_t before) {
  uint32_t end = next_end(resident, lookup, &key_codes, have, 1), there = covered(entry, lookup, &scan_columns);
  if (there > before && there - have > resident->options.grow_tokens)
    there = before;
  there = there > have ? there : have;
  return end < there ? end : there;
}

/* Brings tokens from `have` on. An error leaves the conversation as it is. */
static int bring(struct resident *resident, struct entry *entry, const struct resident_lookup *lookup,
                 const struct what *what, uint32_t end, struct error *error) {
  uint64_t before = layer_bytes(entry, lookup, what, 0);
  int result = 0;
  for (uint32_t h = 0; h < entry->kv_heads && !result; h++)
    result = append_head(resident, &layer_of(entry, lookup)[h], lookup, what, h, end, error);
  resident->codes_failed = what == &key_codes;
  uint64_t more = layer_bytes(entry, lookup, what, 0) - before;
  *(what == &key_codes ? &entry->code_bytes : &entry->bytes) += more;
  *(what == &key_codes ? &resident->figures.code_bytes : &resident->figures.bytes) += more;
  return result;
}

/* What was read and is not good goes with the conversation. */
static int extend(struct resident *resident, struct entry *entry, const struct resident_lookup *lookup, bool *sound,
                  struct error *error) {
  const struct resident_source *source = &lookup->source;
  uint32_t have = covered(entry, lookup, &scan_columns), end = next_scan_end(resident, entry, lookup);
  int result = 0;
  *sound = true;
  if (end > have && make_room(resident, bytes_more(entry, lookup, &scan_columns, end), lookup->now_ms)) {
    result = bring(resident, entry, lookup, &scan_columns, end, error);
    *sound = source->sound(source->context, have, end);
  }
  if (result || !*sound || !resident->options.code_limit_bytes)
    return result;
  uint32_t before = have;
  have = covered(entry, lookup, &key_codes);
  end = next_code_end(resident, entry, lookup, have, before);
  if (end > have && make_code_room(resident, bytes_more(entry, lookup, &key_codes, end), lookup->now_ms)) {
    result = bring(resident, entry, lookup, &key_codes, end, error);
    *sound = source->sound(source->context, have, end);
  }
  return result;
}

/* Has the key codes that this lookup will bring read from disk, while others may have the lock. */
static void expect_codes(struct resident *resident, const struct resident_lookup *lookup) {
  bool wanted = lookup->source.expect && resident->options.code_limit_bytes > 0;
  struct entry *entry = wanted ? use(resident, lookup) : NULL;
  if (!entry)
    return;
  uint32_t have = covered(entry, lookup, &key_codes), there = covered(entry, lookup, &scan_columns);
  uint32_t end = next_code_end(resident, entry, lookup, have, there);
  if (end == have || !make_code_room(resident, bytes_more(entry, lookup, &key_codes, end), lookup->now_ms))
    return;
  unlock(resident);
  lookup->source.expect(lookup->source.context, have, end);
  pthread_mutex_lock(&resident->lock);
}

/* --- scans ------------------------------------------------------------------------------------------------------- */

static uint32_t take_scan(struct resident *resident) {
  for (;;) {
    for (uint32_t i = 0; i < RESIDENT_SCANS; i++)
      if (!resident->taken[i]) {
        resident->taken[i] = true;
        return i;
      }
    pthread_cond_wait(&resident->released, &resident->lock);
  }
}

static void give_scan(struct resident *resident, uint32_t scan) {
  resident->taken[scan] = false;
  pthread_cond_signal(&resident->released);
}

/* Whether what the scan finds can be rescored, and the answer is the best of that: all tokens in range are there. */
static bool may_rescore(struct entry *entry, const struct resident_lookup *lookup, const struct resident_found *found) {
  return lookup->best > 0 && lookup->best <= lookup->candidates && found->count == lookup->tokens &&
         covered(entry, lookup, &key_codes) >= found->first + found->count;
}

static int start_scan(struct resident *resident, struct entry *entry, const struct resident_lookup *lookup,
                      const struct resident_found *found, struct error *error) {
  struct gpu_columns **columns = layer_of(entry, lookup);
  uint32_t job_count = lookup->kv_heads * lookup->rows;
  for (uint32_t i = 0; i < job_count; i++)
    resident->jobs[i] = (struct gpu_scan_job){
        .columns = columns[i / lookup->rows],
        .query = &lookup->queries[i],
        .begin = (uint32_t)found->first,
        .count = found->count,
    };
  struct gpu_scan *scan = resident->scans[found->scan];
  const struct gpu_scan_wanted wanted = {
      .mode = lookup->mode, .candidates = found->candidates, .best = found->best, .head_dim = lookup->head_dim};
  int result = gpu_scan_start(scan, &wanted, resident->jobs, job_count, NULL, error);
  return result ? result : gpu_scan_fetch(scan, NULL, error);
}

/* After an error nobody knows what the GPU's memory holds, unless there was only too little of it. */
static int failed(struct resident *resident, int result) {
  resident->figures.errors++;
  if (result == -ERR_MEMORY) { /* others use it, too: it is not tried again */
    resident->options.code_limit_bytes = resident->figures.code_bytes;
    if (!resident->codes_failed)
      resident->options.limit_bytes = resident->figures.bytes;
    return result;
  }
  drop_all(resident);
  resident->figures.off |= ++resident->failures >= RESIDENT_FAILURES_MAX;
  return result;
}

static bool fits(const struct resident *resident, const struct resident_lookup *lookup) {
  uint64_t end = lookup->before < lookup->readable ? lookup->before : lookup->readable;
  uint64_t jobs = (uint64_t)lookup->kv_heads * lookup->rows;
  return !resident->figures.off && lookup->from < end && end - lookup->from >= resident->options.tokens_min &&
         jobs > 0 && jobs <= RESIDENT_JOBS_MAX && jobs * lookup->candidates <= RESIDENT_KEYS_MAX;
}

/* What has turned out to be damaged since it came here goes, and all of its conversation with it. */
static void drop_damaged(struct resident *resident, const struct resident_lookup *lookup) {
  struct entry **link = find(resident, lookup->conversation);
  if (lookup->hole && *link && lookup->layer < (*link)->layers &&
      covered(*link, lookup, &scan_columns) > lookup->readable)
    drop(resident, link);
}

/* With the lock held, and a scan taken. */
static int start(struct resident *resident, const struct resident_lookup *lookup, struct resident_found *found,
                 struct error *error) {
  struct entry *entry = use(resident, lookup);
  if (!entry)
    return error_set(error, ERR_MEMORY, "out of memory for a conversation on the GPU");
  bool sound;
  int result = extend(resident, entry, lookup, &sound, error);
  uint64_t end = covered(entry, lookup, &scan_columns);
  end = end < lookup->before ? end : lookup->before;
  end = end < lookup->readable ? end : lookup->readable;
  if (!sound || !entry->bytes) { /* the latter: there is no room, and an empty one is worth nothing */
    drop(resident, find(resident, lookup->conversation));
    return result;
  }
  if (result || end <= lookup->from || end - lookup->from < resident->options.tokens_min)
    return result;
  found->first = lookup->from;
  found->count = (uint32_t)(end - lookup->from);
  found->candidates = lookup->candidates;
  found->best = may_rescore(entry, lookup, found) ? lookup->best : 0;
  result = start_scan(resident, entry, lookup, found, error);
  return result ? result : 1;
}

int resident_start(struct resident *resident, const struct resident_lookup *lookup, struct resident_found *found,
                   struct error *error) {
  *found = (struct resident_found){.scan = 0};
  pthread_mutex_lock(&resident->lock);
  int result = 0;
  drop_damaged(resident, lookup);
  if (fits(resident, lookup)) {
    expect_codes(resident, lookup);
    found->scan = take_scan(resident);
    result = start(resident, lookup, found, error);
    if (result <= 0)
      give_scan(resident, found->scan);
    if (result < 0)
      failed(resident, result);
  }
  unlock(resident);
  return result;
}

int resident_finish(struct resident *resident, struct resident_found *found, struct error *error) {
  int result = gpu_scan_finish(resident->scans[found->scan], &found->keys, &found->counts, error);
  pthread_mutex_lock(&resident->lock);
  if (result) {
    failed(resident, result);
    give_scan(resident, found->scan);
  } else {
    resident->failures = 0;
    resident->figures.lookups++;
    resident->figures.rescored += found->best > 0;
  }
  unlock(resident);
  return result;
}

void resident_release(struct resident *resident, const struct resident_found *found) {
  pthread_mutex_lock(&resident->lock);
  give_scan(resident, found->scan);
  unlock(resident);
}

/* --- the cache --------------------------------------------------------------------------------------------------- */

int resident_create(struct resident **result, struct gpu *gpu, const struct resident_options *options,
                    struct error *error) {
  *result = NULL;
  struct resident *resident = calloc(1, sizeof *resident);
  if (!resident)
    return error_set(error, ERR_MEMORY, "out of memory for conversations on the GPU (%zu bytes)", sizeof *resident);
  resident->gpu = gpu;
  resident->options = *options;
  TAILQ_INIT(&resident->entries);
  pthread_mutex_init(&resident->lock, NULL); /* neither fails on Linux */
  pthread_mutex_init(&resident->told_lock, NULL);
  pthread_cond_init(&resident->released, NULL);
  int status = 0;
  for (uint32_t i = 0; i < RESIDENT_SCANS && !status; i++)
    status = gpu_scan_create(gpu, RESIDENT_JOBS_MAX, RESIDENT_KEYS_MAX, &resident->scans[i], error);
  if (status) {
    resident_destroy(resident);
    return status;
  }
  *result = resident;
  return 0;
}

void resident_destroy(struct resident *resident) {
  if (!resident)
    return;
  drop_all(resident);
  for (uint32_t i = 0; i < RESIDENT_SCANS; i++)
    gpu_scan_destroy(resident->scans[i]);
  pthread_cond_destroy(&resident->released);
  pthread_mutex_destroy(&resident->told_lock);
  pthread_mutex_destroy(&resident->lock);
  free(resident);
}

void resident_drop(struct resident *resident, const uint8_t *conversation) {
  pthread_mutex_lock(&resident->lock);
  drop(resident, find(resident, conversation));
  unlock(resident);
}

void resident_figures(struct resident *resident, struct resident_figures *figures) {
  pthread_mutex_lock(&resident->told_lock);
  *figures = resident->told;
  pthread_mutex_unlock(&resident->told_lock);
}
