// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// Bytes of a socket: the validator, msgpack-c behind it, the envelope and every map. What the validator accepts,
// msgpack-c must take, in whatever pieces it came; a map that is read must be the same when packed and read again.
//
// Input: number of a map (1 byte), size of a piece (1 byte), MessagePack.
#include "tests/fuzz/fuzz.h"

#include <stdio.h>
#include <stdlib.h>

#include "proto/rpc.h"
#include "proto/validator.h"

static const struct message *const maps[] = {
    &message_geometry, &message_model, &message_empty, &message_hello, &message_hello_ok, &message_model_get,
    &message_list, &message_model_list_ok, &message_open, &message_open_ok, &message_extent, &message_conversation,
    &message_conversation_list_ok, &message_name, &message_handle, &message_delete, &message_append,
    &message_append_ok, &message_lookup, &message_lookup_head, &message_lookup_ok, &message_read, &message_read_ok,
    &message_tokens, &message_tokens_ok, &message_stats, &message_damage, &message_status,
    &message_problem, &message_verify_ok, &message_meta,
};
enum { MAPS = sizeof maps / sizeof maps[0] };

/* Gives back what fill_lists made. */
static void free_lists(const struct message *type, void *value) {
  for (uint32_t i = 0; i < type->field_count; i++) {
    const struct field *field = &type->fields[i];
    void *member = (uint8_t *)value + field->offset;
    if (field->kind == FIELD_MAP)
      free_lists(field->sub, member);
    if (field->kind != FIELD_LIST)
      continue;
    struct list *list = member;
    for (uint32_t j = 0; list->items && j < list->count; j++)
      free_lists(field->sub, (uint8_t *)(uintptr_t)list->items + (size_t)j * field->sub->size);
    free((void *)(uintptr_t)list->items);
    list->items = NULL;
  }
}

/* Reads the maps of every list, as a caller would one by one; false when one is refused. */
static bool fill_lists(const struct message *type, void *value) {
  bool good = true;
  for (uint32_t i = 0; i < type->field_count && good; i++) {
    const struct field *field = &type->fields[i];
    void *member = (uint8_t *)value + field->offset;
    if (field->kind == FIELD_MAP)
      good = fill_lists(field->sub, member);
    if (field->kind != FIELD_LIST)
      continue;
    struct list *list = member;
    uint8_t *items = calloc(list->count ? list->count : 1, field->sub->size);
    FUZZ_REQUIRE(items);
    list->items = items;
    for (uint32_t j = 0; j < list->count && good; j++) {
      struct error error = {0};
      void *item = items + (size_t)j * field->sub->size;
      good = message_unpack(field->sub, &list->objects[j], item, &error) == 0 && fill_lists(field->sub, item);
    }
  }
  return good;
}

static bool equal_spans(const struct span *a, const struct span *b) {
  return a->size == b->size && (!a->size || memcmp(a->data, b->data, a->size) == 0);
}

static bool equal(const struct message *type, const void *a, const void *b) {
  for (uint32_t i = 0; i < type->field_count; i++) {
    const struct field *field = &type->fields[i];
    const uint8_t *x = (const uint8_t *)a + field->offset, *y = (const uint8_t *)b + field->offset;
    bool same = true;
    if (field->kind == FIELD_U64 || field->kind == FIELD_BOOL)
      same = memcmp(x, y, sizeof(uint64_t)) == 0;
    else if (field->kind == FIELD_STR || field->kind == FIELD_BIN)
      same = equal_spans((const struct span *)(const void *)x, (const struct span *)(const void *)y);
    else if (field->kind == FIELD_MAP)
      same = equal(field->sub, x, y);
    else {
      const struct list *p = (const struct list *)(const void *)x, *q = (const struct list *)(const void *)y;
      same = p->count == q->count;
      for (uint32_t j = 0; j < p->count && same; j++)
        same = equal(field->sub, (const uint8_t *)p->items + (size_t)j * field->sub->size,
                     (const uint8_t *)q->items + (size_t)j * field->sub->size);
    }
    if (!same)
      return false;
  }
  return true;
}

static void pack(const struct message *type, const void *value, msgpack_sbuffer *buffer) {
  msgpack_packer packer;
  msgpack_sbuffer_init(buffer);
  msgpack_packer_init(&packer, buffer, msgpack_sbuffer_write);
  FUZZ_REQUIRE(message_pack(&packer, type, value) == 0);
}

