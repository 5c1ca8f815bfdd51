// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
#include "retrieval/lookup.h"

#include <stdlib.h>

#include "retrieval/kernels.h"
#include "retrieval/range.h"
#include "retrieval/select.h"
#include "retrieval/winners.h"

enum {
  ROWS_AT_ONCE = 16, /* that share one pass over the signatures */
  RESCORE_AHEAD = 32, /* candidates whose bytes are under way */
  ALIGNMENT = 64,
};

struct memory {
  void *data;
  size_t size;
};

struct lookup_scratch {
  const struct lookup_kernels *kernels;
  struct memory slices, queries, keys, spare, winners;
  struct rescore_code code; /* of the head_dim asked for last */
  struct range range;
  struct select selects[ROWS_AT_ONCE];
  struct scan_scores scores[ROWS_AT_ONCE];
  struct scan_distances distances[ROWS_AT_ONCE];
};

/* --- memory ------------------------------------------------------------------------------------------------------ */

/* Makes `memory` at least `size` bytes long; what was in it is lost. */
static int reserve(struct memory *memory, size_t size, struct error *error) {
  if (memory->size >= size)
    return 0;
  size_t rounded = (size + size / 2 + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
  free(memory->data);
  memory->data = aligned_alloc(ALIGNMENT, rounded);
  memory->size = memory->data ? rounded : 0;
  return memory->data ? 0 : error_set(error, ERR_MEMORY, "out of memory for a lookup (%zu bytes)", rounded);
}

int lookup_scratch_create(struct lookup_scratch **scratch, struct error *error) {
  *scratch = calloc(1, sizeof **scratch);
  if (!*scratch)
    return error_set(error, ERR_MEMORY, "out of memory for a lookup (%zu bytes)", sizeof **scratch);
  (*scratch)->kernels = lookup_kernels();
  return 0;
}

void lookup_scratch_destroy(struct lookup_scratch *scratch) {
  if (!scratch)
    return;
  free(scratch->slices.data);
  free(scratch->queries.data);
  free(scratch->keys.data);
  free(scratch->spare.data);
  free(scratch->winners.data);
  free(scratch);
}

const char *lookup_kernel_name(void) { return lookup_kernels()->name; }

uint32_t lookup_default_candidates(uint64_t tokens) {
  uint64_t candidates = tokens / DEFAULT_CANDIDATES_DIVISOR;
  if (candidates < DEFAULT_CANDIDATES_MIN)
    return DEFAULT_CANDIDATES_MIN;
  return candidates > DEFAULT_CANDIDATES_MAX ? DEFAULT_CANDIDATES_MAX : (uint32_t)candidates;
}

/* --- scan -------------------------------------------------------------------------------------------------------- */

/* A block of records: entries of one part, and the ordinal of the first. */
struct block {
  const uint8_t *signature, *k_scale;
  uint32_t count, ordinal;
};

/* Puts the scores that passed into a row's select, which has room for all. */
static void put_scores(struct select *select, const struct scan_scores *result, const struct block *block) {
  uint64_t *keys = select->keys + select->count;
  for (uint32_t w = 0; 64 * w < block->count; w++)
    for (uint64_t bits = result->passed[w]; bits; bits &= bits - 1) {
      uint32_t i = 64 * w + (uint32_t)__builtin_ctzll(bits);
      *keys++ = select_key(select_rank(result->scores[i]), block->ordinal + i);
    }
  select->count = (uint32_t)(keys - select->keys);
}

/* The same by distance. The scale has no part in that, so it is looked at only where the distance is good enough. */
static void put_distances(struct select *select, const struct scan_distances *result, const struct block *block) {
  uint64_t *keys = select->keys + select->count;
  for (uint32_t w = 0; 64 * w < block->count; w++)
    for (uint64_t bits = result->passed[w]; bits; bits &= bits - 1) {
      uint32_t i = 64 * w + (uint32_t)__builtin_ctzll(bits);
      *keys = select_key(result->distances[i], block->ordinal + i);
      keys += record_scale_valid(load_u16(block->k_scale + (size_t)i * RECORD_K_SCALE_BYTES));
    }
  select->count = (uint32_t)(keys - select->keys);
}

/* Scores a block for all rows and keeps what may be among the best. */
static void scan_block(struct lookup_scratch *scratch, enum lookup_mode mode, const struct query *queries,
                       uint32_t rows, const struct block *block) {
  const struct lookup_kernels *kernels = scratch->kernels;
  float above[ROWS_AT_ONCE];
  uint32_t below[ROWS_AT_ONCE];
  for (uint32_t r = 0; r < rows; r++) {
    select_make_room(&scratch->selects[r], SCAN_BLOCK, scratch->spare.data);
    below[r] = scratch->selects[r].threshold;
    above[r] = select_score(below[r]);
  }
  if (mode == LOOKUP_HAMMING) {
    kernels->hamming(queries, rows, block->signature, block->count, below, scratch->distances);
    for (uint32_t r = 0; r < rows; r++)
      put_distances(&scratch->selects[r], &scratch->distances[r], block);
  } else {
    kernels->weighted(queries, rows, block->signature, block->k_scale, block->count, above, scratch->scores);
    for (uint32_t r = 0; r < rows; r++)
      put_scores(&scratch->selects[r], &scratch->scores[r], block);
  }
}

/* Leaves the best candidates of each row in its select: one pass over the signatures for all of them. */
static void scan_rows(struct lookup_scratch *scratch, enum lookup_mode mode, const struct query *queries,
                      uint32_t rows) {
  for (uint32_t s = 0; s < scratch->range.slice_count; s++) {
    const struct slice *slice = &scratch->range.slices[s];
    for (uint32_t at = 0; at < slice->count; at += SCAN_BLOCK) {
      struct place place = {slice->columns, slice->begin + at};
      struct block block = {
          .signature = place_signature(place),
          .k_scale = place_k_scale(place),
          .count = slice->count - at < SCAN_BLOCK ? slice->count - at : SCAN_BLOCK,
          .ordinal = slice->ordinal + at,
      };
      scan_block(scratch, mode, queries, rows, &block);
    }
  }
  for (uint32_t r = 0; r < rows; r++)
    select_finish(&scratch->selects[r], scratch->spare.data);
}

/* --- rescoring and winners --------------------------------------------------------------------------------------- */

/* Finds where candidate i lies and asks for what rescoring it reads; candidates come in ascending order. */
static void fetch(const struct lookup_scratch *scratch, const struct select *select, uint32_t i, uint32_t *slice,
                  struct place places[RESCORE_AHEAD]) {
  if (i >= select->count)
    return;
  struct place place = range_next(&scratch->range, select_key_ordinal(select->keys[i]), slice);
  __builtin_prefetch(place_k_mag(place));
  __builtin_prefetch(place_signature(place));
  __builtin_prefetch(place_k_scale(place));
  places[i % RESCORE_AHEAD] = place;
}

/* Replaces the rank of every candidate by that of its final score. Candidates lie anywhere in memory, so what they need is
 * fetched some candidates ahead. */
static void rescore(const struct lookup_scratch *scratch, const struct query *query, struct select *select) {
  const struct lookup_kernels *kernels = scratch->kernels;
  struct place places[RESCORE_AHEAD];
  uint32_t slice = 0;
  for (uint32_t i = 0; i < RESCORE_AHEAD; i++)
    fetch(scratch, select, i, &slice, places);
  for (uint32_t i = 0; i < select->count; i++) {
    struct place place = places[i % RESCORE_AHEAD];
    fetch(scratch, select, i + RESCORE_AHEAD, &slice, places);
    int32_t sum = kernels->rescore(&scratch->code, query->q12, place_signature(place), place_k_mag(place));
    float score = (float)sum * f32_from_f16(load_u16(place_k_scale(place)));
    select->keys[i] = select_key(select_rank(score), select_key_ordinal(select->keys[i]));
  }
}

/* Takes the k best that pass their check; index gets ordinals for now. */
static void take_winners(struct lookup_scratch *scratch, struct select *select, uint32_t k, struct winners *winners,
                         uint32_t *index, float *scores) {
  uint64_t *keys = select->keys;
  uint32_t sorted = select->count < k ? select->count : k, taken = 0;
  select_partition(keys, select->count, sorted, scratch->spare.data);
  select_sort(keys, sorted);
  for (uint32_t i = 0; i < select->count && taken < k; i++) {
    if (i == sorted) { /* only when a winner was bad: the rest is worth sorting now */
      select_sort(keys + i, select->count - i);
      sorted = select->count;
    }
    if (!winners_take(winners, select_key_ordinal(keys[i])))
      continue;
    index[taken] = select_key_ordinal(keys[i]);
    scores[taken++] = select_score(select_key_rank(keys[i]));
  }
  for (; taken < k; taken++) {
    index[taken] = LOOKUP_NONE;
    scores[taken] = 0;
  }
}

/* --- a lookup ---------------------------------------------------------------------------------------------------- */

static int check_request(const struct lookup_request *request, struct error *error) {
  if (!record_head_dim_valid(request->head_dim) || request->rows > LIMIT_ROWS_MAX || request->k == 0 ||
      request->k > LIMIT_K_MAX || request->candidates > LIMIT_CANDIDATES_MAX ||
      (request->mode != LOOKUP_WEIGHTED && request->mode != LOOKUP_HAMMING))
    return error_set(error, ERR_BAD_PARAMS, "lookup of head_dim %u, %u rows, k %u, %u candidates, mode %d",
                     request->head_dim, request->rows, request->k, request->candidates, (int)request->mode);
  return 0;
}

static int prepare_queries(struct lookup_scratch *scratch, const struct lookup_request *request, struct error *error) {
  struct query *queries = scratch->queries.data;
  for (uint32_t r = 0; r < request->rows; r++)
    if (!scratch->kernels->prepare(&queries[r], request->head_dim, request->queries + r * request->row_stride))
      return error_set(error, ERR_BAD_PARAMS, "query row %u is not finite (layer %u, kv head %u)", r, request->layer,
                       request->head);
  return 0;
}

/* Everything that can fail: memory for `candidates` per row, the range, the queries. */
static int prepare(struct lookup_scratch *scratch, const struct lookup_request *request,
                   const struct record_columns *parts, uint32_t part_count, uint32_t *candidates,
                   struct error *error) {
  int result = check_request(request, error);
  if (!result)
    result = reserve(&scratch->slices, ((size_t)part_count + 1) * sizeof(struct slice), error);
  if (result)
    return result;
  if (!range_init(&scratch->range, scratch->slices.data, parts, part_count, request->from, request->before))
    return error_set(error, ERR_LIMIT, "more than %u tokens in range; ask for fewer", UINT32_MAX);
  uint32_t tokens = scratch->range.tokens;
  uint32_t wanted = request->candidates ? request->candidates : lookup_default_candidates(tokens);
  *candidates = wanted < tokens ? wanted : tokens + !tokens;
  uint32_t rows = request->rows < ROWS_AT_ONCE ? request->rows : ROWS_AT_ONCE;
  size_t keys_bytes = select_capacity(*candidates, SCAN_BLOCK) * sizeof(uint64_t);
  if ((result = reserve(&scratch->queries, request->rows * sizeof(struct query), error)) ||
      (result = reserve(&scratch->keys, rows * keys_bytes, error)) ||
      (result = reserve(&scratch->spare, keys_bytes, error)) ||
      (result = reserve(&scratch->winners, winners_bytes(tokens), error)))
    return result;
  if (scratch->code.head_dim != request->head_dim)
    rescore_code_init(&scratch->code, request->head_dim);
  return prepare_queries(scratch, request, error);
}

int lookup_run(struct lookup_scratch *scratch, const struct lookup_request *request,
               const struct record_columns *parts, uint32_t part_count, struct lookup_answer *answer,
               struct error *error) {
  uint32_t candidates = 0;
  int result = prepare(scratch, request, parts, part_count, &candidates, error);
  if (result)
    return result;
  struct winners winners;
  winners_init(&winners, scratch->winners.data, &scratch->range, request->layer, request->head);
  const struct query *queries = scratch->queries.data;
  uint64_t *keys = scratch->keys.data;
  uint32_t k = request->k, capacity = select_capacity(candidates, SCAN_BLOCK);
  answer->scanned = scratch->range.tokens;
  answer->rescored = 0;
  for (uint32_t first = 0; first < request->rows; first += ROWS_AT_ONCE) {
    uint32_t rows = request->rows - first < ROWS_AT_ONCE ? request->rows - first : ROWS_AT_ONCE;
    for (uint32_t r = 0; r < rows; r++)
      select_init(&scratch->selects[r], keys + (size_t)r * capacity, candidates, SCAN_BLOCK);
    scan_rows(scratch, request->mode, queries + first, rows);
    for (uint32_t r = 0; r < rows; r++) {
      size_t at = (size_t)(first + r) * k;
      rescore(scratch, &queries[first + r], &scratch->selects[r]);
      take_winners(scratch, &scratch->selects[r], k, &winners, answer->index + at, answer->scores + at);
      answer->rescored += scratch->selects[r].count;
    }
  }
  winners_collect(&winners, answer);
  answer->bad_records = winners.bad_count;
  for (size_t i = 0; i < (size_t)request->rows * k; i++)
    if (answer->index[i] != LOOKUP_NONE)
      answer->index[i] = winners_index(&winners, answer->index[i]);
  return 0;
}
