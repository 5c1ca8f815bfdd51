// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
#include "tests/integration/read_back.h"

#include <setjmp.h>
#include <stdarg.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "client/clock.h"
#include "client/codec.h"
#include "client/model.h"
#include "proto/record.h"

enum { READ_TOKENS = 512, CALL_MS = 20000 };

struct reader {
  struct engine *engine;
  coldkv_client *client;
  coldkv_model *model;
  const struct frozen *frozen;
  uint64_t conversation, handed;
  struct read_back *found;
  uint32_t ids[READ_TOKENS];
  bool bad[READ_TOKENS]; /* tokens of this part */
};

static int take_info(void *context, const msgpack_object *result, struct error *error) {
  struct reader *reader = context;
  struct msg_conversation answer;
  int failed = message_unpack(&message_conversation, result, &answer, error);
  reader->found->tokens = failed ? 0 : answer.tokens;
  reader->found->ahead = failed ? 0 : answer.ahead;
  return failed;
}

static int take_open(void *context, const msgpack_object *result, struct error *error) {
  struct reader *reader = context;
  struct msg_open_ok answer;
  int failed = message_unpack(&message_open_ok, result, &answer, error);
  reader->conversation = failed ? 0 : answer.conversation;
  return failed;
}

struct part {
  struct reader *reader;
  uint64_t first, count;
  uint32_t layer, head;
};

static int take_ids(void *context, const msgpack_object *result, struct error *error) {
  const struct part *part = context;
  struct reader *reader = part->reader;
  struct msg_tokens_ok answer;
  int failed = message_unpack(&message_tokens_ok, result, &answer, error);
  if (failed)
    return failed;
  assert_int_equal(answer.first, part->first);
  assert_int_equal(answer.ids.size, part->count * sizeof(uint32_t));
  memcpy(reader->ids, answer.ids.data, answer.ids.size);
  for (uint64_t i = 0; i < part->count; i++) {
    uint64_t token = part->first + i;
    reader->bad[i] = reader->ids[i] != engine_id(reader->engine, token);
    if (reader->bad[i] && token && reader->ids[i] == engine_id(reader->engine, token - 1))
      reader->found->duplicated++;
  }
  return 0;
}

static int take_records(void *context, const msgpack_object *result, struct error *error) {
  const struct part *part = context;
  struct reader *reader = part->reader;
  uint32_t heads = reader->model->kv_heads, d = reader->model->head_dim;
  struct msg_read_ok answer;
  int failed = message_unpack(&message_read_ok, result, &answer, error);
  if (failed)
    return failed;
  assert_int_equal(answer.records.size, part->count * RECORD_BYTES);
  for (uint64_t i = 0; i < part->count; i++) {
    float key[LIMIT_HEAD_DIM_MAX], value[LIMIT_HEAD_DIM_MAX];
    uint8_t record[RECORD_BYTES];
    uint64_t token = part->first + i;
    size_t mean = ((size_t)part->layer * heads + part->head) * d;
    uint32_t id = engine_id(reader->engine, token);
    engine_vector(reader->engine, ENGINE_K, part->layer, part->head, token, id, key);
    engine_vector(reader->engine, ENGINE_V, part->layer, part->head, token, id, value);
    assert_int_equal(codec_encode(&reader->frozen->codec, key, value, reader->frozen->mean_k + mean,
                                  reader->frozen->mean_v + mean, part->layer, part->head, token, record), 0);
    reader->bad[i] |= memcmp(record, (const uint8_t *)answer.records.data + i * RECORD_BYTES, RECORD_BYTES) != 0;
  }
  return 0;
}

static void call(const struct reader *reader, enum method_id method, const void *params, take_fn *take, void *context) {
  struct error error;
  int result = client_call(reader->client, method, params, take, context, clock_ms() + CALL_MS, &error);
  if (result)
    fail_msg("%s: %s", methods[method].name, error.text);
}

/* Waits for the daemon, then finds out how much it has and by which means it was encoded. */
static void open_reader(struct reader *reader) {
  struct msg_name name = {.name = span_str("toy")};
  struct msg_open open;
  struct frozen *frozen = NULL;
  struct error error;
  int result = -1;
  for (int i = 0; i < 1000 && result; i++) {
    result = model_fetch(reader->model, NULL, clock_ms() + CALL_MS, &frozen, &error);
    usleep(result ? 20000 : 0);
  }
  assert_int_equal(result, 0);
  reader->frozen = frozen;
  call(reader, METHOD_INFO, &name, take_info, reader);
  message_init(&message_open, &open);
  open.name = name.name;
  open.fingerprint = span_of(reader->model->fingerprint, sizeof reader->model->fingerprint);
  model_geometry(reader->model, &open.geometry);
  call(reader, METHOD_OPEN, &open, take_open, reader);
}

void read_back(struct engine *engine, uint64_t handed, struct read_back *found) {
  struct reader reader = {.engine = engine, .handed = handed, .found = found};
  *found = (struct read_back){0};
  assert_int_equal(coldkv_client_create(&reader.client, engine->socket, NULL), 0);
  assert_int_equal(coldkv_model_create(&reader.model, reader.client, &engine->description), 0);
  open_reader(&reader);
  uint64_t there = found->tokens < handed ? found->tokens : handed;
  found->lost = handed - there;
  found->duplicated = found->tokens - there;
  for (uint64_t first = 0; first < there; first += READ_TOKENS) {
    struct part part = {.reader = &reader, .first = first};
    part.count = there - first < READ_TOKENS ? there - first : READ_TOKENS;
    struct msg_tokens tokens = {.conversation = reader.conversation, .first = first, .count = part.count};
    call(&reader, METHOD_TOKENS, &tokens, take_ids, &part);
    for (part.layer = 0; part.layer < reader.model->layers; part.layer++)
      for (part.head = 0; part.head < reader.model->kv_heads; part.head++) {
        struct msg_read read = {.conversation = reader.conversation, .layer = part.layer, .head = part.head,
                                .first = first, .count = part.count};
        call(&reader, METHOD_READ, &read, take_records, &part);
      }
    for (uint64_t i = 0; i < part.count; i++)
      found->lost += reader.bad[i];
  }
  coldkv_model_destroy(reader.model);
  coldkv_client_destroy(reader.client);
}
