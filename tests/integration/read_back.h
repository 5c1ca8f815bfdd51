// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// Reads a whole conversation of the toy engine back from the daemon, past libcoldkv's own notion of it, and compares
// every id and every byte of every record with what the engine handed over.
#ifndef COLDKV_TESTS_INTEGRATION_READ_BACK_H
#define COLDKV_TESTS_INTEGRATION_READ_BACK_H

#include "tests/client/engine.h"

struct read_back {
  uint64_t tokens, ahead; /* that the daemon has */
  uint64_t lost;          /* tokens handed over that are not there, or not with these bytes */
  uint64_t duplicated;    /* tokens past those handed over, or with the id of the one before */
};

/* `handed`: tokens handed over. Connects to engine->socket and waits until a daemon answers there. */
void read_back(struct engine *engine, uint64_t handed, struct read_back *found);

#endif
