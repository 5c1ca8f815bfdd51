// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// A 32-byte fingerprint: four lanes of multiply-and-rotate, then every lane mixed into every other.
#include <string.h>

#include "client/coldkv.h"
#include "proto/bytes.h"

#define LANES 4

static const uint64_t multipliers[LANES] = {UINT64_C(0x9e3779b97f4a7c15), UINT64_C(0xc2b2ae3d27d4eb4f),
                                            UINT64_C(0x165667b19e3779f9), UINT64_C(0xd6e8feb86659fd93)};

static uint64_t rotate(uint64_t x, unsigned bits) { return x << bits | x >> (64 - bits); }

/* Finalizer of splitmix64: every bit of the input changes about half of the output. */
static uint64_t mix(uint64_t z) {
  z = (z ^ z >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
  z = (z ^ z >> 27) * UINT64_C(0x94d049bb133111eb);
  return z ^ z >> 31;
}

static void absorb(uint64_t lanes[LANES], const uint8_t block[8 * LANES]) {
  for (unsigned i = 0; i < LANES; i++)
    lanes[i] = rotate((lanes[i] ^ load_u64(block + 8 * i)) * multipliers[i], 29 + i) + multipliers[LANES - 1 - i];
}

void coldkv_fingerprint(uint8_t state[32], const void *data, size_t size) {
  uint64_t lanes[LANES];
  const uint8_t *bytes = data;
  size_t at = 0;
  for (unsigned i = 0; i < LANES; i++)
    lanes[i] = load_u64(state + 8 * i);
  for (; size - at >= 8 * LANES; at += 8 * LANES)
    absorb(lanes, bytes + at);
  uint8_t block[8 * LANES] = {0};
  if (size > at)
    memcpy(block, bytes + at, size - at);
  absorb(lanes, block);
  lanes[0] ^= size; /* zeros at the end count */
  for (unsigned round = 0; round < 2; round++)
    for (unsigned i = 0; i < LANES; i++)
      lanes[i] = mix(lanes[i] + rotate(lanes[(i + 1) % LANES], 17) + multipliers[i]) ^ lanes[(i + 3) % LANES];
  for (unsigned i = 0; i < LANES; i++)
    store_u64(state + 8 * i, lanes[i]);
}
