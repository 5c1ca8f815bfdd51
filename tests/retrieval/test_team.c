// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// A scan that is shared out gives the same answer, bit for bit, whatever the number of shares and the order they end
// in; and what a lookup says it will read from disk is what it reads.
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "retrieval/lane.h"
#include "retrieval/lookup.h"

enum { PARTS = 3, TOKENS = 7 * LANE_TOKENS_MIN + 123, ROWS = 3, K = 50 };

struct archive {
  uint8_t *bytes;
  struct record_columns parts[PARTS];
};

static uint64_t random_state;

static uint64_t random_next(void) {
  random_state = random_state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
  return random_state >> 17;
}

/* Few different signatures and scales, so that there are ties everywhere. */
static void fill_record(uint8_t *record, uint64_t token) {
  memset(record, 0, RECORD_BYTES);
  for (int i = 0; i < 100; i += 4)
    store_u32(record + i, (uint32_t)random_next());
  for (int i = 2; i < RECORD_SIGNATURE_BYTES; i++)
    record[RECORD_SIGNATURE + i] = 0x5a;
  store_u16(record + RECORD_K_SCALE, (uint16_t)(0x3c00 + 256 * (random_next() % 3)));
  store_u16(record + RECORD_V_SCALE, 0x3c00);
  record_seal(record, 0, 0, token);
}

static int make_archive(void **state) {
  static struct archive archive;
  archive.bytes = malloc((size_t)TOKENS * RECORD_BYTES);
  if (!archive.bytes)
    return -1;
  random_state = 11;
  uint64_t token = 0;
  for (int p = 0; p < PARTS; p++) {
    uint32_t count = p + 1 < PARTS ? TOKENS / PARTS + 7 : TOKENS - (uint32_t)token;
    uint8_t *base = archive.bytes + token * RECORD_BYTES;
    static const int places[] = {RECORD_SIGNATURE, RECORD_K_SCALE, RECORD_K_MAG, RECORD_V_CODE, RECORD_V_SCALE,
                                 RECORD_CRC, RECORD_BYTES};
    struct record_columns *columns = &archive.parts[p];
    const uint8_t **fields[] = {&columns->signature, &columns->k_scale, &columns->k_mag,
                                &columns->v_code,    &columns->v_scale, &columns->crc};
    for (int f = 0; f < 6; f++)
      *fields[f] = base + (size_t)places[f] * count;
    columns->first = token;
    columns->count = count;
    for (uint32_t i = 0; i < count; i++, token++) {
      uint8_t record[RECORD_BYTES];
      fill_record(record, token);
      for (int f = 0; f < 6; f++) {
        size_t size = (size_t)(places[f + 1] - places[f]);
        memcpy(base + (size_t)places[f] * count + i * size, record + places[f], size);
      }
    }
  }
  *state = &archive;
  return 0;
}

static int free_archive(void **state) {
  free(((struct archive *)*state)->bytes);
  return 0;
}

struct result {
  uint64_t tokens[ROWS * K];
  uint8_t records[ROWS * K][RECORD_BYTES];
  uint32_t index[ROWS * K];
  float scores[ROWS * K];
  struct lookup_answer answer;
};

static void look_up(const struct archive *archive, enum lookup_mode mode, const struct lookup_team *team,
                    const struct lookup_fetch *fetch, struct result *result) {
  float queries[ROWS][RECORD_SIGNATURE_BITS];
  random_state = 5;
  for (int r = 0; r < ROWS; r++)
    for (int i = 0; i < RECORD_SIGNATURE_BITS; i++)
      queries[r][i] = (float)(int64_t)(random_next() % 2001) - 1000.0f;
  struct lookup_request request = {
      .mode = mode, .head_dim = 128, .rows = ROWS, .k = K, .candidates = 700, .from = 5, .before = TOKENS - 9,
      .queries = (const uint8_t *)queries, .row_stride = sizeof queries[0], .team = team, .fetch = fetch,
  };
  struct lookup_scratch *scratch;
  struct error error = {0};
  memset(result, 0, sizeof *result);
  result->answer = (struct lookup_answer){.tokens = result->tokens, .records = result->records[0],
                                          .index = result->index, .scores = result->scores};
  assert_int_equal(lookup_scratch_create(&scratch, &error), 0);
  assert_int_equal(lookup_run(scratch, &request, archive->parts, PARTS, &result->answer, &error), 0);
  lookup_scratch_destroy(scratch);
}

