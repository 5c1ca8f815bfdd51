// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
#include "tests/store/sim_run.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* --- history ----------------------------------------------------------------------------------------------------- */

static void note(struct sim_history *history, uint32_t at, const struct sim_expect *expect) {
  if (history->count == history->room) {
    history->room = history->room ? 2 * history->room : 64;
    history->notes = realloc(history->notes, history->room * sizeof history->notes[0]);
    if (!history->notes)
      abort();
  }
  history->notes[history->count].at = at;
  history->notes[history->count++].expect = *expect;
}

void sim_history_begin(struct sim_history *history, const struct sim_trace *trace, const struct sim_expect *expect) {
  *history = (struct sim_history){.trace = trace};
  note(history, 0, expect);
}

void sim_history_finish(struct sim_history *history) {
  free(history->notes);
  *history = (struct sim_history){0};
}

uint32_t sim_history_at(const struct sim_history *history, uint32_t operations) {
  uint32_t found = 0;
  for (uint32_t i = 0; i < history->count; i++)
    if (history->notes[i].at <= operations)
      found = i;
  return found;
}

/* From the first operation on that comes now, what was just asked for may be there. */
static void intend(struct sim_run *run) {
  if (run->history)
    note(run->history, run->history->trace->count + 1, &run->expect);
}

/* From now on what is expected has to be there. */
static void acknowledge(struct sim_run *run) {
  if (run->history)
    note(run->history, run->history->trace->count, &run->expect);
}

void sim_run_acknowledge(struct sim_run *run) { acknowledge(run); }

/* --- steps ------------------------------------------------------------------------------------------------------- */

const char *sim_run_name(unsigned which) {
  static const char *const names[SIM_CONVERSATIONS] = {"first", "second", "third"};
  return names[which];
}

static void keep_line(void *context, const char *line) {
  (void)context;
  if (getenv("COLDKV_TEST_VERBOSE"))
    print_message("    %s\n", line);
}

int sim_run_open(struct sim_run *run) {
  struct archive_options options = {.io = &io_sim, .log = keep_line, .catalog_map_bytes = 1 << 20};
  return archive_open(&run->archive, run->dir, &options, &run->error);
}

void sim_run_close(struct sim_run *run) {
  for (unsigned i = 0; i < SIM_CONVERSATIONS; i++)
    sim_run_release(run, i);
  archive_close(run->archive);
  run->archive = NULL;
}

int sim_run_freeze(struct sim_run *run, unsigned mark) {
  struct model *model;
  run->expect.model_begun[mark] = true;
  intend(run);
  int result = test_model_freeze(run->archive, (uint8_t)(mark + 1), &model, &run->error);
  if (result)
    return result;
  model_release(model);
  run->expect.model_there[mark] = true;
  acknowledge(run);
  return 0;
}

/* The newest state is durable. */
static void settle(struct sim_conversation *expect) {
  expect->states[0] = expect->states[expect->state_count - 1];
  expect->state_count = 1;
}

int sim_run_hold(struct sim_run *run, unsigned which, bool bind) {
  struct sim_conversation *expect = &run->expect.conversations[which];
  struct model *model = NULL;
  uint8_t fingerprint[LIMIT_FINGERPRINT_BYTES];
  memset(fingerprint, 1, sizeof fingerprint);
  bind = bind && run->expect.model_there[0];
  if (run->held[which] && (expect->bound || !bind))
    return 0;
  sim_run_release(run, which);
  int result = bind ? model_find(run->archive, TEST_UID, fingerprint, &model, &run->error) : 0;
  if (result)
    return result;
  if (!expect->there)
    *expect = (struct sim_conversation){.salt = ++run->salts, .state_count = 1};
  expect->begun = true;
  expect->bind_begun = expect->bind_begun || bind;
  intend(run);
  result = test_open(run->archive, sim_run_name(which), model, true, &run->held[which], &run->error);
  model_release(model);
  if (result)
    return result;
  expect->there = true;
  expect->bound = expect->bind_begun;
  settle(expect); /* opening syncs what it replayed */
  acknowledge(run);
  return 0;
}

/* Adds what an append may leave, whole or cut at the end of a segment. */
static void ask(struct sim_conversation *expect, uint32_t count, uint32_t ahead) {
  uint64_t from = expect->states[expect->state_count - 1].count, full = LIMIT_SEGMENT_TOKENS;
  uint64_t border = (from / full + 1) * full;
  if (from % full && from + count > border) {
    uint64_t more = from + count - border + ahead;
    expect->states[expect->state_count++] = (struct sim_state){
        .count = border, .ahead = more < LIMIT_AHEAD_MAX ? (uint32_t)more : (uint32_t)LIMIT_AHEAD_MAX};
  }
  expect->states[expect->state_count++] = (struct sim_state){.count = from + count, .ahead = ahead};
}

