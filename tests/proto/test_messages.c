// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// Every message of the protocol, filled at random from its own table: what is packed comes back, and what was changed
// on the way does no harm.
#include "proto/messages.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "proto/validator.h"
#include "tests/proto/random.h"

static const struct message *const all[] = {
    &message_geometry, &message_model, &message_empty, &message_hello, &message_hello_ok, &message_model_get,
    &message_list, &message_model_list_ok, &message_open, &message_open_ok, &message_extent, &message_conversation,
    &message_conversation_list_ok, &message_name, &message_handle, &message_delete, &message_append,
    &message_append_ok, &message_lookup, &message_lookup_head, &message_lookup_ok, &message_read, &message_read_ok,
    &message_tokens, &message_tokens_ok, &message_stats, &message_damage, &message_status,
    &message_problem, &message_verify_ok, &message_meta};
enum { ALL = sizeof all / sizeof all[0], ITEMS_MAX = 3, KEPT_MAX = 4096 };

/* Memory of one random message. */
struct arena {
  void *kept[KEPT_MAX];
  size_t count;
};

static void *keep(struct arena *arena, size_t size) {
  assert_true(arena->count < KEPT_MAX);
  void *memory = calloc(1, size ? size : 1);
  assert_non_null(memory);
  return arena->kept[arena->count++] = memory;
}

static void arena_finish(struct arena *arena) {
  while (arena->count)
    free(arena->kept[--arena->count]);
}

static size_t member_size(const struct field *field) {
  switch (field->kind) {
  case FIELD_STR:
  case FIELD_BIN: return sizeof(struct span);
  case FIELD_LIST: return sizeof(struct list);
  case FIELD_MAP: return field->sub->size;
  default: return sizeof(uint64_t);
  }
}

static uint64_t random_number(struct random *random, uint64_t min, uint64_t max) {
  switch (random_below(random, 4)) {
  case 0: return min;
  case 1: return max;
  default: return max - min == UINT64_MAX ? random_u64(random) : min + random_below(random, max - min + 1);
  }
}

static struct span random_text(struct arena *arena, struct random *random, uint64_t min, uint64_t max) {
  static const char *const letters[] = {"a", "Z", " ", "'", "\\", "\"", "\xc3\xa9", "\xe2\x82\xac", "\xf0\x9f\x98\x80"};
  uint64_t size = random_number(random, min, max > 40 ? 40 : max);
  char *text = keep(arena, size + 1);
  uint64_t at = 0;
  while (at < size) {
    const char *letter = letters[random_below(random, 9)];
    if (strlen(letter) > size - at)
      letter = "x";
    memcpy(text + at, letter, strlen(letter));
    at += strlen(letter);
  }
  return span_of(text, size);
}

static void fill(struct arena *arena, struct random *random, const struct message *type, void *value) {
  message_init(type, value);
  for (uint32_t i = 0; i < type->field_count; i++) {
    const struct field *field = &type->fields[i];
    void *member = (uint8_t *)value + field->offset;
    uint64_t unit = field->unit ? field->unit : 1;
    if (field->optional && random_below(random, 3) == 0)
      continue;
    if (field->kind == FIELD_U64) {
      *(uint64_t *)member = random_number(random, field->min, field->max);
    } else if (field->kind == FIELD_BOOL) {
      *(uint64_t *)member = random_below(random, 2);
    } else if (field->kind == FIELD_STR) {
      *(struct span *)member = random_text(arena, random, field->min, field->max);
    } else if (field->kind == FIELD_BIN) {
      uint64_t least = (field->min + unit - 1) / unit, most = field->max / unit;
      size_t size = random_number(random, least, most > least + 3 ? least + 3 : most) * unit;
      uint8_t *bytes = keep(arena, size);
      random_fill(random, bytes, size);
      *(struct span *)member = span_of(bytes, size);
    } else if (field->kind == FIELD_LIST) {
      uint32_t count = (uint32_t)random_below(random, ITEMS_MAX + 1);
      uint8_t *items = keep(arena, (size_t)count * field->sub->size);
      for (uint32_t j = 0; j < count; j++)
        fill(arena, random, field->sub, items + (size_t)j * field->sub->size);
      *(struct list *)member = (struct list){.count = count, .items = items};
    } else {
      fill(arena, random, field->sub, member);
    }
  }
}

static void assert_same(const struct message *type, const void *a, const void *b);

static void assert_same_list(const struct field *field, const struct list *a, const struct list *b) {
  assert_int_equal(a->count, b->count);
  for (uint32_t i = 0; i < a->count; i++) {
    void *item = malloc(field->sub->size);
    assert_non_null(item);
    assert_int_equal(message_unpack(field->sub, &b->objects[i], item, NULL), 0);
    assert_same(field->sub, (const uint8_t *)a->items + (size_t)i * field->sub->size, item);
    free(item);
  }
}

