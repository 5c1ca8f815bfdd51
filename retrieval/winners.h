// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// The union of all rows' winners: checks each record once, and numbers the good ones in token order.
#ifndef COLDKV_RETRIEVAL_WINNERS_H
#define COLDKV_RETRIEVAL_WINNERS_H

#include "retrieval/lookup.h"
#include "retrieval/range.h"

/* What is known of 64 neighbouring ordinals, one bit each. */
struct winners_word {
  uint64_t good, bad; /* records that were checked */
  uint32_t before;    /* good ones in the words before; set by winners_collect */
};

struct winners {
  const struct range *range;
  uint32_t layer, head;
  struct winners_word *words;
  uint64_t *touched; /* one bit per word that is not all zero: winners are few among many */
  uint64_t bad_count;
};

/* Bytes of memory for a range of so many tokens. */
size_t winners_bytes(uint32_t tokens);

/* `memory` is the caller's, winners_bytes long, aligned for uint64_t and all zero; winners_clear leaves it so again.
 * The range has been through range_index. */
void winners_init(struct winners *winners, void *memory, const struct range *range, uint32_t layer, uint32_t head);
void winners_clear(struct winners *winners);

/* Checks a record, unless it was checked before, and takes it into the union if it is good. Returns whether it is. */
bool winners_take(struct winners *winners, uint32_t ordinal);

/* Writes the union, ascending, to answer->tokens, records and count. */
void winners_collect(struct winners *winners, struct lookup_answer *answer);

/* Place in the union of an ordinal that was taken; after winners_collect. */
uint32_t winners_index(const struct winners *winners, uint32_t ordinal);

#endif
