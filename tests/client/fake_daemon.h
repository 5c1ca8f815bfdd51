// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// A daemon in a thread of the test: speaks the protocol through proto/, keeps records in memory, answers lookups by
// brute force, follows the rules of append to the letter, and misbehaves when told to.
#ifndef COLDKV_TESTS_CLIENT_FAKE_DAEMON_H
#define COLDKV_TESTS_CLIENT_FAKE_DAEMON_H

#include <stdbool.h>

#include "proto/rpc.h"

enum { FAKE_TOKENS_MAX = 8192, FAKE_CONVERSATIONS_MAX = 4, FAKE_MODELS_MAX = 4 };

struct fake_model {
  struct msg_model description; /* spans point into the arrays below */
  uint8_t id[LIMIT_ID_BYTES], fingerprint[LIMIT_FINGERPRINT_BYTES];
  double freqs[64];
  float *means; /* mean_k, then mean_v */
};

struct fake_conversation {
  char name[LIMIT_NAME_BYTES_MAX + 1];
  uint8_t id[LIMIT_ID_BYTES];
  struct fake_model *model;
  uint64_t blocks; /* layers x kv heads */
  uint64_t count, durable;
  uint32_t *ids;    /* [FAKE_TOKENS_MAX] */
  uint8_t *records; /* [FAKE_TOKENS_MAX][blocks][104] */
  uint32_t ahead[LIMIT_AHEAD_MAX], ahead_count;
  int writer; /* connection, -1: none */
};

/* Changes the bytes of an answer before it is sent; may make it longer (room for `capacity`). */
typedef void fake_mangle_fn(void *context, enum method_id method, uint8_t *data, size_t *size, size_t capacity);

/* What it is told to do. Change these between fake_lock and fake_unlock. */
struct fake_orders {
  uint64_t cut_after_bytes; /* hang up after receiving so many bytes more, then again; 0: never */
  bool lose;                /* a cut loses what is not durable, as a crash would */
  uint32_t durable_every;   /* appends without sync become durable every so many; 0: at once */
  uint32_t busy_opens;      /* so many opens are answered "busy" */
  uint32_t failing_appends; /* so many appends are answered with append_error */
  int append_error;
  bool mute;         /* nothing is answered */
  bool mute_lookups; /* lookups are not answered */
  uint64_t protocol; /* version in hello; 0: the right one */
  fake_mangle_fn *mangle;
  void *mangle_context;
  uint32_t spoil_records; /* so many of each answer's records get a flipped bit */
  uint64_t message_bytes_max; /* told in hello; 0: the limit */
};

struct fake_counters {
  uint64_t appends, repeats, gaps, conflicts, lookups, opens, closes, calibrations, accepted, bad_messages, cuts;
  uint64_t lookup_rows, records_sent;
};

struct fake_daemon;

/* Starts one that listens at `path`. */
struct fake_daemon *fake_create(const char *path);

/* Hangs up on everybody and stops listening; everything it holds is kept. lose: except what is not durable. */
void fake_stop(struct fake_daemon *fake, bool lose);
void fake_start(struct fake_daemon *fake);
void fake_destroy(struct fake_daemon *fake);

struct fake_orders *fake_lock(struct fake_daemon *fake);
void fake_unlock(struct fake_daemon *fake);

/* Only while locked. */
struct fake_counters *fake_counters(struct fake_daemon *fake);
struct fake_conversation *fake_conversation(struct fake_daemon *fake, const char *name);
struct fake_model *fake_model(struct fake_daemon *fake);

#endif
