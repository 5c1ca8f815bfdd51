// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
#include "daemon/scrubber.h"

#include <errno.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "daemon/log.h"
#include "daemon/thread.h"
#include "store/archive.h"

#define SECOND_NS UINT64_C(1000000000)
#define NICENESS 19

/* linux/ioprio.h of the kernel that this is built on may be missing */
enum { WHO_PROCESS = 1, CLASS_IDLE = 3, CLASS_SHIFT = 13 };

static uint64_t now_ns(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (uint64_t)now.tv_sec * SECOND_NS + (uint64_t)now.tv_nsec;
}

/* With the lock held: waits until then, or until told to stop. */
static void wait_until(struct scrubber *scrubber, uint64_t when_ns) {
  const struct timespec when = {.tv_sec = (time_t)(when_ns / SECOND_NS), .tv_nsec = (long)(when_ns % SECOND_NS)};
  while (!scrubber->stop && pthread_cond_timedwait(&scrubber->wake, &scrubber->lock, &when) != ETIMEDOUT) {
  }
}

/* Keeps the bytes read since the cycle began below what the rate allows. */
static int tell(void *context, const char *path, const char *what, const struct verify_report *report) {
  struct scrubber *scrubber = context;
  if (what)
    archive_damage_add(scrubber->archive, path, &report->place, what);
  pthread_mutex_lock(&scrubber->lock);
  scrubber->bytes_total += report->bytes_done - scrubber->report.bytes_done;
  scrubber->report = *report;
  uint64_t due_s = report->bytes_done / scrubber->bytes_per_s, rest = report->bytes_done % scrubber->bytes_per_s;
  wait_until(scrubber, scrubber->began_ns + due_s * SECOND_NS + rest * SECOND_NS / scrubber->bytes_per_s);
  int stop = scrubber->stop;
  pthread_mutex_unlock(&scrubber->lock);
  return stop;
}

static void run_cycle(struct scrubber *scrubber) {
  struct verify_report report;
  struct error error = {0};
  uint64_t began_s = (uint64_t)time(NULL);
  pthread_mutex_lock(&scrubber->lock);
  scrubber->running = true;
  scrubber->report = (struct verify_report){0};
  scrubber->began_ns = now_ns();
  pthread_mutex_unlock(&scrubber->lock);
  int result = verify_scrub(NULL, archive_directory(scrubber->archive), &report, tell, scrubber, &error);
  if (result < 0)
    log_line("scrub: %s", error.text);
  pthread_mutex_lock(&scrubber->lock);
  scrubber->running = false;
  if (result == 0) {
    scrubber->bytes_total += report.bytes_done - scrubber->report.bytes_done;
    scrubber->report = report;
    scrubber->cycles++;
    scrubber->finished_s = (uint64_t)time(NULL);
  }
  pthread_mutex_unlock(&scrubber->lock);
  if (result == 0) /* what was restored or repaired meanwhile is whole again */
    damage_list_expire(archive_damage(scrubber->archive), began_s);
}

static void *run(void *context) {
  struct scrubber *scrubber = context;
  /* both are favours to others: where they are forbidden, the rate alone has to do */
  (void)syscall(SYS_ioprio_set, WHO_PROCESS, 0, CLASS_IDLE << CLASS_SHIFT);
  thread_be_patient(NICENESS);
  pthread_mutex_lock(&scrubber->lock);
  while (!scrubber->stop) {
    pthread_mutex_unlock(&scrubber->lock);
    run_cycle(scrubber);
    pthread_mutex_lock(&scrubber->lock);
    wait_until(scrubber, now_ns() + scrubber->pause_s * SECOND_NS);
  }
  pthread_mutex_unlock(&scrubber->lock);
  return NULL;
}

int scrubber_start(struct scrubber *scrubber, struct archive *archive, uint64_t mb_per_s, uint64_t pause_s,
                   struct error *error) {
  pthread_condattr_t attributes;
  *scrubber = (struct scrubber){.archive = archive, .bytes_per_s = mb_per_s << 20, .pause_s = pause_s};
  if (!mb_per_s)
    return 0;
  pthread_mutex_init(&scrubber->lock, NULL);
  pthread_condattr_init(&attributes);
  pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
  pthread_cond_init(&scrubber->wake, &attributes);
  pthread_condattr_destroy(&attributes);
  int failed = pthread_create(&scrubber->thread, NULL, run, scrubber);
  if (failed) {
    pthread_cond_destroy(&scrubber->wake);
    pthread_mutex_destroy(&scrubber->lock);
    return error_set_errno(error, failed, "cannot start the thread of the scrub");
  }
  scrubber->started = true;
  return 0;
}

void scrubber_stop(struct scrubber *scrubber) {
  if (!scrubber->started)
    return;
  pthread_mutex_lock(&scrubber->lock);
  scrubber->stop = true;
  pthread_cond_signal(&scrubber->wake);
  pthread_mutex_unlock(&scrubber->lock);
  pthread_join(scrubber->thread, NULL);
  pthread_cond_destroy(&scrubber->wake);
  pthread_mutex_destroy(&scrubber->lock);
  scrubber->started = false;
}

void scrubber_status(struct scrubber *scrubber, struct msg_status *status) {
  if (!scrubber->started)
    return;
  pthread_mutex_lock(&scrubber->lock);
  status->scrub_bytes_s = scrubber->bytes_per_s;
  status->scrub_running = scrubber->running;
  status->scrub_cycles = scrubber->cycles;
  status->scrub_finished_s = scrubber->finished_s;
  status->scrub_files_total = scrubber->report.files_total;
  status->scrub_files_done = scrubber->report.files_done;
  status->scrub_bytes_done = scrubber->report.bytes_done;
  pthread_mutex_unlock(&scrubber->lock);
}

void scrubber_stats(struct scrubber *scrubber, struct msg_stats *stats) {
  if (!scrubber->started)
    return;
  pthread_mutex_lock(&scrubber->lock);
  stats->scrub_cycles = scrubber->cycles;
  stats->scrub_bytes = scrubber->bytes_total;
  pthread_mutex_unlock(&scrubber->lock);
}
