// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// Attention with and without slots against plain sums in double, through a fake daemon.
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "tests/client/engine.h"

enum { KEYS_MAX = 1024 };

/* A block whose outputs are checked. */
struct checked {
  struct engine *engine;
  uint64_t first;
  uint32_t n, layer;
  uint32_t ids[COLDKV_BLOCK_MAX];
  float *q;
  struct coldkv_slots slots;
  double worst; /* largest difference seen */
};

static uint64_t hot_start_of(uint64_t first) { return first < 256 ? 0 : (first - 256) / 64 * 64; }

/* Keys and values that the reference uses, by hand-rolled cache: [token][d] of one head. */
struct vectors {
  float key[KEYS_MAX][LIMIT_HEAD_DIM_MAX], value[KEYS_MAX][LIMIT_HEAD_DIM_MAX];
};
static struct vectors exact, decoded;

static void load_exact(const struct checked *c, uint32_t head, uint64_t end) {
  for (uint64_t t = 0; t < end; t++) {
    uint32_t id = engine_id(c->engine, t);
    engine_vector(c->engine, ENGINE_K, c->layer, head, t, id, exact.key[t]);
    engine_vector(c->engine, ENGINE_V, c->layer, head, t, id, exact.value[t]);
  }
}

static uint32_t slots_of_row(const struct checked *c, uint32_t row, uint32_t head, uint64_t *tokens) {
  const struct coldkv_slots *s = &c->slots;
  const uint32_t *index = s->index + ((size_t)row * s->kv_heads + head) * s->k;
  uint32_t count = 0, d = c->engine->description.head_dim;
  for (; count < s->k && index[count] != UINT32_MAX; count++) {
    assert_true(index[count] < s->count[head]);
    assert_true(!count || index[count] > index[count - 1]);
    tokens[count] = s->tokens[head][index[count]];
    assert_in_range(tokens[count], 4, s->hot_first - 1);
    uint64_t t = tokens[count];
    engine_decode(c->engine, c->layer, head, t, decoded.key[t], decoded.value[t]);
    assert_memory_equal(s->keys[head] + (size_t)index[count] * d, decoded.key[t], d * sizeof(float));
    assert_memory_equal(s->values[head] + (size_t)index[count] * d, decoded.value[t], d * sizeof(float));
  }
  for (uint32_t j = count; j < s->k; j++)
    assert_int_equal(index[j], UINT32_MAX);
  return count;
}

/* The key list of one row: sinks, slots, hot window; returns how many, and the query's position. */
static uint32_t list_keys(const struct checked *c, uint32_t row, uint32_t head, struct engine_key *keys,
                          double *position) {
  uint64_t t = c->first + row, start = hot_start_of(c->first), tokens[KEYS_MAX];
  bool packed = c->first + c->n > c->engine->description.window;
  uint32_t count = 0, slots = start ? slots_of_row(c, row, head, tokens) : 0;
  for (uint32_t i = 0; i < 4 && start; i++)
    keys[count++] = (struct engine_key){exact.key[i], exact.value[i], i};
  for (uint32_t s = 0; s < slots; s++)
    keys[count++] = (struct engine_key){decoded.key[tokens[s]], decoded.value[tokens[s]],
                                        packed ? 4 + s : (double)tokens[s]};
  double shift = packed && start ? 4.0 + slots - (double)start : 0;
  for (uint64_t h = start; h <= t; h++)
    keys[count++] = (struct engine_key){exact.key[h], exact.value[h], (double)h + shift};
  *position = (double)t + shift;
  return count;
}

static void check_outputs(struct checked *c, const float *out) {
  const struct coldkv_model_description *m = &c->engine->description;
  static struct engine_key keys[2 * KEYS_MAX];
  for (uint32_t head = 0; head < m->kv_heads; head++) {
    load_exact(c, head, c->first + c->n);
    for (uint32_t row = 0; row < c->n; row += row + 9 < c->n || row + 1 == c->n ? 9 : c->n - 1 - row) {
      double position, right[LIMIT_HEAD_DIM_MAX];
      uint32_t count = list_keys(c, row, head, keys, &position);
      for (uint32_t j = 0; j < m->group; j++) {
        size_t at = ((size_t)row * m->kv_heads * m->group + head * m->group + j) * m->head_dim;
        engine_attention(c->engine, c->q + at, position, keys, count, right);
        for (uint32_t i = 0; i < m->head_dim; i++)
          c->worst = fmax(c->worst, fabs((double)out[at + i] - right[i]));
      }
    }
  }
}

