// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// Power cuts on a simulated disk. Runs of the store, each chosen by a seed, are traced; then the power is cut after
// every operation of the trace, and some or all of the states that the disk may be in then (sim_disk.h) are made,
// opened by the store and compared with what had been acknowledged. What such a start does is traced as well, and cut
// again.
//
// COLDKV_TORTURE_SECONDS=N goes on for so long. COLDKV_TORTURE_SEED=N runs that seed alone, or begins with it.
#include "tests/store/fixture.h"

#include <malloc.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "tests/store/sim_check.h"
#include "tests/store/sim_cut.h"

enum {
  SECONDS = 12,
  IMAGES_PER_POINT = 6,        /* when there are more states than that, this many of them */
  IMAGES_PER_SECOND_POINT = 3, /* after a second cut */
  SECOND_CUT_EVERY = 24,       /* images, of which one's start is cut, too */
  SECOND_POINTS = 10,          /* places of a start where it is cut */
  WALKS = 8,
  KINDS = 4, /* of beginnings: see prepare() */
  LYING_SEEDS = 40,
  SEEN_MAX = 1 << 16,
  KEPT_MAX = 3,                /* failing images that are kept to be looked at */
};

/* Totals of the whole program. */
static struct {
  unsigned long points, images, seeds, lost, wrong, unsynced_gone;
  unsigned kept;
  bool quiet; /* failures are wanted */
  double end; /* when to stop; 0: when done */
} total;

static char *base;
static struct sim_trace *traces[2];
static char where[256]; /* what is being looked at, for messages */

