// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
#include "client/model.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "client/coldkv.h"

enum { LAYERS = 2, HEADS = 2, D = 64, MEANS = LAYERS * HEADS * D };

static coldkv_client *client;

static const struct coldkv_model_description good = {.name = "toy", .layers = LAYERS, .kv_heads = HEADS, .group = 2,
                                                     .head_dim = D, .window = 4096, .rope = COLDKV_ROPE_HALF,
                                                     .rope_theta = 10000};

static int setup(void **state) {
  (void)state;
  return coldkv_client_create(&client, "/nonexistent/coldkv.sock", NULL);
}

static int teardown(void **state) {
  (void)state;
  coldkv_client_destroy(client);
  return 0;
}

static coldkv_model *make(const struct coldkv_model_description *description) {
  coldkv_model *model;
  assert_int_equal(coldkv_model_create(&model, client, description), 0);
  return model;
}

static void refuse(struct coldkv_model_description description) {
  coldkv_model *model = (coldkv_model *)&client;
  int result = coldkv_model_create(&model, client, &description);
  assert_true(result == COLDKV_EARGUMENT || result == COLDKV_ELIMIT);
  assert_null(model);
  assert_true(strlen(coldkv_error()) > 10);
}

static void descriptions_that_make_no_sense(void **state) {
  (void)state;
  struct coldkv_model_description d;
  double freqs[32] = {NAN};
#define REFUSE(member, value) (d = good, d.member = (value), refuse(d))
  REFUSE(layers, 0);
  REFUSE(layers, LIMIT_LAYERS_MAX + 1);
  REFUSE(kv_heads, 0);
  REFUSE(kv_heads, LIMIT_KV_HEADS_MAX + 1);
  REFUSE(group, 0);
  REFUSE(group, LIMIT_GROUP_MAX + 1);
  REFUSE(head_dim, 56);
  REFUSE(head_dim, 68);
  REFUSE(head_dim, 136);
  REFUSE(window, 0);
  REFUSE(window, LIMIT_WINDOW_MAX + 1);
  REFUSE(rope, 3);
  REFUSE(rope_dims, 33);
  REFUSE(rope_dims, 66);
  REFUSE(rope_dims, UINT32_MAX - 1);
  REFUSE(rope_theta, 0);
  REFUSE(rope_theta, NAN);
  REFUSE(rope_freqs, freqs);
  REFUSE(softmax_scale, -1);
  REFUSE(softmax_scale, INFINITY);
  REFUSE(softmax_scale, NAN);
  char name[LIMIT_NAME_BYTES_MAX + 2];
  memset(name, 'n', sizeof name);
  name[sizeof name - 1] = 0;
  REFUSE(name, name);
  d = good;
  d.layers = 1024;
  d.kv_heads = 8; /* each within its limit, not together */
  refuse(d);
  coldkv_model *model;
  assert_int_equal(coldkv_model_create(&model, client, NULL), COLDKV_EARGUMENT);
  assert_int_equal(coldkv_model_create(NULL, client, &good), COLDKV_EARGUMENT);
}

static void defaults_are_filled_in(void **state) {
  (void)state;
  coldkv_model *model = make(&good);
  assert_float_equal(model->softmax_scale, 1 / sqrt(D), 1e-9);
  assert_int_equal(model->rope.dims, D);
  assert_true(fabs(model->rope.freqs[5] - pow(10000, -10.0 / D)) < 1e-15);
  coldkv_model_destroy(model);
  struct coldkv_model_description d = good;
  double freqs[8] = {1, 0.5, 0.25, 0.125, 1, 2, 3, 4};
  d.rope_freqs = freqs;
  d.rope_dims = 16;
  d.softmax_scale = 0.25f;
  d.name = NULL;
  model = make(&d);
  assert_true(model->softmax_scale == 0.25f);
  assert_memory_equal(model->rope.freqs, freqs, sizeof freqs);
  coldkv_model_destroy(model);
  d.rope = COLDKV_ROPE_NONE;
  model = make(&d);
  assert_int_equal(model->rope.dims, 0);
  coldkv_model_destroy(model);
}

/* U = the number of tokens, rounded up to a power of two, at least 512 and at most the trained window. */
static void expected_distance_range(void **state) {
  (void)state;
  static const struct {
    uint32_t window;
    uint64_t tokens, end;
  } cases[] = {{4096, 1, 512},     {4096, 512, 512},   {4096, 513, 1024},          {4096, 4096, 4096},
               {4096, 4097, 4096}, {3000, 2048, 2048}, {3000, 2049, 3000},         {3000, UINT64_C(1) << 40, 3000},
               {600, 513, 600},    {512, 9999, 512},   {300, 9999, 512},           {1, 9999, 512}};
  for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
    struct coldkv_model_description d = good;
    float right[ROPE_ROW_MAX];
    d.window = cases[i].window;
    coldkv_model *model = make(&d);
    for (int again = 0; again < 2; again++) {
      const float *got = model_expected(model, cases[i].tokens);
      rope_mean(&model->rope, 256, cases[i].end, right);
      assert_memory_equal(got, right, D * sizeof(float));
    }
    coldkv_model_destroy(model);
  }
}

