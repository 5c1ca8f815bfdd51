// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
#include "tests/client/engine.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "client/codec.h"
#include "proto/record.h"

void engine_describe(struct engine *engine) {
  memset(engine, 0, sizeof *engine);
  engine->description = (struct coldkv_model_description){.name = "toy", .layers = 2, .kv_heads = 2, .group = 2,
                                                          .head_dim = 64, .window = 1u << 20, .rope = COLDKV_ROPE_HALF,
                                                          .rope_theta = 10000};
  coldkv_fingerprint(engine->description.fingerprint, "toy", 3);
}

void engine_start(struct engine *engine, const struct coldkv_client_options *options) {
  const char *temporary = getenv("TMPDIR");
  snprintf(engine->directory, sizeof engine->directory, "%s/coldkv-client-XXXXXX",
           temporary && strlen(temporary) < 32 ? temporary : "/tmp");
  assert_non_null(mkdtemp(engine->directory));
  snprintf(engine->socket, sizeof engine->socket, "%s/socket", engine->directory);
  engine->fake = fake_create(engine->socket);
  engine_connect(engine, engine->socket, options);
}

void engine_connect(struct engine *engine, const char *socket, const struct coldkv_client_options *options) {
  coldkv_model_destroy(engine->model);
  coldkv_client_destroy(engine->client);
  assert_int_equal(coldkv_client_create(&engine->client, socket, options), 0);
  assert_int_equal(coldkv_model_create(&engine->model, engine->client, &engine->description), 0);
}

void engine_finish(struct engine *engine) {
  coldkv_close(engine->conv);
  coldkv_model_destroy(engine->model);
  coldkv_client_destroy(engine->client);
  if (engine->fake)
    fake_destroy(engine->fake);
  unlink(engine->socket);
  assert_int_equal(rmdir(engine->directory), 0);
}

int engine_open(struct engine *engine, const struct coldkv_conv_options *options) {
  struct coldkv_conv_options wanted = options ? *options : (struct coldkv_conv_options){0};
  const char *device = getenv("COLDKV_TEST_DEVICE"); /* n: CUDA device n - 1, where the test names none */
  engine->position = 0;
  if (!device || wanted.device)
    return coldkv_open(&engine->conv, engine->model, "toy", &wanted);
  wanted.device = (uint32_t)atoi(device);
  int result = coldkv_open(&engine->conv, engine->model, "toy", &wanted);
  if (result != COLDKV_ENOTSUPPORTED)
    return result;
  printf("skipped: %s\n", coldkv_error());
  engine_finish(engine);
  exit(77);
}

