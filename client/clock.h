// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// The clock that waits are measured with.
#ifndef COLDKV_CLIENT_CLOCK_H
#define COLDKV_CLIENT_CLOCK_H

#include <stdint.h>
#include <time.h>

static inline uint64_t clock_us(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (uint64_t)now.tv_sec * 1000000 + (uint64_t)now.tv_nsec / 1000;
}

static inline uint64_t clock_ms(void) { return clock_us() / 1000; }

#endif
