// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// The validator against msgpack-c: where one finds the end of a value, so must the other.
#include "proto/validator.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <msgpack.h>

#include "tests/proto/random.h"

/* Calls of the allocator from this program's own objects, the validator's among them (linked with --wrap). */
static unsigned long allocations;
void *__real_malloc(size_t size);
void *__real_calloc(size_t count, size_t size);
void *__real_realloc(void *old, size_t size);
void *__wrap_malloc(size_t size);
void *__wrap_calloc(size_t count, size_t size);
void *__wrap_realloc(void *old, size_t size);
void *__wrap_malloc(size_t size) { return allocations++, __real_malloc(size); }
void *__wrap_calloc(size_t count, size_t size) { return allocations++, __real_calloc(count, size); }
void *__wrap_realloc(void *old, size_t size) { return allocations++, __real_realloc(old, size); }

/* What became of a message. */
struct outcome {
  int result;
  bool done;
  size_t used;
};

static bool outcome_equal(struct outcome a, struct outcome b) {
  return a.result == b.result && (a.result || (a.done == b.done && a.used == b.used));
}

/* Feeds data[0..size) in pieces of at most `step` bytes, each an exact copy so that a sanitizer sees overreads. */
static struct outcome feed(const uint8_t *data, size_t size, size_t step, const struct validator_limits *limits) {
  struct validator validator;
  validator_init(&validator, limits);
  struct outcome outcome = {0};
  for (size_t at = 0; at < size && !validator.done;) {
    size_t piece = size - at < step ? size - at : step;
    uint8_t *copy = malloc(piece);
    assert_non_null(copy);
    memcpy(copy, data + at, piece);
    size_t used = SIZE_MAX;
    struct error error = {0};
    unsigned long before = allocations;
    outcome.result = validator_feed(&validator, copy, piece, &used, &error);
    assert_int_equal(allocations, before);
    free(copy);
    if (outcome.result) {
      assert_int_equal(outcome.result, -error.code);
      assert_true(error.text[0]);
      break;
    }
    assert_true(used <= piece && (validator.done || used == piece));
    outcome.used += used;
    at += used;
  }
  outcome.done = validator.done;
  return outcome;
}

/* The same in two pieces, cut at `cut`. */
static struct outcome feed_cut(const uint8_t *data, size_t size, size_t cut, const struct validator_limits *limits) {
  struct validator validator;
  validator_init(&validator, limits);
  struct outcome outcome = {0};
  size_t used = 0;
  outcome.result = validator_feed(&validator, data, cut, &used, NULL);
  outcome.used = used;
  if (!outcome.result && !validator.done) {
    assert_int_equal(used, cut);
    outcome.result = validator_feed(&validator, data + cut, size - cut, &used, NULL);
    outcome.used += used;
  }
  outcome.done = validator.done;
  return outcome;
}

/* msgpack-c's opinion of the same bytes; ask only about bytes that announce nothing huge. */
static struct outcome oracle(const uint8_t *data, size_t size) {
  msgpack_zone zone;
  assert_true(msgpack_zone_init(&zone, 8192));
  msgpack_object object;
  size_t used = 0;
  struct outcome outcome = {0};
  switch (msgpack_unpack((const char *)data, size, &used, &zone, &object)) {
  case MSGPACK_UNPACK_SUCCESS:
  case MSGPACK_UNPACK_EXTRA_BYTES:
    outcome = (struct outcome){.done = true, .used = used};
    break;
  case MSGPACK_UNPACK_CONTINUE:
    outcome = (struct outcome){.used = size};
    break;
  case MSGPACK_UNPACK_PARSE_ERROR:
    outcome.result = -ERR_BAD_MESSAGE;
    break;
  case MSGPACK_UNPACK_NOMEM_ERROR:
    fail_msg("msgpack-c ran out of memory");
  }
  msgpack_zone_destroy(&zone);
  return outcome;
}

/* --- random values ----------------------------------------------------------------------------------------------- */

/* What a generated value takes, by the generator's own count. */
struct measure {
  uint32_t depth, elements;
};

