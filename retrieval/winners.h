// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// The union of all rows' winners: checks each record once, and numbers the good ones in token order.
#ifndef COLDKV_RETRIEVAL_WINNERS_H
#define COLDKV_RETRIEVAL_WINNERS_H

#include "retrieval/lookup.h"
#include "retrieval/range.h"

/* One bit per ordinal; words of 64. */
struct winners {
  const struct range *range;
  uint32_t layer, head;
  uint64_t *good, *bad; /* records that were checked */
  uint32_t *before;     /* by word: good ones in the words before it; set by winners_collect */
  uint64_t bad_count;
};

/* Bytes of memory for a range of so many tokens. */
size_t winners_bytes(uint32_t tokens);

/* `memory` is the caller's, winners_bytes long and aligned for uint64_t. */
void winners_init(struct winners *winners, void *memory, const struct range *range, uint32_t layer, uint32_t head);

/* Checks a record, unless it was checked before, and takes it into the union if it is good. Returns whether it is. */
bool winners_take(struct winners *winners, uint32_t ordinal);

/* Writes the union, ascending, to answer->tokens, records and count. */
void winners_collect(struct winners *winners, struct lookup_answer *answer);

/* Place in the union of an ordinal that was taken; after winners_collect. */
uint32_t winners_index(const struct winners *winners, uint32_t ordinal);

#endif
