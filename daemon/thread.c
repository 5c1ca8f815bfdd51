// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
#include "daemon/thread.h"

#include <errno.h>
#include <sched.h>
#include <stdint.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#define PROMPT_SLICE_NS 200000u
#define PATIENT_SLICE_NS 10000000u

/* sched_setattr(2); the C library has no name for it. */
struct attributes {
  uint32_t size, policy;
  uint64_t flags;
  int32_t nice;
  uint32_t priority;
  uint64_t runtime, deadline, period;
};

static void set(int nice, uint64_t slice_ns) {
  int now = getpriority(PRIO_PROCESS, (id_t)gettid()); /* on Linux of this thread alone */
  struct attributes attributes = {.size = sizeof attributes, .policy = SCHED_OTHER, .nice = nice > now ? nice : now,
                                  .runtime = slice_ns};
  if (sched_getscheduler(0) != SCHED_OTHER) /* somebody has chosen for us */
    return;
  if (syscall(SYS_sched_setattr, 0, &attributes, 0))
    setpriority(PRIO_PROCESS, (id_t)gettid(), attributes.nice); /* if this is forbidden, too, there is no harm */
}

void thread_be_prompt(void) { set(0, PROMPT_SLICE_NS); }

void thread_be_patient(int nice) { set(nice, PATIENT_SLICE_NS); }
