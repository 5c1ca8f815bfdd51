// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// Answers of lookups, good ones and every kind of bad one.
#include "client/slots.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { ROWS = 3, K = 4, UNION = 5, D = 64, LAYER = 2 };
#define NONE UINT32_MAX

/* One head's answer; spans point into it. */
struct arrays {
  uint64_t tokens[UNION];
  uint8_t records[UNION][RECORD_BYTES];
  uint32_t index[ROWS * K];
  float scores[ROWS * K];
};

struct answer {
  struct msg_lookup_ok message;
  struct msg_lookup_head heads[2];
  struct arrays arrays[2];
};

static float means[2 * 3 * 2 * D];
static struct frozen frozen = {.mean_k = means, .mean_v = means + 3 * 2 * D};
static const struct slots_wanted wanted = {.row = 0, .rows = ROWS, .k = K, .from = 4, .before = 100};
static const struct slots_place place = {.layer = LAYER, .head_dim = D, .frozen = &frozen};

static void make_record(uint32_t head, uint64_t token, uint8_t *record) {
  float k[D], v[D];
  for (int i = 0; i < D; i++) {
    k[i] = (float)((token * 7 + (uint64_t)i * 3 + head) % 11) - 5;
    v[i] = (float)((token * 5 + (uint64_t)i + head) % 13) - 6;
  }
  const float *mean = means + (LAYER * 2 + head) * D;
  assert_int_equal(codec_encode(&frozen.codec, k, v, mean, mean + 3 * 2 * D, LAYER, head, token, record), 0);
}

static void make_answer(struct answer *a) {
  static const uint32_t index[ROWS * K] = {4, 0, 2, 1, 3, NONE, NONE, NONE, 2, 0, 1, NONE};
  a->message = (struct msg_lookup_ok){.k = K, .candidates = 5, .scanned = 96, .heads = {.count = 2, .items = a->heads}};
  for (uint32_t head = 0; head < 2; head++) {
    struct arrays *arrays = &a->arrays[head];
    for (uint64_t i = 0; i < UNION; i++) {
      arrays->tokens[i] = 4 + i * 20 + head;
      make_record(head, arrays->tokens[i], arrays->records[i]);
    }
    memcpy(arrays->index, index, sizeof index);
    a->heads[head] = (struct msg_lookup_head){
        .tokens = span_of(arrays->tokens, sizeof arrays->tokens),
        .records = span_of(arrays->records, sizeof arrays->records),
        .index = span_of(arrays->index, sizeof arrays->index),
        .scores = span_of(arrays->scores, sizeof arrays->scores),
    };
  }
}

/* Packs the answer, unpacks it, and takes it. */
static int take(struct retrieved *r, const struct answer *a, const struct slots_wanted *asked) {
  msgpack_sbuffer buffer;
  msgpack_packer packer;
  msgpack_unpacked unpacked;
  struct error error = {0};
  msgpack_sbuffer_init(&buffer);
  msgpack_packer_init(&packer, &buffer, msgpack_sbuffer_write);
  msgpack_unpacked_init(&unpacked);
  assert_int_equal(message_pack(&packer, &message_lookup_ok, &a->message), 0);
  assert_int_equal(msgpack_unpack_next(&unpacked, buffer.data, buffer.size, NULL), MSGPACK_UNPACK_SUCCESS);
  int result = slots_take(r, asked, &unpacked.data, &error);
  assert_int_equal(result, -error.code);
  msgpack_unpacked_destroy(&unpacked);
  msgpack_sbuffer_destroy(&buffer);
  return result;
}

static void start(struct retrieved *r, uint32_t rows) {
  assert_int_equal(retrieved_init(r, 2, NULL), 0);
  assert_int_equal(slots_clear(r, rows, K, NULL), 0);
}