static void pack_body(msgpack_packer *packer, struct random *random, int kind) {
  uint8_t bytes[300];
  size_t size = random_below(random, random_below(random, 4) ? 40 : sizeof bytes);
  random_fill(random, bytes, size);
  if (kind == 0) {
    msgpack_pack_str(packer, size);
    msgpack_pack_str_body(packer, bytes, size);
  } else if (kind == 1) {
    msgpack_pack_bin(packer, size);
    msgpack_pack_bin_body(packer, bytes, size);
  } else {
    msgpack_pack_ext(packer, size, (int8_t)random_u64(random));
    msgpack_pack_ext_body(packer, bytes, size);
  }
}

static void pack_scalar(msgpack_packer *packer, struct random *random) {
  uint64_t value = random_u64(random) >> random_below(random, 64);
  switch (random_below(random, 8)) {
  case 0: msgpack_pack_uint64(packer, value); break;
  case 1: msgpack_pack_int64(packer, -(int64_t)(value >> 1)); break;
  case 2: msgpack_pack_float(packer, (float)value); break;
  case 3: msgpack_pack_double(packer, (double)value); break;
  case 4: msgpack_pack_nil(packer); break;
  case 5: msgpack_pack_true(packer); break;
  default: pack_body(packer, random, (int)random_below(random, 3)); break;
  }
}

static void pack_value(msgpack_packer *packer, struct random *random, uint32_t level, struct measure *measure) {
  bool enough = measure->elements > 60;
  if (level == LIMIT_MESSAGE_DEPTH_MAX || enough || random_below(random, 3) == 0) {
    pack_scalar(packer, random);
    return;
  }
  uint32_t count = (uint32_t)random_below(random, random_below(random, 16) ? 5 : 40);
  bool map = random_below(random, 2);
  if (map)
    msgpack_pack_map(packer, count);
  else
    msgpack_pack_array(packer, count);
  count *= map ? 2 : 1;
  measure->elements += count;
  if (count && level + 1 > measure->depth)
    measure->depth = level + 1;
  for (uint32_t i = 0; i < count; i++)
    pack_value(packer, random, level + 1, measure);
}

static struct measure random_message(msgpack_sbuffer *buffer, struct random *random) {
  struct measure measure = {0};
  msgpack_sbuffer_clear(buffer);
  msgpack_packer packer;
  msgpack_packer_init(&packer, buffer, msgpack_sbuffer_write);
  pack_value(&packer, random, 0, &measure);
  return measure;
}

/* --- tests ------------------------------------------------------------------------------------------------------- */

static void test_random_messages_in_any_pieces(void **state) {
  (void)state;
  struct random random = {1};
  msgpack_sbuffer buffer;
  msgpack_sbuffer_init(&buffer);
  for (int i = 0; i < 4000; i++) {
    random_message(&buffer, &random);
    size_t size = buffer.size;
    msgpack_sbuffer_write(&buffer, "\xc1\xdd\xff", 3); /* of the next message: must not be looked at */
    const uint8_t *data = (const uint8_t *)buffer.data;
    struct outcome wanted = {.done = true, .used = size};
    assert_true(outcome_equal(oracle(data, size), wanted));
    assert_true(outcome_equal(feed(data, buffer.size, SIZE_MAX, &validator_limits_default), wanted));
    assert_true(outcome_equal(feed(data, buffer.size, 1, &validator_limits_default), wanted));
    size_t step = size > 600 ? size / 300 : 1;
    for (size_t cut = 0; cut <= size; cut += step)
      assert_true(outcome_equal(feed_cut(data, buffer.size, cut, &validator_limits_default), wanted));
    for (size_t cut = 0; cut < size; cut += step)
      assert_true(outcome_equal(feed_cut(data, cut, cut / 2, &validator_limits_default),
                                (struct outcome){.done = false, .used = cut}));
  }
  msgpack_sbuffer_destroy(&buffer);
}

