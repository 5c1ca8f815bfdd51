// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
#include "tests/store/sim_check.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "store/verify.h"

struct check {
  struct sim_run *run;
  struct sim_verdict *verdict;
};

static void say(struct check *check, unsigned *counter, const char *format, ...) __attribute__((format(printf, 3, 4)));

static void say(struct check *check, unsigned *counter, const char *format, ...) {
  struct sim_verdict *verdict = check->verdict;
  va_list args;
  va_start(args, format);
  if (verdict->lost + verdict->wrong == 0)
    vsnprintf(verdict->text, sizeof verdict->text, format, args);
  va_end(args);
  ++*counter;
}

#define LOST(check, ...) say(check, &(check)->verdict->lost, __VA_ARGS__)
#define WRONG(check, ...) say(check, &(check)->verdict->wrong, __VA_ARGS__)

/* --- conversations ----------------------------------------------------------------------------------------------- */

/* Compares ids and records of all tokens with what was appended. */
static void check_tokens(struct check *check, const char *name, struct view *view, uint64_t salt) {
  struct error error = {0};
  uint64_t count = view_count(view);
  uint8_t wanted[RECORD_BYTES];
  uint32_t *ids = malloc(4 * (size_t)count + 4);
  uint8_t *records = malloc((size_t)count * RECORD_BYTES + 1);
  if (!ids || !records)
    abort();
  bool same = true;
  if (view_tokens(view, 0, count, ids, &error))
    LOST(check, "ids of '%s': %s", name, error.text);
  for (uint64_t i = 0; i < count && !error.code; i++)
    same = same && ids[i] == test_token_id(i, salt);
  for (uint32_t b = 0; b < TINY_BLOCKS && !error.code; b++) {
    if (view_records(view, b / TINY_HEADS, b % TINY_HEADS, 0, count, records, &error))
      LOST(check, "records of '%s': %s", name, error.text);
    for (uint64_t i = 0; i < count && !error.code; i++) {
      test_record(wanted, b / TINY_HEADS, b % TINY_HEADS, i, salt);
      same = same && memcmp(records + i * RECORD_BYTES, wanted, RECORD_BYTES) == 0;
    }
  }
  if (!same)
    WRONG(check, "'%s' has other tokens than were appended", name);
  free(ids);
  free(records);
}

static void check_content(struct check *check, const char *name, struct conversation *c, uint64_t salt) {
  struct error error = {0};
  struct view *view;
  uint32_t ahead[LIMIT_AHEAD_MAX];
  uint64_t count = conversation_count(c);
  uint32_t ahead_count = conversation_ahead(c, ahead);
  for (uint32_t i = 0; i < ahead_count; i++)
    if (ahead[i] != test_token_id(count + i, salt)) {
      WRONG(check, "'%s' has other ids ahead than were given", name);
      break;
    }
  if (conversation_durable(c) != count)
    WRONG(check, "'%s' has %llu tokens and says that %llu are durable", name, (unsigned long long)count,
          (unsigned long long)conversation_durable(c));
  if (conversation_load(c, &error) || view_acquire(c, &view, &error)) {
    LOST(check, "'%s' cannot be read: %s", name, error.text);
    return;
  }
  check_tokens(check, name, view, salt);
  view_release(view);
}

/* Finds the state among those that may be there, and makes it the one that has to be. */
static void check_state(struct check *check, const char *name, struct conversation *c, struct sim_conversation *e) {
  uint32_t ahead[LIMIT_AHEAD_MAX];
  const struct sim_state state = {.count = conversation_count(c), .ahead = conversation_ahead(c, ahead)};
  uint32_t i = 0;
  while (i < e->state_count && (e->states[i].count != state.count || e->states[i].ahead != state.ahead))
    i++;
  if (i == e->state_count && state.count <= e->states[0].count)
    LOST(check, "'%s' has %llu tokens and %u ids ahead although %llu and %u were acknowledged", name,
         (unsigned long long)state.count, state.ahead, (unsigned long long)e->states[0].count, e->states[0].ahead);
  else if (i == e->state_count)
    WRONG(check, "'%s' has %llu tokens and %u ids ahead, which it never had", name, (unsigned long long)state.count,
          state.ahead);
  uint64_t most = e->states[e->state_count - 1].count;
  check->verdict->unsynced_gone += most > state.count ? (unsigned)(most - state.count) : 0;
  e->states[0] = state;
  e->state_count = 1;
}

static void check_conversation(struct check *check, unsigned which) {
  struct sim_run *run = check->run;
  struct sim_conversation *e = &run->expect.conversations[which];
  const char *name = sim_run_name(which);
  struct error error;
  struct conversation *c;
  int result = test_open(run->archive, name, NULL, false, &c, &error);
  if (result == -ERR_NO_CONVERSATION) {
    if (e->there && !e->doomed)
      LOST(check, "there is no '%s'", name);
    *e = (struct sim_conversation){0};
    return;
  }
  if (result) {
    if (e->there)
      LOST(check, "'%s' cannot be opened: %s", name, error.text);
    else
      WRONG(check, "'%s' cannot be opened: %s", name, error.text);
    return;
  }
  if (e->begun) {
    check_state(check, name, c, e);
    check_content(check, name, c, e->salt);
  } else {
    WRONG(check, "'%s' is there, which should not be", name);
  }
  const bool bound = conversation_model(c) != NULL;
  if (e->bound && !bound)
    LOST(check, "'%s' has lost its model", name);
  if (bound && !e->bind_begun)
    WRONG(check, "'%s' has a model that it was never given", name);
  e->there = e->begun = true;
  e->doomed = false;
  e->bound = e->bind_begun = bound;
  run->held[which] = c;
}

/* --- the rest of the archive -------------------------------------------------------------------------------------- */