/* --- frozen models ------------------------------------------------------------------------------------------------ */

struct answer {
  struct msg_model message;
  float means[2 * MEANS];
  uint8_t id[LIMIT_ID_BYTES], fingerprint[LIMIT_FINGERPRINT_BYTES];
};

static void make_answer(const coldkv_model *model, struct answer *a) {
  memset(a, 0, sizeof *a);
  message_init(&message_model, &a->message);
  model_geometry(model, &a->message.geometry);
  memset(a->id, 7, sizeof a->id);
  for (int i = 0; i < 2 * MEANS; i++)
    a->means[i] = (float)i;
  a->message.id = span_of(a->id, sizeof a->id);
  a->message.fingerprint = span_of(a->fingerprint, sizeof a->fingerprint);
  a->message.basis = span_str("hadamard");
  a->message.codec = 1;
  a->message.seed = 99;
  a->message.mean_k = span_of(a->means, MEANS * sizeof(float));
  a->message.mean_v = span_of(a->means + MEANS, MEANS * sizeof(float));
}

static void keeps_a_frozen_model_once(void **state) {
  (void)state;
  struct answer a;
  struct error error = {0};
  struct frozen *first = NULL, *second = NULL;
  coldkv_model *model = make(&good);
  make_answer(model, &a);
  assert_int_equal(model_keep(model, &a.message, &first, &error), 0);
  assert_memory_equal(first->mean_k, a.means, MEANS * sizeof(float));
  assert_memory_equal(first->mean_v, a.means + MEANS, MEANS * sizeof(float));
  a.means[3] = -1; /* frozen: another answer of that id cannot change it */
  assert_int_equal(model_keep(model, &a.message, &second, &error), 0);
  assert_ptr_equal(first, second);
  assert_true(first->mean_k[3] == 3);
  a.id[0]++;
  assert_int_equal(model_keep(model, &a.message, &second, &error), 0);
  assert_ptr_not_equal(first, second);
  assert_ptr_equal(model->frozen->next, first);
  coldkv_model_destroy(model);
}

/* The answer is refused; it is a good one again afterwards. */
static void expect(coldkv_model *model, struct answer *a, int code) {
  struct error error = {0};
  struct frozen *frozen = NULL;
  assert_int_equal(model_keep(model, &a->message, &frozen, &error), -code);
  assert_int_equal(error.code, code);
  assert_null(frozen);
  make_answer(model, a);
}

static void refuses_frozen_models_that_do_not_fit(void **state) {
  (void)state;
  struct answer a;
  coldkv_model *model = make(&good);
  make_answer(model, &a);
  a.message.id.size = 0;
  expect(model, &a, ERR_BAD_MESSAGE);
  a.fingerprint[31] = 1;
  expect(model, &a, ERR_MODEL_MISMATCH);
  a.message.geometry.window++;
  expect(model, &a, ERR_MODEL_MISMATCH);
  a.message.basis = span_str("stored");
  expect(model, &a, ERR_NOT_SUPPORTED);
  a.message.codec = 2;
  expect(model, &a, ERR_NOT_SUPPORTED);
  a.message.mean_k.size -= 4;
  expect(model, &a, ERR_BAD_MESSAGE);
  a.message.mean_v.size = 0;
  expect(model, &a, ERR_BAD_MESSAGE);
  a.means[17] = NAN;
  expect(model, &a, ERR_BAD_MESSAGE);
  a.means[2 * MEANS - 1] = INFINITY;
  expect(model, &a, ERR_BAD_MESSAGE);
  a.means[MEANS] = 30000;
  expect(model, &a, ERR_BAD_MESSAGE);
  assert_null(model->frozen);
  coldkv_model_destroy(model);
}

static void version_is_the_headers(void **state) {
  (void)state;
  assert_string_equal(coldkv_version(), COLDKV_VERSION);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(descriptions_that_make_no_sense),
      cmocka_unit_test(defaults_are_filled_in),
      cmocka_unit_test(expected_distance_range),
      cmocka_unit_test(keeps_a_frozen_model_once),
      cmocka_unit_test(refuses_frozen_models_that_do_not_fit),
      cmocka_unit_test(version_is_the_headers),
  };
  return cmocka_run_group_tests(tests, setup, teardown);
}