static double now_s(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

static bool time_is_over(void) {
  return (total.end > 0 && now_s() >= total.end) || (total.quiet && total.lost);
}

/* Hashes of the images that were looked at, each with what was expected of it. */
struct seen {
  uint64_t hashes[SEEN_MAX];
  uint32_t count;
};

static bool seen_before(struct seen *seen, uint64_t hash) {
  hash += hash == 0;
  size_t at = hash % SEEN_MAX;
  while (seen->hashes[at] && seen->hashes[at] != hash)
    at = (at + 1) % SEEN_MAX;
  bool before = seen->hashes[at] == hash;
  seen->hashes[at] = hash;
  seen->count += !before;
  assert_true(seen->count < SEEN_MAX);
  return before;
}

/* --- one image ---------------------------------------------------------------------------------------------------- */

struct explorer {
  struct sim_disk disk;
  const struct sim_trace *trace;
  struct sim_history *history;
  struct seen *seen;
  uint64_t seed, random;
  unsigned depth; /* 1: the trace is that of a start after a cut */
  uint32_t point; /* operations done before the cut */
};

static void explore_start(struct explorer *outer, const struct sim_expect *expect, const char *root);

static void report(struct explorer *e, const struct sim_verdict *verdict) {
  char kept[256] = "not kept";
  if (total.quiet)
    return;
  if (total.kept < KEPT_MAX) {
    snprintf(kept, sizeof kept, "%s-kept-%u", base, total.kept++);
    test_tree_remove(kept);
    sim_disk_write(&e->disk, kept);
  }
  print_error("%s%s: %s\n  the image: %s; to see it again: COLDKV_TORTURE_SEED=%llu\n", where,
              e->depth ? ", after a second cut" : "", verdict->text, kept, (unsigned long long)e->seed);
}

/* Makes the chosen state and looks at it. False when it was looked at before. */
static bool look(struct explorer *e) {
  uint32_t note = sim_history_at(e->history, e->point);
  uint64_t expected = note;
  uint64_t hash = sim_disk_hash(&e->disk) ^ sim_random_next(&expected);
  if (seen_before(e->seen, hash))
    return false;
  struct sim_run run = {.expect = e->history->notes[note].expect, .salts = 1000};
  struct sim_verdict verdict;
  char root[1024];
  snprintf(root, sizeof root, "%s/cut-%u", base, e->depth);
  snprintf(run.dir, sizeof run.dir, "%s/archive", root);
  sim_disk_write(&e->disk, root);
  total.images++;
  bool again = e->depth == 0 && sim_random_next(&e->random) % SECOND_CUT_EVERY == 0;
  sim_check(&run, again || sim_random_next(&e->random) % 4 == 0, &verdict);
  total.lost += verdict.lost != 0;
  total.wrong += verdict.wrong != 0;
  total.unsynced_gone += verdict.unsynced_gone;
  if (verdict.lost || verdict.wrong)
    report(e, &verdict);
  test_tree_remove(root);
  if (again) {
    sim_disk_write(&e->disk, root);
    explore_start(e, &e->history->notes[note].expect, root);
    test_tree_remove(root);
  }
  return true;
}

/* --- one trace ---------------------------------------------------------------------------------------------------- */

/* Cuts the power after e->point operations. */
static void explore_point(struct explorer *e) {
  uint32_t most = e->depth ? IMAGES_PER_SECOND_POINT : IMAGES_PER_POINT;
  uint64_t states = sim_cut_states(&e->disk, most);
  bool fresh = false;
  if (!e->depth)
    snprintf(where, sizeof where, "seed %llu, cut after operation %u of %u", (unsigned long long)e->seed, e->point,
             e->trace->count);
  for (uint32_t i = 0; i < most && i < states; i++) {
    if (states != UINT64_MAX)
      sim_cut_number(&e->disk, i);
    else if (i == 0)
      sim_cut_none(&e->disk);
    else if (i == 1)
      sim_cut_all(&e->disk);
    else
      sim_cut_random(&e->disk, &e->random);
    fresh = look(e) || fresh;
  }
  total.points += fresh;
}

/* Goes through the trace and cuts at every `every`-th place from `phase` on. */
static void walk(struct explorer *e, const struct sim_disk *disk, uint32_t every, uint32_t phase) {
  sim_disk_copy(&e->disk, disk);
  for (e->point = 0; e->point <= e->trace->count && !time_is_over(); e->point++) {
    if (e->point % every == phase)
      explore_point(e);
    if (e->point < e->trace->count)
      sim_disk_apply(&e->disk, &e->trace->ops[e->point]);
  }
  sim_disk_finish(&e->disk);
}

/* Cuts everywhere, or at some places of a start. In several walks, so that the whole trace has its share when the time
 * is short. `disk` is what the trace began with. */
static void explore(struct explorer *e, const struct sim_disk *disk) {
  static const uint32_t phases[WALKS] = {0, 4, 2, 6, 1, 5, 3, 7};
  e->seen = calloc(1, sizeof *e->seen);
  assert_non_null(e->seen);
  if (e->depth) {
    uint32_t every = 1 + e->trace->count / SECOND_POINTS;
    walk(e, disk, every, (uint32_t)(sim_random_next(&e->random) % every));
  }
  for (uint32_t i = 0; i < WALKS && !e->depth; i++)
    walk(e, disk, WALKS, phases[i]);
  free(e->seen);
}

/* A start after a cut, in `root`, is traced and cut in turn. */
static void explore_start(struct explorer *outer, const struct sim_expect *expect, const char *root) {
  struct sim_history history;
  struct sim_verdict verdict;
  struct explorer e = {.trace = traces[1], .history = &history, .seed = outer->seed, .depth = 1};
  struct sim_run run = {.expect = *expect, .history = &history, .salts = 1000};
  struct sim_disk disk;
  e.random = sim_random_next(&outer->random);
  snprintf(run.dir, sizeof run.dir, "%s/archive", root);
  sim_disk_load(&disk, root);
  sim_history_begin(&history, traces[1], expect);
  sim_trace_start(traces[1], root);
  sim_check(&run, false, &verdict);
  sim_trace_stop(traces[1]);
  if (verdict.lost + verdict.wrong == 0) /* otherwise it has been reported */
    explore(&e, &disk);
  sim_disk_finish(&disk);
  sim_history_finish(&history);
}

/* --- one seed ----------------------------------------------------------------------------------------------------- */

/* Prepares what the traced run begins with: nothing, a little, a log that is almost full, or a segment. */
static int prepare(struct sim_run *run, uint64_t seed) {
  unsigned kind = seed % KINDS;
  if (kind == 0)
    return 0;
  int result = sim_run_open(run);
  if (!result)
    result = sim_run_freeze(run, 0);
  if (!result)
    result = sim_run_hold(run, 1, seed % 3 != 0);
  if (!result)
    result = sim_run_append(run, 1, seed % 3 ? 3 : 0, 2);
  if (!result)
    result = sim_run_hold(run, 0, true);
  if (!result)
    result = sim_run_fill(run, 0, kind == 1 ? 5 : kind == 2 ? 4092 + seed / 4 % 5 : 4100);
  if (!result)
    result = sim_run_seal(run, 0);
  if (!result)
    result = sim_run_sync(run, 0);
  if (!result)
    result = sim_run_sync(run, 1);
  sim_run_close(run);
  return result;
}

static void run_seed(uint64_t seed, bool lies) {
  struct sim_history history = {0};
  struct explorer e = {.trace = traces[0], .history = &history, .seed = seed, .random = seed};
  struct sim_run run = {.lies = lies};
  struct sim_disk disk;
  char root[1000];
  snprintf(root, sizeof root, "%s/run", base);
  snprintf(run.dir, sizeof run.dir, "%s/archive", root);
  snprintf(where, sizeof where, "seed %llu", (unsigned long long)seed);
  assert_int_equal(mkdir(root, 0700), 0);
  sim_random_seed(seed);
  assert_ok(prepare(&run, seed), &run.error);
  sim_disk_load(&disk, root);
  sim_history_begin(&history, traces[0], &run.expect);
  run.history = &history;
  sim_trace_start(traces[0], root);
  int result = sim_run_random(&run, &e.random, 6 + (unsigned)(seed % 11));
  sim_trace_stop(traces[0]);
  run.history = NULL;
  if (getenv("COLDKV_TEST_VERBOSE"))
    sim_trace_print(traces[0]);
  assert_ok(result, &run.error);
  sim_run_close(&run);
  test_tree_remove(root);
  explore(&e, &disk);
  sim_disk_finish(&disk);
  sim_history_finish(&history);
  total.seeds++;
}

static unsigned long number_from(const char *name, unsigned long otherwise) {
  const char *text = getenv(name);
  return text && text[0] ? strtoul(text, NULL, 10) : otherwise;
}

static void nothing_acknowledged_is_lost(void **state) {
  (void)state;
  unsigned long seed = number_from("COLDKV_TORTURE_SEED", 0), seconds = number_from("COLDKV_TORTURE_SECONDS", SECONDS);
  bool one = seed && !getenv("COLDKV_TORTURE_SECONDS");
  memset(&total, 0, sizeof total);
  double end = now_s() + (double)seconds;
  bool brief = !one && seconds <= SECONDS; /* then each kind of beginning gets a quarter */
  for (unsigned long i = seed ? seed : 1; total.seeds == 0 || (!one && now_s() < end); i++) {
    total.end = one ? 0 : brief && total.seeds < KINDS ? now_s() + (double)seconds / KINDS : end;
    run_seed(i, false);
  }
  print_message("torture: crash points=%lu images=%lu seeds=%lu lost=%lu wrong=%lu\n", total.points, total.images,
                total.seeds, total.lost, total.wrong);
  assert_int_equal(total.lost, 0);
  assert_int_equal(total.wrong, 0);
  assert_true(total.images > total.points);
  if (total.points > 200)
    assert_true(total.unsynced_gone > 0); /* the disk did forget what was not synced */
}

/* The control: tokens that are called durable without a sync, as with durability none, have to be missed. */
static void tokens_that_were_never_synced_are_lost(void **state) {
  (void)state;
  memset(&total, 0, sizeof total);
  total.quiet = true;
  for (uint64_t seed = 1; total.lost == 0 && seed <= LYING_SEEDS; seed += 4)
    run_seed(seed, true);
  assert_true(total.lost > 0);
  assert_int_equal(total.wrong, 0); /* they are gone, and nothing else stands in their place */
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(tokens_that_were_never_synced_are_lost),
      cmocka_unit_test(nothing_acknowledged_is_lost),
  };
  if (access("/dev/shm", W_OK) == 0)
    setenv("TMPDIR", "/dev/shm", 0);
  setvbuf(stdout, NULL, _IOLBF, 0);
  mallopt(M_MMAP_THRESHOLD, 256 << 10); /* LMDB callocs megabytes that it hardly touches, again for each start */
  base = test_directory_make();
  traces[0] = sim_trace_create();
  traces[1] = sim_trace_create();
  int failed = cmocka_run_group_tests(tests, NULL, NULL);
  if (failed)
    print_error("the last that was looked at: %s\n", where);
  sim_trace_destroy(traces[0]);
  sim_trace_destroy(traces[1]);
  test_directory_remove(base);
  return failed;
}