/* Feeds one block and checks every output of every layer. Returns how many slots the first row had in all. */
static uint32_t check_block(struct engine *engine, uint32_t n) {
  struct checked c = {.engine = engine, .first = engine->position, .n = n};
  const struct coldkv_model_description *m = &engine->description;
  float *out = malloc((size_t)n * m->kv_heads * m->group * m->head_dim * sizeof(float));
  uint32_t slots = 0;
  assert_true(out && c.first + n <= KEYS_MAX);
  for (uint32_t i = 0; i < n; i++)
    c.ids[i] = engine_id(engine, c.first + i);
  assert_int_equal(coldkv_begin(engine->conv, c.ids, n), 0);
  for (c.layer = 0; c.layer < m->layers; c.layer++) {
    c.q = engine_block(engine, ENGINE_Q, c.layer, c.first, c.ids, n);
    float *k = engine_block(engine, ENGINE_K, c.layer, c.first, c.ids, n);
    float *v = engine_block(engine, ENGINE_V, c.layer, c.first, c.ids, n);
    assert_int_equal(coldkv_attend(engine->conv, c.layer, c.q, k, v, out), 0);
    assert_int_equal(coldkv_retrieve(engine->conv, c.layer, c.q, &c.slots), 0);
    assert_int_equal(c.slots.hot_first, hot_start_of(c.first));
    assert_int_equal(c.slots.packed, c.first + n > m->window);
    check_outputs(&c, out);
    for (uint32_t j = 0; j < c.slots.k && c.slots.index[j] != UINT32_MAX; j++)
      slots++;
    free(c.q);
    free(k);
    free(v);
  }
  assert_int_equal(coldkv_end(engine->conv), 0);
  engine->position += n;
  free(out);
  assert_true(c.worst < 2e-5);
  return slots;
}

static void begin(struct engine *engine, uint32_t k) {
  engine_start(engine, NULL);
  struct coldkv_conv_options options = {.k = k};
  assert_int_equal(engine_open(engine, &options), 0);
}

static void hot_window_alone(void **state) {
  (void)state;
  struct engine engine;
  engine_describe(&engine);
  begin(&engine, 8);
  static const uint32_t blocks[] = {1, 2, 1, 64, 37, 64, 64, 64, 22, 1};
  for (size_t i = 0; i < sizeof blocks / sizeof blocks[0]; i++)
    assert_int_equal(check_block(&engine, blocks[i]), 0);
  assert_int_equal(engine.position, 320);
  assert_int_equal(engine_status(&engine).lookups, 0);
  engine_finish(&engine);
}

/* With room for all of them, every old token is a slot: full attention, but for the 3-bit codes. */
static void every_old_token_is_a_slot(void **state) {
  (void)state;
  struct engine engine;
  engine_describe(&engine);
  begin(&engine, 600);
  assert_int_equal(engine_feed_to(&engine, 384, 64), 0);
  assert_int_equal(check_block(&engine, 64), 2 * (128 - 4));
  assert_int_equal(check_block(&engine, 17), 2 * (192 - 4));
  assert_int_equal(check_block(&engine, 1), 2 * (192 - 4));
  struct coldkv_status status = engine_status(&engine);
  assert_true(status.lookups && !status.lookups_missed && !status.bad_records);
  assert_int_equal(status.hot_first, 192);
  engine_finish(&engine);
}

static void check_geometry(const struct coldkv_model_description *description, uint32_t k) {
  struct engine engine;
  engine_describe(&engine);
  engine.description = *description;
  begin(&engine, k);
  for (uint64_t t = 0; t < 576; t += 64)
    check_block(&engine, 64);
  assert_int_equal(check_block(&engine, 30), description->layers * k);
  assert_int_equal(check_block(&engine, 1), description->layers * k);
  engine_finish(&engine);
}

static void true_positions(void **state) {
  (void)state;
  struct engine engine;
  engine_describe(&engine);
  check_geometry(&engine.description, 9);
}

