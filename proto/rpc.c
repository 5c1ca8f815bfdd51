// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
#include "proto/rpc.h"

#include <string.h>

#include "proto/text.h"

struct msg_fault {
  struct span code, message;
};

static const struct field fault_fields[] = {
    {.name = "code", .kind = FIELD_STR, .offset = offsetof(struct msg_fault, code), .max = LIMIT_NAME_BYTES_MAX},
    {.name = "message", .kind = FIELD_STR, .offset = offsetof(struct msg_fault, message), .max = 4096},
};
static const struct message message_fault = {"error", fault_fields, 2, sizeof(struct msg_fault)};

static bool is_id(const msgpack_object *object) {
  return object->type == MSGPACK_OBJECT_POSITIVE_INTEGER && object->via.u64 <= UINT32_MAX;
}

int rpc_parse(const uint8_t *data, size_t size, msgpack_zone *zone, msgpack_object *root, struct rpc *rpc,
              struct error *error) {
  size_t used = 0;
  msgpack_unpack_return result = msgpack_unpack((const char *)data, size, &used, zone, root);
  if (result == MSGPACK_UNPACK_NOMEM_ERROR)
    return error_set(error, ERR_MEMORY, "out of memory for a message of %zu bytes", size);
  if (result != MSGPACK_UNPACK_SUCCESS || used != size)
    return error_set(error, ERR_BAD_MESSAGE, "%zu bytes that are not one MessagePack value", size);
  const msgpack_object *item = root->via.array.ptr;
  uint32_t items = root->type == MSGPACK_OBJECT_ARRAY ? root->via.array.size : 0;
  if (items < 3 || item[0].type != MSGPACK_OBJECT_POSITIVE_INTEGER)
    return error_set(error, ERR_BAD_MESSAGE, "message is no MessagePack-RPC array");
  *rpc = (struct rpc){0};
  if (item[0].via.u64 == RPC_REQUEST && items == 4 && is_id(&item[1]) && item[2].type == MSGPACK_OBJECT_STR) {
    *rpc = (struct rpc){.kind = RPC_REQUEST, .id = (uint32_t)item[1].via.u64, .body = &item[3]};
    rpc->method = span_of(item[2].via.str.ptr, item[2].via.str.size);
    return 0;
  }
  if (item[0].via.u64 == RPC_RESPONSE && items == 4 && is_id(&item[1])) {
    *rpc = (struct rpc){.kind = RPC_RESPONSE, .id = (uint32_t)item[1].via.u64};
    if (item[2].type == MSGPACK_OBJECT_NIL)
      rpc->body = &item[3];
    else
      rpc->fault = &item[2];
    return 0;
  }
  if (item[0].via.u64 == RPC_NOTIFICATION && items == 3 && item[1].type == MSGPACK_OBJECT_STR) {
    *rpc = (struct rpc){.kind = RPC_NOTIFICATION, .body = &item[2]};
    rpc->method = span_of(item[1].via.str.ptr, item[1].via.str.size);
    return 0;
  }
  return error_set(error, ERR_BAD_MESSAGE, "message is no MessagePack-RPC request, response or notification");
}

static int pack_text(msgpack_packer *packer, const char *text) {
  size_t size = strlen(text);
  return msgpack_pack_str(packer, size) || msgpack_pack_str_body(packer, text, size);
}

int rpc_pack_request(msgpack_packer *packer, uint32_t id, enum method_id method, const void *params) {
  if (msgpack_pack_array(packer, 4) || msgpack_pack_uint8(packer, RPC_REQUEST) || msgpack_pack_uint32(packer, id) ||
      pack_text(packer, methods[method].name))
    return -ERR_MEMORY;
  return message_pack(packer, methods[method].params, params);
}

int rpc_pack_result(msgpack_packer *packer, uint32_t id, const struct message *type, const void *result) {
  if (msgpack_pack_array(packer, 4) || msgpack_pack_uint8(packer, RPC_RESPONSE) || msgpack_pack_uint32(packer, id) ||
      msgpack_pack_nil(packer))
    return -ERR_MEMORY;
  return message_pack(packer, type, result);
}

/* The sentence may hold a damaged file's bytes or be cut inside a character; the other side would then refuse it. */
static int pack_fault(msgpack_packer *packer, const struct error *error) {
  char text[ERROR_TEXT_BYTES];
  size_t size = strnlen(error->text, sizeof text);
  memcpy(text, error->text, size);
  text_repair(text, size);
  struct msg_fault fault = {.code = span_str(error_name(error->code)), .message = span_of(text, size)};
  return message_pack(packer, &message_fault, &fault);
}

int rpc_pack_error(msgpack_packer *packer, uint32_t id, const struct error *error) {
  if (msgpack_pack_array(packer, 4) || msgpack_pack_uint8(packer, RPC_RESPONSE) || msgpack_pack_uint32(packer, id) ||
      pack_fault(packer, error) || msgpack_pack_nil(packer))
    return -ERR_MEMORY;
  return 0;
}

int rpc_pack_goodbye(msgpack_packer *packer, const struct error *error) {
  if (msgpack_pack_array(packer, 3) || msgpack_pack_uint8(packer, RPC_NOTIFICATION) || pack_text(packer, "error") ||
      pack_fault(packer, error))
    return -ERR_MEMORY;
  return 0;
}

int rpc_fault(const msgpack_object *fault, struct error *error) {
  struct msg_fault parsed;
  if (message_unpack(&message_fault, fault, &parsed, error))
    return error_set(error, ERR_INTERNAL, "the daemon answered an error that cannot be read");
  int code = error_code_from_name((const char *)parsed.code.data, parsed.code.size);
  return error_set(error, code, "%.*s", (int)parsed.message.size, (const char *)parsed.message.data);
}
