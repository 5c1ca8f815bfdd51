// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// Clients for test_abusers: requests as bytes, and blocking sockets.
#ifndef COLDKV_TESTS_INTEGRATION_LOAD_H
#define COLDKV_TESTS_INTEGRATION_LOAD_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "proto/rpc.h"

enum { LOAD_LAYERS = 2, LOAD_KV_HEADS = 2, LOAD_HEAD_DIM = 128, LOAD_TOKENS = 8192, LOAD_FRAME = 256 };

/* The handle of the first conversation that a connection opens. */
#define LOAD_HANDLE 256u

static inline void load_must(bool ok, const char *what) {
  if (!ok) {
    perror(what);
    exit(1);
  }
}

static inline uint64_t load_now_ns(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* A connected blocking socket; -1 when the daemon has no room. */
int load_connect(const char *path);

/* Sends everything; false when the daemon hangs up. */
bool load_send(int fd, const void *data, size_t size);

/* Waits for one whole message and throws it away; ends the program when the answer is an error. */
void load_receive(int fd);

/* Requests, packed; the memory is the caller's. */
msgpack_sbuffer load_open(bool write, const uint8_t *model);
msgpack_sbuffer load_lookup(uint32_t rows, uint32_t k, uint32_t candidates);

/* Freezes a model and fills the conversation that all clients read. */
void load_fill(const char *path);

/* Kinds of abusers. */
enum abuse {
  ABUSE_GARBAGE,
  ABUSE_SLOW_READER,
  ABUSE_SLOW_WRITER,
  ABUSE_GREEDY, /* heavy lookups with large answers, as many as may be under way */
  ABUSE_BUSY,   /* the same with small answers */
  ABUSE_FLOOD,  /* light lookups, as many as may be under way */
};

/* One abuser of that kind, until it is killed. */
_Noreturn void abuse_run(enum abuse kind, const char *path, uint32_t seed);

#endif
