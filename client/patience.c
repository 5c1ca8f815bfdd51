// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
#include "client/patience.h"

#include "client/clock.h"
#include "client/conversation.h"
#include "client/tuning.h"

void patience_block(struct coldkv_conv *conv) {
  conv->patience.block_lost = false;
  conv->patience.block_waited_ms = 0;
}

/* Nothing is owed any more to anybody who gave up waiting. Bytes alone are no sign of that: a daemon may acknowledge
 * appends while its lookups hang. */
static bool caught_up(const struct coldkv_conv *conv) {
  return link_ready(conv) && backlog_settled(&conv->backlog) && !connection_abandoned(&conv->client->connection);
}

bool patience_left(struct coldkv_conv *conv) {
  struct patience *p = &conv->patience;
  if (p->block_lost || p->block_waited_ms >= conv->client->block_timeout_ms)
    return false;
  if (clock_ms() >= p->until_ms)
    return true;
  /* a daemon that is slow rather than away catches up every time: every other pause is sat out */
  if (p->cut_short || !caught_up(conv))
    return false;
  p->cut_short = true;
  p->until_ms = 0;
  return true;
}

uint64_t patience_deadline(const struct coldkv_conv *conv) {
  const struct patience *p = &conv->patience;
  uint32_t most = conv->client->block_timeout_ms, one = conv->client->timeout_ms;
  uint64_t left = p->block_waited_ms < most ? most - p->block_waited_ms : 0;
  return clock_ms() + (left < one ? left : one);
}

void patience_waited(struct coldkv_conv *conv, uint64_t began_ms, enum patience_end end) {
  struct patience *p = &conv->patience;
  uint64_t now = clock_ms(), waited = now - began_ms;
  p->block_waited_ms += waited;
  if (waited > p->waited_ms_max)
    p->waited_ms_max = waited;
  if (end == PATIENCE_ANSWERED) {
    p->pause_ms = 0;
    p->cut_short = false;
  } else if (end == PATIENCE_IN_VAIN) {
    uint32_t next = p->pause_ms ? 2 * p->pause_ms : conv->client->timeout_ms;
    if (p->until_ms) /* the last pause was sat out */
      p->cut_short = false;
    p->pause_ms = next < QUIET_MS_MAX ? next : QUIET_MS_MAX;
    p->until_ms = now + p->pause_ms;
    p->block_lost = true;
  }
}