/* Packed again: the same value, and from then on the same bytes. */
static void check_packed(const struct message *type, const void *value) {
  msgpack_sbuffer first, second;
  msgpack_zone zone;
  msgpack_object root;
  size_t used = 0;
  struct error error = {0};
  pack(type, value, &first);
  FUZZ_REQUIRE(msgpack_zone_init(&zone, 4096));
  FUZZ_REQUIRE(msgpack_unpack(first.data, first.size, &used, &zone, &root) == MSGPACK_UNPACK_SUCCESS);
  FUZZ_REQUIRE(used == first.size);
  void *again = malloc(type->size);
  FUZZ_REQUIRE(again);
  FUZZ_REQUIRE(message_unpack(type, &root, again, &error) == 0);
  FUZZ_REQUIRE(fill_lists(type, again));
  FUZZ_REQUIRE(equal(type, value, again));
  pack(type, again, &second);
  FUZZ_REQUIRE(first.size == second.size && memcmp(first.data, second.data, first.size) == 0);
  free_lists(type, again);
  free(again);
  msgpack_sbuffer_destroy(&first);
  msgpack_sbuffer_destroy(&second);
  msgpack_zone_destroy(&zone);
}

static void check_map(const struct message *type, const msgpack_object *object) {
  struct error error = {0};
  void *value = malloc(type->size);
  FUZZ_REQUIRE(value);
  int result = message_unpack(type, object, value, &error);
  FUZZ_REQUIRE(result == 0 || (result == -ERR_BAD_PARAMS && error.code == ERR_BAD_PARAMS && error.text[0]));
  if (!result) {
    if (fill_lists(type, value))
      check_packed(type, value);
    free_lists(type, value);
  }
  free(value);
}

static void check_envelope(const uint8_t *data, size_t size) {
  msgpack_zone zone;
  msgpack_object root;
  struct rpc rpc;
  struct error error = {0};
  FUZZ_REQUIRE(msgpack_zone_init(&zone, 4096));
  int result = rpc_parse(data, size, &zone, &root, &rpc, &error);
  FUZZ_REQUIRE(result == 0 || result == -ERR_BAD_MESSAGE);
  if (!result && rpc.kind == RPC_RESPONSE && rpc.fault)
    FUZZ_REQUIRE(rpc_fault(rpc.fault, &error) < 0 && error.code > 0);
  if (!result && rpc.kind == RPC_REQUEST && method_find(rpc.method) < METHOD_COUNT &&
      methods[method_find(rpc.method)].params)
    check_map(methods[method_find(rpc.method)].params, rpc.body);
  for (int i = 0; !result && rpc.kind == RPC_RESPONSE && rpc.body && i < METHOD_COUNT; i++)
    if (methods[i].result)
      check_map(methods[i].result, rpc.body);
  msgpack_zone_destroy(&zone);
}

/* Feeds a validator in pieces; returns its result. */
static int feed(struct validator *validator, const uint8_t *data, size_t size, size_t piece, size_t *used) {
  struct error error = {0};
  validator_init(validator, &validator_limits_default);
  *used = 0;
  while (*used < size && !validator->done) {
    size_t taken = 0, step = size - *used < piece ? size - *used : piece;
    int result = validator_feed(validator, data + *used, step, &taken, &error);
    FUZZ_REQUIRE(taken <= step);
    if (result) {
      FUZZ_REQUIRE((result == -ERR_BAD_MESSAGE || result == -ERR_LIMIT) && error.text[0]);
      return result;
    }
    FUZZ_REQUIRE(taken == step || validator->done);
    *used += taken;
  }
  return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  struct fuzz_input input = {data, size};
  const struct message *type = maps[fuzz_take(&input, 1) % MAPS];
  size_t piece = 1 + (size_t)fuzz_take(&input, 1) % 40, used, used_in_pieces;
  struct validator whole, pieces;
  int result = feed(&whole, input.data, input.size, SIZE_MAX, &used);
  FUZZ_REQUIRE(feed(&pieces, input.data, input.size, piece, &used_in_pieces) == result);
  FUZZ_REQUIRE(result || (used == used_in_pieces && whole.done == pieces.done));
  if (result || !whole.done)
    return 0;
  msgpack_zone zone;
  msgpack_object root;
  size_t parsed = 0;
  FUZZ_REQUIRE(msgpack_zone_init(&zone, 4096));
  FUZZ_REQUIRE(msgpack_unpack((const char *)input.data, used, &parsed, &zone, &root) == MSGPACK_UNPACK_SUCCESS);
  FUZZ_REQUIRE(parsed == used);
  check_map(type, &root);
  msgpack_zone_destroy(&zone);
  check_envelope(input.data, used);
  return 0;
}

