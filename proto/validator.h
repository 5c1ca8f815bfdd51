// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// Finds where a MessagePack value ends in bytes that arrive in pieces, and refuses what is too deep, too large or has
// too many elements, before any parser allocates for it: a five-byte header may otherwise ask for gigabytes.
#ifndef COLDKV_PROTO_VALIDATOR_H
#define COLDKV_PROTO_VALIDATOR_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "proto/error.h"
#include "proto/limits.h"

struct validator_limits {
  uint64_t bytes_max;
  uint32_t depth_max; /* at most LIMIT_MESSAGE_DEPTH_MAX */
  uint32_t elements_max;
};

/* What every socket uses. */
extern const struct validator_limits validator_limits_default;

struct validator {
  struct validator_limits limits;
  uint64_t bytes;    /* accepted so far of this message, announced bodies included */
  uint64_t skip;     /* bytes of a str/bin/ext/number body still to come */
  uint32_t elements; /* counted so far of this message */
  uint32_t depth;
  uint64_t open[LIMIT_MESSAGE_DEPTH_MAX]; /* values still expected at each level */
  uint8_t head[5];                        /* a header cut by the end of a piece */
  uint32_t head_size;
  bool done;
};

/* Prepares for one message. */
void validator_init(struct validator *validator, const struct validator_limits *limits);

/* Looks at the next bytes of the message. Returns 0 and sets *used to how many of them belong to it; `done` is then
 * true when the message is complete (bytes after *used belong to the next one) and false when more are needed. Returns
 * -ERR_BAD_MESSAGE or -ERR_LIMIT when this can be no acceptable message. Never reads past `size`, allocates nothing. */
int validator_feed(struct validator *validator, const uint8_t *data, size_t size, size_t *used, struct error *error);

#endif
