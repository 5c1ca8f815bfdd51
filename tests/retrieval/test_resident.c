// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// What comes of a lookup must not depend on what of it a GPU has done; a stand-in for one says what was asked of it.
#include "retrieval/cuda/resident.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>

#include <cmocka.h>

#include "retrieval/kernels.h"
#include "tests/retrieval/fake_gpu.h"
#include "tests/retrieval/reference.h"

enum {
  LAYERS = 2,
  HEADS = 2,
  PARTS = 6,
  TOKENS = 12400,
  ROWS_MAX = 3,
  CONVERSATIONS = 4,
  NONE = PARTS,
  CHUNK_BYTES = 16384 * 18, /* the least that columns take */
  LAYER_BYTES = HEADS * CHUNK_BYTES,
  IDLE_MS = 100,
  GROW = 50,
  TOKENS_MIN = 200,
};

static const uint64_t firsts[PARTS] = {0, 4096, 8192, 8400, 8401, 12300};
static const uint32_t counts[PARTS] = {4096, 4096, 208, 1, 3899, 100};

struct conversation {
  uint8_t id[LIMIT_ID_BYTES];
  struct archive_parts parts[LAYERS][HEADS];
  uint64_t count; /* of tokens, so far */
  uint32_t bad;   /* part that cannot be read, or NONE */
  bool turns_bad; /* while it is being read */
};

static struct world {
  struct random random;
  struct gpu *gpu;
  struct resident *resident;
  struct conversation conversations[CONVERSATIONS];
  uint64_t now_ms;
  uint8_t queries[ROWS_MAX][HEADS][QUERY_FLOATS * 4];
} world;

static const struct resident_options plenty = {.limit_bytes = UINT64_C(1) << 30, .tokens_min = TOKENS_MIN,
                                               .grow_tokens = GROW, .step_bytes = 1 << 22, .idle_ms = IDLE_MS};

/* --- lookups ----------------------------------------------------------------------------------------------------- */

struct wanted {
  struct conversation *conversation;
  uint32_t layer, rows, candidates;
  enum lookup_mode mode;
  uint64_t from, before;
};

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
  uint32_t n = parts_of(context, head, parts);
  for (uint32_t i = 0; i < n; i++)
    if (token >= parts[i].first && token - parts[i].first < parts[i].count) {
      *columns = parts[i];
      return true;
    }
  fail_msg("token %llu was asked for", (unsigned long long)token);
  return false;
}

static bool sound(void *context, uint64_t first, uint64_t end) {
  const struct wanted *wanted = context;
  assert_true(first < end);
  return !wanted->conversation->turns_bad;
}

/* Asks the cache, with new queries. Returns what resident_start does. */
static int start(struct wanted *wanted, struct query *queries, struct resident_found *found) {
  struct conversation *c = wanted->conversation;
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
      .candidates = wanted->candidates,
      .from = wanted->from,
      .before = wanted->before,
      .readable = c->bad < PARTS && firsts[c->bad] < c->count ? firsts[c->bad] : c->count,
      .hole = c->bad < PARTS && firsts[c->bad] < c->count,
      .now_ms = world.now_ms,
      .source = {columns_of, sound, wanted},
  };
  int result = resident_start(world.resident, &lookup, found, &error);
  return result <= 0 ? result : resident_finish(world.resident, found, &error) < 0 ? -1 : 1;
}

