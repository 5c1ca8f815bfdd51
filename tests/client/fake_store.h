// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// What the fake daemon does with tokens: the rules of append, and lookups by brute force (every key decoded, every
// score computed in double, sorted).
#ifndef COLDKV_TESTS_CLIENT_FAKE_STORE_H
#define COLDKV_TESTS_CLIENT_FAKE_STORE_H

#include <stdio.h>
#include <stdlib.h>

#include "tests/client/fake_daemon.h"

/* What it says of itself. */
void fake_hello(const struct fake_orders *orders, struct msg_hello_ok *hello);

/* Copies what a model.calibrate asks to be frozen; m->id is set already. */
void fake_keep_model(struct fake_model *m, const struct msg_model *wanted);

/* 0 when the append may be stored, else its error; counts repeats, gaps and conflicts. */
int fake_check_append(const struct fake_conversation *c, const struct msg_append *append,
                      struct fake_counters *counters, struct error *error);

/* One kv head of an answer, tokens lookup->from .. before - 1. Its arrays are malloc'd. */
void fake_look_up(const struct fake_conversation *c, const struct msg_lookup *lookup, uint32_t head, uint64_t before,
                  struct msg_lookup_head *answer);
void fake_free_head(struct msg_lookup_head *answer);

/* Ends the test program when something fails that never should. */
static inline void fake_must(bool ok, const char *what) {
  if (!ok) {
    perror(what);
    abort();
  }
}

#endif
