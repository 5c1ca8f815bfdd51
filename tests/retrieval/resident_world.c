// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
#include "tests/retrieval/resident_world.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>

#include <cmocka.h>

#include "retrieval/kernels.h"
#include "tests/retrieval/fake_gpu.h"

static const uint64_t firsts[PARTS] = {0, 4096, 8192, 8400, 8401, 12300};
static const uint32_t counts[PARTS] = {4096, 4096, 208, 1, 3899, 100};

struct world world;

const struct resident_options plenty = {.limit_bytes = UINT64_C(1) << 30, .tokens_min = TOKENS_MIN,
                                        .grow_tokens = GROW, .step_bytes = 1 << 22, .idle_ms = IDLE_MS};

/* --- lookups ----------------------------------------------------------------------------------------------------- */

/* Copies the parts that can be read, cut to the tokens there are. */
static uint32_t parts_of(const struct wanted *wanted, uint32_t head, struct record_columns parts[PARTS]) {
  const struct conversation *c = wanted->conversation;
  uint32_t n = 0;
  for (uint32_t p = 0; p < PARTS && firsts[p] < c->count; p++) {
    if (p == c->bad)
      continue;
    parts[n] = c->parts[wanted->layer][head].columns[p];
    if (parts[n].first + parts[n].count > c->count)
      parts[n].count = (uint32_t)(c->count - parts[n].first);
    n++;
  }
  return n;
}

static bool columns_of(void *context, uint32_t head, uint64_t token, struct record_columns *columns) {
  struct record_columns parts[PARTS];
  struct resident_figures now;
  uint32_t n = parts_of(context, head, parts);
  resident_figures(world.resident, &now); /* does not wait for this lookup */
  for (uint32_t i = 0; i < n; i++)
    if (token >= parts[i].first && token - parts[i].first < parts[i].count) {
      *columns = parts[i];
      return true;
    }
  fail_msg("token %llu was asked for", (unsigned long long)token);
  return false;
}

static void expect(void *context, uint64_t first, uint64_t end) {
  const struct wanted *wanted = context;
  assert_true(first < end && end <= wanted->conversation->count);
  wanted->conversation->expected += end - first;
}

static bool sound(void *context, uint64_t first, uint64_t end) {
  const struct wanted *wanted = context;
  assert_true(first < end);
  return !wanted->conversation->turns_bad;
}

static uint32_t k_of(const struct wanted *wanted) { return wanted->candidates < 40 ? wanted->candidates : 40; }

/* Asks the cache, with new queries. Returns what resident_start does. */
static int start(struct wanted *wanted, struct query *queries, struct resident_found *found) {
  struct conversation *c = wanted->conversation;
  struct record_columns parts[PARTS];
  uint64_t tokens = lookup_tokens(parts, parts_of(wanted, 0, parts), wanted->from, wanted->before);
  uint32_t candidates = wanted->candidates < tokens ? wanted->candidates : (uint32_t)tokens;
  struct error error = {0};
  for (uint32_t r = 0; r < wanted->rows; r++)
    for (uint32_t h = 0; h < HEADS; h++) {
      for (uint32_t i = 0; i < QUERY_FLOATS; i++) {
        float q = (float)((int)random_below(&world.random, 2001) - 1000);
        memcpy(world.queries[r][h] + (size_t)4 * i, &q, sizeof q);
      }
      assert_true(query_prepare_c(&queries[h * wanted->rows + r], 128, world.queries[r][h]));
    }
  const struct resident_lookup lookup = {
      .conversation = c->id,
      .mode = wanted->mode,
      .layers = LAYERS,
      .kv_heads = HEADS,
      .layer = wanted->layer,
      .rows = wanted->rows,
      .queries = queries,
      .candidates = candidates,
      .best = k_of(wanted) + SPARE < candidates ? k_of(wanted) + SPARE : candidates,
      .head_dim = 128,
      .tokens = tokens,
      .from = wanted->from,
      .before = wanted->before,
      .readable = c->bad < PARTS && firsts[c->bad] < c->count ? firsts[c->bad] : c->count,
      .hole = c->bad < PARTS && firsts[c->bad] < c->count,
      .now_ms = world.now_ms,
      .source = {expect, columns_of, sound, wanted},
  };
  int result = resident_start(world.resident, &lookup, found, &error);
  return result <= 0 ? result : resident_finish(world.resident, found, &error) < 0 ? -1 : 1;
}