static void packed_positions(void **state) {
  (void)state;
  struct engine engine;
  engine_describe(&engine);
  engine.description.window = 480;
  check_geometry(&engine.description, 9);
  engine.description.window = 100; /* smaller than the hot window: packed positions pass it, and nothing else */
  engine.description.layers = 1;
  check_geometry(&engine.description, 64);
}

static void other_geometries(void **state) {
  (void)state;
  struct engine engine;
  engine_describe(&engine);
  engine.description.layers = 1;
  engine.description.window = 500;
  engine.description.rope = COLDKV_ROPE_INTERLEAVED;
  engine.description.rope_dims = 32;
  engine.description.head_dim = 72;
  engine.description.kv_heads = 3;
  engine.description.group = 1;
  check_geometry(&engine.description, 5);
  engine.description.rope = COLDKV_ROPE_NONE;
  engine.description.rope_dims = 0;
  engine.description.head_dim = 128;
  engine.description.kv_heads = 1;
  engine.description.group = 5;
  check_geometry(&engine.description, 7);
}

static void no_slots_no_lookup(void **state) {
  (void)state;
  struct engine engine;
  engine_describe(&engine);
  engine.description.window = 400;
  begin(&engine, 8);
  assert_int_equal(coldkv_set_slots(engine.conv, 0), 0);
  assert_int_equal(engine_feed_to(&engine, 400, 64), 0);
  assert_int_equal(check_block(&engine, 64), 0);
  fake_lock(engine.fake);
  assert_int_equal(fake_counters(engine.fake)->lookups, 0);
  fake_unlock(engine.fake);
  assert_int_equal(coldkv_set_slots(engine.conv, 3), 0);
  assert_int_equal(check_block(&engine, 64), 6);
  assert_int_equal(coldkv_set_slots(engine.conv, LIMIT_K_MAX + 1), COLDKV_EARGUMENT);
  engine_finish(&engine);
}

/* The slots are the old tokens that score best for the group's queries at the mean expected distance. */
static void slots_are_the_best(void **state) {
  (void)state;
  enum { TOKENS = 640, K = 6 };
  struct engine engine;
  engine_describe(&engine);
  begin(&engine, K);
  assert_int_equal(engine_feed_to(&engine, TOKENS, 64), 0);
  uint32_t id = engine_id(&engine, TOKENS), start = 384, end = 1024; /* 641 tokens, rounded up */
  assert_int_equal(coldkv_begin(engine.conv, &id, 1), 0);
  float *q = engine_block(&engine, ENGINE_Q, 1, TOKENS, &id, 1), sum[64];
  struct coldkv_slots slots;
  assert_int_equal(coldkv_retrieve(engine.conv, 1, q, &slots), 0);
  for (uint32_t head = 0; head < 2; head++) {
    double worst_in = INFINITY, best_out = -INFINITY;
    for (int c = 0; c < 64; c++)
      sum[c] = q[head * 128 + (uint32_t)c] + q[head * 128 + 64 + (uint32_t)c];
    assert_int_equal(slots.count[head], K);
    for (uint32_t t = 4; t < start; t++) {
      double score = 0;
      bool in = false;
      engine_decode(&engine, 1, head, t, decoded.key[0], decoded.value[0]);
      for (uint32_t distance = 256; distance < end; distance++)
        score += engine_score(&engine, sum, distance, decoded.key[0], 0) / (end - 256);
      for (uint32_t s = 0; s < K; s++)
        in = in || slots.tokens[head][s] == t;
      if (in)
        worst_in = fmin(worst_in, score);
      else
        best_out = fmax(best_out, score);
    }
    assert_true(worst_in > best_out - 1e-5);
  }
  free(q);
  assert_int_equal(coldkv_abort(engine.conv), 0);
  engine_finish(&engine);
}

