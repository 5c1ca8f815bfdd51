// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
#include <stdlib.h>
#include <string.h>

#include "retrieval/kernels.h"
#include "tests/retrieval/check.h"

enum { KEYS_MAX = 300, GUARDS = 8, BENCH_KEYS = 2048 };
#define GUARD UINT64_C(0x0123456789abcdef)

static struct lookup_kernels c, other;

/* kind 0: random; 1: close together; 2: at both ends. */
static uint64_t make_key(struct random *random, int kind) {
  uint64_t bits = random_u64(random);
  return kind == 0 ? bits : kind == 1 ? (UINT64_C(1) << 63) + bits % 64 : bits & 1 ? bits >> 60 : ~(bits >> 60);
}

/* Keys from `low` to `span` above it, to another place and to their own; nothing is written past `count`. */
static void check_take(const char *level, const uint64_t *keys, uint32_t count, uint64_t low, uint64_t span) {
  uint64_t wanted[KEYS_MAX], *out = malloc((count + GUARDS) * sizeof *out);
  if (!out)
    abort();
  uint32_t taken = c.take_keys(keys, count, low, span, wanted);
  for (int in_place = 0; in_place < 2; in_place++) {
    for (uint32_t i = 0; i < count + GUARDS; i++)
      out[i] = GUARD;
    if (in_place)
      memcpy(out, keys, count * sizeof *out);
    bool right = other.take_keys(in_place ? out : keys, count, low, span, out) == taken;
    right = right && memcmp(out, wanted, taken * sizeof *out) == 0;
    for (uint32_t i = count; i < count + GUARDS; i++)
      right = right && out[i] == GUARD;
    check_report(in_place ? "take_keys in place" : "take_keys", level, right);
  }
  free(out);
}

static void check_keys(const char *level, struct random *random, int kind, uint32_t count) {
  uint64_t *keys = malloc((count + !count) * sizeof *keys); /* no more, so that reading past them is found */
  if (!keys)
    abort();
  for (uint32_t i = 0; i < count; i++)
    keys[i] = make_key(random, kind);
  const uint64_t some = count ? keys[random_below(random, count)] : 5, ends[] = {0, 1, some, some + 1, UINT64_MAX};
  for (size_t e = 0; e < sizeof ends / sizeof *ends; e++) {
    check_report("count_keys", level, other.count_keys(keys, count, ends[e]) == c.count_keys(keys, count, ends[e]));
    check_take(level, keys, count, 0, ends[e]);
    check_take(level, keys, count, ends[e], UINT64_MAX - ends[e]);
    check_take(level, keys, count, ends[e], random_below(random, 64));
  }
  uint64_t low[2], high[2];
  if (count) {
    c.range_keys(keys, count, &low[0], &high[0]);
    other.range_keys(keys, count, &low[1], &high[1]);
    check_report("range_keys", level, low[0] == low[1] && high[0] == high[1]);
  }
  free(keys);
}

struct bench {
  uint64_t keys[BENCH_KEYS], out[BENCH_KEYS], low, high;
  volatile uint32_t sink;
};

static void bench_take(void *context) {
  struct bench *bench = context;
  bench->sink = other.take_keys(bench->keys, BENCH_KEYS, 0, UINT64_MAX / 2, bench->out);
}

static void bench_count(void *context) {
  struct bench *bench = context;
  bench->sink = other.count_keys(bench->keys, BENCH_KEYS, UINT64_MAX / 2);
}

static void bench_range(void *context) {
  struct bench *bench = context;
  other.range_keys(bench->keys, BENCH_KEYS, &bench->low, &bench->high);
}

void check_select(const struct check_level *level) {
  lookup_kernels_init(&c, 0);
  lookup_kernels_init(&other, level->flags);
  struct random random = {7};
  for (int kind = 0; kind < 3; kind++)
    for (uint32_t count = 0; count <= KEYS_MAX; count += count < 40 ? 1 : 37)
      check_keys(level->name, &random, kind, count);
  static struct bench bench;
  if (!check_bench())
    return;
  random_fill(&random, bench.keys, sizeof bench.keys);
  check_time("take half of the keys", level->name, bench_take, &bench, BENCH_KEYS, sizeof(uint64_t));
  check_time("count keys", level->name, bench_count, &bench, BENCH_KEYS, sizeof(uint64_t));
  check_time("range of keys", level->name, bench_range, &bench, BENCH_KEYS, sizeof(uint64_t));
}