static void assert_same(const struct result *a, const struct result *b) {
  assert_int_equal(a->answer.count, b->answer.count);
  assert_int_equal(a->answer.scanned, b->answer.scanned);
  assert_int_equal(a->answer.rescored, b->answer.rescored);
  assert_memory_equal(a->tokens, b->tokens, sizeof a->tokens);
  assert_memory_equal(a->records, b->records, sizeof a->records);
  assert_memory_equal(a->index, b->index, sizeof a->index);
  assert_memory_equal(a->scores, b->scores, sizeof a->scores);
}

static uint32_t calls;

/* The worst order: last share first. */
static void run_backwards(const struct lookup_team *team, uint32_t tasks, void (*task)(void *context, uint32_t index),
                          void *context) {
  assert_in_range(tasks, 2, team->lanes);
  for (uint32_t i = tasks; i-- > 0;)
    task(context, i);
  calls += tasks;
}

static void test_shares_change_nothing(void **state) {
  static struct result alone, shared;
  for (int mode = LOOKUP_WEIGHTED; mode <= LOOKUP_HAMMING; mode++) {
    look_up(*state, (enum lookup_mode)mode, NULL, NULL, &alone);
    assert_true(alone.answer.count >= K);
    for (uint32_t lanes = 1; lanes <= 9; lanes++) {
      struct lookup_team team = {.lanes = lanes, .run = run_backwards};
      calls = 0;
      look_up(*state, (enum lookup_mode)mode, &team, NULL, &shared);
      uint32_t shares = lanes > 7 ? 7 : lanes; /* of the scan, and of the rescoring of each row */
      assert_int_equal(calls, lanes < 2 ? 0 : shares * (1 + ROWS));
      assert_same(&alone, &shared);
    }
  }
}

struct wanted {
  const struct archive *archive;
  uint64_t bytes[3]; /* of key codes, value codes, the rest */
  uint32_t runs;
  uint32_t open; /* wanted since the last run */
};

static void want(void *context, const struct record_columns *part, const void *address, size_t size) {
  struct wanted *wanted = context;
  assert_true(part >= wanted->archive->parts && part < wanted->archive->parts + PARTS);
  const uint8_t *p = address;
  bool code = p >= part->k_mag && p + size <= part->k_mag + (size_t)part->count * RECORD_K_MAG_BYTES;
  bool value = p >= part->v_code && p + size <= part->v_code + (size_t)part->count * RECORD_V_CODE_BYTES;
  bool rest = p >= part->v_scale && p + size <= part->crc + (size_t)part->count * RECORD_CRC_BYTES;
  assert_int_equal(code + value + rest, 1);
  wanted->bytes[code ? 0 : value ? 1 : 2] += size;
  wanted->open++;
}

static void run_fetch(void *context) {
  struct wanted *wanted = context;
  wanted->runs++;
  wanted->open = 0;
}

static void test_what_is_fetched(void **state) {
  static struct result alone, fetched;
  struct wanted wanted = {.archive = *state};
  struct lookup_fetch fetch = {want, run_fetch, &wanted};
  look_up(*state, LOOKUP_WEIGHTED, NULL, NULL, &alone);
  look_up(*state, LOOKUP_WEIGHTED, NULL, &fetch, &fetched);
  assert_same(&alone, &fetched);
  assert_int_equal(wanted.runs, 2 * ROWS);
  assert_int_equal(wanted.open, 0);
  assert_int_equal(wanted.bytes[0], fetched.answer.rescored * RECORD_K_MAG_BYTES);
  assert_int_equal(wanted.bytes[1], (uint64_t)ROWS * K * RECORD_V_CODE_BYTES);
  assert_int_equal(wanted.bytes[2], (uint64_t)ROWS * K * (RECORD_V_SCALE_BYTES + RECORD_CRC_BYTES));
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_shares_change_nothing),
      cmocka_unit_test(test_what_is_fetched),
  };
  return cmocka_run_group_tests(tests, make_archive, free_archive);
}