/* Lookups that would not fit a message are cut into several: the result is the same. */
static void split_lookups_agree(void **state) {
  (void)state;
  float *out[2];
  uint64_t lookups[2];
  for (int split = 0; split < 2; split++) {
    struct engine engine;
    engine_describe(&engine);
    engine_start(&engine, NULL);
    fake_lock(engine.fake)->message_bytes_max = split ? 65536 : 0;
    fake_unlock(engine.fake);
    fake_stop(engine.fake, false); /* for another hello */
    fake_start(engine.fake);
    assert_int_equal(engine_open(&engine, NULL), 0);
    assert_int_equal(engine_feed_to(&engine, 640, 64), 0);
    uint32_t ids[64];
    for (uint32_t i = 0; i < 64; i++)
      ids[i] = engine_id(&engine, 640 + i);
    out[split] = calloc(2 * 64 * 4 * 64, sizeof(float));
    assert_non_null(out[split]);
    fake_lock(engine.fake);
    lookups[split] = fake_counters(engine.fake)->lookups;
    fake_unlock(engine.fake);
    assert_int_equal(engine_forward(&engine, ids, 64, out[split]), 0);
    fake_lock(engine.fake);
    lookups[split] = fake_counters(engine.fake)->lookups - lookups[split];
    fake_unlock(engine.fake);
    assert_int_equal(engine_status(&engine).lookups_missed, 0);
    engine_finish(&engine);
  }
  assert_int_equal(lookups[0], 2);
  assert_true(lookups[1] >= 32);
  assert_memory_equal(out[0], out[1], 2 * 64 * 4 * 64 * sizeof(float));
  free(out[0]);
  free(out[1]);
}

static void bad_records_are_left_out(void **state) {
  (void)state;
  struct engine engine;
  engine_describe(&engine);
  begin(&engine, 6);
  assert_int_equal(engine_feed_to(&engine, 640, 64), 0);
  fake_lock(engine.fake)->spoil_records = 2;
  fake_unlock(engine.fake);
  assert_true(check_block(&engine, 1) <= 2 * 6); /* its reference takes what coldkv_retrieve gives */
  /* in attend and retrieve, 2 layers, 2 heads, two each */
  assert_int_equal(engine_status(&engine).bad_records, 2 * 2 * 2 * 2);
  assert_int_equal(engine_status(&engine).lookups_missed, 0);
  engine_finish(&engine);
}

/* Keys and queries that come after RoPE, for any positions, give what those before RoPE give. */
static void rotated_input(void **state) {
  (void)state;
  float *out[2];
  for (int rotated = 0; rotated < 2; rotated++) {
    struct engine engine;
    engine_describe(&engine);
    engine.description.window = 500;
    begin(&engine, 600);
    out[rotated] = calloc(700 * 2 * 4 * 64, sizeof(float));
    assert_non_null(out[rotated]);
    for (uint64_t t = 0; t < 640; t += 64) {
      uint32_t ids[64];
      int64_t positions[64];
      for (uint32_t i = 0; i < 64; i++) {
        ids[i] = engine_id(&engine, t + i);
        positions[i] = (int64_t)(t + i) * 3 - 200;
      }
      assert_int_equal(rotated ? coldkv_begin_rotated(engine.conv, ids, 64, positions)
                               : coldkv_begin(engine.conv, ids, 64), 0);
      for (uint32_t layer = 0; layer < 2; layer++) {
        float *x[3];
        for (int what = 0; what < 3; what++) {
          x[what] = engine_block(&engine, (enum engine_vector)what, layer, t, ids, 64);
          uint32_t heads = what == ENGINE_Q ? 4 : 2;
          for (uint32_t i = 0; i < 64 * heads && rotated && what != ENGINE_V; i++)
            for (uint32_t c = 0; c < 32; c++) {
              int64_t position = positions[i / heads];
              double angle = (double)position * pow(10000, -2.0 * c / 64);
              float *at = x[what] + i * 64 + c, a = at[0], b = at[32];
              at[0] = (float)((double)a * cos(angle) - (double)b * sin(angle));
              at[32] = (float)((double)a * sin(angle) + (double)b * cos(angle));
            }
        }
        assert_int_equal(coldkv_attend(engine.conv, layer, x[0], x[1], x[2],
                                       out[rotated] + (t * 2 + layer * 64) * 4 * 64), 0);
        for (int what = 0; what < 3; what++)
          free(x[what]);
      }
      assert_int_equal(coldkv_end(engine.conv), 0);
    }
    engine_finish(&engine);
  }
  double worst = 0;
  for (size_t i = 0; i < 640 * 2 * 4 * 64; i++)
    worst = fmax(worst, fabs((double)out[0][i] - (double)out[1][i]));
  assert_true(worst < 0.05); /* a record here and there is quantized the other way */
  double mean = 0;
  for (size_t i = 0; i < 640 * 2 * 4 * 64; i++)
    mean += fabs((double)out[0][i] - (double)out[1][i]) / (640 * 2 * 4 * 64);
  assert_true(mean < 1e-4);
  free(out[0]);
  free(out[1]);
}

