// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// A daemon on a thread of this process, and a client that checks every answer.
#ifndef COLDKV_TESTS_FUZZ_FUZZ_PEER_H
#define COLDKV_TESTS_FUZZ_FUZZ_PEER_H

#include "proto/rpc.h"
#include "proto/validator.h"

enum { PEER_REQUESTS_MAX = 60, PEER_NAMES = 3, PEER_TOKENS_MAX = 8192 };

/* A request without an answer, with what is needed to judge it. */
struct peer_request {
  uint32_t id;
  enum method_id method;
  unsigned name, epoch, mark;
  uint64_t first, count, before, rows, k;
  uint32_t layer, head;
  uint64_t acknowledged; /* tokens of the conversation when this was sent: what the answer has to know of */
};

struct peer {
  int fd; /* -1: not connected */
  uint32_t next_id;
  struct peer_request requests[PEER_REQUESTS_MAX];
  unsigned request_count;
  uint8_t *in;
  size_t in_size, in_capacity;
  uint64_t handles[PEER_NAMES]; /* of the last open of each name; 0: none */
};

/* What has been acknowledged of each name, of all peers together. A delete that was sent begins a new epoch. */
struct peer_truth {
  uint64_t acknowledged[PEER_NAMES], known[PEER_NAMES];
  unsigned epoch[PEER_NAMES];
  uint8_t model_ids[256][LIMIT_ID_BYTES];
  bool model_known[256];
};
extern struct peer_truth peer_truth;
extern const char *const peer_names[PEER_NAMES];

/* Starts the daemon, or a fresh one on an empty archive when enough inputs were tried. */
void peer_daemon(void);

void peer_connect(struct peer *peer);
void peer_hang_up(struct peer *peer);

/* Sends a request; `request` tells what of it (id and method are filled in). Reads answers first when many are out. */
void peer_send(struct peer *peer, enum method_id method, const void *params, struct peer_request request);
/* Reads answers until none is missing. */
void peer_wait(struct peer *peer);

/* Sends bytes on a connection of their own, and nothing more; reads what is said until the daemon hangs up. */
void peer_raw(const uint8_t *data, size_t size);

/* The record of a token, by table; `variant` is another good one. */
const uint8_t *peer_record(uint64_t token, uint32_t block, bool variant);

/* Deletes everything, once all that was acknowledged was found there. */
void peer_clean(void);

/* fuzz_answer.c: judges one answer. */
void peer_judge(struct peer *peer, const struct peer_request *request, const struct rpc *rpc);

#endif
