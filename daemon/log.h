// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// Lines for the operator, on stderr, one write each. Under systemd stderr goes to the journal.
#ifndef COLDKV_DAEMON_LOG_H
#define COLDKV_DAEMON_LOG_H

/* "coldkvd: <sentence>"; safe from any thread. Control characters are replaced by '?'. */
void log_line(const char *format, ...) __attribute__((format(printf, 1, 2)));

#endif