/* --- seeds -------------------------------------------------------------------------------------------------------- */

/* A value of every member that its limits allow, or the least. */
static void set_members(const struct message *type, void *value, bool least) {
  static uint8_t bytes[256];
  memset(bytes, 'a', sizeof bytes);
  message_init(type, value);
  for (uint32_t i = 0; i < type->field_count; i++) {
    const struct field *field = &type->fields[i];
    void *member = (uint8_t *)value + field->offset;
    uint64_t unit = field->unit ? field->unit : 1;
    if (field->kind == FIELD_U64 || field->kind == FIELD_BOOL)
      *(uint64_t *)member = least                      ? field->min
                            : field->kind == FIELD_BOOL ? 1
                            : field->min < field->max   ? field->min + 1
                                                        : field->min;
    else if (field->kind == FIELD_STR || field->kind == FIELD_BIN)
      *(struct span *)member = span_of(bytes, field->min ? field->min : unit <= field->max && unit < 200 ? unit : 0);
    else if (field->kind == FIELD_MAP)
      set_members(field->sub, member, least);
    else
      *(struct list *)member = (struct list){.count = 1, .items = calloc(1, field->sub->size)};
    if (field->kind == FIELD_LIST)
      set_members(field->sub, (void *)(uintptr_t)((struct list *)member)->items, least);
  }
}

static void seed(const char *name, unsigned map, const msgpack_sbuffer *buffer) {
  struct fuzz_output output = {0};
  fuzz_put_number(&output, map, 1);
  fuzz_put_number(&output, 7, 1);
  fuzz_put(&output, buffer->data, buffer->size);
  fuzz_put_done(&output, name);
}

void fuzz_seeds(void) {
  char name[64];
  for (unsigned i = 0; i < MAPS; i++) {
    msgpack_sbuffer buffer;
    void *value = malloc(maps[i]->size);
    FUZZ_REQUIRE(value);
    set_members(maps[i], value, false);
    pack(maps[i], value, &buffer);
    snprintf(name, sizeof name, "map-%02u", i);
    seed(name, i, &buffer);
    msgpack_sbuffer_destroy(&buffer);
    free_lists(maps[i], value);
    free(value);
  }
  for (int i = 0; i < METHOD_COUNT; i++) {
    if (!methods[i].params)
      continue;
    msgpack_sbuffer buffer;
    msgpack_packer packer;
    void *params = malloc(methods[i].params->size), *result = malloc(methods[i].result->size);
    FUZZ_REQUIRE(params && result);
    set_members(methods[i].params, params, true);
    set_members(methods[i].result, result, true);
    msgpack_sbuffer_init(&buffer);
    msgpack_packer_init(&packer, &buffer, msgpack_sbuffer_write);
    FUZZ_REQUIRE(rpc_pack_request(&packer, 7, (enum method_id)i, params) == 0);
    snprintf(name, sizeof name, "request-%02d", i);
    seed(name, 0, &buffer);
    msgpack_sbuffer_clear(&buffer);
    FUZZ_REQUIRE(rpc_pack_result(&packer, 7, methods[i].result, result) == 0);
    snprintf(name, sizeof name, "response-%02d", i);
    seed(name, 0, &buffer);
    msgpack_sbuffer_destroy(&buffer);
    free_lists(methods[i].params, params);
    free_lists(methods[i].result, result);
    free(params);
    free(result);
  }
  static const struct error error = {.code = ERR_GAP, .text = "a gap"};
  msgpack_sbuffer buffer;
  msgpack_packer packer;
  msgpack_sbuffer_init(&buffer);
  msgpack_packer_init(&packer, &buffer, msgpack_sbuffer_write);
  FUZZ_REQUIRE(rpc_pack_error(&packer, 7, &error) == 0);
  seed("error", 0, &buffer);
  msgpack_sbuffer_clear(&buffer);
  FUZZ_REQUIRE(rpc_pack_goodbye(&packer, &error) == 0);
  seed("goodbye", 0, &buffer);
  msgpack_sbuffer_clear(&buffer);
  FUZZ_REQUIRE(msgpack_pack_array(&packer, 3) == 0 && msgpack_pack_ext_with_body(&packer, "abcde", 5, 1) == 0);
  FUZZ_REQUIRE(msgpack_pack_ext_with_body(&packer, "abcd", 4, 2) == 0 && msgpack_pack_double(&packer, 0.5) == 0);
  seed("ext", 0, &buffer);
  msgpack_sbuffer_destroy(&buffer);
}
