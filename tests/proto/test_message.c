// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// message_unpack against everything that a map can have wrong.
#include "proto/message.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

struct inner {
  uint64_t number;
};
static const struct field inner_fields[] = {
    {.name = "number", .kind = FIELD_U64, .offset = offsetof(struct inner, number), .min = 3, .max = 5},
};
static const struct message message_inner = {"inner", inner_fields, 1, sizeof(struct inner)};

struct outer {
  uint64_t number, flag;
  struct span text, bytes;
  struct list list;
  struct inner inner;
  uint64_t extra;
};
enum { NUMBER, FLAG, TEXT, BYTES, LIST, INNER, EXTRA, FIELDS };
static const struct field outer_fields[] = {
    {.name = "number", .kind = FIELD_U64, .offset = offsetof(struct outer, number), .min = 2, .max = 9},
    {.name = "flag", .kind = FIELD_BOOL, .offset = offsetof(struct outer, flag)},
    {.name = "text", .kind = FIELD_STR, .offset = offsetof(struct outer, text), .min = 1, .max = 6},
    {.name = "bytes", .kind = FIELD_BIN, .offset = offsetof(struct outer, bytes), .min = 4, .max = 12, .unit = 4},
    {.name = "list", .kind = FIELD_LIST, .offset = offsetof(struct outer, list), .max = 2, .sub = &message_inner},
    {.name = "inner", .kind = FIELD_MAP, .offset = offsetof(struct outer, inner), .sub = &message_inner},
    {.name = "extra", .kind = FIELD_U64, .offset = offsetof(struct outer, extra), .optional = true, .initial = 77,
     .max = 100},
};
static const struct message message_outer = {"outer", outer_fields, FIELDS, sizeof(struct outer)};

/* A packed map under construction. */
struct map {
  msgpack_sbuffer buffer;
  msgpack_packer packer;
};

static void map_begin(struct map *map, uint32_t count) {
  msgpack_sbuffer_init(&map->buffer);
  msgpack_packer_init(&map->packer, &map->buffer, msgpack_sbuffer_write);
  msgpack_pack_map(&map->packer, count);
}

static void put_str(msgpack_packer *packer, const char *text, size_t size) {
  msgpack_pack_str(packer, size);
  msgpack_pack_str_body(packer, text, size);
}

static void put_bin(msgpack_packer *packer, size_t size) {
  static const char bytes[64] = "0123456789abcdef";
  msgpack_pack_bin(packer, size);
  msgpack_pack_bin_body(packer, bytes, size);
}

static void put_inner(msgpack_packer *packer, uint64_t number) {
  msgpack_pack_map(packer, 1);
  put_str(packer, "number", 6);
  msgpack_pack_uint64(packer, number);
}

static void put_good(msgpack_packer *packer, int field) {
  switch (field) {
  case NUMBER: msgpack_pack_uint64(packer, 7); break;
  case FLAG: msgpack_pack_true(packer); break;
  case TEXT: put_str(packer, "abc", 3); break;
  case BYTES: put_bin(packer, 8); break;
  case LIST: msgpack_pack_array(packer, 2); put_inner(packer, 3); put_inner(packer, 5); break;
  case INNER: put_inner(packer, 4); break;
  default: msgpack_pack_uint64(packer, 78); break;
  }
}

static void put_key(struct map *map, int field) {
  put_str(&map->packer, outer_fields[field].name, strlen(outer_fields[field].name));
}

/* Begins a map of all fields but `without`, good ones. The caller adds `more` pairs. */
static void map_without(struct map *map, int without, uint32_t more) {
  map_begin(map, FIELDS - 1 + more);
  for (int field = 0; field < FIELDS; field++)
    if (field != without) {
      put_key(map, field);
      put_good(&map->packer, field);
    }
}

