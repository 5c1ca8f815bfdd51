// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
#include "retrieval/lookup.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>

#include <cmocka.h>

#include "tests/retrieval/reference.h"

enum { LAYER = 5, HEAD = 3, ROWS_MAX = 40 };

static struct lookup_scratch *scratch;

/* Queries of one request, at an odd address. */
struct rows {
  uint8_t bytes[1 + ROWS_MAX * 516];
};

static struct lookup_request request_make(struct rows *rows, uint32_t count, uint32_t head_dim,
                                          struct random *random) {
  for (uint32_t r = 0; r < count; r++)
    for (uint32_t i = 0; i < 128; i++) {
      double sum = -2;
      for (int n = 0; n < 4; n++)
        sum += (double)(random_u64(random) >> 11) * 0x1p-53;
      float q = (float)sum;
      memcpy(rows->bytes + 1 + r * 516 + 4 * i, &q, sizeof q);
    }
  return (struct lookup_request){.mode = LOOKUP_WEIGHTED, .head_dim = head_dim, .layer = LAYER, .head = HEAD,
                                 .rows = count, .k = 16, .candidates = 64, .before = UINT64_MAX,
                                 .queries = rows->bytes + 1, .row_stride = 516};
}

static void set_query(struct rows *rows, uint32_t row, uint32_t i, float q) {
  memcpy(rows->bytes + 1 + row * 516 + 4 * i, &q, sizeof q);
}

/* Runs both and compares everything; the bytes of the scores too. */
static void compare(const struct lookup_request *request, struct archive_parts *parts) {
  struct lookup_answer wanted, got;
  size_t cells = (size_t)request->rows * request->k;
  answer_make(&wanted, request->rows, request->k);
  answer_make(&got, request->rows, request->k);
  reference_lookup(request, parts->columns, parts->count, &wanted);
  struct error error = {0};
  assert_int_equal(lookup_run(scratch, request, parts->columns, parts->count, &got, &error), 0);
  assert_int_equal(got.count, wanted.count);
  assert_int_equal(got.scanned, wanted.scanned);
  assert_int_equal(got.rescored, wanted.rescored);
  assert_int_equal(got.bad_records, wanted.bad_records);
  assert_memory_equal(got.tokens, wanted.tokens, wanted.count * sizeof *wanted.tokens);
  assert_memory_equal(got.records, wanted.records, (size_t)wanted.count * RECORD_BYTES);
  assert_memory_equal(got.index, wanted.index, cells * sizeof *wanted.index);
  assert_memory_equal(got.scores, wanted.scores, cells * sizeof *wanted.scores);
  answer_free(&wanted);
  answer_free(&got);
}

static void compare_modes(struct lookup_request *request, struct archive_parts *parts) {
  request->mode = LOOKUP_WEIGHTED;
  compare(request, parts);
  request->mode = LOOKUP_HAMMING;
  compare(request, parts);
}

static void one_part(struct archive_parts *parts, uint32_t count, struct random *random) {
  uint64_t first = 4;
  parts_make(parts, &first, &count, 1, LAYER, HEAD, random);
}

static void test_every_head_dim(void **state) {
  (void)state;
  struct random random = {1};
  struct rows rows;
  struct archive_parts parts;
  one_part(&parts, 1000, &random);
  for (uint32_t d = 64; d <= 128; d += 8) {
    struct lookup_request request = request_make(&rows, 2, d, &random);
    compare_modes(&request, &parts);
  }
  parts_free(&parts);
}

