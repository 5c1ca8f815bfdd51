// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// What an honest daemon with one model and one conversation answers, as the client's peer to begin with.
#ifndef COLDKV_TESTS_FUZZ_FUZZ_HONEST_H
#define COLDKV_TESTS_FUZZ_FUZZ_HONEST_H

#include "proto/rpc.h"

void honest_reset(void);
/* Packs the answer to one whole request; returns its method. */
enum method_id honest_answer(const uint8_t *request, size_t size, msgpack_sbuffer *answer);
/* Forgets tokens from `count` on, as an older archive would. */
void honest_truncate(uint64_t count);
/* Key and value of a token, as its record tells them. */
void honest_decode(uint64_t token, float *key, float *value);

#endif
