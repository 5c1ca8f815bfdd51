// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// How long a conversation waits for the daemon while tokens are generated. One call waits at most timeout_ms, the calls
// of one block together at most block_timeout_ms, and only one of them in vain. After a wait in vain nothing waits for
// a pause that doubles, or until the daemon has answered all that it owes.
#ifndef COLDKV_CLIENT_PATIENCE_H
#define COLDKV_CLIENT_PATIENCE_H

#include <stdbool.h>
#include <stdint.h>

struct coldkv_conv;

struct patience {
  uint64_t until_ms;        /* nothing waits before, unless the daemon caught up */
  uint32_t pause_ms;        /* length of the last pause; 0 after an answer in time */
  bool cut_short;           /* the last pause was ended before its time */
  bool block_lost;          /* a call of this block waited in vain */
  uint64_t block_waited_ms; /* by the calls of this block */
  uint64_t waited_ms_max;   /* of one call */
};

/* A new block begins. */
void patience_block(struct coldkv_conv *conv);

/* True when a call may wait now. */
bool patience_left(struct coldkv_conv *conv);

/* Until when a call that begins to wait now may do so. */
uint64_t patience_deadline(const struct coldkv_conv *conv);

/* A call has waited since began_ms: for an answer that came, for one that did not, or for something else. */
enum patience_end { PATIENCE_ANSWERED, PATIENCE_IN_VAIN, PATIENCE_OTHERWISE };
void patience_waited(struct coldkv_conv *conv, uint64_t began_ms, enum patience_end end);

#endif