static void compare_head(const struct wanted *wanted, uint32_t head, const struct lookup_found *found) {
  static struct lookup_scratch *scratch;
  struct record_columns parts[PARTS];
  struct lookup_answer alone, helped;
  struct error error = {0};
  uint32_t n = parts_of(wanted, head, parts), k = wanted->candidates < 40 ? wanted->candidates : 40;
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
  assert_int_equal(lookup_run(scratch, &request, parts, n, &helped, &error), 0);
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

/* One lookup, compared with one that the processor does alone. Returns the tokens that the GPU did, or an error. */
static int64_t look_up(struct wanted wanted) {
  struct query queries[HEADS * ROWS_MAX];
  struct resident_found found;
  int result = start(&wanted, queries, &found);
  for (uint32_t h = 0; h < HEADS; h++) {
    size_t at = (size_t)h * wanted.rows;
    struct lookup_found head = {.first = found.first, .count = found.count, .candidates = found.candidates};
    if (result > 0) {
      head.keys = found.keys + at * found.candidates;
      head.counts = found.counts + at;
    }
    compare_head(&wanted, h, result > 0 ? &head : NULL);
  }
  if (result > 0)
    resident_release(world.resident, &found);
  assert_true(fake_gpu_bytes == 0 || fake_gpu_bytes % CHUNK_BYTES == 0);
  return result > 0 ? (int64_t)found.count : result;
}

static int64_t look_up_all(uint32_t conversation, uint32_t layer) {
  return look_up((struct wanted){.conversation = &world.conversations[conversation], .layer = layer, .rows = 1,
                                 .candidates = 64, .mode = LOOKUP_WEIGHTED, .before = UINT64_MAX});
}

static struct resident_figures figures(void) {
  struct resident_figures now;
  resident_figures(world.resident, &now);
  assert_int_equal(now.bytes, fake_gpu_bytes);
  return now;
}

/* --- the world --------------------------------------------------------------------------------------------------- */

static void restart(const struct resident_options *options) {
  struct error error = {0};
  resident_destroy(world.resident);
  assert_int_equal(fake_gpu_bytes, 0);
  fake_gpu_faults = (struct fake_gpu_faults){0};
  fake_gpu_appended = fake_gpu_scanned = 0;
  assert_int_equal(resident_create(&world.resident, world.gpu, options, &error), 0);
  for (uint32_t i = 0; i < CONVERSATIONS; i++) {
    world.conversations[i].count = TOKENS;
    world.conversations[i].bad = NONE;
    world.conversations[i].turns_bad = false;
  }
}

static int make_world(void **state) {
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

static int end_world(void **state) {
  (void)state;
  resident_destroy(world.resident);
  gpu_destroy(world.gpu);
  for (uint32_t i = 0; i < CONVERSATIONS * LAYERS * HEADS; i++)
    parts_free(&world.conversations[i / (LAYERS * HEADS)].parts[i / HEADS % LAYERS][i % HEADS]);
  return fake_gpu_bytes != 0;
}

/* --- tests ------------------------------------------------------------------------------------------------------- */

static void test_every_mode_range_and_limit(void **state) {
  (void)state;
  static const uint64_t cuts[][2] = {{0, UINT64_MAX}, {0, 200}, {0, 199}, {4, 4096}, {5000, 8401}, {8192, 8401},
                                     {4095, 12399}, {12300, UINT64_MAX}, {12000, TOKENS}, {300, 100}};
  static const uint32_t limits[] = {1, 64, 1024, 16384};
  restart(&plenty);
  for (size_t c = 0; c < sizeof cuts / sizeof *cuts; c++)
    for (size_t l = 0; l < sizeof limits / sizeof *limits; l++)
      for (uint32_t m = 0; m < 2 * ROWS_MAX; m++) {
        uint64_t end = cuts[c][1] < TOKENS ? cuts[c][1] : TOKENS;
        int64_t done = look_up((struct wanted){.conversation = &world.conversations[0], .rows = 1 + m / 2,
                                               .candidates = limits[l], .from = cuts[c][0], .before = cuts[c][1],
                                               .mode = m % 2 ? LOOKUP_HAMMING : LOOKUP_WEIGHTED});
        bool enough = cuts[c][0] + TOKENS_MIN <= end;
        assert_int_equal(done, enough ? (int64_t)(end - cuts[c][0]) : 0);
      }
  assert_int_equal(fake_gpu_appended, HEADS * TOKENS); /* once */
  assert_int_equal(figures().bytes, LAYER_BYTES);
}

static void test_grows_with_the_conversation(void **state) {
  (void)state;
  restart(&plenty);
  world.conversations[0].count = 1000;
  assert_int_equal(look_up_all(0, 1), 1000);
  world.conversations[0].count += GROW - 1; /* not worth it yet */
  assert_int_equal(look_up_all(0, 1), 1000);
  world.conversations[0].count += 1;
  assert_int_equal(look_up_all(0, 1), 1000 + GROW);
  world.conversations[0].count = 900; /* an older view */
  assert_int_equal(look_up_all(0, 1), 900);
  assert_int_equal(fake_gpu_appended, HEADS * (1000 + GROW));
}

static void test_comes_step_by_step(void **state) {
  (void)state;
  struct resident_options options = plenty;
  options.step_bytes = 18 * HEADS * 4999;
  restart(&options);
  assert_int_equal(look_up_all(0, 0), 5000);
  assert_int_equal(look_up_all(0, 0), 10000);
  assert_int_equal(look_up_all(0, 0), TOKENS);
}

static void test_least_recently_used_goes(void **state) {
  (void)state;
  struct resident_options options = plenty;
  options.limit_bytes = 2 * LAYER_BYTES + CHUNK_BYTES;
  restart(&options);
  assert_int_equal(look_up_all(0, 0), TOKENS);
  world.now_ms += IDLE_MS;
  assert_int_equal(look_up_all(1, 0), TOKENS);
  assert_int_equal(look_up_all(0, 0), TOKENS); /* now 1 is the oldest */
  assert_int_equal(look_up_all(2, 0), 0);      /* which was in use a moment ago */
  assert_int_equal(figures().conversations, 2);
  world.now_ms += IDLE_MS;
  assert_int_equal(look_up_all(0, 0), TOKENS);
  assert_int_equal(look_up_all(2, 0), TOKENS);
  assert_int_equal(figures().dropped, 1);
  uint64_t appended = fake_gpu_appended;
  assert_int_equal(look_up_all(0, 0), TOKENS);
  assert_int_equal(fake_gpu_appended, appended);
  assert_int_equal(look_up_all(0, 1), 0); /* no room for its other layer, which must not cost the first */
  assert_int_equal(look_up_all(0, 0), TOKENS);
  assert_int_equal(figures().bytes, 2 * LAYER_BYTES);
}

static void test_nothing_fits(void **state) {
  (void)state;
  struct resident_options options = plenty;
  options.limit_bytes = LAYER_BYTES - 1;
  options.idle_ms = 0;
  restart(&options);
  assert_int_equal(look_up_all(0, 0), 0);
  assert_int_equal(figures().conversations, 0);
  assert_int_equal(fake_gpu_appended, 0);
}

static void test_damage_drops_what_is_there(void **state) {
  (void)state;
  restart(&plenty);
  assert_int_equal(look_up_all(0, 0), TOKENS);
  world.conversations[0].bad = 1;
  assert_int_equal(look_up_all(0, 0), 4096);
  assert_int_equal(figures().dropped, 1);
  assert_int_equal(look_up_all(0, 0), 4096);
  assert_int_equal(figures().dropped, 1);
  world.conversations[0].bad = 0;
  assert_int_equal(look_up_all(0, 0), 0);
  assert_int_equal(figures().conversations, 0);
  world.conversations[1].turns_bad = true;
  assert_int_equal(look_up_all(1, 0), 0);
  assert_int_equal(figures().conversations, 0);
  world.conversations[1].turns_bad = false;
  assert_int_equal(look_up_all(1, 0), TOKENS);
}

static void test_deleting_drops(void **state) {
  (void)state;
  restart(&plenty);
  look_up_all(0, 0);
  look_up_all(1, 0); /* in the same bucket */
  resident_drop(world.resident, world.conversations[0].id);
  resident_drop(world.resident, world.conversations[2].id); /* is not there */
  assert_int_equal(figures().conversations, 1);
  assert_int_equal(figures().bytes, LAYER_BYTES);
  uint64_t appended = fake_gpu_appended;
  assert_int_equal(look_up_all(1, 0), TOKENS);
  assert_int_equal(fake_gpu_appended, appended);
}

static void test_too_little_memory_becomes_the_limit(void **state) {
  (void)state;
  restart(&plenty);
  fake_gpu_faults.bytes_max = LAYER_BYTES + CHUNK_BYTES;
  assert_int_equal(look_up_all(0, 0), TOKENS);
  assert_int_equal(look_up_all(1, 0), -ERR_MEMORY);
  assert_int_equal(figures().errors, 1);
  assert_int_equal(look_up_all(0, 0), TOKENS);
  world.now_ms += IDLE_MS;
  assert_int_equal(look_up_all(1, 0), TOKENS); /* 0 had to go */
  assert_int_equal(figures().errors, 1);
  assert_false(figures().off);
}

static void test_errors_are_counted_and_then_enough(void **state) {
  (void)state;
  restart(&plenty);
  assert_int_equal(look_up_all(0, 0), TOKENS);
  fake_gpu_faults.fail_scans = 1;
  assert_int_equal(look_up_all(0, 0), -1);
  assert_int_equal(figures().conversations, 0); /* who knows what is left of them */
  fake_gpu_faults.fail_starts = 1;
  assert_int_equal(look_up_all(0, 0), -ERR_IO);
  assert_int_equal(look_up_all(0, 0), TOKENS);
  assert_int_equal(figures().errors, 2);
  fake_gpu_faults.fail_starts = RESIDENT_FAILURES_MAX;
  for (int i = 0; i < RESIDENT_FAILURES_MAX; i++)
    assert_int_equal(look_up_all(0, 0), -ERR_IO);
  assert_true(figures().off);
  assert_int_equal(look_up_all(0, 0), 0);
  assert_int_equal(figures().bytes, 0);
}

static void test_candidates_out_of_range_are_not_used(void **state) {
  (void)state;
  restart(&plenty);
  fake_gpu_faults.lie = 1;
  assert_int_equal(look_up_all(0, 0), TOKENS); /* the comparison is what counts */
  assert_int_equal(fake_gpu_faults.lie, 0);
}

static void test_too_large_is_the_processors(void **state) {
  (void)state;
  restart(&plenty);
  static struct query queries[1];
  struct resident_found found;
  struct error error;
  struct resident_lookup lookup = {.conversation = world.conversations[0].id, .layers = LAYERS, .kv_heads = HEADS,
                                   .rows = RESIDENT_JOBS_MAX / HEADS + 1, .queries = queries, .candidates = 1,
                                   .before = UINT64_MAX, .readable = TOKENS, .now_ms = world.now_ms};
  assert_int_equal(resident_start(world.resident, &lookup, &found, &error), 0);
  lookup.rows = RESIDENT_JOBS_MAX / HEADS;
  lookup.candidates = RESIDENT_KEYS_MAX / RESIDENT_JOBS_MAX + 1;
  assert_int_equal(resident_start(world.resident, &lookup, &found, &error), 0);
}

static void step_of_life(void) {
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

static void test_soak(void **state) {
  (void)state;
  struct resident_options options = plenty;
  options.limit_bytes = 5 * LAYER_BYTES / 2;
  options.step_bytes = 18 * HEADS * 3000;
  for (int life = 0; life < 6; life++) {
    restart(&options);
    for (int i = 0; i < 80; i++) {
      step_of_life();
      assert_true(figures().bytes <= options.limit_bytes);
    }
  }
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_every_mode_range_and_limit),
      cmocka_unit_test(test_grows_with_the_conversation),
      cmocka_unit_test(test_comes_step_by_step),
      cmocka_unit_test(test_least_recently_used_goes),
      cmocka_unit_test(test_nothing_fits),
      cmocka_unit_test(test_damage_drops_what_is_there),
      cmocka_unit_test(test_deleting_drops),
      cmocka_unit_test(test_too_little_memory_becomes_the_limit),
      cmocka_unit_test(test_errors_are_counted_and_then_enough),
      cmocka_unit_test(test_candidates_out_of_range_are_not_used),
      cmocka_unit_test(test_too_large_is_the_processors),
      cmocka_unit_test(test_soak),
  };
  return cmocka_run_group_tests(tests, make_world, end_world);
}
