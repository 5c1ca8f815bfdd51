// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
#include "daemon/thread.h"

#include <errno.h>
#include <sched.h>
#include <stdint.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#define SLICE_NS 200000u

/* sched_setattr(2); the C library has no name for it. */
struct attributes {
  uint32_t size, policy;
  uint64_t flags;
  int32_t nice;
  uint32_t priority;
  uint64_t runtime, deadline, period;
};

void thread_set_priority(int nice) {
  int now = getpriority(PRIO_PROCESS, (id_t)gettid()); /* on Linux of this thread alone */
  struct attributes attributes = {.size = sizeof attributes, .policy = SCHED_OTHER, .nice = nice > now ? nice : now,
                                  .runtime = SLICE_NS};
  if (sched_getscheduler(0) != SCHED_OTHER) /* somebody has chosen for us */
    return;
  if (syscall(SYS_sched_setattr, 0, &attributes, 0))
    setpriority(PRIO_PROCESS, (id_t)gettid(), attributes.nice); /* if this is forbidden, too, there is no harm */
}