static void check_row(const struct retrieved *r, uint32_t row, uint32_t head, uint32_t count, const uint64_t *tokens) {
  const uint32_t *places;
  assert_int_equal(retrieved_row(r, row, head, &places), count);
  for (uint32_t i = 0; i < count; i++) {
    uint64_t token = r->tokens[head][places[i]];
    float k[D], v[D];
    uint8_t record[RECORD_BYTES];
    const float *mean = means + (LAYER * 2 + head) * D;
    assert_int_equal(token, tokens[i] + head);
    make_record(head, token, record);
    codec_decode(&frozen.codec, record, mean, mean + 3 * 2 * D, k, v);
    assert_memory_equal(r->keys[head] + (size_t)places[i] * D, k, sizeof k);
    assert_memory_equal(r->values[head] + (size_t)places[i] * D, v, sizeof v);
  }
}

static void good_answers(void **state) {
  (void)state;
  struct answer a;
  struct retrieved r;
  uint64_t bad = 0;
  make_answer(&a);
  start(&r, ROWS);
  for (int again = 0; again < 2; again++) {
    assert_int_equal(slots_clear(&r, ROWS, K, NULL), 0);
    assert_int_equal(take(&r, &a, &wanted), 0);
    assert_int_equal(slots_finish(&r, &place, &bad, NULL), 0);
    for (uint32_t head = 0; head < 2; head++) {
      assert_int_equal(r.counts[head], UNION);
      check_row(&r, 0, head, 4, (const uint64_t[]){4, 24, 44, 84});
      check_row(&r, 1, head, 1, (const uint64_t[]){64});
      check_row(&r, 2, head, 3, (const uint64_t[]){4, 24, 44});
    }
  }
  assert_int_equal(bad, 0);
  retrieved_finish(&r);
}

/* Rows that were asked for in several lookups share one union. */
static void several_answers_are_merged(void **state) {
  (void)state;
  struct answer a;
  struct retrieved r;
  struct slots_wanted second = wanted;
  uint64_t bad = 0;
  make_answer(&a);
  start(&r, 2 * ROWS);
  second.row = ROWS;
  assert_int_equal(take(&r, &a, &wanted), 0);
  for (uint32_t head = 0; head < 2; head++) /* the second answer has tokens before, between and behind */
    for (uint64_t i = 0; i < UNION; i++) {
      a.arrays[head].tokens[i] = 4 + i * 23 + head;
      make_record(head, a.arrays[head].tokens[i], a.arrays[head].records[i]);
    }
  assert_int_equal(take(&r, &a, &second), 0);
  assert_int_equal(slots_finish(&r, &place, &bad, NULL), 0);
  for (uint32_t head = 0; head < 2; head++) {
    assert_int_equal(r.counts[head], 2 * UNION - 1); /* token 4 is in both */
    for (uint32_t i = 1; i < r.counts[head]; i++)
      assert_true(r.tokens[head][i - 1] < r.tokens[head][i]);
    check_row(&r, 0, head, 4, (const uint64_t[]){4, 24, 44, 84});
    check_row(&r, 1, head, 1, (const uint64_t[]){64});
    check_row(&r, ROWS, head, 4, (const uint64_t[]){4, 27, 50, 96});
    check_row(&r, ROWS + 1, head, 1, (const uint64_t[]){73});
    check_row(&r, ROWS + 2, head, 3, (const uint64_t[]){4, 27, 50});
  }
  assert_int_equal(bad, 0);
  retrieved_finish(&r);
}

static void damaged_records_are_left_out(void **state) {
  (void)state;
  struct answer a;
  struct retrieved r;
  uint64_t bad = 0;
  make_answer(&a);
  start(&r, ROWS);
  a.arrays[0].records[0][33] ^= 1;
  make_record(0, 45, a.arrays[0].records[2]); /* good, but of another token */
  make_record(0, 25, a.arrays[1].records[1]); /* of another head */
  assert_int_equal(take(&r, &a, &wanted), 0);
  assert_int_equal(slots_finish(&r, &place, &bad, NULL), 0);
  assert_int_equal(bad, 3);
  assert_int_equal(r.counts[0], UNION - 2);
  assert_int_equal(r.counts[1], UNION - 1);
  check_row(&r, 0, 0, 2, (const uint64_t[]){24, 84});
  check_row(&r, 1, 0, 1, (const uint64_t[]){64});
  check_row(&r, 2, 0, 1, (const uint64_t[]){24});
  check_row(&r, 0, 1, 3, (const uint64_t[]){4, 44, 84});
  retrieved_finish(&r);
}

