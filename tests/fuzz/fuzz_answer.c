// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// What an answer of the daemon must be, whatever was asked.
#include <math.h>
#include <stdlib.h>

#include "proto/record.h"
#include "tests/fuzz/fuzz.h"
#include "tests/fuzz/fuzz_peer.h"
#include "tests/fuzz/fuzz_store.h"

/* No client may make the daemon say these: the disk is good, and there is memory. */
static void judge_error(const struct peer_request *request, const struct rpc *rpc) {
  struct error error = {0};
  rpc_fault(rpc->fault, &error);
  switch (error.code) {
  case ERR_INTERNAL: case ERR_IO: case ERR_CORRUPT: case ERR_READ_ONLY: case ERR_MEMORY: case ERR_NO_SPACE:
  case ERR_SHUTTING_DOWN: case ERR_DENIED: case ERR_BAD_MESSAGE: case ERR_UNKNOWN_METHOD:
    fuzz_fail(__FILE__, __LINE__, error.text);
  default:
    FUZZ_REQUIRE(error.text[0]);
  }
  if (request->method == METHOD_INFO) {
    FUZZ_REQUIRE(error.code == ERR_NO_CONVERSATION);
    FUZZ_REQUIRE(request->epoch != peer_truth.epoch[request->name] || !request->acknowledged);
    peer_truth.known[request->name] = UINT64_MAX;
  }
}

/* The bytes of one of the two records that this token may have been given. */
static void judge_record(const uint8_t *record, uint32_t layer, uint32_t head, uint64_t token) {
  uint32_t block = layer * FUZZ_HEADS + head;
  FUZZ_REQUIRE(record_check(record, layer, head, token));
  FUZZ_REQUIRE(memcmp(record, peer_record(token, block, false), RECORD_BYTES) == 0 ||
               memcmp(record, peer_record(token, block, true), RECORD_BYTES) == 0);
}

static void judge_count(const struct peer_request *request, uint64_t count) {
  if (request->epoch == peer_truth.epoch[request->name])
    FUZZ_REQUIRE(count >= request->acknowledged);
  peer_truth.known[request->name] = count;
}

static void judge_append(const struct peer_request *request, const struct msg_append_ok *answer) {
  FUZZ_REQUIRE(answer->durable <= answer->stored && answer->durable >= request->first + request->count);
  if (request->epoch == peer_truth.epoch[request->name] && answer->durable > peer_truth.acknowledged[request->name])
    peer_truth.acknowledged[request->name] = answer->durable;
  peer_truth.known[request->name] = answer->stored;
}

static void judge_head(const struct peer_request *request, const struct msg_lookup_head *answer, uint32_t head,
                       uint64_t k) {
  uint64_t count = answer->tokens.size / 8, cells = request->rows * k;
  FUZZ_REQUIRE(answer->records.size == count * RECORD_BYTES);
  FUZZ_REQUIRE(answer->index.size == 4 * cells && answer->scores.size == 4 * cells);
  for (uint64_t i = 0; i < count; i++) {
    uint64_t token = load_u64(answer->tokens.data + 8 * i);
    FUZZ_REQUIRE(token >= request->first && token < request->before);
    FUZZ_REQUIRE(!i || token > load_u64(answer->tokens.data + 8 * (i - 1)));
    judge_record(answer->records.data + i * RECORD_BYTES, request->layer, head, token);
  }
  for (uint64_t i = 0; i < cells; i++) {
    uint32_t index = load_u32(answer->index.data + 4 * i);
    FUZZ_REQUIRE(index < count || index == UINT32_MAX);
    FUZZ_REQUIRE(isfinite(load_f32(answer->scores.data + 4 * i)));
  }
}

static void judge_lookup(const struct peer_request *request, const struct msg_lookup_ok *answer) {
  FUZZ_REQUIRE(answer->heads.count == FUZZ_HEADS && answer->k <= request->k);
  for (uint32_t head = 0; head < answer->heads.count; head++) {
    struct msg_lookup_head one;
    struct error error = {0};
    FUZZ_REQUIRE(message_unpack(&message_lookup_head, &answer->heads.objects[head], &one, &error) == 0);
    judge_head(request, &one, head, answer->k);
  }
}

static void judge_stats(const struct msg_stats *stats) {
  FUZZ_REQUIRE(!stats->read_only && !stats->bad_records && !stats->bad_pages && !stats->quarantined);
  FUZZ_REQUIRE(!stats->torn_frames && stats->connections >= 1);
}

void peer_judge(struct peer *peer, const struct peer_request *request, const struct rpc *rpc) {
  static union {
    struct msg_open_ok open;
    struct msg_append_ok append;
    struct msg_lookup_ok lookup;
    struct msg_read_ok read;
    struct msg_tokens_ok tokens;
    struct msg_conversation conversation;
    struct msg_model model;
    struct msg_stats stats;
    uint8_t bytes[1024];
  } answer;
  if (rpc->fault) {
    judge_error(request, rpc);
    return;
  }
  struct error error = {0};
  const struct message *type = methods[request->method].result;
  FUZZ_REQUIRE(type->size <= sizeof answer);
  if (message_unpack(type, rpc->body, &answer, &error))
    fuzz_fail(__FILE__, __LINE__, error.text);
  if (request->method == METHOD_OPEN) {
    peer->handles[request->name] = answer.open.conversation;
    FUZZ_REQUIRE(answer.open.durable <= answer.open.count);
    judge_count(request, answer.open.count);
  } else if (request->method == METHOD_APPEND) {
    judge_append(request, &answer.append);
  } else if (request->method == METHOD_LOOKUP) {
    judge_lookup(request, &answer.lookup);
  } else if (request->method == METHOD_READ) {
    FUZZ_REQUIRE(answer.read.first == request->first && answer.read.count == request->count &&
                 answer.read.records.size == request->count * RECORD_BYTES);
    for (uint64_t i = 0; i < request->count; i++)
      judge_record(answer.read.records.data + i * RECORD_BYTES, request->layer, request->head, request->first + i);
  } else if (request->method == METHOD_TOKENS) {
    FUZZ_REQUIRE(answer.tokens.first == request->first && answer.tokens.ids.size <= 4 * request->count);
    for (uint64_t i = 0; i < answer.tokens.ids.size / 4; i++)
      FUZZ_REQUIRE(load_u32(answer.tokens.ids.data + 4 * i) == fuzz_token_id(request->first + i));
  } else if (request->method == METHOD_INFO) {
    judge_count(request, answer.conversation.tokens);
  } else if (request->method == METHOD_MODEL_CALIBRATE) {
    memcpy(peer_truth.model_ids[request->mark], answer.model.id.data, LIMIT_ID_BYTES);
    peer_truth.model_known[request->mark] = true;
  } else if (request->method == METHOD_STATS) {
    judge_stats(&answer.stats);
  }
}
