// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// The means that are frozen when the first token leaves the hot window.
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "tests/client/engine.h"

static void check_means(struct engine *engine, uint64_t end) {
  fake_lock(engine->fake);
  const struct fake_model *model = fake_model(engine->fake);
  const uint32_t d = engine->description.head_dim;
  assert_non_null(model);
  assert_int_equal(model->description.tokens, end - 4);
  assert_int_equal(model->description.seed, load_u64(engine->description.fingerprint));
  assert_memory_equal(model->fingerprint, engine->description.fingerprint, sizeof model->fingerprint);
  for (uint32_t block = 0; block < 4; block++)
    for (int what = ENGINE_K; what <= ENGINE_V; what++) {
      double sums[LIMIT_HEAD_DIM_MAX] = {0};
      for (uint64_t t = 4; t < end; t++) {
        float x[LIMIT_HEAD_DIM_MAX];
        engine_vector(engine, (enum engine_vector)what, block / 2, block % 2, t, engine_id(engine, t), x);
        for (uint32_t c = 0; c < d; c++)
          sums[c] += (double)x[c];
      }
      const float *mean = model->means + ((what == ENGINE_V ? 4 : 0) + block) * d;
      for (uint32_t c = 0; c < d; c++)
        assert_true(mean[c] == (float)(sums[c] / (double)(end - 4)));
    }
  fake_unlock(engine->fake);
}

static uint64_t calibrations(struct engine *engine) {
  fake_lock(engine->fake);
  uint64_t count = fake_counters(engine->fake)->calibrations;
  fake_unlock(engine->fake);
  return count;
}

static void begin(struct engine *engine) {
  engine_describe(engine);
  engine_start(engine, NULL);
  assert_int_equal(engine_open(engine, NULL), 0);
}

/* From index 4 on to the last token there is, once. */
static void means_of_all_but_the_sinks(void **state) {
  (void)state;
  /* ends: where the first block begins that needs the means */
  static const uint32_t blocks[] = {64, 50, 1}, ends[] = {320, 350, 320};
  for (size_t i = 0; i < 3; i++) {
    struct engine engine;
    begin(&engine);
    assert_int_equal(engine_feed_to(&engine, ends[i], blocks[i]), 0);
    assert_int_equal(calibrations(&engine), 0);
    assert_int_equal(engine_feed_to(&engine, 500, blocks[i]), 0);
    assert_int_equal(calibrations(&engine), 1);
    check_means(&engine, ends[i]);
    engine_finish(&engine);
  }
}

/* Somebody else's means came first: they are used, and the bytes are as these say. */
static void the_daemons_means_count(void **state) {
  (void)state;
  struct engine engine;
  coldkv_client *client;
  coldkv_model *model;
  coldkv_conv *other;
  begin(&engine);
  assert_int_equal(coldkv_client_create(&client, engine.socket, NULL), 0);
  assert_int_equal(coldkv_model_create(&model, client, &engine.description), 0);
  assert_int_equal(coldkv_open(&other, model, "other", NULL), 0); /* before anything is frozen */
  assert_int_equal(engine_feed_to(&engine, 400, 64), 0);
  coldkv_conv *first = engine.conv;
  engine.conv = other;
  engine.position = 0;
  engine.salt = 3;
  assert_int_equal(engine_feed_to(&engine, 450, 64), 0);
  assert_int_equal(coldkv_sync(engine.conv), 0);
  assert_int_equal(calibrations(&engine), 2);
  coldkv_close(other);
  coldkv_model_destroy(model);
  coldkv_client_destroy(client);
  engine.conv = first;
  engine.position = 400;
  engine.salt = 0;
  check_means(&engine, 320);
  assert_int_equal(engine_feed_to(&engine, 450, 64), 0);
  assert_int_equal(coldkv_sync(engine.conv), 0);
  engine_check_stored(&engine, 128);
  fake_lock(engine.fake);
  assert_ptr_equal(fake_conversation(engine.fake, "other")->model, fake_conversation(engine.fake, "toy")->model);
  assert_int_equal(fake_conversation(engine.fake, "other")->count, 192);
  fake_unlock(engine.fake);
  engine_finish(&engine);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(means_of_all_but_the_sinks),
      cmocka_unit_test(the_daemons_means_count),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
