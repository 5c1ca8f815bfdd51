// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
#include "proto/message.h"

#include <string.h>

#include "proto/text.h"

struct span span_str(const char *text) {
  return text ? span_of(text, strlen(text)) : span_of("", 0);
}

static uint64_t *member_u64(void *value, const struct field *field) {
  return (uint64_t *)(void *)((uint8_t *)value + field->offset);
}

void message_init(const struct message *type, void *value) {
  memset(value, 0, type->size);
  for (uint32_t i = 0; i < type->field_count; i++) {
    const struct field *field = &type->fields[i];
    if (field->kind == FIELD_U64 || field->kind == FIELD_BOOL)
      *member_u64(value, field) = field->initial;
    else if (field->kind == FIELD_MAP)
      message_init(field->sub, (uint8_t *)value + field->offset);
  }
}

/* An optional member that holds its initial value is left out. Maps are always packed. */
static bool field_packed(const struct field *field, const void *member) {
  if (!field->optional)
    return true;
  switch (field->kind) {
  case FIELD_U64:
  case FIELD_BOOL:
    return *(const uint64_t *)member != field->initial;
  case FIELD_STR:
  case FIELD_BIN:
    return ((const struct span *)member)->size != 0;
  case FIELD_LIST:
    return ((const struct list *)member)->count != 0;
  case FIELD_MAP:
    break;
  }
  return true;
}

static int pack_list(msgpack_packer *packer, const struct field *field, const struct list *list) {
  if (msgpack_pack_array(packer, list->count))
    return -ERR_MEMORY;
  for (uint32_t i = 0; i < list->count; i++)
    if (message_pack(packer, field->sub, (const uint8_t *)list->items + (size_t)i * field->sub->size))
      return -ERR_MEMORY;
  return 0;
}

static int pack_field(msgpack_packer *packer, const struct field *field, const void *member) {
  const struct span *span = member;
  switch (field->kind) {
  case FIELD_U64:
    return msgpack_pack_uint64(packer, *(const uint64_t *)member);
  case FIELD_BOOL:
    return *(const uint64_t *)member ? msgpack_pack_true(packer) : msgpack_pack_false(packer);
  case FIELD_STR:
    return msgpack_pack_str(packer, span->size) || msgpack_pack_str_body(packer, span->data, span->size);
  case FIELD_BIN:
    return msgpack_pack_bin(packer, span->size) || msgpack_pack_bin_body(packer, span->data, span->size);
  case FIELD_LIST:
    return pack_list(packer, field, member);
  case FIELD_MAP:
    return message_pack(packer, field->sub, member);
  }
  return 0;
}

int message_pack(msgpack_packer *packer, const struct message *type, const void *value) {
  uint32_t count = 0;
  for (uint32_t i = 0; i < type->field_count; i++)
    count += field_packed(&type->fields[i], (const uint8_t *)value + type->fields[i].offset);
  if (msgpack_pack_map(packer, count))
    return -ERR_MEMORY;
  for (uint32_t i = 0; i < type->field_count; i++) {
    const struct field *field = &type->fields[i];
    const void *member = (const uint8_t *)value + field->offset;
    if (!field_packed(field, member))
      continue;
    size_t size = strlen(field->name);
    if (msgpack_pack_str(packer, size) || msgpack_pack_str_body(packer, field->name, size) ||
        pack_field(packer, field, member))
      return -ERR_MEMORY;
  }
  return 0;
}

static int bad_type(const struct message *type, const struct field *field, const char *wanted, struct error *error) {
  return error_set(error, ERR_BAD_PARAMS, "%s: '%s' must be %s", type->name, field->name, wanted);
}