static int unpack(struct map *map, struct outer *value, struct error *error) {
  msgpack_unpacked unpacked;
  msgpack_unpacked_init(&unpacked);
  assert_int_equal(msgpack_unpack_next(&unpacked, map->buffer.data, map->buffer.size, NULL), MSGPACK_UNPACK_SUCCESS);
  *error = (struct error){0};
  int result = message_unpack(&message_outer, &unpacked.data, value, error);
  if (!result && value->list.count) {
    struct inner item;
    assert_int_equal(message_unpack(&message_inner, &value->list.objects[value->list.count - 1], &item, error), 0);
    assert_int_equal(item.number, 5);
  }
  msgpack_unpacked_destroy(&unpacked);
  msgpack_sbuffer_destroy(&map->buffer);
  return result;
}

/* Unpacks, expects a refusal that names the message and `field`. */
static void refused(struct map *map, const char *field) {
  struct outer value;
  struct error error;
  assert_int_equal(unpack(map, &value, &error), -ERR_BAD_PARAMS);
  assert_int_equal(error.code, ERR_BAD_PARAMS);
  char quoted[40];
  snprintf(quoted, sizeof quoted, "'%s'", field);
  if (!strstr(error.text, quoted) && !strstr(error.text, "inner"))
    fail_msg("'%s' does not name %s", error.text, quoted);
}

static void accepted(struct map *map, struct outer *value) {
  struct error error;
  assert_int_equal(unpack(map, value, &error), 0);
}

static void test_good_map(void **state) {
  (void)state;
  struct map map;
  struct outer value;
  map_without(&map, -1, 1);
  accepted(&map, &value);
  assert_int_equal(value.number, 7);
  assert_int_equal(value.flag, 1);
  assert_int_equal(value.text.size, 3);
  assert_int_equal(value.bytes.size, 8);
  assert_int_equal(value.list.count, 2);
  assert_int_equal(value.inner.number, 4);
  assert_int_equal(value.extra, 78);
}

static void test_missing(void **state) {
  (void)state;
  struct map map;
  for (int field = 0; field < EXTRA; field++) {
    map_without(&map, field, 0);
    refused(&map, outer_fields[field].name);
  }
  struct outer value;
  map_without(&map, EXTRA, 0);
  accepted(&map, &value);
  assert_int_equal(value.extra, 77);
}

static void test_duplicate(void **state) {
  (void)state;
  struct map map;
  for (int field = 0; field < FIELDS; field++) {
    map_without(&map, -1, 2);
    put_key(&map, field);
    put_good(&map.packer, field);
    refused(&map, outer_fields[field].name);
  }
}

static void test_unknown_keys_are_ignored(void **state) {
  (void)state;
  struct map map;
  struct outer value;
  map_without(&map, -1, 6);
  put_str(&map.packer, "numbe", 5);
  put_str(&map.packer, "\x01\xff", 2);
  put_str(&map.packer, "number\0", 7);
  msgpack_pack_nil(&map.packer);
  put_str(&map.packer, "", 0);
  msgpack_pack_nil(&map.packer);
  put_bin(&map.packer, 6);
  put_inner(&map.packer, 1);
  msgpack_pack_uint64(&map.packer, 3); /* keys need not be strings */
  msgpack_pack_nil(&map.packer);
  accepted(&map, &value);
  assert_int_equal(value.number, 7);
}

/* One object of every MessagePack type. */
enum { AS_NIL, AS_TRUE, AS_UINT, AS_NEGATIVE, AS_FLOAT32, AS_FLOAT64, AS_STR, AS_BIN, AS_EXT, AS_ARRAY, AS_MAP, TYPES };