int sim_run_append(struct sim_run *run, unsigned which, uint32_t count, uint32_t ahead) {
  struct sim_conversation *expect = &run->expect.conversations[which];
  bool wrote;
  uint64_t first = expect->states[expect->state_count - 1].count;
  if (expect->state_count + 2 > SIM_STATES_MAX)
    return sim_run_sync(run, which);
  ask(expect, count, ahead);
  intend(run);
  int result = test_append(run->held[which], first, count, ahead, expect->salt, &wrote, &run->error);
  if (!result && run->lies)
    settle(expect);
  acknowledge(run);
  return result;
}

int sim_run_fill(struct sim_run *run, unsigned which, uint64_t end) {
  const struct sim_conversation *expect = &run->expect.conversations[which];
  int result = 0;
  while (!result && conversation_count(run->held[which]) < end) {
    uint64_t left = end - conversation_count(run->held[which]);
    result = sim_run_append(run, which, left < 256 ? (uint32_t)left : 256, 2);
    if (!result && expect->state_count > 4)
      result = sim_run_sync(run, which);
  }
  return result;
}

int sim_run_sync(struct sim_run *run, unsigned which) {
  int result = conversation_sync(run->held[which], &run->error);
  if (result)
    return result;
  settle(&run->expect.conversations[which]);
  acknowledge(run);
  return 0;
}

int sim_run_seal(struct sim_run *run, unsigned which) {
  return conversation_wants_seal(run->held[which]) ? conversation_seal(run->held[which], &run->error) : 0;
}

int sim_run_unload(struct sim_run *run, unsigned which) {
  int result = conversation_unload(run->held[which], &run->error);
  if (result)
    return result;
  settle(&run->expect.conversations[which]);
  acknowledge(run);
  return 0;
}

void sim_run_release(struct sim_run *run, unsigned which) {
  conversation_release(run->held[which]);
  run->held[which] = NULL;
}

int sim_run_delete(struct sim_run *run, unsigned which) {
  struct sim_conversation *expect = &run->expect.conversations[which];
  sim_run_release(run, which);
  if (!expect->there)
    return 0;
  expect->doomed = true;
  intend(run);
  int result = conversation_delete(run->archive, TEST_UID, sim_run_name(which), &run->error);
  if (result)
    return result;
  *expect = (struct sim_conversation){0};
  acknowledge(run);
  return 0;
}

/* --- random steps ------------------------------------------------------------------------------------------------ */

static int append_some(struct sim_run *run, unsigned which, uint64_t *random) {
  int result = sim_run_hold(run, which, sim_random_next(random) % 4 != 0);
  if (result)
    return result;
  uint32_t count = run->expect.conversations[which].bound ? (uint32_t)(sim_random_next(random) % 7) : 0;
  return sim_run_append(run, which, count, (uint32_t)(sim_random_next(random) % 9));
}

static int random_step(struct sim_run *run, uint64_t *random) {
  uint64_t dice = sim_random_next(random) % 100;
  unsigned which = (unsigned)(sim_random_next(random) % (SIM_CONVERSATIONS + 2)) % SIM_CONVERSATIONS; /* first: often */
  for (unsigned i = 0; i < SIM_CONVERSATIONS; i++)
    if (run->held[i] && conversation_wants_seal(run->held[i]) && sim_random_next(random) % 3)
      return sim_run_seal(run, i);
  if (dice < 46)
    return append_some(run, which, random);
  if (dice < 60)
    return run->held[which] ? sim_run_sync(run, which) : append_some(run, which, random);
  if (dice < 66)
    return run->held[which] ? sim_run_unload(run, which) : 0;
  if (dice < 72) {
    sim_run_release(run, which);
    return 0;
  }
  if (dice < 84)
    return sim_run_delete(run, which);
  if (dice < 92)
    return sim_run_freeze(run, (unsigned)(sim_random_next(random) % SIM_MODELS));
  sim_run_close(run);
  return sim_run_open(run);
}

int sim_run_random(struct sim_run *run, uint64_t *random, unsigned steps) {
  int result = sim_run_open(run);
  for (unsigned i = 0; i < steps && !result; i++)
    result = random_step(run, random);
  if (!result && sim_random_next(random) % 2)
    sim_run_close(run);
  return result;
}