/* Around the sizes that vectors and blocks have, with k and C on either side of the count. */
static void test_sizes(void **state) {
  (void)state;
  static const uint32_t counts[] = {0, 1, 2, 3, 7, 15, 16, 17, 31, 33, 63, 64, 65, 255, 1023, 1024, 1025, 3000};
  static const uint32_t limits[][2] = {{1, 1}, {1, 0}, {64, 64}, {64, 10}, {1024, 0}, {7, 16384}, {3, 1000}};
  struct random random = {2};
  struct rows rows;
  for (size_t c = 0; c < sizeof counts / sizeof *counts; c++) {
    struct archive_parts parts;
    one_part(&parts, counts[c], &random);
    for (size_t l = 0; l < sizeof limits / sizeof *limits; l++) {
      struct lookup_request request = request_make(&rows, 1, 128, &random);
      request.k = limits[l][0];
      request.candidates = limits[l][1];
      compare_modes(&request, &parts);
    }
    parts_free(&parts);
  }
}

static void test_parts_with_gaps_and_cuts(void **state) {
  (void)state;
  static const uint64_t firsts[] = {0, 100, 612, 5000, 5001, 9000, UINT64_C(1) << 40};
  static const uint32_t counts[] = {100, 512, 1500, 1, 2100, 0, 333};
  struct random random = {3};
  struct rows rows;
  struct archive_parts parts;
  parts_make(&parts, firsts, counts, 7, LAYER, HEAD, &random);
  static const uint64_t cuts[][2] = {
      {0, UINT64_MAX}, {4, 5000}, {99, 101}, {100, 612}, {50, 2000}, {611, 613}, {3000, 4000}, {5000, 5001},
      {5000, 5002}, {2112, 5000}, {0, 0}, {10, 10}, {20, 10}, {UINT64_MAX, UINT64_MAX},
      {(UINT64_C(1) << 40) + 7, UINT64_MAX}, {7, (UINT64_C(1) << 40) + 100}, {0, 1}, {9000, 9001}};
  for (size_t c = 0; c < sizeof cuts / sizeof *cuts; c++) {
    struct lookup_request request = request_make(&rows, 2, 96, &random);
    request.from = cuts[c][0];
    request.before = cuts[c][1];
    compare_modes(&request, &parts);
    request.candidates = 0;
    compare_modes(&request, &parts);
  }
  struct lookup_request request = request_make(&rows, 2, 96, &random);
  parts.count = 0; /* no parts at all */
  compare_modes(&request, &parts);
  parts.count = 7;
  parts_free(&parts);
}

/* Ties everywhere: the lower token must win at every cut. */
static void test_ties(void **state) {
  (void)state;
  struct random random = {4};
  struct rows rows;
  for (uint32_t kinds = 1; kinds <= 3; kinds++) {
    struct archive_parts parts;
    one_part(&parts, 5000, &random);
    for (uint32_t i = kinds; i < 5000; i++) {
      uint32_t like = (uint32_t)random_below(&random, kinds);
      memcpy(parts_signature(&parts, 0, i), parts_signature(&parts, 0, like), 16);
      memcpy(parts_k_scale(&parts, 0, i), parts_k_scale(&parts, 0, like), 2);
      if (kinds < 3)
        memcpy(parts_k_mag(&parts, 0, i), parts_k_mag(&parts, 0, like), 32);
    }
    parts_seal(&parts, LAYER, HEAD);
    static const uint32_t candidates[] = {1, 17, 1024, 2048, 3333, 0};
    for (size_t c = 0; c < sizeof candidates / sizeof *candidates; c++) {
      struct lookup_request request = request_make(&rows, 2, 128, &random);
      request.candidates = candidates[c];
      compare_modes(&request, &parts);
    }
    parts_free(&parts);
  }
}

