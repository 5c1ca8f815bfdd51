// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// A conversation with a past: sinks and the last stored tokens are fed again to rebuild the hot window, then the ids
// that were in the hot window at the last sync.
#include <stdlib.h>

#include "client/conversation.h"
#include "client/error.h"

struct fetch {
  uint64_t first, count;
  uint32_t *ids;
};

static int take_tokens(void *context, const msgpack_object *result, struct error *error) {
  const struct fetch *fetch = context;
  struct msg_tokens_ok answer;
  int failed = message_unpack(&message_tokens_ok, result, &answer, error);
  if (failed)
    return failed;
  if (answer.first != fetch->first || answer.ids.size != fetch->count * sizeof(uint32_t))
    return error_set(error, ERR_BAD_MESSAGE, "conversation.tokens answered %zu ids from %llu, wanted %llu from %llu",
                     answer.ids.size / sizeof(uint32_t), (unsigned long long)answer.first,
                     (unsigned long long)fetch->count, (unsigned long long)fetch->first);
  memcpy(fetch->ids, answer.ids.data, answer.ids.size);
  return 0;
}

static int fetch_ids(struct coldkv_conv *conv, uint64_t first, uint64_t end, uint32_t *ids, uint64_t deadline_ms,
                     struct error *error) {
  if (first == end)
    return 0;
  struct msg_tokens tokens = {.conversation = conv->handle, .first = first, .count = end - first};
  struct fetch fetch = {.first = first, .count = end - first, .ids = ids};
  return client_call(conv->client, METHOD_TOKENS, &tokens, take_tokens, &fetch, deadline_ms, error);
}

int resume_plan(struct coldkv_conv *conv, uint64_t count, struct span ahead, uint64_t deadline_ms,
                struct error *error) {
  struct plan *plan = &conv->plan;
  uint64_t ahead_count = ahead.size / sizeof(uint32_t);
  *plan = (struct plan){.sinks = count < COLDKV_SINKS ? count : COLDKV_SINKS, .end = count + ahead_count};
  plan->tail = plan->sinks;
  if (count > COLDKV_SINKS + COLDKV_HOT)
    plan->tail = count - COLDKV_HOT;
  if (plan->end == 0)
    return 0;
  uint64_t tail_count = count - plan->tail;
  plan->ids = malloc((plan->sinks + tail_count + ahead_count) * sizeof(uint32_t));
  if (!plan->ids)
    return error_set(error, ERR_MEMORY, "out of memory for the last ids of '%s'", conv->name);
  int result = fetch_ids(conv, 0, plan->sinks, plan->ids, deadline_ms, error);
  if (!result)
    result = fetch_ids(conv, plan->tail, count, plan->ids + plan->sinks, deadline_ms, error);
  if (!result && ahead_count)
    memcpy(plan->ids + plan->sinks + tail_count, ahead.data, ahead.size);
  return result;
}

uint64_t resume_left(const struct coldkv_conv *conv) {
  const struct plan *plan = &conv->plan;
  if (conv->tokens < plan->sinks)
    return plan->sinks - conv->tokens + plan->end - plan->tail;
  return conv->tokens < plan->end ? plan->end - conv->tokens : 0;
}

uint64_t resume_range_end(const struct coldkv_conv *conv) {
  const struct plan *plan = &conv->plan;
  bool gap = plan->tail > plan->sinks;
  return gap && conv->tokens < plan->sinks ? plan->sinks : plan->end;
}

uint32_t resume_id(const struct coldkv_conv *conv, uint64_t token) {
  const struct plan *plan = &conv->plan;
  return plan->ids[token < plan->sinks ? token : plan->sinks + (token - plan->tail)];
}

void resume_step(struct coldkv_conv *conv) {
  const struct plan *plan = &conv->plan;
  if (conv->tokens == plan->sinks && plan->tail > plan->sinks) {
    conv->tokens = plan->tail;
    conv->held_first = plan->tail;
  }
}

int coldkv_resume(coldkv_conv *conv, uint32_t ids[COLDKV_BLOCK_MAX]) {
  if (!conv || !ids)
    return api_fail(ERR_ARGUMENT, "coldkv_resume needs a conversation and a place for ids");
  if (conv->block.open)
    return api_fail(ERR_STATE, "coldkv_resume inside a block of '%s': call coldkv_end first", conv->name);
  if (!resume_left(conv))
    return 0;
  uint64_t count = resume_range_end(conv) - conv->tokens;
  if (count > COLDKV_BLOCK_MAX)
    count = COLDKV_BLOCK_MAX;
  for (uint64_t i = 0; i < count; i++)
    ids[i] = resume_id(conv, conv->tokens + i);
  return (int)count;
}
