// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// Every bound that a message, a file or a client has to respect, named once.
#ifndef COLDKV_PROTO_LIMITS_H
#define COLDKV_PROTO_LIMITS_H

/* Geometry of a model. */
#define LIMIT_LAYERS_MAX 1024u
#define LIMIT_KV_HEADS_MAX 1024u
#define LIMIT_BLOCKS_MAX 4096u /* layers x kv heads; keeps one token under 416 KiB */
#define LIMIT_GROUP_MAX 256u   /* query heads that share one kv head */
#define LIMIT_HEAD_DIM_MIN 64u
#define LIMIT_HEAD_DIM_MAX 128u
#define LIMIT_HEAD_DIM_STEP 8u
#define LIMIT_WINDOW_MAX (1u << 24) /* trained window, tokens */

/* Identity. */
#define LIMIT_ID_BYTES 16u
#define LIMIT_FINGERPRINT_BYTES 32u
#define LIMIT_NAME_BYTES_MAX 255u

/* Segments and tails, tokens. */
#define LIMIT_SEGMENT_TOKENS 4096u
#define LIMIT_TOKEN_INDEX_MAX ((UINT64_C(1) << 48) - 1)

/* One request. */
#define LIMIT_APPEND_TOKENS_MAX 256u /* and the message still has to fit */
#define LIMIT_AHEAD_MAX 1024u        /* token ids held in a client's hot window */
#define LIMIT_ROWS_MAX 1024u         /* query rows of one lookup */
#define LIMIT_K_MAX 1024u            /* records returned per row and kv head */
#define LIMIT_CANDIDATES_MAX 16384u  /* rescored per row and kv head */
#define LIMIT_TOKENS_READ_MAX 65536u /* token ids per conversation.tokens */
#define LIMIT_LIST_MAX 1000u         /* entries per page of a list */

/* Framing. */
#define LIMIT_MESSAGE_BYTES_MAX (32u << 20)
#define LIMIT_MESSAGE_DEPTH_MAX 8u
#define LIMIT_MESSAGE_ELEMENTS_MAX 65536u

/* What one connection may make the daemon hold; what one user may is in the daemon's options. */
#define LIMIT_HANDLES_PER_CONNECTION_MAX 256u
#define LIMIT_REQUESTS_PER_CONNECTION_MAX 64u
#define LIMIT_OUTPUT_BYTES_PER_CONNECTION_MAX (64u << 20)
#define LIMIT_LARGE_PER_USER_MAX 4u /* connections of one user that hold more than their share at a time */

/* Retrieval default: C = clamp(N / 32, 1024, 4096). */
#define DEFAULT_CANDIDATES_DIVISOR 32u
#define DEFAULT_CANDIDATES_MIN 1024u
#define DEFAULT_CANDIDATES_MAX 4096u

#endif