/* Each limit is met exactly, and missed by one. */
static void test_limits_to_the_last(void **state) {
  (void)state;
  struct random random = {2};
  msgpack_sbuffer buffer;
  msgpack_sbuffer_init(&buffer);
  for (int i = 0; i < 4000; i++) {
    struct measure measure = random_message(&buffer, &random);
    const uint8_t *data = (const uint8_t *)buffer.data;
    struct validator_limits exact = {.bytes_max = buffer.size, measure.depth, measure.elements};
    assert_true(outcome_equal(feed(data, buffer.size, SIZE_MAX, &exact), (struct outcome){0, true, buffer.size}));
    struct validator_limits less = exact;
    less.bytes_max--;
    assert_int_equal(feed(data, buffer.size, SIZE_MAX, &less).result, -ERR_LIMIT);
    assert_int_equal(feed(data, buffer.size, 1, &less).result, -ERR_LIMIT);
    if (measure.elements) {
      less = exact;
      less.elements_max--;
      assert_int_equal(feed(data, buffer.size, 1, &less).result, -ERR_LIMIT);
      less = exact;
      less.depth_max--;
      assert_int_equal(feed(data, buffer.size, 1, &less).result, -ERR_LIMIT);
    }
  }
  msgpack_sbuffer_destroy(&buffer);
}

static void test_mutated_messages(void **state) {
  (void)state;
  struct random random = {3};
  struct validator_limits limits = {.bytes_max = 1 << 16, .depth_max = 8, .elements_max = 4096};
  msgpack_sbuffer buffer;
  msgpack_sbuffer_init(&buffer);
  unsigned seen_done = 0, seen_more = 0, seen_bad = 0, seen_limit = 0;
  for (int i = 0; i < 60000; i++) {
    random_message(&buffer, &random);
    uint8_t *data = (uint8_t *)buffer.data;
    for (uint64_t n = 1 + random_below(&random, 4); n; n--)
      data[random_below(&random, buffer.size)] =
          (uint8_t)(random_below(&random, 2) ? random_u64(&random) : 0xc0 + random_below(&random, 8));
    size_t size = random_below(&random, 4) ? buffer.size : random_below(&random, buffer.size + 1);
    struct outcome outcome = feed(data, size, SIZE_MAX, &limits);
    assert_true(outcome_equal(outcome, feed(data, size, 1 + random_below(&random, 7), &limits)));
    if (outcome.result == -ERR_LIMIT) {
      seen_limit++;
      continue;
    }
    assert_true(outcome_equal(outcome, oracle(data, size)));
    seen_bad += outcome.result != 0;
    seen_done += !outcome.result && outcome.done;
    seen_more += !outcome.result && !outcome.done;
  }
  msgpack_sbuffer_destroy(&buffer);
  assert_true(seen_done > 1000);
  assert_true(seen_more > 1000);
  assert_true(seen_bad > 500);
  assert_true(seen_limit > 1000);
}

/* Each type byte, followed by zeros, and by 00 ff ff ff...: the same end as msgpack-c finds. */
static void test_every_type_byte(void **state) {
  (void)state;
  uint8_t data[300];
  for (unsigned type = 0; type < 256; type++)
    for (unsigned length = 0; length < 256; length += 51) {
      memset(data, 0, sizeof data);
      data[0] = (uint8_t)type;
      bool wide = type == 0xc6 || type == 0xc9 || type == 0xdb || type == 0xdd || type == 0xdf;
      bool middle = type == 0xc5 || type == 0xc8 || type == 0xda || type == 0xdc || type == 0xde;
      data[wide ? 4 : middle ? 2 : 1] = (uint8_t)length;
      for (size_t size = 1; size <= sizeof data; size += size < 24 ? 1 : 23) {
        struct outcome wanted = oracle(data, size);
        assert_true(outcome_equal(feed(data, size, SIZE_MAX, &validator_limits_default), wanted));
        assert_true(outcome_equal(feed(data, size, 1, &validator_limits_default), wanted));
      }
    }
  assert_int_equal(feed((const uint8_t *)"\xc1", 1, 1, &validator_limits_default).result, -ERR_BAD_MESSAGE);
}

