// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
#include "proto/rpc.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "proto/validator.h"
#include "tests/proto/random.h"

struct wire {
  msgpack_sbuffer buffer;
  msgpack_packer packer;
  msgpack_zone zone;
  msgpack_object root;
  struct rpc rpc;
  struct error error;
};

static int setup(void **state) {
  struct wire *wire = calloc(1, sizeof *wire);
  if (!wire || !msgpack_zone_init(&wire->zone, 1024))
    return -1;
  msgpack_sbuffer_init(&wire->buffer);
  msgpack_packer_init(&wire->packer, &wire->buffer, msgpack_sbuffer_write);
  *state = wire;
  return 0;
}

static int teardown(void **state) {
  struct wire *wire = *state;
  msgpack_sbuffer_destroy(&wire->buffer);
  msgpack_zone_destroy(&wire->zone);
  free(wire);
  return 0;
}

static int parse(struct wire *wire, const void *data, size_t size) {
  msgpack_zone_clear(&wire->zone);
  wire->error = (struct error){0};
  return rpc_parse(data, size, &wire->zone, &wire->root, &wire->rpc, &wire->error);
}

static int parse_packed(struct wire *wire) {
  struct validator validator;
  size_t used;
  validator_init(&validator, &validator_limits_default);
  assert_int_equal(validator_feed(&validator, (uint8_t *)wire->buffer.data, wire->buffer.size, &used, NULL), 0);
  assert_true(validator.done && used == wire->buffer.size);
  return parse(wire, wire->buffer.data, wire->buffer.size);
}

static void test_request(void **state) {
  struct wire *wire = *state;
  struct msg_delete params = {span_str("a"), span_str("b")}, back;
  assert_int_equal(rpc_pack_request(&wire->packer, UINT32_MAX, METHOD_DELETE, &params), 0);
  assert_int_equal(parse_packed(wire), 0);
  assert_int_equal(wire->rpc.kind, RPC_REQUEST);
  assert_int_equal(wire->rpc.id, UINT32_MAX);
  assert_int_equal(method_find(wire->rpc.method), METHOD_DELETE);
  assert_null(wire->rpc.fault);
  assert_int_equal(message_unpack(&message_delete, wire->rpc.body, &back, NULL), 0);
  assert_memory_equal(back.confirm.data, "b", 1);
}

static void test_result(void **state) {
  struct wire *wire = *state;
  struct msg_append_ok result = {5, 3}, back;
  assert_int_equal(rpc_pack_result(&wire->packer, 7, &message_append_ok, &result), 0);
  assert_int_equal(parse_packed(wire), 0);
  assert_int_equal(wire->rpc.kind, RPC_RESPONSE);
  assert_int_equal(wire->rpc.id, 7);
  assert_null(wire->rpc.fault);
  assert_int_equal(message_unpack(&message_append_ok, wire->rpc.body, &back, NULL), 0);
  assert_int_equal(back.stored, 5);
}

static void test_error_comes_across(void **state) {
  struct wire *wire = *state;
  static const int codes[] = {
#define CODE(id, value, name) value,
      ERROR_CODES(CODE)
#undef CODE
  };
  for (size_t i = 0; i < sizeof codes / sizeof codes[0]; i++) {
    struct error sent = {.code = codes[i], .text = "caf\xc3\xa9: gone"}, got = {0};
    msgpack_sbuffer_clear(&wire->buffer);
    assert_int_equal(rpc_pack_error(&wire->packer, 9, &sent), 0);
    assert_int_equal(parse_packed(wire), 0);
    assert_int_equal(wire->rpc.kind, RPC_RESPONSE);
    assert_int_equal(wire->rpc.id, 9);
    assert_null(wire->rpc.body);
    assert_int_equal(rpc_fault(wire->rpc.fault, &got), -codes[i]);
    assert_int_equal(got.code, codes[i]);
    assert_string_equal(got.text, sent.text);
  }
}

/* A sentence may carry a damaged name, or be cut in the middle of a character; it must still be readable. */
static void test_unreadable_sentences_are_repaired(void **state) {
  struct wire *wire = *state;
  static const struct {
    const char *sent, *got;
  } cases[] = {
      {"", ""},
      {"a\nb\tc\x7f", "a?b?c?"},
      {"caf\xc3\xa9 \xe2\x82\xac \xf0\x9f\x98\x80", "caf\xc3\xa9 \xe2\x82\xac \xf0\x9f\x98\x80"},
      {"cut \xe2\x82", "cut ??"},
      {"cut \xf0\x9f\x98", "cut ???"},
      {"\xff\xc0\x80 \xed\xa0\x80 \xc2\x85 \xc3z", "??? ??? ?? ?z"},
  };
  for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
    struct error sent = {.code = ERR_CORRUPT}, got = {0};
    strcpy(sent.text, cases[i].sent);
    msgpack_sbuffer_clear(&wire->buffer);
    assert_int_equal(rpc_pack_error(&wire->packer, 1, &sent), 0);
    assert_int_equal(parse_packed(wire), 0);
    assert_int_equal(rpc_fault(wire->rpc.fault, &got), -ERR_CORRUPT);
    assert_string_equal(got.text, cases[i].got);
  }
  struct random random = {1};
  for (int i = 0; i < 2000; i++) {
    struct error sent = {.code = ERR_GAP}, got = {0};
    size_t size = random_below(&random, sizeof sent.text);
    for (size_t at = 0; at < size; at++)
      sent.text[at] = (char)(1 + random_below(&random, 255));
    msgpack_sbuffer_clear(&wire->buffer);
    assert_int_equal(rpc_pack_goodbye(&wire->packer, &sent), 0);
    assert_int_equal(parse_packed(wire), 0);
    assert_int_equal(rpc_fault(wire->rpc.body, &got), -ERR_GAP);
    assert_int_equal(strlen(got.text), size);
  }
}

