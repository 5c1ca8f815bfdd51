// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
#include "retrieval/select.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>

#include <cmocka.h>

#include "tests/proto/random.h"

static int by_key(const void *a, const void *b) {
  uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
  return (x > y) - (x < y);
}

static void test_ranks_order_scores(void **state) {
  (void)state;
  static const float scores[] = {INFINITY,  3e38f,     65504, 1.5f,    1,      0x1p-24f,  0x1p-149f,
                                 0,         -0x1p-149f, -1,   -1.25f, -65504, -3.4e38f, -INFINITY};
  enum { N = sizeof scores / sizeof *scores };
  for (int i = 0; i < N; i++) {
    for (int j = 0; j < N; j++)
      assert_int_equal(select_rank(scores[i]) < select_rank(scores[j]), i < j);
    assert_float_equal(select_score(select_rank(scores[i])), scores[i], 0);
  }
  assert_int_equal(select_rank(-0.0f), select_rank(0.0f));
  assert_false(signbit(select_score(select_rank(-0.0f))));
  assert_int_equal(select_rank(-INFINITY), SELECT_RANK_NEVER);
}

static void test_limits_part_scores_as_thresholds_part_ranks(void **state) {
  (void)state;
  static const float scores[] = {-3, -0x1p-24f, -0.0f, 0, 0x1p-24f, 2};
  for (size_t i = 0; i < sizeof scores / sizeof *scores; i++)
    for (uint32_t near = 0; near < 5; near++)
      for (size_t j = 0; j < sizeof scores / sizeof *scores; j++) {
        uint32_t threshold = select_rank(scores[i]) + near - 2;
        assert_int_equal(select_rank(scores[j]) < threshold, scores[j] > select_limit(threshold));
      }
}

/* Ranks of several kinds: spread, few, one, clustered. */
static uint32_t make_rank(struct random *random, int kind, uint32_t i) {
  switch (kind) {
  case 0:
    return (uint32_t)random_below(random, SELECT_RANK_NEVER);
  case 1:
    return (uint32_t)random_below(random, 3);
  case 2:
    return 77;
  case 3:
    return random_below(random, 100) ? 0x7f000000u + (uint32_t)random_below(random, 50) : i;
  case 4:
    return i;
  default:
    return SELECT_RANK_NEVER - 1 - i;
  }
}

static void check_stream(struct random *random, int kind, uint32_t n, uint32_t limit, uint32_t step) {
  uint32_t capacity = select_capacity(limit, step);
  uint64_t *all = malloc((n + 1) * sizeof *all), *keys = malloc(capacity * sizeof *keys);
  uint64_t *spare = malloc(capacity * sizeof *spare);
  assert_true(all && keys && spare);
  struct select select;
  select_init(&select, keys, limit, step);
  for (uint32_t at = 0; at < n; at += step) {
    select_make_room(&select, step, spare);
    for (uint32_t i = at; i < n && i < at + step; i++) {
      uint32_t rank = make_rank(random, kind, i);
      all[i] = select_key(rank, i);
      if (rank < select.threshold)
        select_put(&select, rank, i);
    }
  }
  select_finish(&select, spare);
  for (uint32_t i = 1; i < select.count; i++)
    assert_true(select_key_ordinal(keys[i - 1]) < select_key_ordinal(keys[i]));
  qsort(all, n, sizeof *all, by_key);
  select_sort(keys, select.count);
  assert_int_equal(select.count, n < limit ? n : limit);
  assert_memory_equal(keys, all, select.count * sizeof *keys);
  free(all);
  free(keys);
  free(spare);
}

static void test_streams(void **state) {
  (void)state;
  static const uint32_t counts[] = {0, 1, 2, 63, 64, 65, 1000, 5000}, limits[] = {1, 2, 64, 65, 1000, 4096};
  static const uint32_t steps[] = {1, 16, 1024};
  struct random random = {1};
  for (int kind = 0; kind < 6; kind++)
    for (size_t c = 0; c < sizeof counts / sizeof *counts; c++)
      for (size_t l = 0; l < sizeof limits / sizeof *limits; l++)
        for (size_t s = 0; s < sizeof steps / sizeof *steps; s++)
          check_stream(&random, kind, counts[c], limits[l], steps[s]);
}

