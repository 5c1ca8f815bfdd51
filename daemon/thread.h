// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// How the kernel shares processors out to the daemon's threads.
#ifndef COLDKV_DAEMON_THREAD_H
#define COLDKV_DAEMON_THREAD_H

/* For the calling thread, and those that it starts from now on: short slices of time, so that a thread that wakes up to
 * answer somebody need not wait until another has used up a long one (Linux 6.12 and later; harmless before), and that
 * niceness, if it is more than the present one. */
void thread_set_priority(int nice);

#endif