static int check_size(const struct message *type, const struct field *field, uint64_t size, struct error *error) {
  if (size < field->min || size > field->max)
    return error_set(error, ERR_BAD_PARAMS, "%s: '%s' has %llu bytes, wanted %llu to %llu", type->name, field->name,
                     (unsigned long long)size, (unsigned long long)field->min, (unsigned long long)field->max);
  if (field->unit && size % field->unit)
    return error_set(error, ERR_BAD_PARAMS, "%s: '%s' has %llu bytes, wanted a multiple of %llu", type->name,
                     field->name, (unsigned long long)size, (unsigned long long)field->unit);
  return 0;
}

static int unpack_field(const struct message *type, const struct field *field, const msgpack_object *object,
                        void *member, struct error *error) {
  switch (field->kind) {
  case FIELD_U64:
    if (object->type != MSGPACK_OBJECT_POSITIVE_INTEGER)
      return bad_type(type, field, "a non-negative integer", error);
    if (object->via.u64 < field->min || object->via.u64 > field->max)
      return error_set(error, ERR_BAD_PARAMS, "%s: '%s' is %llu, wanted %llu to %llu", type->name, field->name,
                       (unsigned long long)object->via.u64, (unsigned long long)field->min,
                       (unsigned long long)field->max);
    *(uint64_t *)member = object->via.u64;
    return 0;
  case FIELD_BOOL:
    if (object->type != MSGPACK_OBJECT_BOOLEAN)
      return bad_type(type, field, "a boolean", error);
    *(uint64_t *)member = object->via.boolean;
    return 0;
  case FIELD_STR:
    if (object->type != MSGPACK_OBJECT_STR || !text_valid(object->via.str.ptr, object->via.str.size))
      return bad_type(type, field, "a string of UTF-8 without control characters", error);
    *(struct span *)member = span_of(object->via.str.ptr, object->via.str.size);
    return check_size(type, field, object->via.str.size, error);
  case FIELD_BIN:
    if (object->type != MSGPACK_OBJECT_BIN)
      return bad_type(type, field, "of type bin", error);
    *(struct span *)member = span_of(object->via.bin.ptr, object->via.bin.size);
    return check_size(type, field, object->via.bin.size, error);
  case FIELD_LIST:
    if (object->type != MSGPACK_OBJECT_ARRAY || object->via.array.size > field->max)
      return bad_type(type, field, "an array within its limit", error);
    *(struct list *)member = (struct list){.count = object->via.array.size, .objects = object->via.array.ptr};
    return 0;
  case FIELD_MAP:
    return message_unpack(field->sub, object, member, error);
  }
  return 0;
}

static const msgpack_object *find_key(const msgpack_object_map *map, const char *name, uint32_t *times) {
  const msgpack_object *found = NULL;
  size_t size = strlen(name);
  *times = 0;
  for (uint32_t i = 0; i < map->size; i++) {
    const msgpack_object *key = &map->ptr[i].key;
    if (key->type == MSGPACK_OBJECT_STR && key->via.str.size == size && memcmp(key->via.str.ptr, name, size) == 0) {
      found = &map->ptr[i].val;
      ++*times;
    }
  }
  return found;
}

int message_unpack(const struct message *type, const msgpack_object *object, void *value, struct error *error) {
  message_init(type, value);
  if (object->type != MSGPACK_OBJECT_MAP)
    return error_set(error, ERR_BAD_PARAMS, "%s: wanted a map", type->name);
  for (uint32_t i = 0; i < type->field_count; i++) {
    const struct field *field = &type->fields[i];
    uint32_t times;
    const msgpack_object *found = find_key(&object->via.map, field->name, &times);
    if (times > 1)
      return error_set(error, ERR_BAD_PARAMS, "%s: '%s' stands %u times", type->name, field->name, times);
    if (!found && field->optional)
      continue;
    if (!found)
      return error_set(error, ERR_BAD_PARAMS, "%s: '%s' is missing", type->name, field->name);
    int result = unpack_field(type, field, found, (uint8_t *)value + field->offset, error);
    if (result)
      return result;
  }
  return 0;
}
