// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// Lines for the operator, on stderr, one write each. Under systemd stderr goes to the journal.
#ifndef COLDKV_DAEMON_LOG_H
#define COLDKV_DAEMON_LOG_H

#include <stdbool.h>
#include <stdint.h>

/* "coldkvd: <sentence>"; safe from any thread. Control characters are replaced by '?'. */
void log_line(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* What clients can cause as often as they like is logged a few times and then counted. */
struct log_rate {
  uint64_t window_ms; /* when the current window began */
  uint32_t lines, left_out;
};

/* True when a line may be written now; after a pause it first says how many were left out. One thread. */
bool log_may(struct log_rate *rate, uint64_t now_ms);

#endif