static void put_type(msgpack_packer *packer, int type) {
  switch (type) {
  case AS_NIL: msgpack_pack_nil(packer); break;
  case AS_TRUE: msgpack_pack_true(packer); break;
  case AS_UINT: msgpack_pack_uint64(packer, 4); break;
  case AS_NEGATIVE: msgpack_pack_int64(packer, -4); break;
  case AS_FLOAT32: msgpack_pack_float(packer, 4.0f); break;
  case AS_FLOAT64: msgpack_pack_double(packer, 4.0); break;
  case AS_STR: put_str(packer, "abcd", 4); break;
  case AS_BIN: put_bin(packer, 4); break;
  case AS_EXT: msgpack_pack_ext(packer, 4, 1); msgpack_pack_ext_body(packer, "abcd", 4); break;
  case AS_ARRAY: msgpack_pack_array(packer, 1); put_inner(packer, 5); break;
  default: put_inner(packer, 4); break;
  }
}

static void test_types(void **state) {
  (void)state;
  static const int right[FIELDS] = {AS_UINT, AS_TRUE, AS_STR, AS_BIN, AS_ARRAY, AS_MAP, AS_UINT};
  for (int field = 0; field < FIELDS; field++)
    for (int type = 0; type < TYPES; type++) {
      struct map map;
      struct outer value;
      map_without(&map, field, 1);
      put_key(&map, field);
      put_type(&map.packer, type);
      if (type == right[field])
        accepted(&map, &value);
      else
        refused(&map, outer_fields[field].name);
    }
  for (int type = 0; type < TYPES - 1; type++) { /* in place of the map itself */
    struct map map;
    struct outer value;
    struct error error;
    map_begin(&map, 0);
    msgpack_sbuffer_clear(&map.buffer);
    put_type(&map.packer, type);
    assert_int_equal(unpack(&map, &value, &error), -ERR_BAD_PARAMS);
  }
}

static void test_bounds_of_numbers(void **state) {
  (void)state;
  static const uint64_t values[] = {0, 1, 2, 9, 10, UINT32_MAX, UINT64_MAX};
  for (size_t i = 0; i < sizeof values / sizeof values[0]; i++) {
    struct map map;
    struct outer value;
    map_without(&map, NUMBER, 1);
    put_key(&map, NUMBER);
    msgpack_pack_uint64(&map.packer, values[i]);
    if (values[i] >= 2 && values[i] <= 9)
      accepted(&map, &value);
    else
      refused(&map, "number");
    map_without(&map, INNER, 1);
    put_key(&map, INNER);
    put_inner(&map.packer, values[i]);
    refused(&map, "number");
  }
}

static void test_bounds_of_sizes(void **state) {
  (void)state;
  for (size_t size = 0; size <= 17; size++) {
    struct map map;
    struct outer value;
    map_without(&map, BYTES, 1);
    put_key(&map, BYTES);
    put_bin(&map.packer, size);
    if (size == 4 || size == 8 || size == 12)
      accepted(&map, &value);
    else
      refused(&map, "bytes");
    map_without(&map, TEXT, 1);
    put_key(&map, TEXT);
    put_str(&map.packer, "abcdefghijklmnopqrst", size);
    if (size >= 1 && size <= 6)
      accepted(&map, &value);
    else
      refused(&map, "text");
  }
  for (uint32_t count = 0; count <= 3; count++) {
    struct map map;
    struct outer value;
    map_without(&map, LIST, 1);
    put_key(&map, LIST);
    msgpack_pack_array(&map.packer, count);
    for (uint32_t i = 0; i < count; i++)
      put_inner(&map.packer, 5);
    if (count <= 2)
      accepted(&map, &value);
    else
      refused(&map, "list");
  }
}

static bool text_passes(const char *text, size_t size) {
  struct map map;
  struct outer value;
  struct error error;
  map_without(&map, TEXT, 1);
  put_key(&map, TEXT);
  put_str(&map.packer, text, size);
  return unpack(&map, &value, &error) == 0;
}