static void check_model(struct check *check, unsigned mark) {
  struct sim_run *run = check->run;
  uint8_t fingerprint[LIMIT_FINGERPRINT_BYTES];
  struct error error;
  struct model *model;
  memset(fingerprint, (int)mark + 1, sizeof fingerprint);
  int result = model_find(run->archive, TEST_UID, fingerprint, &model, &error);
  bool *there = &run->expect.model_there[mark], *begun = &run->expect.model_begun[mark];
  if (result && result != -ERR_NO_MODEL)
    WRONG(check, "model %u: %s", mark, error.text);
  if (result && *there)
    LOST(check, "model %u: %s", mark, error.text);
  if (!result && !*begun)
    WRONG(check, "there is a model %u, which nobody asked for", mark);
  *there = *begun = result == 0;
  if (result)
    return;
  const struct span means = model_description(model)->mean_k;
  for (unsigned i = 0; i < TINY_BLOCKS * TINY_HEAD_DIM; i++) {
    float mean = 0;
    if (means.size >= (i + 1) * sizeof mean)
      memcpy(&mean, means.data + i * sizeof mean, sizeof mean);
    if (mean != (float)i / 8) { // NOLINT(clang-analyzer-core.UndefinedBinaryOperatorResult)
      WRONG(check, "model %u has other means than were given", mark);
      break;
    }
  }
  model_release(model);
}

static int count_listed(void *context, const struct msg_conversation *conversation) {
  (void)conversation;
  ++*(unsigned *)context;
  return 0;
}

static void check_list(struct check *check) {
  struct sim_run *run = check->run;
  struct error error;
  unsigned listed = 0, there = 0;
  for (unsigned i = 0; i < SIM_CONVERSATIONS; i++)
    there += run->expect.conversations[i].there;
  if (conversation_each(run->archive, TEST_UID, "", count_listed, &listed, &error))
    WRONG(check, "cannot list: %s", error.text);
  else if (listed != there)
    WRONG(check, "%u conversations are listed, %u are there", listed, there);
  if (archive_counters(run->archive)->quarantined)
    WRONG(check, "something was quarantined, though a crash is no damage");
}

/* Nothing is left over once a start has cleared away. */
static void check_leftovers(struct check *check) {
  struct sim_run *run = check->run;
  unsigned extents = 0, segments = 0, odd = 0;
  for (unsigned i = 0; i < SIM_CONVERSATIONS; i++) {
    struct conversation_entry entry;
    struct error error;
    if (run->expect.conversations[i].there &&
        conversation_describe(run->archive, TEST_UID, sim_run_name(i), &entry, &error) == 0) {
      for (size_t k = 0; k < entry.message.extents.count; k++)
        extents += entry.extents[k].kind == 0; /* the others are logs that wait to be sealed */
      conversation_entry_finish(&entry);
    }
  }
  const char *directory = test_path(run->dir, "segments");
  DIR *dir = opendir(directory);
  const struct dirent *entry;
  while (dir && (entry = readdir(dir)))
    if (entry->d_name[0] != '.')
      segments += test_count_entries(test_path(directory, entry->d_name), "");
  if (dir)
    closedir(dir);
  odd += test_count_entries(test_path(run->dir, "conversations"), "deleted-");
  if (segments != extents)
    WRONG(check, "there are %u files below segments, of which %u are used", segments, extents);
  if (odd)
    WRONG(check, "a deletion was not finished");
}

/* --- a start ------------------------------------------------------------------------------------------------------ */

static int take_problem(void *context, const char *path, const char *what, const struct verify_report *report) {
  (void)report;
  if (what)
    WRONG((struct check *)context, "verify: %s: %s", path, what);
  return 0;
}

static void verify(struct check *check) {
  struct verify_report report;
  struct error error;
  if (test_count_entries(test_path(check->run->dir, "conversations"), "") == 0)
    return; /* maybe not even made */
  if (verify_archive(NULL, check->run->dir, &report, take_problem, check, &error))
    WRONG(check, "verify: %s", error.text);
}

static bool start(struct check *check) {
  struct sim_run *run = check->run;
  if (sim_run_open(run)) {
    WRONG(check, "the archive cannot be opened: %s", run->error.text);
    return false;
  }
  for (unsigned i = 0; i < SIM_MODELS; i++)
    check_model(check, i);
  for (unsigned i = 0; i < SIM_CONVERSATIONS; i++)
    check_conversation(check, i);
  sim_run_acknowledge(run);
  check_list(check);
  check_leftovers(check);
  return true;
}

/* Every conversation takes more, and a new one can be made. */
static void go_on(struct check *check) {
  struct sim_run *run = check->run;
  int result = run->expect.model_there[0] ? 0 : sim_run_freeze(run, 0);
  bool made = false;
  for (unsigned i = 0; i < SIM_CONVERSATIONS && !result; i++) {
    if (!run->expect.conversations[i].there && made)
      continue;
    made = made || !run->expect.conversations[i].there;
    result = sim_run_hold(run, i, true);
    if (!result)
      result = sim_run_append(run, i, 2, 1);
    if (!result)
      result = sim_run_sync(run, i);
    if (!result)
      result = sim_run_seal(run, i);
  }
  if (result)
    WRONG(check, "it does not go on: %s", run->error.text);
}

void sim_check(struct sim_run *run, bool twice, struct sim_verdict *verdict) {
  struct check check = {.run = run, .verdict = verdict};
  *verdict = (struct sim_verdict){0};
  verify(&check);
  bool open = start(&check);
  if (open && !verdict->lost && !verdict->wrong)
    go_on(&check);
  sim_run_close(run);
  if (!open || !twice || verdict->lost || verdict->wrong)
    return;
  verify(&check);
  start(&check);
  sim_run_close(run);
}
