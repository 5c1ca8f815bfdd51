// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// How the kernel shares processors out to the daemon's threads.
#ifndef COLDKV_DAEMON_THREAD_H
#define COLDKV_DAEMON_THREAD_H

/* Each is for the calling thread and those that it starts from now on. On Linux 6.12 and later, a thread with short
 * slices of time that wakes up takes the processor from one with long slices at once; from one with short slices only
 * at the next tick, up to 10 ms later. Harmless before. */

/* Somebody waits for what this thread does: short slices. */
void thread_be_prompt(void);
/* Long slices, and that niceness if it is more than the present one; 10 leaves others nine tenths of a processor. */
void thread_be_patient(int nice);

#endif
