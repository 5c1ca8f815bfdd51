// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
#include "tests/fuzz/fuzz_honest.h"

#include <stdlib.h>

#include "client/codec.h"
#include "proto/record.h"
#include "tests/client/fake_store.h"
#include "tests/fuzz/fuzz.h"

enum { HANDLE = 3, BLOCKS_MAX = 4 };

static struct fake_model model;
static struct fake_conversation conversation;
static struct fake_counters counters;
static const uint8_t own_id[LIMIT_ID_BYTES] = "conversation-id";

void honest_reset(void) {
  free(model.means);
  memset(&model, 0, sizeof model);
  memset(model.id, 7, sizeof model.id);
  uint32_t *ids = conversation.ids ? conversation.ids : calloc(FAKE_TOKENS_MAX, sizeof *ids);
  uint8_t *records = conversation.records ? conversation.records
                                          : calloc((size_t)FAKE_TOKENS_MAX * BLOCKS_MAX, RECORD_BYTES);
  FUZZ_REQUIRE(ids && records);
  conversation = (struct fake_conversation){.ids = ids, .records = records};
}

void honest_truncate(uint64_t count) {
  if (count < conversation.count)
    conversation.count = conversation.durable = count;
}

struct answer {
  msgpack_packer packer;
  uint32_t id;
  enum method_id method;
};

static void result(struct answer *a, const void *value) {
  FUZZ_REQUIRE(rpc_pack_result(&a->packer, a->id, methods[a->method].result, value) == 0);
}

static void fault(struct answer *a, int code, const char *text) {
  struct error error = {0};
  error_set(&error, code, "%s", text);
  FUZZ_REQUIRE(rpc_pack_error(&a->packer, a->id, &error) == 0);
}

static void open_conversation(struct answer *a, const struct msg_open *open) {
  struct msg_open_ok ok = {.conversation = HANDLE, .id = span_of(own_id, sizeof own_id), .count = conversation.count,
                           .durable = conversation.durable,
                           .ahead = span_of(conversation.ahead, conversation.ahead_count * 4)};
  conversation.blocks = open->geometry.layers * open->geometry.kv_heads;
  FUZZ_REQUIRE(conversation.blocks <= BLOCKS_MAX);
  if (open->model.size && model.means)
    conversation.model = &model;
  if (conversation.model)
    ok.model = span_of(model.id, sizeof model.id);
  result(a, &ok);
}

static void append(struct answer *a, const struct msg_append *wanted) {
  struct error error = {0};
  struct fake_conversation *c = &conversation;
  if (fake_check_append(c, wanted, &counters, &error)) {
    fault(a, error.code, error.text);
    return;
  }
  uint64_t bytes = c->blocks * RECORD_BYTES, end = wanted->first + wanted->ids.size / 4;
  if (end > c->count) {
    memcpy(c->ids + wanted->first, wanted->ids.data, wanted->ids.size);
    memcpy(c->records + wanted->first * bytes, wanted->records.data, wanted->records.size);
    c->count = end;
  }
  c->ahead_count = (uint32_t)(wanted->ahead.size / 4);
  if (wanted->ahead.size)
    memcpy(c->ahead, wanted->ahead.data, wanted->ahead.size);
  c->durable = c->count;
  struct msg_append_ok ok = {.stored = c->count, .durable = c->durable};
  result(a, &ok);
}

/* Every row gets the first tokens of the range: any will do. */
static void look_up(struct answer *a, const struct msg_lookup *lookup) {
  static uint64_t tokens[LIMIT_K_MAX];
  static uint32_t index[64 * LIMIT_K_MAX];
  static float scores[64 * LIMIT_K_MAX];
  uint64_t before = lookup->before < conversation.count ? lookup->before : conversation.count;
  before = before < lookup->from ? lookup->from : before;
  uint64_t count = before - lookup->from < lookup->k ? before - lookup->from : lookup->k;
  FUZZ_REQUIRE(lookup->rows <= 64 && conversation.blocks == 1);
  for (uint64_t i = 0; i < count; i++)
    tokens[i] = lookup->from + i;
  for (uint64_t i = 0; i < lookup->rows * lookup->k; i++)
    index[i] = i % lookup->k < count ? (uint32_t)(i % lookup->k) : UINT32_MAX;
  size_t cells = 4 * (size_t)lookup->rows * lookup->k;
  struct msg_lookup_head head = {.tokens = span_of(tokens, 8 * (size_t)count),
                                 .records = span_of(conversation.records + lookup->from * RECORD_BYTES,
                                                    (size_t)count * RECORD_BYTES),
                                 .index = span_of(index, cells), .scores = span_of(scores, cells)};
  struct msg_lookup_ok ok = {.k = lookup->k, .candidates = 1024, .scanned = before - lookup->from,
                             .heads = {.count = conversation.model ? 1 : 0, .items = &head}};
  result(a, &ok);
}