/* Scores that rise, and fall, from token to token, and clusters far apart. */
static void test_ordered_and_clustered_scores(void **state) {
  (void)state;
  struct random random = {5};
  struct rows rows;
  for (int kind = 0; kind < 3; kind++) {
    struct archive_parts parts;
    one_part(&parts, 6000, &random);
    for (uint32_t i = 0; i < 6000; i++) {
      memcpy(parts_signature(&parts, 0, i), parts_signature(&parts, 0, 0), 16);
      uint32_t scale = kind == 0 ? i : kind == 1 ? 6000 - i : i % 7 ? 1 + i % 3 : 0x7000 + i % 100;
      store_u16(parts_k_scale(&parts, 0, i), (uint16_t)scale);
    }
    parts_seal(&parts, LAYER, HEAD);
    struct lookup_request request = request_make(&rows, 4, 128, &random);
    for (uint32_t i = 0; i < 128; i++) /* one row for which all scores are negative, one of the best possible */
      for (uint32_t row = 0; row < 2; row++) {
        bool negative = parts_signature(&parts, 0, 0)[i / 8] >> i % 8 & 1;
        set_query(&rows, row, i, negative == (row == 0) ? 1.0f : -1.0f);
      }
    request.candidates = 1500;
    compare_modes(&request, &parts);
    parts_free(&parts);
  }
}

/* The records that are sampled here, every 4th to every 32nd, are better than all others: they promise what is not
 * there. */
static void test_samples_that_mislead(void **state) {
  (void)state;
  enum { TOKENS = 4096 };
  static const uint32_t candidates[] = {128, 512, 1024};
  struct random random = {12};
  struct rows rows;
  struct archive_parts parts;
  one_part(&parts, TOKENS, &random);
  for (size_t c = 0; c < sizeof candidates / sizeof *candidates; c++) {
    uint32_t step = candidates[c] / 32;
    struct lookup_request request = request_make(&rows, 2, 128, &random);
    request.candidates = candidates[c];
    for (uint32_t i = 0; i < TOKENS; i++) {
      bool sampled = i % step == 0;
      store_u16(parts_k_scale(&parts, 0, i), sampled ? 0x5800 : 0x0400);
      for (uint32_t b = 0; b < 128; b++) { /* as far from the first query as may be, or as near but for one bit */
        float q;
        memcpy(&q, rows.bytes + 1 + 4 * b, sizeof q);
        uint8_t *byte = parts_signature(&parts, 0, i) + b / 8, bit = (uint8_t)(1 << b % 8);
        bool set = (q < 0) == (sampled && b != i / step % 128);
        *byte = (uint8_t)(set ? *byte | bit : *byte & ~bit);
      }
    }
    parts_seal(&parts, LAYER, HEAD);
    compare_modes(&request, &parts);
  }
  parts_free(&parts);
}

static void test_bad_scales_are_never_candidates(void **state) {
  (void)state;
  static const uint16_t bad[] = {0x7c00, 0x7e00, 0x7fff, 0x8000, 0x8001, 0xbc00, 0xfc00, 0xfe00, 0xffff};
  struct random random = {6};
  struct rows rows;
  struct archive_parts parts;
  one_part(&parts, 2000, &random);
  for (int kind = 0; kind < 4; kind++) {
    for (uint32_t i = 0; i < 2000; i++) {
      uint16_t scale = bad[random_below(&random, sizeof bad / sizeof *bad)];
      if (kind == 0 ? i % 3 == 0 : kind == 1 ? i % 100 == 7 : kind == 3)
        scale = kind == 3 ? 0 : (uint16_t)random_below(&random, 0x7c00);
      store_u16(parts_k_scale(&parts, 0, i), scale);
    }
    parts_seal(&parts, LAYER, HEAD);
    for (uint32_t candidates = 8; candidates <= 1024; candidates *= 8) {
      struct lookup_request request = request_make(&rows, 2, 128, &random);
      request.candidates = candidates;
      compare_modes(&request, &parts);
    }
  }
  parts_free(&parts);
}

