// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// The copy in memory of one log: its token ids, and its records in the columns of a block, so that lookups treat it as
// one more block. One thread appends while others read what was counted before.
#ifndef COLDKV_STORE_TAIL_H
#define COLDKV_STORE_TAIL_H

#include <stdatomic.h>

#include "proto/record.h"
#include "store/io.h"

struct tail;

/* Reserves room for LIMIT_SEGMENT_TOKENS tokens from `first` on; memory is used as tokens come. `bytes_total` is told
 * of the reserved size while the tail lives. ERR_MEMORY. */
int tail_create(const struct io *io, uint64_t first, uint32_t layers, uint32_t kv_heads,
                _Atomic uint64_t *bytes_total, struct tail **tail, struct error *error);
struct tail *tail_ref(struct tail *tail);
void tail_unref(struct tail *tail); /* NULL is allowed */

uint64_t tail_first(const struct tail *tail);
uint32_t tail_count(const struct tail *tail); /* tokens whose bytes may be read; any thread */
uint32_t tail_room(const struct tail *tail);

/* Scatters count tokens, ids u32 [count] and records [count][layers][kv_heads][104], behind the last one. They become
 * visible all at once. There must be room. */
void tail_append(struct tail *tail, const uint8_t *ids, const uint8_t *records, uint32_t count);

/* Takes back the newest `count` tokens, which nobody has been told of. */
void tail_retract(struct tail *tail, uint32_t count);

const uint8_t *tail_ids(const struct tail *tail); /* u32 */

/* The columns of one block, with the count there is now. */
void tail_columns(const struct tail *tail, uint32_t layer, uint32_t head, struct record_columns *columns);

#endif