static uint64_t mix(uint64_t z) {
  z += UINT64_C(0x9e3779b97f4a7c15);
  z = (z ^ z >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
  z = (z ^ z >> 27) * UINT64_C(0x94d049bb133111eb);
  return z ^ z >> 31;
}

uint32_t engine_id(const struct engine *engine, uint64_t token) {
  return (uint32_t)(mix(token * 1000 + (token >= engine->salt_from ? engine->salt : 0)) % 50000);
}

void engine_vector(const struct engine *engine, enum engine_vector what, uint32_t layer, uint32_t head, uint64_t token,
                   uint32_t id, float *x) {
  uint64_t seed = mix(mix(token) + mix(id) * 3 + mix(layer * 1000 + head * 10 + (uint64_t)what) * 7);
  uint64_t place = mix(layer * 1000 + head * 10 + (uint64_t)what);
  for (uint32_t c = 0; c < engine->description.head_dim; c++) {
    double sum = 0, mean = 0;
    for (uint32_t i = 0; i < 3; i++) {
      sum += (double)(mix(seed + c * 4 + i) >> 11) * 0x1p-53 - 0.5;
      mean += (double)(mix(place + c * 4 + i) >> 11) * 0x1p-53 - 0.5;
    }
    x[c] = (float)(2 * sum + (what == ENGINE_Q ? 0 : mean)); /* keys have means that differ by head, as real ones do */
  }
}

float *engine_block(const struct engine *engine, enum engine_vector what, uint32_t layer, uint64_t token,
                    const uint32_t *ids, uint32_t n) {
  const struct coldkv_model_description *m = &engine->description;
  uint32_t heads = m->kv_heads * (what == ENGINE_Q ? m->group : 1);
  float *x = malloc((size_t)n * heads * m->head_dim * sizeof(float));
  assert_non_null(x);
  for (uint32_t i = 0; i < n; i++)
    for (uint32_t head = 0; head < heads; head++)
      engine_vector(engine, what, layer, head, token + i, ids[i], x + ((size_t)i * heads + head) * m->head_dim);
  return x;
}

static uint64_t clock_us(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (uint64_t)now.tv_sec * 1000000 + (uint64_t)now.tv_nsec / 1000;
}

/* Counts a call that began then; `block_us` is for all of the block. */
static void timed(struct engine *engine, uint64_t began_us, uint64_t *block_us) {
  uint64_t call_us = clock_us() - began_us;
  *block_us += call_us;
  if (call_us / 1000 > engine->call_ms_max)
    engine->call_ms_max = call_us / 1000;
  if (*block_us / 1000 > engine->block_ms_max)
    engine->block_ms_max = *block_us / 1000;
}

int engine_forward(struct engine *engine, const uint32_t *ids, uint32_t n, float *out) {
  const struct coldkv_model_description *m = &engine->description;
  size_t size = (size_t)n * m->kv_heads * m->group * m->head_dim;
  float *scratch = malloc(size * sizeof(float));
  assert_non_null(scratch);
  uint64_t began = clock_us(), block_us = 0;
  int result = coldkv_begin(engine->conv, ids, n);
  timed(engine, began, &block_us);
  for (uint32_t layer = 0; layer < m->layers && !result; layer++) {
    float *q = engine_block(engine, ENGINE_Q, layer, engine->position, ids, n);
    float *k = engine_block(engine, ENGINE_K, layer, engine->position, ids, n);
    float *v = engine_block(engine, ENGINE_V, layer, engine->position, ids, n);
    began = clock_us();
    result = coldkv_attend(engine->conv, layer, q, k, v, out ? out + layer * size : scratch);
    timed(engine, began, &block_us);
    if (result)
      coldkv_abort(engine->conv);
    free(q);
    free(k);
    free(v);
  }
  free(scratch);
  if (result)
    return result;
  engine->position += n;
  began = clock_us();
  result = coldkv_end(engine->conv);
  timed(engine, began, &block_us);
  return result;
}

int engine_feed_to(struct engine *engine, uint64_t end, uint32_t block) {
  while (engine->position < end) {
    uint32_t ids[COLDKV_BLOCK_MAX];
    uint32_t n = end - engine->position < block ? (uint32_t)(end - engine->position) : block;
    for (uint32_t i = 0; i < n; i++)
      ids[i] = engine_id(engine, engine->position + i);
    int result = engine_forward(engine, ids, n, NULL);
    if (result)
      return result;
  }
  return 0;
}

int engine_resume(struct engine *engine) {
  uint32_t ids[COLDKV_BLOCK_MAX];
  int n, total = 0;
  while ((n = coldkv_resume(engine->conv, ids)) > 0) {
    struct coldkv_status status = engine_status(engine);
    engine->position = total ? status.tokens - status.resume_left : 0;
    for (int i = 0; i < n; i++)
      assert_int_equal(ids[i], engine_id(engine, engine->position + (uint64_t)i));
    int result = engine_forward(engine, ids, (uint32_t)n, NULL);
    if (result)
      return result;
    total += n;
  }
  return n < 0 ? n : total;
}

struct coldkv_status engine_status(const struct engine *engine) {
  struct coldkv_status status;
  assert_int_equal(coldkv_get_status(engine->conv, &status), 0);
  return status;
}

/* --- reference --------------------------------------------------------------------------------------------------- */

static void rotate(const struct engine *engine, const float *x, double position, double *y) {
  const struct coldkv_model_description *m = &engine->description;
  uint32_t dims = m->rope == COLDKV_ROPE_NONE ? 0 : m->rope_dims ? m->rope_dims : m->head_dim;
  for (uint32_t c = 0; c < m->head_dim; c++)
    y[c] = (double)x[c];
  for (uint32_t i = 0; i < dims / 2; i++) {
    uint32_t a = m->rope == COLDKV_ROPE_HALF ? i : 2 * i, b = m->rope == COLDKV_ROPE_HALF ? i + dims / 2 : 2 * i + 1;
    double angle = position * pow(m->rope_theta, -2.0 * i / dims);
    y[a] = (double)x[a] * cos(angle) - (double)x[b] * sin(angle);
    y[b] = (double)x[a] * sin(angle) + (double)x[b] * cos(angle);
  }
}

double engine_score(const struct engine *engine, const float *x, double at, const float *y, double to) {
  double a[LIMIT_HEAD_DIM_MAX], b[LIMIT_HEAD_DIM_MAX], score = 0;
  rotate(engine, x, at, a);
  rotate(engine, y, to, b);
  for (uint32_t c = 0; c < engine->description.head_dim; c++)
    score += a[c] * b[c];
  return score;
}

void engine_attention(const struct engine *engine, const float *q, double position, const struct engine_key *keys,
                      uint32_t count, double *out) {
  uint32_t d = engine->description.head_dim;
  double *weights = malloc(count * sizeof *weights), top = -INFINITY, sum = 0;
  assert_non_null(weights);
  for (uint32_t i = 0; i < count; i++) {
    weights[i] = engine_score(engine, q, position, keys[i].key, keys[i].position) / sqrt(d);
    top = fmax(top, weights[i]);
  }
  memset(out, 0, d * sizeof *out);
  for (uint32_t i = 0; i < count; i++) {
    weights[i] = exp(weights[i] - top);
    sum += weights[i];
    for (uint32_t c = 0; c < d; c++)
      out[c] += weights[i] * (double)keys[i].value[c];
  }
  for (uint32_t c = 0; c < d; c++)
    out[c] /= sum;
  free(weights);
}

/* --- what the fake holds ----------------------------------------------------------------------------------------- */

void engine_check_stored(struct engine *engine, uint64_t count) {
  fake_lock(engine->fake);
  const struct fake_conversation *c = fake_conversation(engine->fake, "toy");
  assert_non_null(c);
  assert_int_equal(c->count, count);
  const struct fake_model *model = c->model;
  uint32_t heads = engine->description.kv_heads, d = engine->description.head_dim;
  struct codec codec;
  assert_non_null(model);
  assert_int_equal(codec_init(&codec, d, model->description.seed, NULL), 0);
  const float *mean_v = model->means + (size_t)c->blocks * d;
  for (uint64_t token = 0; token < count; token++) {
    uint32_t id = engine_id(engine, token);
    assert_int_equal(c->ids[token], id);
    for (uint32_t block = 0; block < c->blocks; block++) {
      float key[LIMIT_HEAD_DIM_MAX], value[LIMIT_HEAD_DIM_MAX];
      uint8_t record[RECORD_BYTES];
      engine_vector(engine, ENGINE_K, block / heads, block % heads, token, id, key);
      engine_vector(engine, ENGINE_V, block / heads, block % heads, token, id, value);
      assert_int_equal(codec_encode(&codec, key, value, model->means + (size_t)block * d, mean_v + (size_t)block * d,
                                    block / heads, block % heads, token, record), 0);
      assert_memory_equal(record, c->records + (token * c->blocks + block) * RECORD_BYTES, RECORD_BYTES);
    }
  }
  fake_unlock(engine->fake);
}

void engine_decode(struct engine *engine, uint32_t layer, uint32_t head, uint64_t token, float *key, float *value) {
  fake_lock(engine->fake);
  const struct fake_conversation *c = fake_conversation(engine->fake, "toy");
  uint32_t d = engine->description.head_dim;
  size_t block = (size_t)layer * engine->description.kv_heads + head;
  struct codec codec;
  assert_int_equal(codec_init(&codec, d, c->model->description.seed, NULL), 0);
  codec_decode(&codec, c->records + (token * c->blocks + block) * RECORD_BYTES, c->model->means + block * d,
               c->model->means + ((size_t)c->blocks + block) * d, key, value);
  fake_unlock(engine->fake);
}
