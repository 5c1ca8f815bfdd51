// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// MessagePack-RPC envelopes: request [0, id, method, params], response [1, id, error, result], notification
// [2, method, params]. Source: the MessagePack-RPC specification.
#ifndef COLDKV_PROTO_RPC_H
#define COLDKV_PROTO_RPC_H

#include "proto/messages.h"

enum rpc_kind { RPC_REQUEST = 0, RPC_RESPONSE = 1, RPC_NOTIFICATION = 2 };

struct rpc {
  enum rpc_kind kind;
  uint32_t id;
  struct span method;          /* requests and notifications */
  const msgpack_object *body;  /* params, or the result of a response; NULL in a response that failed */
  const msgpack_object *fault; /* the error of a response, NULL when it succeeded */
};

/* Reads one message that the validator accepted; everything points into `data` and `zone`. -ERR_BAD_MESSAGE. */
int rpc_parse(const uint8_t *data, size_t size, msgpack_zone *zone, msgpack_object *root, struct rpc *rpc,
              struct error *error);

/* Pack one whole message; 0 or -ERR_MEMORY. */
int rpc_pack_request(msgpack_packer *packer, uint32_t id, enum method_id method, const void *params);
int rpc_pack_result(msgpack_packer *packer, uint32_t id, const struct message *type, const void *result);
int rpc_pack_error(msgpack_packer *packer, uint32_t id, const struct error *error);

/* [2, "error", {code, message}]: sent before a connection is closed for bytes that are no message. */
int rpc_pack_goodbye(msgpack_packer *packer, const struct error *error);

/* Fills `error` from a response's error (or a goodbye's params); returns its -code. */
int rpc_fault(const msgpack_object *fault, struct error *error);

#endif