/* coldkv_push keeps the same keys and values that coldkv_attend keeps. */
static void push_is_attend_without_output(void **state) {
  (void)state;
  struct engine engine;
  engine_describe(&engine);
  begin(&engine, 600);
  for (uint64_t t = 0; t < 448; t += 64) {
    uint32_t ids[64];
    for (uint32_t i = 0; i < 64; i++)
      ids[i] = engine_id(&engine, t + i);
    assert_int_equal(coldkv_begin(engine.conv, ids, 64), 0);
    for (uint32_t layer = 0; layer < 2; layer++) {
      float *k = engine_block(&engine, ENGINE_K, layer, t, ids, 64);
      float *v = engine_block(&engine, ENGINE_V, layer, t, ids, 64);
      assert_int_equal(coldkv_push(engine.conv, layer, k, v), 0);
      assert_int_equal(coldkv_push(engine.conv, layer, k, v), COLDKV_ESTATE);
      free(k);
      free(v);
    }
    assert_int_equal(coldkv_end(engine.conv), 0);
    engine.position += 64;
  }
  check_block(&engine, 64);
  check_block(&engine, 5);
  engine_finish(&engine);
}

static void refuses_what_is_not_finite(void **state) {
  (void)state;
  struct engine engine;
  engine_describe(&engine);
  begin(&engine, 8);
  float q[2 * 2 * 64] = {1}, k[2 * 64] = {1}, v[2 * 64] = {1}, out[2 * 2 * 64];
  uint32_t id = 1;
  assert_int_equal(coldkv_begin(engine.conv, &id, 1), 0);
  q[200] = NAN;
  assert_int_equal(coldkv_attend(engine.conv, 0, q, k, v, out), COLDKV_ENOTFINITE);
  assert_non_null(strstr(coldkv_error(), "q of row 0, head 3"));
  q[200] = 1e30f;
  assert_int_equal(coldkv_attend(engine.conv, 0, q, k, v, out), COLDKV_ENOTFINITE);
  q[200] = 0;
  k[64] = INFINITY;
  assert_int_equal(coldkv_attend(engine.conv, 0, q, k, v, out), COLDKV_ENOTFINITE);
  assert_int_equal(coldkv_push(engine.conv, 0, k, v), COLDKV_ENOTFINITE);
  k[64] = 0;
  v[127] = 60000; /* fp16 could hold it, but not a difference of two */
  assert_int_equal(coldkv_attend(engine.conv, 0, q, k, v, out), COLDKV_ENOTFINITE);
  v[127] = 0;
  struct coldkv_slots slots;
  q[0] = -INFINITY;
  assert_int_equal(coldkv_retrieve(engine.conv, 0, q, &slots), COLDKV_ENOTFINITE);
  q[0] = 1;
  assert_int_equal(coldkv_attend(engine.conv, 0, q, k, v, out), 0); /* the refused ones left nothing behind */
  assert_int_equal(coldkv_attend(engine.conv, 0, q, k, v, out), COLDKV_ESTATE);
  assert_int_equal(coldkv_attend(engine.conv, 2, q, k, v, out), COLDKV_ERANGE);
  assert_int_equal(coldkv_end(engine.conv), COLDKV_ESTATE);
  assert_non_null(strstr(coldkv_error(), "layer 1"));
  assert_int_equal(coldkv_abort(engine.conv), 0);
  engine_finish(&engine);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(hot_window_alone),
      cmocka_unit_test(every_old_token_is_a_slot),
      cmocka_unit_test(true_positions),
      cmocka_unit_test(packed_positions),
      cmocka_unit_test(other_geometries),
      cmocka_unit_test(no_slots_no_lookup),
      cmocka_unit_test(slots_are_the_best),
      cmocka_unit_test(split_lookups_agree),
      cmocka_unit_test(bad_records_are_left_out),
      cmocka_unit_test(rotated_input),
      cmocka_unit_test(push_is_attend_without_output),
      cmocka_unit_test(refuses_what_is_not_finite),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
