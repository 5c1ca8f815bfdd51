// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// From the answers of lookups to decoded slots. Answers are untrusted: every size, index, token and CRC is checked.
#ifndef COLDKV_CLIENT_SLOTS_H
#define COLDKV_CLIENT_SLOTS_H

#include "client/model.h"
#include "client/retrieve.h"

/* What one lookup asked for. */
struct slots_wanted {
  uint32_t row, rows; /* of the block */
  uint32_t k;
  uint64_t from, before;
};

struct slots_place {
  uint32_t layer, head_dim;
  const struct frozen *frozen;
  bool keep_records; /* leave the decoding to a device */
};

/* No slots for so many rows, k columns. -ERR_MEMORY. */
int slots_clear(struct retrieved *retrieved, uint32_t rows, uint32_t k, struct error *error);

/* Adds the answer of one lookup. -ERR_BAD_MESSAGE or -ERR_BAD_PARAMS when it does not fit what was asked. */
int slots_take(struct retrieved *retrieved, const struct slots_wanted *wanted, const msgpack_object *result,
               struct error *error);

/* After the last answer: sorts the unions, leaves out and counts records that fail their CRC, decodes the others, sorts
 * every row's slots. -ERR_MEMORY. */
int slots_finish(struct retrieved *retrieved, const struct slots_place *place, uint64_t *bad, struct error *error);

#endif
