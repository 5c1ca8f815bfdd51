// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// MessagePack maps described by tables: one description packs, unpacks and checks a map, on the wire and in files.
//
// A message is a C struct whose members are uint64_t (also for booleans), double, struct span (str and bin), struct
// list (an array of maps), or another message's struct. Unpacked spans and lists point into the packed bytes and the
// msgpack zone, and live as long as those.
#ifndef COLDKV_PROTO_MESSAGE_H
#define COLDKV_PROTO_MESSAGE_H

#include <limits.h>
#include <msgpack.h>
#include <stdbool.h>
#include <stdint.h>

#include "proto/bytes.h"
#include "proto/error.h"

enum field_kind {
  FIELD_U64,  /* uint64_t, min..max */
  FIELD_BOOL, /* uint64_t, 0 or 1 */
  FIELD_STR,  /* struct span of min..max bytes, valid UTF-8 without control characters */
  FIELD_BIN,  /* struct span of min..max bytes, a multiple of `unit` */
  FIELD_LIST, /* struct list of at most max maps of type `sub` */
  FIELD_MAP,  /* struct of type `sub` */
};

struct message;

struct field {
  const char *name;
  enum field_kind kind;
  uint32_t offset; /* of the member */
  bool optional;   /* may be absent, and is not packed while it has its initial value */
  uint64_t min, max;
  uint64_t unit;    /* FIELD_BIN: bytes of one element; 0 counts as 1 */
  uint64_t initial; /* value of an absent optional FIELD_U64 or FIELD_BOOL */
  const struct message *sub;
};

struct message {
  const char *name; /* for error sentences: "conversation.open" */
  const struct field *fields;
  uint32_t field_count;
  uint32_t size; /* of the struct */
};

/* An array of maps. Packing takes `count` structs from `items`; unpacking sets `objects`, to be given one by one to
 * message_unpack with the list's type. */
struct list {
  uint32_t count;
  const void *items;
  const msgpack_object *objects;
};

static inline struct span span_of(const void *data, size_t size) {
  return (struct span){.data = (const uint8_t *)data, .size = size};
}

/* The span of a string's bytes, "" for NULL. */
struct span span_str(const char *text);

/* Sets every member to its initial value; spans and lists become empty. */
void message_init(const struct message *type, void *value);

/* Packs one map. Returns 0, or -ERR_MEMORY when the buffer behind the packer cannot grow. Values are not checked. */
int message_pack(msgpack_packer *packer, const struct message *type, const void *value);

/* Reads one map into the struct at `value` (initialized first). Returns -ERR_BAD_PARAMS naming the field when one that
 * is not optional is absent, has the wrong type or is out of its bounds, or stands twice; unknown keys are ignored. */
int message_unpack(const struct message *type, const msgpack_object *object, void *value, struct error *error);

#endif