static void test_goodbye(void **state) {
  struct wire *wire = *state;
  struct error sent, got;
  error_set(&sent, ERR_BAD_MESSAGE, "no");
  assert_int_equal(rpc_pack_goodbye(&wire->packer, &sent), 0);
  assert_int_equal(parse_packed(wire), 0);
  assert_int_equal(wire->rpc.kind, RPC_NOTIFICATION);
  assert_memory_equal(wire->rpc.method.data, "error", 5);
  assert_int_equal(rpc_fault(wire->rpc.body, &got), -ERR_BAD_MESSAGE);
}

static void test_fault_of_a_stranger(void **state) {
  struct wire *wire = *state;
  struct error got;
  /* [1, 2, "text", nil] as other MessagePack-RPC servers do, and {"code": "new", "message": "x"} */
  assert_int_equal(parse(wire, "\x94\x01\x02\xa4text\xc0", 9), 0);
  assert_int_equal(rpc_fault(wire->rpc.fault, &got), -ERR_INTERNAL);
  assert_true(got.text[0]);
  assert_int_equal(parse(wire, "\x94\x01\x02\x82\xa4" "code\xa3new\xa7message\xa1x\xc0", 24), 0);
  assert_int_equal(rpc_fault(wire->rpc.fault, &got), -ERR_INTERNAL);
  assert_string_equal(got.text, "x");
}

#define BYTES(text) text, sizeof(text) - 1

static void test_what_is_no_message(void **state) {
  struct wire *wire = *state;
  static const struct {
    const char *data;
    size_t size;
  } bad[] = {
      {BYTES("\x80")},                             /* a map */
      {BYTES("\x07")},                             /* a number */
      {BYTES("\xc0")},
      {BYTES("\xa4" "abcd")},
      {BYTES("\x90")},                             /* [] */
      {BYTES("\x94\x00\x01\xa5hello")},            /* cut */
      {BYTES("\x94\x00\x01\xa5hello\x80\x80")},    /* one value more */
      {BYTES("\x94\x03\x01\xa5hello\x80")},        /* kind 3 */
      {BYTES("\x94\xff\x01\xa5hello\x80")},        /* kind -1 */
      {BYTES("\x94\xa1" "0\x01\xa5hello\x80")},    /* kind "0" */
      {BYTES("\x93\x00\x01\xa5hello")},            /* a request of three */
      {BYTES("\x95\x00\x01\xa5hello\x80\x80")},    /* of five */
      {BYTES("\x94\x00\xff\xa5hello\x80")},        /* id -1 */
      {BYTES("\x94\x00\xcf\0\0\0\1\0\0\0\0\xa5hello\x80")}, /* id 2^32 */
      {BYTES("\x94\x00\x01\xc4\x05hello\x80")},    /* method as bin */
      {BYTES("\x93\x01\x01\xc0")},                 /* a response of three */
      {BYTES("\x94\x01\xa1" "1\xc0\x80")},         /* id "1" */
      {BYTES("\x94\x02\xa5" "error\x80\x80")},     /* a notification of four */
      {BYTES("\x93\x02\x05\x80")},                 /* of a number */
      {BYTES("\xc1")},
      {BYTES("")},
  };
  for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
    assert_int_equal(parse(wire, bad[i].data, bad[i].size), -ERR_BAD_MESSAGE);
    assert_true(wire->error.text[0]);
  }
  assert_int_equal(parse(wire, BYTES("\x94\x00\xce\xff\xff\xff\xff\xa5hello\x80")), 0); /* id 2^32 - 1 */
}

static void test_random_messages(void **state) {
  struct wire *wire = *state;
  struct random random = {2};
  uint8_t data[40];
  unsigned good = 0;
  for (int i = 0; i < 200000; i++) {
    static const uint8_t request[] = "\x94\x00\x01\xa5hello\x81\xa8protocol\x01";
    size_t size = sizeof request - 1;
    memcpy(data, request, size);
    for (uint64_t n = 1 + random_below(&random, 3); n; n--)
      data[random_below(&random, size)] = (uint8_t)random_u64(&random);
    struct validator validator;
    size_t used;
    struct validator_limits limits = {.bytes_max = 1000, .depth_max = 8, .elements_max = 100};
    validator_init(&validator, &limits);
    if (validator_feed(&validator, data, size, &used, NULL) || !validator.done)
      continue;
    int result = parse(wire, data, used);
    assert_true(result == 0 || result == -ERR_BAD_MESSAGE);
    good += result == 0;
    struct msg_hello hello;
    if (result == 0 && wire->rpc.kind == RPC_REQUEST)
      assert_in_range(-message_unpack(&message_hello, wire->rpc.body, &hello, &wire->error), 0, ERR_BAD_PARAMS);
    if (result == 0 && wire->rpc.fault)
      assert_true(rpc_fault(wire->rpc.fault, &wire->error) < 0);
  }
  assert_true(good > 1000);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test_setup_teardown(test_request, setup, teardown),
      cmocka_unit_test_setup_teardown(test_result, setup, teardown),
      cmocka_unit_test_setup_teardown(test_error_comes_across, setup, teardown),
      cmocka_unit_test_setup_teardown(test_unreadable_sentences_are_repaired, setup, teardown),
      cmocka_unit_test_setup_teardown(test_goodbye, setup, teardown),
      cmocka_unit_test_setup_teardown(test_fault_of_a_stranger, setup, teardown),
      cmocka_unit_test_setup_teardown(test_what_is_no_message, setup, teardown),
      cmocka_unit_test_setup_teardown(test_random_messages, setup, teardown),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
