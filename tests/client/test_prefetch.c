// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// Lookups ahead of time: counted, harmless, and refused where they make no sense. And a device that is not there.
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "tests/client/engine.h"

/* One block of one token; layers in `ahead` (a bit each) are prefetched with the query of the token before. Returns the
 * outputs [layers][query heads][d], malloc'd. */
static float *block(struct engine *engine, unsigned ahead, uint32_t attended) {
  const struct coldkv_model_description *m = &engine->description;
  uint64_t at = engine->position;
  uint32_t id = engine_id(engine, at), before = engine_id(engine, at - 1);
  size_t size = (size_t)m->kv_heads * m->group * m->head_dim;
  float *out = malloc(m->layers * size * sizeof(float));
  assert_non_null(out);
  assert_int_equal(coldkv_begin(engine->conv, &id, 1), 0);
  for (uint32_t layer = 0; layer < m->layers; layer++) {
    float *early = engine_block(engine, ENGINE_Q, layer, at - 1, &before, 1);
    if (ahead >> layer & 1)
      assert_int_equal(coldkv_prefetch(engine->conv, layer, early), 0);
    free(early);
  }
  for (uint32_t layer = 0; layer < attended; layer++) {
    float *q = engine_block(engine, ENGINE_Q, layer, at, &id, 1);
    float *k = engine_block(engine, ENGINE_K, layer, at, &id, 1);
    float *v = engine_block(engine, ENGINE_V, layer, at, &id, 1);
    assert_int_equal(coldkv_attend(engine->conv, layer, q, k, v, out + layer * size), 0);
    free(q);
    free(k);
    free(v);
  }
  if (attended == m->layers)
    assert_int_equal(coldkv_end(engine->conv), 0);
  else
    assert_int_equal(coldkv_abort(engine->conv), 0);
  return out;
}

static void test_counts(void **state) {
  (void)state;
  struct engine engine;
  engine_describe(&engine);
  engine_start(&engine, NULL);
  assert_int_equal(engine_open(&engine, NULL), 0);
  assert_int_equal(engine_feed_to(&engine, 700, 64), 0);
  struct coldkv_status before = engine_status(&engine), after;
  assert_int_equal(before.prefetches, 0);
  size_t bytes = (size_t)engine.description.kv_heads * engine.description.group * engine.description.head_dim *
                 engine.description.layers * sizeof(float);
  float *plain = block(&engine, 0, engine.description.layers);
  assert_int_equal(coldkv_rewind(engine.conv, 700), 0);
  float *ahead = block(&engine, 3, engine.description.layers);
  assert_memory_equal(plain, ahead, bytes); /* it changes nothing */
  after = engine_status(&engine);
  assert_int_equal(after.prefetches, 2);
  assert_int_equal(after.prefetches_used, 2);
  assert_int_equal(after.lookups, before.lookups + 2 * engine.description.layers);
  assert_int_equal(after.lookups_missed, 0);
  assert_int_equal(coldkv_rewind(engine.conv, 700), 0);
  float *wasted = block(&engine, 2, 1); /* given up before the layer */
  after = engine_status(&engine);
  assert_int_equal(after.prefetches, 3);
  assert_int_equal(after.prefetches_used, 2);
  float *later = block(&engine, 0, engine.description.layers); /* another block: too late for that one */
  assert_int_equal(engine_status(&engine).prefetches_used, 2);
  free(plain);
  free(ahead);
  free(wasted);
  free(later);
  engine_finish(&engine);
}

static void test_refused(void **state) {
  (void)state;
  struct engine engine;
  engine_describe(&engine);
  engine_start(&engine, NULL);
  assert_int_equal(engine_open(&engine, NULL), 0);
  const struct coldkv_model_description *m = &engine.description;
  uint32_t id = engine_id(&engine, 0);
  float *q = engine_block(&engine, ENGINE_Q, 0, 0, &id, 1);
  assert_int_equal(coldkv_prefetch(engine.conv, 0, q), COLDKV_ESTATE);
  assert_int_equal(coldkv_begin(engine.conv, &id, 1), 0);
  assert_int_equal(coldkv_prefetch(engine.conv, 0, q), 0); /* nothing old yet, nothing sent */
  assert_int_equal(coldkv_prefetch(engine.conv, m->layers, q), COLDKV_ERANGE);
  assert_int_equal(coldkv_prefetch(engine.conv, 0, NULL), COLDKV_EARGUMENT);
  q[3] = NAN;
  assert_int_equal(coldkv_prefetch(engine.conv, 0, q), COLDKV_ENOTFINITE);
  assert_int_equal(engine_status(&engine).prefetches, 0);
  free(q);
  engine_finish(&engine);
}

/* GPU memory, for a conversation that has none. */
static void test_no_memory(void **state) {
  (void)state;
  struct engine engine;
  float *q = malloc(4096);
  uint32_t id = 1;
  engine_describe(&engine);
  engine_start(&engine, NULL);
  assert_int_equal(coldkv_open(&engine.conv, engine.model, "plain", NULL), 0);
  assert_int_equal(coldkv_begin(engine.conv, &id, 1), 0);
  assert_int_equal(coldkv_prefetch_device(engine.conv, 0, q, COLDKV_F32, NULL), COLDKV_ESTATE);
  assert_int_equal(coldkv_push_device(engine.conv, 0, q, q, COLDKV_F32, NULL), COLDKV_ESTATE);
  assert_int_equal(coldkv_attend_device(engine.conv, 0, q, q, q, q, COLDKV_F32, NULL), COLDKV_ESTATE);
  free(q);
  engine_finish(&engine);
}

static void test_no_device(void **state) {
  (void)state;
  struct engine engine;
  engine_describe(&engine);
  engine_start(&engine, NULL);
  struct coldkv_conv_options options = {.device = 1000};
  assert_int_equal(engine_open(&engine, &options), COLDKV_ENOTSUPPORTED);
  assert_non_null(strstr(coldkv_error(), "no GPU"));
  options = (struct coldkv_conv_options){.hot_type = 3};
  assert_int_equal(engine_open(&engine, &options), COLDKV_EARGUMENT);
  assert_int_equal(engine_open(&engine, NULL), 0);
  engine_finish(&engine);
}

int main(void) {
  static const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_counts),
      cmocka_unit_test(test_refused),
      cmocka_unit_test(test_no_memory),
      cmocka_unit_test(test_no_device),
  };
  return cmocka_run_group_tests_name("prefetch", tests, NULL, NULL);
}