/* Damages the CRC of the winners themselves, more and more of them. */
static void test_bad_winners_are_replaced(void **state) {
  (void)state;
  struct random random = {7};
  struct rows rows;
  struct archive_parts parts;
  one_part(&parts, 1500, &random);
  struct lookup_request request = request_make(&rows, 3, 128, &random);
  struct lookup_answer answer;
  answer_make(&answer, 3, 16);
  for (int round = 0; round < 16; round++) {
    request.mode = round % 2 ? LOOKUP_WEIGHTED : LOOKUP_HAMMING;
    compare(&request, &parts);
    assert_int_equal(lookup_run(scratch, &request, parts.columns, parts.count, &answer, NULL), 0);
    for (uint32_t i = 0; i < answer.count; i++) {
      assert_true(record_check(answer.records + (size_t)i * RECORD_BYTES, LAYER, HEAD, answer.tokens[i]));
      if (i % 2 == 0)
        parts_crc(&parts, 0, (uint32_t)(answer.tokens[i] - 4))[i % 4] ^= 0x10;
    }
  }
  assert_true(answer.bad_records > 48); /* all candidates of a row have been damaged by now */
  assert_true(answer.count < 48);
  request.head = HEAD + 1; /* all records are in the wrong place now */
  compare_modes(&request, &parts);
  assert_int_equal(lookup_run(scratch, &request, parts.columns, parts.count, &answer, NULL), 0);
  assert_int_equal(answer.count, 0);
  assert_int_equal(answer.index[0], LOOKUP_NONE);
  answer_free(&answer);
  parts_free(&parts);
}

static void test_many_rows(void **state) {
  (void)state;
  static const uint32_t row_counts[] = {1, 2, 8, 15, 16, 17, 33, 40};
  struct random random = {8};
  struct rows rows;
  struct archive_parts parts;
  static const uint64_t firsts[] = {4, 1504};
  static const uint32_t counts[] = {1500, 700};
  parts_make(&parts, firsts, counts, 2, LAYER, HEAD, &random);
  parts_crc(&parts, 1, 5)[0] ^= 1;
  for (size_t n = 0; n < sizeof row_counts / sizeof *row_counts; n++) {
    struct lookup_request request = request_make(&rows, row_counts[n], 72, &random);
    compare_modes(&request, &parts);
  }
  struct lookup_request request = request_make(&rows, 4, 72, &random);
  request.row_stride = 0; /* the same row again and again */
  compare_modes(&request, &parts);
  request.rows = 0;
  struct lookup_answer nothing = {.count = 1};
  assert_int_equal(lookup_run(scratch, &request, parts.columns, parts.count, &nothing, NULL), 0);
  assert_int_equal(nothing.count, 0);
  parts_free(&parts);
}

static void test_special_queries(void **state) {
  (void)state;
  static const float values[] = {0, -0.0f, 0x1p-149f, 1e-30f, 1, 7.5f, 3e38f, -3e38f};
  struct random random = {9};
  struct rows rows;
  struct archive_parts parts;
  one_part(&parts, 1100, &random);
  for (size_t v = 0; v < sizeof values / sizeof *values; v++)
    for (int others = 0; others < 3; others++)
      for (uint32_t d = 64; d <= 128; d += 32) {
        struct lookup_request request = request_make(&rows, 2, d, &random);
        for (uint32_t i = 0; i < 128; i++)
          if (others < 2)
            set_query(&rows, 0, i, others ? values[v] : i == 100 ? values[v] : 0);
          else /* steps of exactly a half */
            set_query(&rows, 0, i, i == 77 ? 7 : (float)(int)(i % 29) / 2 - 7);
        compare_modes(&request, &parts);
      }
  parts_free(&parts);
}

