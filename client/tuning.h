// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// Every default, size and wait of the library that is not a limit of the protocol (proto/limits.h), named once.
#ifndef COLDKV_CLIENT_TUNING_H
#define COLDKV_CLIENT_TUNING_H

#include <stdint.h>

/* coldkv_client_options and coldkv_conv_options of 0 */
#define DEFAULT_TIMEOUT_MS 2000u
#define DEFAULT_SYNC_TIMEOUT_MS 30000u
#define DEFAULT_BLOCK_TIMEOUT_MS 10000u
#define DEFAULT_BACKLOG_BYTES (UINT64_C(256) << 20)
#define DEFAULT_SLOTS 64u

/* The hot window moves in steps of one tile. The ring has room for the largest window before a block (319 tokens), the
 * block (64) and as many older tokens as an exact rewind needs (128, and 1 for rounding): 512. */
enum { HOT_TILE = 64, HOT_TILES = 8, HOT_RING = HOT_TILE * HOT_TILES };

/* Means are not computed from fewer tokens. */
#define CALIBRATE_TOKENS_MIN 192u

/* Records on their way to the daemon. */
#define FRAME_TOKENS_MAX 64u         /* tokens of one append */
#define FRAME_OVERHEAD_BYTES 16384u  /* all of an append or lookup message that is not records or queries, at most */
#define APPENDS_IN_FLIGHT_MAX 32u    /* leaves half of LIMIT_REQUESTS_PER_CONNECTION_MAX for everything else */
#define APPENDS_PENDING_MAX 48u      /* requests of all conversations under way, past which no append is sent */
#define PREFETCHES_MAX 8u            /* lookups ahead of time under way */
#define ABANDONED_REQUESTS_MAX 32u   /* nobody waits for the answer any more; with more, a connection is given up */
#define OUTPUT_BYTES_QUEUED (8u << 20) /* no further append is queued behind more than this */
#define LOOKUP_BYTES_PER_RECORD 128u /* answered per row, kv head and slot, names and lengths included */

/* Waits. A connection that fails is tried again after 0, 20, 40, ... 1000 ms, a refused append after one second. */
#define RECONNECT_MS_MIN 20u
#define RECONNECT_MS_MAX 1000u
#define RECONNECT_MS_DISTRUST 100u /* after an answer that made no sense */
#define REOPEN_MS 50u              /* between attempts while another connection holds the lease */
#define APPEND_RETRY_MS 1000u
#define QUIET_MS_MAX 30000u /* longest time without waiting for a daemon that did not answer in time */
#define READ_MS_MAX 10u     /* longest reading in one turn, of a daemon that sends without end */

/* Longest key or value, as a Euclidean norm: the codec's fp16 scales hold the difference of two such vectors. Longest
 * query: scores stay finite. */
#define VECTOR_NORM_MAX 16384.0f
#define QUERY_NORM_MAX 1e18f

/* Positions whose rotations are kept in memory once computed. */
#define ROPE_ROWS_MAX 131072u

#endif
