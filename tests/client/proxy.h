// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// A bad line between a client and a daemon, fake or real: a thread that passes bytes on both ways and, when told to,
// holds them back, delays answers, hangs up in mid-frame or floods the client.
#ifndef COLDKV_TESTS_CLIENT_PROXY_H
#define COLDKV_TESTS_CLIENT_PROXY_H

#include <stdbool.h>
#include <stdint.h>

/* Change these between proxy_lock and proxy_unlock. */
struct proxy_orders {
  uint32_t delay_ms;           /* answers arrive so much later */
  bool stall;                  /* connections are taken, and nothing is passed on */
  uint64_t cut_up, cut_down;   /* hang up once a connection has carried so many bytes that way; 0: never */
  bool flood;                  /* notifications to the client without end */
};

struct proxy_counters {
  uint64_t accepted, cuts, bytes_up, bytes_down;
};

struct proxy;

/* Listens at `path` and connects to the daemon at `to` for everyone who comes. */
struct proxy *proxy_create(const char *path, const char *to);
void proxy_destroy(struct proxy *proxy);

struct proxy_orders *proxy_lock(struct proxy *proxy);
void proxy_unlock(struct proxy *proxy);
struct proxy_counters proxy_counters(struct proxy *proxy);

#endif