/* Lanes that take turns as chance has it, which tell each other what is hopeless, end with the best of all. */
static void check_lanes(struct random *random, int kind, uint32_t lanes, uint32_t n, uint32_t limit, uint32_t step) {
  enum { LANES = 7 };
  uint32_t capacity = select_capacity(limit, step), at[LANES], open = lanes, total = 0;
  uint64_t *all = malloc((n + 1) * sizeof *all), *keys = malloc((size_t)lanes * capacity * sizeof *keys);
  uint64_t *spare = malloc((size_t)lanes * capacity * sizeof *spare);
  assert_true(all && keys && spare);
  struct select selects[LANES];
  struct select_bound bound;
  select_bound_init(&bound, lanes);
  for (uint32_t i = 0; i < n; i++)
    all[i] = select_key(make_rank(random, kind, i), i);
  for (uint32_t l = 0; l < lanes; l++) {
    at[l] = (uint32_t)((uint64_t)n * l / lanes);
    select_init(&selects[l], keys + (size_t)l * capacity, limit, step);
    select_join(&selects[l], &bound, l);
  }
  while (open) {
    uint32_t l = (uint32_t)random_below(random, lanes), end = (uint32_t)((uint64_t)n * (l + 1) / lanes);
    if (at[l] > end)
      continue;
    select_make_room(&selects[l], step, spare);
    assert_true(selects[l].capacity - selects[l].count >= step + SELECT_SLACK);
    for (uint32_t i = 0; i < step && at[l] < end; i++, at[l]++)
      if (select_key_rank(all[at[l]]) < selects[l].threshold)
        select_put(&selects[l], select_key_rank(all[at[l]]), at[l]);
    if (at[l] == end) {
      select_finish(&selects[l], spare);
      assert_true(selects[l].count <= limit);
      at[l]++;
      open--;
    }
  }
  for (uint32_t l = 0; l < lanes; total += selects[l++].count)
    memmove(keys + total, selects[l].keys, selects[l].count * sizeof *keys);
  qsort(all, n, sizeof *all, by_key);
  select_sort(keys, total);
  assert_true(total >= (n < limit ? n : limit));
  assert_memory_equal(keys, all, (n < limit ? n : limit) * sizeof *keys);
  free(all);
  free(keys);
  free(spare);
}

static void test_lanes(void **state) {
  (void)state;
  static const uint32_t counts[] = {1, 65, 1000, 20000}, limits[] = {1, 2, 65, 1000, 4096}, lanes[] = {1, 2, 3, 7};
  static const uint32_t steps[] = {1, 16, 1024};
  struct random random = {3};
  for (int kind = 0; kind < 6; kind++)
    for (size_t c = 0; c < sizeof counts / sizeof *counts; c++)
      for (size_t l = 0; l < sizeof limits / sizeof *limits; l++)
        for (size_t s = 0; s < sizeof steps / sizeof *steps; s++)
          for (size_t n = 0; n < sizeof lanes / sizeof *lanes; n++)
            check_lanes(&random, kind, lanes[n], counts[c], limits[l], steps[s]);
}

static void test_partition_keeps_order_in_both_parts(void **state) {
  (void)state;
  enum { N = 3000 };
  static const uint32_t wanted[] = {0, 1, 2, 63, 64, 1500, N - 1, N};
  static uint64_t keys[N], sorted[N], spare[N];
  struct random random = {2};
  for (int kind = 0; kind < 6; kind++)
    for (size_t w = 0; w < sizeof wanted / sizeof *wanted; w++) {
      for (uint32_t i = 0; i < N; i++)
        sorted[i] = keys[i] = select_key(make_rank(&random, kind, i), i);
      select_partition(keys, N, wanted[w], spare);
      qsort(sorted, N, sizeof *sorted, by_key);
      for (uint32_t i = 0; i < N; i++) {
        assert_true((keys[i] < (wanted[w] < N ? sorted[wanted[w]] : UINT64_MAX)) == (i < wanted[w]) || wanted[w] == 0);
        if (i && i != wanted[w])
          assert_true(select_key_ordinal(keys[i - 1]) < select_key_ordinal(keys[i]));
      }
    }
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_ranks_order_scores),
      cmocka_unit_test(test_limits_part_scores_as_thresholds_part_ranks),
      cmocka_unit_test(test_streams),
      cmocka_unit_test(test_lanes),
      cmocka_unit_test(test_partition_keeps_order_in_both_parts),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