/* Headers that announce gigabytes are refused at their last byte, before anything follows. */
static void test_announced_gigabytes(void **state) {
  (void)state;
  static const uint8_t types[] = {0xc6, 0xc9, 0xdb, 0xdd, 0xdf};
  for (size_t i = 0; i < sizeof types; i++) {
    uint8_t data[6] = {types[i], 0xff, 0xff, 0xff, 0xff, 0};
    assert_int_equal(feed(data, 5, SIZE_MAX, &validator_limits_default).result, -ERR_LIMIT);
    assert_int_equal(feed(data, 5, 1, &validator_limits_default).result, -ERR_LIMIT);
    struct outcome shorter = feed(data, 4, 1, &validator_limits_default);
    assert_true(shorter.result == 0 && !shorter.done);
  }
  /* a body that alone would fit, after one that leaves too little */
  uint8_t two[13] = {0x92, 0xc6, 0, 0, 0, 1, 7, 0xc6, 0x02, 0, 0, 0, 0};
  assert_int_equal(feed(two, sizeof two, SIZE_MAX, &validator_limits_default).result, -ERR_LIMIT);
  /* counts whose product is huge though each is small */
  uint8_t nested[3 * 8];
  for (size_t i = 0; i < 8; i++)
    memcpy(nested + 3 * i, "\xdc\xff\xff", 3);
  assert_int_equal(feed(nested, sizeof nested, SIZE_MAX, &validator_limits_default).result, -ERR_LIMIT);
  /* more elements than bytes may come */
  struct validator_limits small = {.bytes_max = 100, .depth_max = 8, .elements_max = 65536};
  assert_int_equal(feed((const uint8_t *)"\xdc\x00\x62", 3, 3, &small).result, -ERR_LIMIT);
  assert_int_equal(feed((const uint8_t *)"\xdc\x00\x61", 3, 3, &small).result, 0);
}

static void test_default_limits_to_the_last(void **state) {
  (void)state;
  size_t room = (size_t)LIMIT_MESSAGE_BYTES_MAX + 1;
  uint8_t *data = calloc(1, room);
  assert_non_null(data);
  const struct validator_limits *limits = &validator_limits_default;
  /* size: a bin whose header and body make 32 MiB */
  uint32_t body = LIMIT_MESSAGE_BYTES_MAX - 5;
  memcpy(data, (uint8_t[]){0xc6, (uint8_t)(body >> 24), (uint8_t)(body >> 16), (uint8_t)(body >> 8), (uint8_t)body}, 5);
  assert_true(outcome_equal(feed(data, room, 65536, limits), (struct outcome){0, true, LIMIT_MESSAGE_BYTES_MAX}));
  data[4]++;
  assert_int_equal(feed(data, room, 65536, limits).result, -ERR_LIMIT);
  /* elements: an array of 65536 zeros */
  memset(data, 0, 65536 + 5);
  memcpy(data, "\xdd\x00\x01\x00\x00", 5);
  assert_true(outcome_equal(feed(data, room, 4096, limits), (struct outcome){0, true, 65536 + 5}));
  memcpy(data, "\xdd\x00\x01\x00\x01", 5);
  assert_int_equal(feed(data, room, 4096, limits).result, -ERR_LIMIT);
  /* depth: eight arrays, one in the other; an empty one inside opens nothing */
  memset(data, 0x91, 9);
  data[8] = 0x90;
  assert_true(outcome_equal(feed(data, room, 3, limits), (struct outcome){0, true, 9}));
  data[8] = 0x91;
  assert_int_equal(feed(data, room, 3, limits).result, -ERR_LIMIT);
  /* nobody may ask for more depth than the array of open levels holds */
  struct validator_limits deep = *limits;
  deep.depth_max = 1000;
  assert_int_equal(feed(data, room, 3, &deep).result, -ERR_LIMIT);
  free(data);
}

/* `done` stays, and what follows is left alone until the validator is prepared again. */
static void test_two_messages_in_one_piece(void **state) {
  (void)state;
  static const uint8_t data[] = {0x92, 1, 2, 0xa1, 'x'};
  struct validator validator;
  size_t used;
  validator_init(&validator, &validator_limits_default);
  assert_int_equal(validator_feed(&validator, data, sizeof data, &used, NULL), 0);
  assert_true(validator.done && used == 3);
  assert_int_equal(validator_feed(&validator, data + 3, 2, &used, NULL), 0);
  assert_true(validator.done && used == 0);
  validator_init(&validator, &validator_limits_default);
  assert_int_equal(validator_feed(&validator, data + 3, 2, &used, NULL), 0);
  assert_true(validator.done && used == 2);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_random_messages_in_any_pieces), cmocka_unit_test(test_limits_to_the_last),
      cmocka_unit_test(test_mutated_messages),              cmocka_unit_test(test_every_type_byte),
      cmocka_unit_test(test_announced_gigabytes),           cmocka_unit_test(test_default_limits_to_the_last),
      cmocka_unit_test(test_two_messages_in_one_piece),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