/* A slot that stands twice in a row must not weigh twice. */
static void repeated_slots_count_once(void **state) {
  (void)state;
  struct answer a;
  struct retrieved r;
  uint64_t bad = 0;
  make_answer(&a);
  start(&r, ROWS);
  a.arrays[0].index[0] = a.arrays[0].index[1] = a.arrays[0].index[2] = 3;
  assert_int_equal(take(&r, &a, &wanted), 0);
  assert_int_equal(slots_finish(&r, &place, &bad, NULL), 0);
  check_row(&r, 0, 0, 2, (const uint64_t[]){24, 64});
  retrieved_finish(&r);
}

static void empty_answers(void **state) {
  (void)state;
  struct answer a;
  struct retrieved r;
  uint64_t bad = 0;
  make_answer(&a);
  start(&r, ROWS);
  a.message.k = 0;
  for (int head = 0; head < 2; head++)
    a.heads[head] = (struct msg_lookup_head){0};
  assert_int_equal(take(&r, &a, &wanted), 0);
  assert_int_equal(slots_finish(&r, &place, &bad, NULL), 0);
  assert_int_equal(r.counts[0], 0);
  check_row(&r, 0, 0, 0, NULL);
  retrieved_finish(&r);
}

static void refuse(const struct answer *a) {
  struct retrieved r;
  start(&r, ROWS);
  assert_int_equal(take(&r, a, &wanted), -ERR_BAD_MESSAGE);
  retrieved_finish(&r);
}

static void answers_that_make_no_sense(void **state) {
  (void)state;
  struct answer a;
#define REFUSE(change) (make_answer(&a), (change), refuse(&a))
  REFUSE(a.message.heads.count = 1);
  REFUSE(a.message.heads.count = 0);
  REFUSE(a.message.k = K + 1);
  REFUSE(a.message.k = K - 1);
  REFUSE(a.heads[1].tokens.size -= 8);
  REFUSE(a.heads[1].records.size -= RECORD_BYTES);
  REFUSE(a.heads[0].index.size -= 4);
  REFUSE(a.heads[0].scores.size -= 4);
  REFUSE(a.heads[0].scores.size = 0);
  REFUSE(a.arrays[0].index[5] = UNION);
  REFUSE(a.arrays[1].index[11] = NONE - 1);
  REFUSE(a.arrays[0].tokens[0] = 3);
  REFUSE(a.arrays[0].tokens[4] = 100);
  REFUSE(a.arrays[0].tokens[4] = UINT64_MAX);
  REFUSE(a.arrays[0].tokens[1] = a.arrays[0].tokens[0]);
  REFUSE(a.arrays[0].tokens[2] = a.arrays[0].tokens[0]);
}

/* A union larger than all rows together could fill memory that nobody asked for. */
static void unions_are_bounded(void **state) {
  (void)state;
  struct answer a;
  struct retrieved r;
  struct slots_wanted one = {.row = 0, .rows = 1, .k = K, .from = 4, .before = 100};
  make_answer(&a);
  start(&r, 1);
  for (int head = 0; head < 2; head++)
    a.heads[head].index.size = a.heads[head].scores.size = K * 4;
  assert_int_equal(take(&r, &a, &one), -ERR_BAD_MESSAGE); /* five in the union for four slots */
  retrieved_finish(&r);
}

int main(void) {
  for (int i = 0; i < 2 * 3 * 2 * D; i++)
    means[i] = (float)(i % 7) / 8;
  if (codec_init(&frozen.codec, D, 5, NULL))
    return 1;
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(good_answers),
      cmocka_unit_test(several_answers_are_merged),
      cmocka_unit_test(damaged_records_are_left_out),
      cmocka_unit_test(repeated_slots_count_once),
      cmocka_unit_test(empty_answers),
      cmocka_unit_test(answers_that_make_no_sense),
      cmocka_unit_test(unions_are_bounded),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
