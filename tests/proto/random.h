// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// Random numbers that are the same on every machine (splitmix64: Steele, Lea and Flood, OOPSLA 2014).
#ifndef COLDKV_TESTS_PROTO_RANDOM_H
#define COLDKV_TESTS_PROTO_RANDOM_H

#include <stddef.h>
#include <stdint.h>

struct random {
  uint64_t state;
};

static inline uint64_t random_u64(struct random *random) {
  uint64_t z = random->state += 0x9e3779b97f4a7c15u;
  z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
  z = (z ^ z >> 27) * 0x94d049bb133111ebu;
  return z ^ z >> 31;
}

/* 0 <= result < n */
static inline uint64_t random_below(struct random *random, uint64_t n) { return random_u64(random) % n; }

static inline void random_fill(struct random *random, void *data, size_t size) {
  uint8_t *p = data;
  for (size_t i = 0; i < size; i++)
    p[i] = (uint8_t)random_u64(random);
}

#endif