static void tokens(struct answer *a, const struct msg_tokens *wanted) {
  if (wanted->first + wanted->count > conversation.count) {
    fault(a, ERR_RANGE, "tokens outside the conversation");
    return;
  }
  struct msg_tokens_ok ok = {.first = wanted->first,
                             .ids = span_of(conversation.ids + wanted->first, wanted->count * 4)};
  result(a, &ok);
}

static void hello(struct answer *a) {
  struct msg_hello_ok ok;
  const struct fake_orders orders = {0};
  fake_hello(&orders, &ok);
  result(a, &ok);
}

static void get_model(struct answer *a, const struct msg_model *wanted) {
  if (wanted && !model.means)
    fake_keep_model(&model, wanted);
  if (model.means)
    result(a, &model.description);
  else
    fault(a, ERR_NO_MODEL, "no model yet");
}

enum method_id honest_answer(const uint8_t *request, size_t size, msgpack_sbuffer *buffer) {
  static union {
    struct msg_hello hello;
    struct msg_model model;
    struct msg_model_get get;
    struct msg_open open;
    struct msg_append append;
    struct msg_lookup lookup;
    struct msg_tokens tokens;
    struct msg_handle handle;
    uint8_t bytes[1024];
  } params;
  msgpack_zone zone;
  msgpack_object root;
  struct rpc rpc;
  struct error error = {0};
  struct msg_empty empty = {0};
  FUZZ_REQUIRE(msgpack_zone_init(&zone, 4096));
  /* whatever the peer said before, the client itself sends nothing but good requests */
  FUZZ_REQUIRE(rpc_parse(request, size, &zone, &root, &rpc, &error) == 0 && rpc.kind == RPC_REQUEST);
  struct answer a = {.id = rpc.id, .method = method_find(rpc.method)};
  FUZZ_REQUIRE(a.method < METHOD_COUNT && methods[a.method].params->size <= sizeof params);
  if (message_unpack(methods[a.method].params, rpc.body, &params, &error))
    fuzz_fail(__FILE__, __LINE__, error.text);
  msgpack_packer_init(&a.packer, buffer, msgpack_sbuffer_write);
  switch (a.method) {
  case METHOD_HELLO: hello(&a); break;
  case METHOD_MODEL_CALIBRATE: get_model(&a, &params.model); break;
  case METHOD_MODEL_GET: get_model(&a, NULL); break;
  case METHOD_OPEN: open_conversation(&a, &params.open); break;
  case METHOD_APPEND: append(&a, &params.append); break;
  case METHOD_LOOKUP: look_up(&a, &params.lookup); break;
  case METHOD_TOKENS: tokens(&a, &params.tokens); break;
  case METHOD_CLOSE: result(&a, &empty); break;
  default: fuzz_fail(__FILE__, __LINE__, "a request that the library has no use for");
  }
  msgpack_zone_destroy(&zone);
  return a.method;
}

void honest_decode(uint64_t token, float *key, float *value) {
  struct codec codec;
  uint32_t d = (uint32_t)model.description.geometry.head_dim;
  FUZZ_REQUIRE(token < conversation.count && conversation.blocks == 1);
  FUZZ_REQUIRE(codec_init(&codec, d, model.description.seed, NULL) == 0);
  codec_decode(&codec, conversation.records + token * RECORD_BYTES, model.means, model.means + d, key, value);
}