/* RFC 3629: every code point encoded by hand, its ends, and what must not pass. */
static void test_utf8(void **state) {
  (void)state;
  static const char *const good[] = {
      " ", "~", "\xc2\xa0", "\xdf\xbf", "\xe0\xa0\x80", "\xed\x9f\xbf", "\xee\x80\x80", "\xef\xbf\xbf",
      "\xf0\x90\x80\x80", "\xf4\x8f\xbf\xbf", "a\xc3\xa9z", "\xe2\x82\xac\xe2\x82\xac"};
  static const char *const bad[] = {
      "\x1f",         "\x7f",         "\n",           "\xc2\x80",         "\xc2\x9f", /* control characters */
      "\x80",         "\xbf",         "\xc0\x80",     "\xc1\xbf",         "\xe0\x80\x80", "\xe0\x9f\xbf",
      "\xf0\x80\x80\x80", "\xf0\x8f\xbf\xbf",                             /* overlong */
      "\xed\xa0\x80", "\xed\xbf\xbf",                                     /* surrogates */
      "\xf4\x90\x80\x80", "\xf5\x80\x80\x80", "\xff", "\xfe",             /* past U+10FFFF */
      "\xc3",         "\xe2\x82",     "\xf0\x90\x80", "a\xc3",            /* cut */
      "\xc3z",        "\xe2\x28\xa1", "\xe2\x82\x28", "\xf0\x28\x8c\xbc", "\xf0\x90\x28\xbc", "\xf0\x90\x8c\x28"};
  for (size_t i = 0; i < sizeof good / sizeof good[0]; i++)
    assert_true(text_passes(good[i], strlen(good[i])));
  for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++)
    assert_false(text_passes(bad[i], strlen(bad[i])));
  assert_false(text_passes("a\0b", 3));
}

static void test_initial_values_are_left_out(void **state) {
  (void)state;
  struct outer value;
  message_init(&message_outer, &value);
  assert_int_equal(value.extra, 77);
  value.number = 2;
  value.text = span_str("x");
  value.bytes = span_of("0123", 4);
  value.inner.number = 3;
  for (int changed = 0; changed < 2; changed++) {
    value.extra = changed ? 0 : 77;
    struct map map;
    map_begin(&map, 0);
    msgpack_sbuffer_clear(&map.buffer);
    assert_int_equal(message_pack(&map.packer, &message_outer, &value), 0);
    assert_int_equal((uint8_t)map.buffer.data[0], 0x80 + FIELDS - !changed);
    struct outer back;
    accepted(&map, &back);
    assert_int_equal(back.extra, value.extra);
  }
}

/* A buffer that cannot grow is an error wherever it happens. */
static int write_some(void *data, const char *bytes, size_t size) {
  (void)bytes;
  size_t *room = data;
  if (size > *room)
    return -1;
  *room -= size;
  return 0;
}

static void test_buffer_that_cannot_grow(void **state) {
  (void)state;
  struct inner items[2] = {{3}, {5}};
  struct outer value = {.number = 300, .text = span_str("abc"), .bytes = span_of("0123", 4),
                        .list = {.count = 2, .items = items}, .inner = {4}, .extra = 5};
  size_t whole = 0;
  for (size_t room = 0; !whole; room++) {
    size_t left = room;
    msgpack_packer packer;
    msgpack_packer_init(&packer, &left, write_some);
    int result = message_pack(&packer, &message_outer, &value);
    if (result == 0)
      whole = room;
    else
      assert_int_equal(result, -ERR_MEMORY);
  }
  assert_in_range(whole, 60, 120);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_good_map),
      cmocka_unit_test(test_missing),
      cmocka_unit_test(test_duplicate),
      cmocka_unit_test(test_unknown_keys_are_ignored),
      cmocka_unit_test(test_types),
      cmocka_unit_test(test_bounds_of_numbers),
      cmocka_unit_test(test_bounds_of_sizes),
      cmocka_unit_test(test_utf8),
      cmocka_unit_test(test_initial_values_are_left_out),
      cmocka_unit_test(test_buffer_that_cannot_grow),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