/* Tokens whose key codes, and values, a lookup has asked for before it read them. */
struct asked {
  bool codes[TOKENS], values[TOKENS];
};

static void note(void *context, const struct record_columns *part, const void *address, size_t size) {
  struct asked *asked = context;
  uintptr_t code = (uintptr_t)address - (uintptr_t)part->k_mag, value = (uintptr_t)address - (uintptr_t)part->v_code;
  if (size == RECORD_K_MAG_BYTES && code / RECORD_K_MAG_BYTES < part->count)
    asked->codes[part->first + code / RECORD_K_MAG_BYTES] = true;
  if (size == RECORD_V_CODE_BYTES && value / RECORD_V_CODE_BYTES < part->count)
    asked->values[part->first + value / RECORD_V_CODE_BYTES] = true;
}

static void fetch(void *context) { (void)context; }

static void compare_head(const struct wanted *wanted, uint32_t head, const struct lookup_found *found) {
  static struct lookup_scratch *scratch;
  struct record_columns parts[PARTS];
  struct lookup_answer alone, helped;
  struct error error = {0};
  struct asked asked = {0};
  const struct lookup_fetch cold = {note, fetch, &asked};
  uint32_t n = parts_of(wanted, head, parts), k = k_of(wanted);
  struct lookup_request request = {.mode = wanted->mode, .head_dim = 128, .layer = wanted->layer, .head = head,
                                   .rows = wanted->rows, .k = k, .candidates = wanted->candidates,
                                   .from = wanted->from, .before = wanted->before, .queries = world.queries[0][head],
                                   .row_stride = sizeof world.queries[0]};
  if (!scratch)
    assert_int_equal(lookup_scratch_create(&scratch, &error), 0);
  answer_make(&alone, wanted->rows, k);
  answer_make(&helped, wanted->rows, k);
  assert_int_equal(lookup_run(scratch, &request, parts, n, &alone, &error), 0);
  request.found = found;
  request.fetch = &cold;
  assert_int_equal(lookup_run(scratch, &request, parts, n, &helped, &error), 0);
  for (uint32_t i = 0; i < helped.count && !helped.bad_records; i++) /* what takes a bad one's place comes by itself */
    assert_true(asked.codes[helped.tokens[i]] && asked.values[helped.tokens[i]]);
  assert_int_equal(helped.count, alone.count);
  assert_int_equal(helped.scanned, alone.scanned);
  assert_int_equal(helped.rescored, alone.rescored);
  assert_memory_equal(helped.tokens, alone.tokens, alone.count * sizeof *alone.tokens);
  assert_memory_equal(helped.records, alone.records, (size_t)alone.count * RECORD_BYTES);
  assert_memory_equal(helped.index, alone.index, (size_t)wanted->rows * k * sizeof *alone.index);
  assert_memory_equal(helped.scores, alone.scores, (size_t)wanted->rows * k * sizeof *alone.scores);
  answer_free(&alone);
  answer_free(&helped);
}

/* Lookups of other tokens, or another C, get nothing from what was rescored. */
static void compare_others(const struct wanted *wanted, uint32_t head, const struct lookup_found *found) {
  struct wanted more = *wanted, fewer = *wanted;
  more.before = UINT64_MAX;
  compare_head(&more, head, found);
  fewer.candidates -= wanted->candidates > 1;
  compare_head(&fewer, head, found);
}

int64_t look_up(struct wanted wanted) {
  struct query queries[HEADS * ROWS_MAX];
  struct resident_found found;
  int result = start(&wanted, queries, &found);
  for (uint32_t h = 0; h < HEADS; h++) {
    size_t at = (size_t)h * wanted.rows;
    struct lookup_found head = {.first = found.first, .count = found.count, .candidates = found.candidates,
                                .best = found.best};
    if (result > 0) {
      head.keys = found.keys + at * (found.best ? found.best : found.candidates);
      head.counts = found.counts + at;
    }
    compare_head(&wanted, h, result > 0 ? &head : NULL);
    if (result > 0 && found.best)
      compare_others(&wanted, h, &head);
  }
  if (result > 0)
    resident_release(world.resident, &found);
  assert_true(fake_gpu_bytes == 0 || fake_gpu_bytes % CHUNK_BYTES == 0);
  return result > 0 ? (int64_t)found.count : result;
}