/* a was packed, b came back. */
static void assert_same(const struct message *type, const void *a, const void *b) {
  for (uint32_t i = 0; i < type->field_count; i++) {
    const struct field *field = &type->fields[i];
    const void *x = (const uint8_t *)a + field->offset, *y = (const uint8_t *)b + field->offset;
    if (field->kind == FIELD_U64 || field->kind == FIELD_BOOL) {
      assert_true(*(const uint64_t *)x == *(const uint64_t *)y);
    } else if (field->kind == FIELD_STR || field->kind == FIELD_BIN) {
      const struct span *s = x, *t = y;
      assert_int_equal(s->size, t->size);
      if (s->size)
        assert_memory_equal(s->data, t->data, s->size);
    } else if (field->kind == FIELD_LIST) {
      assert_same_list(field, x, y);
    } else {
      assert_same(field->sub, x, y);
    }
  }
}

static void pack(msgpack_sbuffer *buffer, const struct message *type, const void *value) {
  msgpack_sbuffer_clear(buffer);
  msgpack_packer packer;
  msgpack_packer_init(&packer, buffer, msgpack_sbuffer_write);
  assert_int_equal(message_pack(&packer, type, value), 0);
}

/* Every member of a struct stands in its table once, and the table makes sense. */
static void test_tables_cover_their_structs(void **state) {
  (void)state;
  for (size_t i = 0; i < ALL; i++) {
    const struct message *type = all[i];
    size_t total = 0;
    for (uint32_t f = 0; f < type->field_count; f++) {
      const struct field *field = &type->fields[f];
      assert_int_equal(field->offset, total);
      total += member_size(field);
      assert_true(field->min <= field->max);
      assert_true(field->initial == 0 || (field->optional && field->initial <= field->max));
      assert_true((field->kind == FIELD_LIST || field->kind == FIELD_MAP) == (field->sub != NULL));
      for (uint32_t g = 0; g < f; g++)
        assert_string_not_equal(field->name, type->fields[g].name);
    }
    if (type != &message_empty)
      assert_int_equal(total, type->size);
  }
}

static void test_round_trip(void **state) {
  (void)state;
  struct random random = {1};
  struct arena arena = {.count = 0};
  msgpack_sbuffer buffer;
  msgpack_sbuffer_init(&buffer);
  for (int round = 0; round < 200; round++)
    for (size_t i = 0; i < ALL; i++) {
      void *value = keep(&arena, all[i]->size), *back = keep(&arena, all[i]->size);
      fill(&arena, &random, all[i], value);
      pack(&buffer, all[i], value);
      struct validator validator;
      size_t used;
      validator_init(&validator, &validator_limits_default);
      assert_int_equal(validator_feed(&validator, (uint8_t *)buffer.data, buffer.size, &used, NULL), 0);
      assert_true(validator.done && used == buffer.size);
      msgpack_unpacked unpacked;
      msgpack_unpacked_init(&unpacked);
      msgpack_unpack_next(&unpacked, buffer.data, buffer.size, NULL);
      struct error error = {0};
      if (message_unpack(all[i], &unpacked.data, back, &error))
        fail_msg("%s", error.text);
      assert_same(all[i], value, back);
      msgpack_unpacked_destroy(&unpacked);
      arena_finish(&arena);
    }
  msgpack_sbuffer_destroy(&buffer);
}

/* A random message of each type, with bytes changed: it unpacks or is refused with a sentence, never worse. */
static void test_mutated_messages(void **state) {
  (void)state;
  struct random random = {2};
  struct arena arena = {.count = 0};
  struct validator_limits limits = {.bytes_max = 1 << 20, .depth_max = 8, .elements_max = 4096};
  msgpack_sbuffer buffer;
  msgpack_sbuffer_init(&buffer);
  unsigned good = 0, bad = 0;
  for (int round = 0; round < 600; round++)
    for (size_t i = 0; i < ALL; i++) {
      void *value = keep(&arena, all[i]->size);
      fill(&arena, &random, all[i], value);
      pack(&buffer, all[i], value);
      for (uint64_t n = 1 + random_below(&random, 3); n; n--)
        buffer.data[random_below(&random, buffer.size)] = (char)random_u64(&random);
      struct validator validator;
      size_t used;
      validator_init(&validator, &limits);
      int result = validator_feed(&validator, (uint8_t *)buffer.data, buffer.size, &used, NULL);
      if (!result && validator.done) {
        msgpack_unpacked unpacked;
        msgpack_unpacked_init(&unpacked);
        assert_int_equal(msgpack_unpack_next(&unpacked, buffer.data, used, NULL), MSGPACK_UNPACK_SUCCESS);
        struct error error = {0};
        result = message_unpack(all[i], &unpacked.data, value, &error);
        assert_true(result == 0 || (result == -ERR_BAD_PARAMS && error.text[0]));
        good += result == 0;
        bad += result != 0;
        msgpack_unpacked_destroy(&unpacked);
      }
      arena_finish(&arena);
    }
  msgpack_sbuffer_destroy(&buffer);
  assert_true(good > 1000 && bad > 1000);
}