static void test_bad_requests_are_refused(void **state) {
  (void)state;
  static const float bad[] = {NAN, INFINITY, -INFINITY};
  struct random random = {10};
  struct rows rows;
  struct archive_parts parts;
  struct lookup_answer answer;
  one_part(&parts, 100, &random);
  answer_make(&answer, 2, 16);
  for (size_t b = 0; b < sizeof bad / sizeof *bad; b++)
    for (uint32_t i = 0; i < 128; i++) {
      struct lookup_request request = request_make(&rows, 2, 64, &random);
      set_query(&rows, 1, i, bad[b]);
      struct error error = {0};
      assert_int_equal(lookup_run(scratch, &request, parts.columns, 1, &answer, &error), -ERR_BAD_PARAMS);
      assert_int_equal(error.code, ERR_BAD_PARAMS);
    }
  struct lookup_request good = request_make(&rows, 2, 64, &random);
  struct lookup_request requests[] = {good, good, good, good, good, good};
  requests[0].head_dim = 60;
  requests[1].rows = LIMIT_ROWS_MAX + 1;
  requests[2].k = 0;
  requests[3].k = LIMIT_K_MAX + 1;
  requests[4].candidates = LIMIT_CANDIDATES_MAX + 1;
  requests[5].mode = (enum lookup_mode)2;
  for (int i = 0; i < 6; i++)
    assert_int_equal(lookup_run(scratch, &requests[i], parts.columns, 1, &answer, NULL), -ERR_BAD_PARAMS);
  struct record_columns huge[2] = {{.count = UINT32_MAX}, {.first = UINT32_MAX, .count = 1}};
  assert_int_equal(lookup_run(scratch, &good, huge, 2, &answer, NULL), -ERR_LIMIT);
  answer_free(&answer);
  parts_free(&parts);
}

static void test_default_candidates(void **state) {
  (void)state;
  assert_int_equal(lookup_default_candidates(0), 1024);
  assert_int_equal(lookup_default_candidates(32 * 1024), 1024);
  assert_int_equal(lookup_default_candidates(32 * 1025), 1025);
  assert_int_equal(lookup_default_candidates(32 * 4096 - 1), 4095);
  assert_int_equal(lookup_default_candidates(32 * 4096), 4096);
  assert_int_equal(lookup_default_candidates(UINT64_MAX), 4096);
}

/* Random everything. */
static void test_soak(void **state) {
  (void)state;
  struct random random = {11};
  struct rows rows;
  for (int round = 0; round < 60; round++) {
    uint64_t firsts[4];
    uint32_t counts[4], count = 1 + (uint32_t)random_below(&random, 4);
    uint64_t token = random_below(&random, 1000);
    for (uint32_t p = 0; p < count; p++) {
      firsts[p] = token;
      counts[p] = (uint32_t)random_below(&random, 2500);
      token += counts[p] + random_below(&random, 3);
    }
    struct archive_parts parts;
    parts_make(&parts, firsts, counts, count, LAYER, HEAD, &random);
    for (uint32_t p = 0; p < count; p++)
      for (uint32_t i = 0; i < counts[p]; i += 1 + (uint32_t)random_below(&random, 50))
        parts_crc(&parts, p, i)[0] ^= 1;
    uint32_t d = 64 + 8 * (uint32_t)random_below(&random, 9), n = 1 + (uint32_t)random_below(&random, 4);
    struct lookup_request request = request_make(&rows, n, d, &random);
    request.k = 1 + (uint32_t)random_below(&random, 100);
    request.candidates = (uint32_t)random_below(&random, 1500);
    request.from = random_below(&random, token + 1);
    request.before = request.from + random_below(&random, token + 1);
    compare_modes(&request, &parts);
    parts_free(&parts);
  }
}

static int setup(void **state) {
  (void)state;
  return lookup_scratch_create(&scratch, NULL);
}

static int teardown(void **state) {
  (void)state;
  lookup_scratch_destroy(scratch);
  lookup_scratch_destroy(NULL);
  return 0;
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_every_head_dim),
      cmocka_unit_test(test_sizes),
      cmocka_unit_test(test_parts_with_gaps_and_cuts),
      cmocka_unit_test(test_ties),
      cmocka_unit_test(test_ordered_and_clustered_scores),
      cmocka_unit_test(test_samples_that_mislead),
      cmocka_unit_test(test_bad_scales_are_never_candidates),
      cmocka_unit_test(test_bad_winners_are_replaced),
      cmocka_unit_test(test_many_rows),
      cmocka_unit_test(test_special_queries),
      cmocka_unit_test(test_bad_requests_are_refused),
      cmocka_unit_test(test_default_candidates),
      cmocka_unit_test(test_soak),
  };
  return cmocka_run_group_tests(tests, setup, teardown);
}
