// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
#include "retrieval/lookup.h"

#include <stdlib.h>

#include "retrieval/lane.h"
#include "retrieval/winners.h"

enum {
  RESCORE_AHEAD = 32, /* candidates whose bytes are under way */
  ALIGNMENT = 64,
};

struct memory {
  void *data;
  size_t size;
};

struct lookup_scratch {
  const struct lookup_kernels *kernels;
  struct memory slices, steps, queries, lanes, keys, merged, spare, winners;
  struct rescore_code code; /* of the head_dim asked for last */
  struct range range;
  const struct lookup_found *given; /* candidates of the first `given_tokens` ordinals, or NULL */
  uint32_t given_tokens;
  bool rescored;                    /* they are the best of them by final score, and of all ordinals */
  uint32_t scan_lanes;              /* of the scan of the others, 0 when there are none */
  uint32_t lane_count;              /* of everything else */
  struct select found[LANE_ROWS];
  struct lane_sharing sharing;
  struct lane_sample sample;
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

/* The same, all zero when new; its users leave it all zero. */
static int reserve_zero(struct memory *memory, size_t size, struct error *error) {
  if (memory->size >= size)
    return 0;
  int result = reserve(memory, size, error);
  if (!result)
    memset(memory->data, 0, memory->size);
  return result;
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
  free(scratch->steps.data);
  free(scratch->queries.data);
  free(scratch->lanes.data);
  free(scratch->keys.data);
  free(scratch->merged.data);
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

uint64_t lookup_tokens(const struct record_columns *parts, uint32_t part_count, uint64_t from, uint64_t before) {
  uint64_t tokens = 0;
  for (uint32_t i = 0; i < part_count; i++) {
    uint64_t end = parts[i].first + parts[i].count < before ? parts[i].first + parts[i].count : before;
    uint64_t begin = parts[i].first > from ? parts[i].first : from;
    tokens += begin < end ? end - begin : 0;
  }
  return tokens;
}

/* --- scan -------------------------------------------------------------------------------------------------------- */

/* Places that what was given has for a row's keys. */
static uint32_t given_places(const struct lookup_found *given) { return given->best ? given->best : given->candidates; }

static uint32_t given_keys(const struct lookup_found *given, uint32_t row) {
  return given->counts[row] < given_places(given) ? given->counts[row] : given_places(given);
}

/* Keys of one row that lanes and others have found together, at most. */
static size_t merged_keys(const struct lookup_scratch *scratch, uint32_t candidates) {
  return (size_t)scratch->scan_lanes * candidates + (scratch->given ? given_places(scratch->given) : 0);
}

/* One scan shared out to lanes. */
struct shares {
  const struct scan *scan;
  struct lane *lanes;
  uint64_t *keys; /* lane_keys of each lane */
  uint32_t lane_count;
};

static void scan_share(void *context, uint32_t index) {
  const struct shares *shares = context;
  lane_scan(&shares->lanes[index], index, shares->scan, shares->keys + index * lane_keys(shares->scan));
}

static void put_keys(struct select *select, const uint64_t *keys, uint32_t count) {
  memcpy(select->keys + select->count, keys, count * sizeof *keys);
  select->count += count;
}

/* The same for keys in no order: roughly by ordinal, since rescoring in the order of memory is much faster. */
static void put_unordered(struct select *select, const uint64_t *keys, uint32_t count, uint32_t ordinals) {
  enum { BUCKETS = 2048 };
  uint32_t ends[BUCKETS] = {0}, shift = 0, sum = 0;
  while ((ordinals - 1) >> shift >= BUCKETS)
    shift++;
  for (uint32_t i = 0; i < count; i++)
    ends[select_key_ordinal(keys[i]) >> shift]++;
  for (uint32_t b = 0; b < BUCKETS; b++) {
    uint32_t size = ends[b];
    ends[b] = sum;
    sum += size;
  }
  uint64_t *to = select->keys + select->count;
  for (uint32_t i = 0; i < count; i++)
    to[ends[select_key_ordinal(keys[i]) >> shift]++] = keys[i];
  select->count += count;
}

/* The best of all lanes and of what was given for a row, which is number `given_row` of the lookup. */
static void merge_row(struct lookup_scratch *scratch, const struct shares *shares, uint32_t row, uint32_t given_row) {
  const struct lookup_found *given = scratch->given;
  uint32_t candidates = shares->scan->candidates;
  struct select *found = &scratch->found[row];
  found->keys = (uint64_t *)scratch->merged.data + row * merged_keys(scratch, candidates);
  found->count = 0;
  if (given && scratch->rescored)
    put_keys(found, given->keys + (size_t)given_row * given_places(given), given_keys(given, given_row));
  else if (given)
    put_unordered(found, given->keys + (size_t)given_row * given_places(given), given_keys(given, given_row),
                  given->count);
  for (uint32_t i = 0; i < shares->lane_count; i++)
    put_keys(found, shares->lanes[i].selects[row].keys, shares->lanes[i].selects[row].count);
  if (found->count > candidates) {
    select_partition(found->keys, found->count, candidates, scratch->spare.data);
    found->count = candidates;
  }
}

/* Has the lanes scan, and leaves the candidates of every row in scratch->found. Returns false when some are missing
 * since more was expected. `first_row` is the number of the scan's first one. */
static bool run_lanes(struct lookup_scratch *scratch, const struct lookup_team *team, const struct scan *scan,
                      uint32_t first_row) {
  struct shares shares = {scan, scratch->lanes.data, scratch->keys.data, scratch->scan_lanes};
  bool enough = true;
  if (shares.lane_count == 1) {
    scan_share(&shares, 0);
  } else if (shares.lane_count > 1) {
    lane_share(scan, shares.lane_count);
    team->run(team, shares.lane_count, scan_share, &shares);
  }
  for (uint32_t r = 0; r < scan->rows; r++) {
    if (scratch->given || shares.lane_count > 1)
      merge_row(scratch, &shares, r, first_row + r);
    else
      scratch->found[r] = shares.lanes[0].selects[r];
    enough &= scratch->found[r].count == scan->candidates || !scan->expected[r];
  }
  return enough;
}

static void scan_rows(struct lookup_scratch *scratch, const struct lookup_team *team, struct scan *scan,
                      uint32_t first_row) {
  memset(scan->expected, 0, sizeof scan->expected);
  if (!scratch->given) /* else the best of what is left are not wanted, but the best of both */
    lane_expect(scratch->lanes.data, scan, &scratch->sample, scratch->keys.data);
  if (run_lanes(scratch, team, scan, first_row))
    return;
  memset(scan->expected, 0, sizeof scan->expected);
  run_lanes(scratch, team, scan, first_row);
}

/* --- rescoring and winners --------------------------------------------------------------------------------------- */

/* Asks for what rescoring reads of a record. */
static void prefetch_key(struct place place) {
  __builtin_prefetch(place_k_mag(place));
  __builtin_prefetch(place_signature(place));
  __builtin_prefetch(place_k_scale(place));
}

/* Finds where candidate i lies and asks for what rescoring it reads. */
static void fetch(const struct lookup_scratch *scratch, const struct select *select, uint32_t i, uint32_t end,
                  struct place places[RESCORE_AHEAD]) {
  if (i >= end)
    return;
  struct place place = range_at(&scratch->range, select_key_ordinal(select->keys[i]));
  prefetch_key(place);
  places[i % RESCORE_AHEAD] = place;
}

/* Has the key codes of all candidates brought into memory together. */
static void fetch_codes(const struct lookup_scratch *scratch, const struct lookup_fetch *cold,
                        const struct select *select) {
  for (uint32_t i = 0; i < select->count; i++) {
    struct place place = range_at(&scratch->range, select_key_ordinal(select->keys[i]));
    cold->want(cold->context, place.columns, place_k_mag(place), RECORD_K_MAG_BYTES);
  }
  cold->run(cold->context);
}

/* The same for the values of the first `count` keys; what is in memory comes to the cache meanwhile. Where somebody
 * else has rescored, the key codes have not been looked at here. */
static void fetch_values(const struct lookup_scratch *scratch, const struct lookup_fetch *cold, const uint64_t *keys,
                         uint32_t count) {
  for (uint32_t i = 0; i < count; i++) {
    struct place place = range_at(&scratch->range, select_key_ordinal(keys[i]));
    const struct record_columns *columns = place.columns;
    const uint8_t *v_code = columns->v_code + (size_t)place.entry * RECORD_V_CODE_BYTES;
    const uint8_t *v_scale = columns->v_scale + (size_t)place.entry * RECORD_V_SCALE_BYTES;
    const uint8_t *crc = columns->crc + (size_t)place.entry * RECORD_CRC_BYTES;
    if (cold) {
      if (scratch->rescored)
        cold->want(cold->context, columns, place_k_mag(place), RECORD_K_MAG_BYTES);
      cold->want(cold->context, columns, v_code, RECORD_V_CODE_BYTES);
      cold->want(cold->context, columns, v_scale, RECORD_V_SCALE_BYTES);
      cold->want(cold->context, columns, crc, RECORD_CRC_BYTES);
    }
    if (scratch->rescored)
      prefetch_key(place);
    __builtin_prefetch(v_code);
    __builtin_prefetch(v_code + RECORD_V_CODE_BYTES - 1);
    __builtin_prefetch(v_scale);
    __builtin_prefetch(crc);
  }
  if (cold)
    cold->run(cold->context);
}

/* Candidates of one row, whose rescoring is shared out to lanes. */
struct rescoring {
  const struct lookup_scratch *scratch;
  const struct query *query;
  struct select *select;
};

/* Replaces the rank of a lane's share of the candidates by that of their final score. They lie anywhere in memory, so
 * what they need is fetched some candidates ahead. */
static void rescore_share(void *context, uint32_t index) {
  const struct rescoring *rescoring = context;
  const struct lookup_scratch *scratch = rescoring->scratch;
  struct select *select = rescoring->select;
  uint32_t begin = (uint32_t)((uint64_t)select->count * index / scratch->lane_count);
  uint32_t end = (uint32_t)((uint64_t)select->count * (index + 1) / scratch->lane_count);
  struct place places[RESCORE_AHEAD];
  for (uint32_t i = begin; i < begin + RESCORE_AHEAD; i++)
    fetch(scratch, select, i, end, places);
  for (uint32_t i = begin; i < end; i++) {
    struct place place = places[i % RESCORE_AHEAD];
    fetch(scratch, select, i + RESCORE_AHEAD, end, places);
    int32_t sum = scratch->kernels->rescore(&scratch->code, rescoring->query->q12, place_signature(place),
                                            place_k_mag(place));
    float score = (float)sum * f32_from_f16(load_u16(place_k_scale(place)));
    select->keys[i] = select_key(select_rank(score), select_key_ordinal(select->keys[i]));
  }
}

static void rescore(const struct lookup_scratch *scratch, const struct lookup_request *request,
                    const struct query *query, struct select *select) {
  struct rescoring rescoring = {scratch, query, select};
  if (request->fetch)
    fetch_codes(scratch, request->fetch, select);
  if (scratch->lane_count == 1)
    rescore_share(&rescoring, 0);
  else
    request->team->run(request->team, scratch->lane_count, rescore_share, &rescoring);
}

/* Takes the k best that pass their check; index gets ordinals for now. Returns how many there are. */
static uint32_t take_winners(struct lookup_scratch *scratch, const struct lookup_fetch *cold, struct select *select,
                         uint32_t k, struct winners *winners, uint32_t *index, float *scores) {
  uint64_t *keys = select->keys;
  uint32_t sorted = select->count < k ? select->count : k, taken = 0, good;
  select_partition(keys, select->count, sorted, scratch->spare.data);
  fetch_values(scratch, cold, keys, sorted);
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
  for (good = taken; taken < k; taken++) {
    index[taken] = LOOKUP_NONE;
    scores[taken] = 0;
  }
  return good;
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

/* Who has rescored what was given has prepared them, and found them finite. */
static int prepare_queries(struct lookup_scratch *scratch, const struct lookup_request *request, struct error *error) {
  struct query *queries = scratch->queries.data;
  for (uint32_t r = 0; r < request->rows && !scratch->rescored; r++)
    if (!scratch->kernels->prepare(&queries[r], request->head_dim, request->queries + r * request->row_stride))
      return error_set(error, ERR_BAD_PARAMS, "query row %u is not finite (layer %u, kv head %u)", r, request->layer,
                       request->head);
  return 0;
}

uint32_t lookup_lanes(uint32_t threads, uint64_t tokens) {
  uint64_t lanes = tokens / LANE_TOKENS_MIN;
  lanes = threads < lanes ? threads : lanes;
  return lanes < 1 ? 1 : lanes > LANE_COUNT_MAX ? LANE_COUNT_MAX : (uint32_t)lanes;
}

static uint32_t count_lanes(const struct lookup_team *team, uint32_t tokens) {
  return team ? lookup_lanes(team->lanes, tokens) : 1;
}

/* A key that is out of place would lead anywhere in memory. */
static bool all_inside(const struct lookup_found *given, uint32_t row) {
  const uint64_t *keys = given->keys + (size_t)row * given_places(given);
  bool inside = given->counts[row] <= given->candidates;
  for (uint32_t i = 0; i < given_keys(given, row) && inside; i++)
    inside = select_key_ordinal(keys[i]) < given->count;
  return inside;
}

/* Whether what was given is the best of the first tokens in range, and of enough of them. */
static bool may_use(const struct lookup_found *given, const struct range *range, uint32_t rows, uint32_t candidates) {
  uint32_t wanted = candidates < given->count ? candidates : given->count;
  if (given->count > range->tokens || given->candidates < wanted)
    return false;
  if (given->best && (given->count != range->tokens || given->candidates != candidates))
    return false;
  for (uint32_t r = 0; r < rows; r++)
    if (!all_inside(given, r))
      return false;
  for (uint32_t s = 0; s < range->slice_count && range->slices[s].ordinal < given->count; s++) {
    const struct slice *slice = &range->slices[s];
    if (slice->columns->first + slice->begin != given->first + slice->ordinal)
      return false;
  }
  return true;
}

/* What is there already, and how many threads share what is not. */
static void share_out(struct lookup_scratch *scratch, const struct lookup_request *request, uint32_t candidates) {
  const struct lookup_found *given = request->found;
  uint32_t tokens = scratch->range.tokens;
  bool use = given && given->count && may_use(given, &scratch->range, request->rows, candidates);
  scratch->given = use ? given : NULL;
  scratch->given_tokens = use ? given->count : 0;
  scratch->rescored = use && given->best;
  scratch->lane_count = count_lanes(request->team, tokens);
  scratch->scan_lanes = use && given->count == tokens ? 0 : count_lanes(request->team, tokens - scratch->given_tokens);
}

static int reserve_scan(struct lookup_scratch *scratch, const struct scan *scan, struct error *error) {
  size_t lanes = scratch->scan_lanes;
  size_t merged = scratch->given || lanes > 1 ? merged_keys(scratch, scan->candidates) * sizeof(uint64_t) : 0;
  size_t spare = select_capacity(scan->candidates, SCAN_BLOCK) * sizeof(uint64_t);
  int result = reserve(&scratch->lanes, lanes * sizeof(struct lane), error);
  if (!result)
    result = reserve(&scratch->keys, lanes * lane_keys(scan) * sizeof(uint64_t), error);
  if (!result)
    result = reserve(&scratch->merged, scan->rows * merged, error);
  return result ? result : reserve(&scratch->spare, spare > merged ? spare : merged, error);
}

/* Everything that can fail: memory, the range, the queries. Fills `scan` for the largest group of rows. */
static int prepare(struct lookup_scratch *scratch, const struct lookup_request *request,
                   const struct record_columns *parts, uint32_t part_count, struct scan *scan, struct error *error) {
  int result = check_request(request, error);
  if (!result)
    result = reserve(&scratch->slices, ((size_t)part_count + 1) * sizeof(struct slice), error);
  if (result)
    return result;
  if (!range_init(&scratch->range, scratch->slices.data, parts, part_count, request->from, request->before))
    return error_set(error, ERR_LIMIT, "more than %u tokens in range; ask for fewer", UINT32_MAX);
  uint32_t tokens = scratch->range.tokens;
  uint32_t wanted = request->candidates ? request->candidates : lookup_default_candidates(tokens);
  *scan = (struct scan){
      .kernels = scratch->kernels,
      .mode = request->mode,
      .range = &scratch->range,
      .rows = request->rows < LANE_ROWS ? request->rows : LANE_ROWS,
      .candidates = wanted < tokens ? wanted : tokens + !tokens,
  };
  share_out(scratch, request, scan->candidates);
  scan->first = scratch->given_tokens;
  scan->sharing = scratch->scan_lanes > 1 ? &scratch->sharing : NULL;
  result = reserve(&scratch->queries, request->rows * sizeof(struct query), error);
  if (!result)
    result = reserve(&scratch->steps, range_steps(&scratch->range) * sizeof(uint32_t), error);
  if (!result)
    result = reserve_zero(&scratch->winners, winners_bytes(tokens), error);
  if (!result)
    result = reserve_scan(scratch, scan, error);
  if (result)
    return result;
  range_index(&scratch->range, scratch->steps.data);
  if (scratch->code.head_dim != request->head_dim)
    rescore_code_init(&scratch->code, request->head_dim);
  return prepare_queries(scratch, request, error);
}

/* Rescores what was found for the row number `row` of the lookup, unless that was done, and takes its winners. Returns
 * false when some of them were bad and what could take their places was not given. */
static bool finish_row(struct lookup_scratch *scratch, const struct lookup_request *request, const struct query *query,
                       struct select *found, uint32_t row, struct winners *winners, struct lookup_answer *answer) {
  size_t at = (size_t)row * request->k;
  uint32_t candidates = scratch->rescored ? scratch->given->counts[row] : found->count;
  if (!scratch->rescored)
    rescore(scratch, request, query, found);
  uint32_t good = take_winners(scratch, request->fetch, found, request->k, winners, answer->index + at,
                               answer->scores + at);
  answer->rescored += candidates;
  return good == request->k || candidates == found->count;
}

/* Scans, rescores and takes the winners of all rows. Returns false when it has to be done without what was given. */
static bool run_rows(struct lookup_scratch *scratch, const struct lookup_request *request, struct scan *scan,
                     struct winners *winners, struct lookup_answer *answer) {
  const struct query *queries = scratch->queries.data;
  bool done = true;
  for (uint32_t first = 0; first < request->rows && done; first += LANE_ROWS) {
    scan->queries = queries + first;
    scan->rows = request->rows - first < LANE_ROWS ? request->rows - first : LANE_ROWS;
    scan_rows(scratch, request->team, scan, first);
    for (uint32_t r = 0; r < scan->rows && done; r++)
      done = finish_row(scratch, request, &scan->queries[r], &scratch->found[r], first + r, winners, answer);
  }
  return done;
}

int lookup_run(struct lookup_scratch *scratch, const struct lookup_request *request,
               const struct record_columns *parts, uint32_t part_count, struct lookup_answer *answer,
               struct error *error) {
  struct scan scan = {.range = &scratch->range};
  int result = prepare(scratch, request, parts, part_count, &scan, error);
  if (result)
    return result;
  struct winners winners;
  winners_init(&winners, scratch->winners.data, &scratch->range, request->layer, request->head);
  answer->scanned = scratch->range.tokens;
  answer->rescored = 0;
  if (!run_rows(scratch, request, &scan, &winners, answer)) {
    struct lookup_request alone = *request;
    alone.found = NULL;
    winners_clear(&winners);
    return lookup_run(scratch, &alone, parts, part_count, answer, error);
  }
  winners_collect(&winners, answer);
  answer->bad_records = winners.bad_count;
  for (size_t i = 0; i < (size_t)request->rows * request->k; i++)
    if (answer->index[i] != LOOKUP_NONE)
      answer->index[i] = winners_index(&winners, answer->index[i]);
  winners_clear(&winners);
  return 0;
}