static void test_methods(void **state) {
  (void)state;
  for (int i = 0; i < METHOD_COUNT; i++) {
    assert_non_null(methods[i].name);
    assert_int_equal(method_find(span_str(methods[i].name)), i);
    bool supported = i != METHOD_FORK && i != METHOD_MATCH_PREFIX && i != METHOD_FEEDBACK;
    assert_true((methods[i].params != NULL) == supported && (methods[i].result != NULL) == supported);
  }
  assert_int_equal(method_find(span_str("hell")), METHOD_COUNT);
  assert_int_equal(method_find(span_str("hello ")), METHOD_COUNT);
  assert_int_equal(method_find(span_of("hello\0", 6)), METHOD_COUNT);
  assert_int_equal(method_find(span_of(NULL, 0)), METHOD_COUNT);
}

static void test_geometry(void **state) {
  (void)state;
  double freqs[64];
  for (int i = 0; i < 64; i++)
    freqs[i] = 1.0 / (i + 1);
  const struct msg_geometry good = {.layers = 32, .kv_heads = 8, .group = 4, .head_dim = 128, .window = 8192,
                                    .rope_layout = ROPE_HALF, .rope_dims = 128,
                                    .rope_freqs = span_of(freqs, sizeof freqs)};
  struct error error;
  struct msg_geometry g = good;
  assert_int_equal(geometry_check(&g, &error), 0);
  assert_int_equal(geometry_mean_bytes(&g), 32 * 8 * 128 * 4);
  for (uint64_t d = 0; d <= 300; d++) {
    g = good;
    g.head_dim = d;
    g.rope_dims = 64;
    g.rope_freqs.size = 32 * 8;
    assert_int_equal(geometry_check(&g, &error), d >= 64 && d <= 128 && d % 8 == 0 ? 0 : -ERR_BAD_PARAMS);
  }
  g = good, g.layers = 512; /* times 8: exactly the limit */
  assert_int_equal(geometry_check(&g, &error), 0);
  g.layers++;
  assert_int_equal(geometry_check(&g, &error), -ERR_LIMIT);
  g = good, g.rope_dims = 126;
  assert_int_equal(geometry_check(&g, &error), -ERR_BAD_PARAMS); /* 64 frequencies for 63 pairs */
  g.rope_freqs.size -= 8;
  assert_int_equal(geometry_check(&g, &error), 0);
  g.rope_dims = 127;
  assert_int_equal(geometry_check(&g, &error), -ERR_BAD_PARAMS);
  g = good, g.head_dim = 64;
  assert_int_equal(geometry_check(&g, &error), -ERR_BAD_PARAMS); /* more rotated coordinates than there are */
  g = good, g.rope_layout = ROPE_NONE;
  assert_int_equal(geometry_check(&g, &error), -ERR_BAD_PARAMS);
  g.rope_dims = 0, g.rope_freqs = span_of(NULL, 0);
  assert_int_equal(geometry_check(&g, &error), 0);
  g.rope_layout = ROPE_INTERLEAVED;
  assert_int_equal(geometry_check(&g, &error), -ERR_BAD_PARAMS);
  g = good;
  freqs[63] = INFINITY;
  assert_int_equal(geometry_check(&g, &error), -ERR_BAD_PARAMS);
  freqs[63] = NAN;
  assert_int_equal(geometry_check(&g, &error), -ERR_BAD_PARAMS);
}

static void test_geometry_equal(void **state) {
  (void)state;
  double freqs[2][2] = {{1, 2}, {1, 2}};
  struct msg_geometry a = {1, 2, 3, 64, 5, ROPE_HALF, 4, span_of(freqs[0], 16)}, b = a;
  b.rope_freqs = span_of(freqs[1], 16);
  assert_true(geometry_equal(&a, &b));
  uint64_t *const members[] = {&b.layers, &b.kv_heads, &b.group, &b.head_dim, &b.window, &b.rope_layout, &b.rope_dims};
  for (size_t i = 0; i < sizeof members / sizeof members[0]; i++) {
    ++*members[i];
    assert_false(geometry_equal(&a, &b));
    --*members[i];
  }
  b.rope_freqs.size = 8;
  assert_false(geometry_equal(&a, &b));
  b.rope_freqs.size = 16;
  freqs[1][1] = 3;
  assert_false(geometry_equal(&a, &b));
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_tables_cover_their_structs),
      cmocka_unit_test(test_round_trip),
      cmocka_unit_test(test_mutated_messages),
      cmocka_unit_test(test_methods),
      cmocka_unit_test(test_geometry),
      cmocka_unit_test(test_geometry_equal),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