int64_t look_up_all(uint32_t conversation, uint32_t layer) {
  return look_up((struct wanted){.conversation = &world.conversations[conversation], .layer = layer, .rows = 1,
                                 .candidates = 64, .mode = LOOKUP_WEIGHTED, .before = UINT64_MAX});
}

struct resident_figures figures(void) {
  struct resident_figures now;
  resident_figures(world.resident, &now);
  assert_int_equal(now.bytes, fake_gpu_bytes);
  assert_int_equal(now.code_bytes, fake_gpu_code_bytes);
  return now;
}

/* --- the world --------------------------------------------------------------------------------------------------- */

void restart(const struct resident_options *options) {
  struct error error = {0};
  resident_destroy(world.resident);
  assert_int_equal(fake_gpu_bytes + fake_gpu_code_bytes, 0);
  fake_gpu_faults = (struct fake_gpu_faults){0};
  fake_gpu_appended = fake_gpu_codes_appended = fake_gpu_scanned = fake_gpu_rescored = 0;
  assert_int_equal(resident_create(&world.resident, world.gpu, options, &error), 0);
  for (uint32_t i = 0; i < CONVERSATIONS; i++) {
    world.conversations[i].count = TOKENS;
    world.conversations[i].bad = NONE;
    world.conversations[i].turns_bad = false;
    world.conversations[i].expected = 0;
  }
}

int make_world(void **state) {
  (void)state;
  struct error error = {0};
  world.random.state = 5;
  world.now_ms = 1000;
  for (uint32_t i = 0; i < CONVERSATIONS; i++) {
    random_fill(&world.random, world.conversations[i].id, LIMIT_ID_BYTES);
    world.conversations[i].id[0] = (uint8_t)(i / 2); /* two of them in one bucket */
    for (uint32_t l = 0; l < LAYERS; l++)
      for (uint32_t h = 0; h < HEADS; h++)
        parts_make(&world.conversations[i].parts[l][h], firsts, counts, PARTS, l, h, &world.random);
  }
  return gpu_create(&world.gpu, 0, &error);
}

int end_world(void **state) {
  (void)state;
  resident_destroy(world.resident);
  gpu_destroy(world.gpu);
  for (uint32_t i = 0; i < CONVERSATIONS * LAYERS * HEADS; i++)
    parts_free(&world.conversations[i / (LAYERS * HEADS)].parts[i / HEADS % LAYERS][i % HEADS]);
  return fake_gpu_bytes != 0;
}

void step_of_life(void) {
  struct conversation *c = &world.conversations[random_below(&world.random, CONVERSATIONS)];
  static const uint32_t limits[] = {1, 30, 500, 1024, 4096};
  world.now_ms += random_below(&world.random, IDLE_MS);
  if (random_below(&world.random, 3) == 0)
    c->count = 1 + random_below(&world.random, TOKENS);
  if (random_below(&world.random, 20) == 0)
    c->bad = (uint32_t)random_below(&world.random, PARTS + 1);
  if (random_below(&world.random, 40) == 0)
    resident_drop(world.resident, c->id);
  fake_gpu_faults.fail_scans = random_below(&world.random, 50) == 0;
  fake_gpu_faults.fail_starts = random_below(&world.random, 50) == 0;
  fake_gpu_faults.lie = random_below(&world.random, 20) == 0;
  c->turns_bad = random_below(&world.random, 50) == 0;
  bool whole = random_below(&world.random, 2);
  look_up((struct wanted){.conversation = c, .layer = (uint32_t)random_below(&world.random, LAYERS),
                          .rows = 1 + (uint32_t)random_below(&world.random, ROWS_MAX),
                          .candidates = limits[random_below(&world.random, sizeof limits / sizeof *limits)],
                          .mode = random_below(&world.random, 2) ? LOOKUP_HAMMING : LOOKUP_WEIGHTED,
                          .from = whole ? 0 : random_below(&world.random, TOKENS),
                          .before = whole ? UINT64_MAX : random_below(&world.random, TOKENS)});
}

