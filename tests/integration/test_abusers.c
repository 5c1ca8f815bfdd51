// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// 200 clients of one user at once, 10 of them abusive: how long the others' lookups take, with and without these, and
// how much memory the daemon comes to. test_abusers COLDKVD holds it to the memory and to every client being answered.
// COLDKV_TORTURE_SECONDS=N goes on for about N seconds and holds the lookups to RATIO_MAX too, which says something
// only on a machine that does nothing else.
//
// The abusers run with what processor time the others leave (SCHED_IDLE): measured is what they cost through the
// daemon, not that of ten programs that do nothing but send. It is calm in two ways, of which the quicker counts: with
// nothing else at all, when processors of a virtual machine fall asleep and wake up late; and with as many processes
// that only burn such time, when Linux takes many processors for full and lets who wakes up wait behind another.
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "proto/validator.h"
#include "tests/integration/load.h"
#include "tests/proto/random.h"

enum { CLIENTS = 200, ABUSIVE = 10, GOOD = CLIENTS - ABUSIVE };
enum { SLICE_MS = 1000, SETTLE_MS = 500, ROUND_MS = 3 * (SLICE_MS + SETTLE_MS) };
enum { SHORT_ROUNDS = 3, ROUNDS_MAX = 4096 };
enum { THINK_MS_MIN = 50, THINK_MS_MAX = 150 };
enum { USER_QUEUE_MB = 768, USER_CONNECTIONS = 256, LARGE = 4, LARGE_MB = 64, LOOKUP_THREAD_MB = 64, SLACK_MB = 32 };
#define RATIO_MAX 2.0
#define SAMPLES_MAX (1u << 22)

struct client {
  int fd;
  bool waiting;
  uint64_t at_ns; /* when it sent, or will send */
  struct validator validator;
};

/* Latencies of one slice, and the 99th percentiles of all slices of its kind. */
struct samples {
  uint32_t count, slices;
  uint32_t *us, p99_us[ROUNDS_MAX], p50_us[ROUNDS_MAX];
};

static struct client clients[GOOD];
static pid_t daemon_pid, abusers[ABUSIVE], burners[ABUSIVE];
static char directory[] = "/tmp/coldkv-abusers-XXXXXX", path[64], data[64], log_path[64];

static void end_all(void) {
  for (int i = 0; i < ABUSIVE; i++) {
    if (burners[i] > 0)
      kill(burners[i], SIGKILL);
    if (abusers[i] > 0)
      kill(abusers[i], SIGKILL);
  }
  if (daemon_pid > 0)
    kill(daemon_pid, SIGKILL);
}

static void start_daemon(const char *program) {
  load_must(mkdtemp(directory) != NULL, "mkdtemp");
  snprintf(path, sizeof path, "%s/s", directory);
  snprintf(data, sizeof data, "%s/data", directory);
  snprintf(log_path, sizeof log_path, "%s/log", directory);
  daemon_pid = fork();
  load_must(daemon_pid >= 0, "fork");
  if (!daemon_pid) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    int out = open(log_path, O_WRONLY | O_CREAT | O_APPEND, 0600);
    dup2(out, STDERR_FILENO);
    execl(program, program, "--data", data, "--socket", path, "--durability", "none", "--client-timeout-s", "5",
          (char *)NULL);
    _exit(127);
  }
  atexit(end_all);
  for (int i = 0; i < 1000; i++) {
    int fd = load_connect(path);
    if (fd >= 0) {
      close(fd);
      return;
    }
    usleep(20000);
  }
  load_must(false, "coldkvd does not start");
}

static void signal_burners(int number) {
  for (int i = 0; i < ABUSIVE && burners[i]; i++)
    kill(burners[i], number);
}

static void start_burners(void) {
  long processors = sysconf(_SC_NPROCESSORS_ONLN);
  for (int i = 0; i < ABUSIVE && i < processors; i++) {
    burners[i] = fork();
    load_must(burners[i] >= 0, "fork");
    if (burners[i])
      continue;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    sched_setscheduler(0, SCHED_IDLE, &(struct sched_param){0});
    for (volatile uint64_t burnt = 0;; burnt++)
      continue;
  }
  signal_burners(SIGSTOP);
}

static void start_abusers(uint32_t seed) {
  static const enum abuse kinds[ABUSIVE] = {ABUSE_GARBAGE,     ABUSE_GARBAGE,     ABUSE_SLOW_READER, ABUSE_SLOW_READER,
                                            ABUSE_SLOW_WRITER, ABUSE_SLOW_WRITER, ABUSE_GREEDY,      ABUSE_BUSY,
                                            ABUSE_BUSY,        ABUSE_FLOOD};
  for (int i = 0; i < ABUSIVE; i++) {
    abusers[i] = fork();
    load_must(abusers[i] >= 0, "fork");
    if (abusers[i])
      continue;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    sched_setscheduler(0, SCHED_IDLE, &(struct sched_param){0});
    for (int c = 0; c < GOOD; c++)
      close(clients[c].fd);
    abuse_run(kinds[i], path, seed + (uint32_t)i);
  }
}

static void stop_abusers(void) {
  for (int i = 0; i < ABUSIVE; i++) {
    int status;
    load_must(waitpid(abusers[i], &status, WNOHANG) == 0, "an abuser has ended by itself");
    kill(abusers[i], SIGKILL);
    waitpid(abusers[i], &status, 0);
    abusers[i] = 0;
  }
}

/* A line of /proc/PID/status, in MiB. */
static double memory_mb(const char *name) {
  char status[64], line[256];
  unsigned long kb = 0;
  snprintf(status, sizeof status, "/proc/%d/status", (int)daemon_pid);
  FILE *file = fopen(status, "r");
  load_must(file != NULL, status);
  while (fgets(line, sizeof line, file))
    if (strncmp(line, name, strlen(name)) == 0)
      kb = strtoul(line + strlen(name) + 1, NULL, 10);
  fclose(file);
  return (double)kb / 1024;
}

/* --- those who behave --------------------------------------------------------------------------------------------- */

static void connect_clients(int epoll) {
  for (uint32_t i = 0; i < GOOD; i++) {
    struct client *client = &clients[i];
    client->fd = load_connect(path);
    load_must(client->fd >= 0, "connect");
    msgpack_sbuffer open_request = load_open(false, NULL);
    load_must(load_send(client->fd, open_request.data, open_request.size), "send");
    msgpack_sbuffer_destroy(&open_request);
    load_receive(client->fd);
    load_must(fcntl(client->fd, F_SETFL, O_NONBLOCK) == 0, "fcntl");
    struct epoll_event event = {.events = EPOLLIN, .data = {.u32 = i}};
    load_must(epoll_ctl(epoll, EPOLL_CTL_ADD, client->fd, &event) == 0, "epoll_ctl");
  }
}

static uint64_t think_ns(struct random *random) {
  return (THINK_MS_MIN * 1000 + random_below(random, (THINK_MS_MAX - THINK_MS_MIN) * 1000)) * 1000;
}

static void take_answer(struct client *client, struct samples *samples, struct random *random) {
  static uint8_t bytes[65536];
  struct error error = {0};
  ssize_t got = recv(client->fd, bytes, sizeof bytes, 0);
  if (got < 0)
    return;
  load_must(got > 0, "the daemon hung up on a client that did nothing wrong");
  size_t used;
  load_must(validator_feed(&client->validator, bytes, (size_t)got, &used, &error) == 0, error.text);
  if (!client->validator.done)
    return;
  uint64_t now = load_now_ns();
  load_must(samples->count < SAMPLES_MAX, "too many samples");
  samples->us[samples->count++] = (uint32_t)((now - client->at_ns) / 1000);
  client->waiting = false;
  client->at_ns = now + think_ns(random);
}

/* Sends what is due; returns how many nanoseconds to wait for the next. */
static uint64_t send_due(const msgpack_sbuffer *lookup) {
  uint64_t now = load_now_ns(), next = now + 10000000;
  for (int i = 0; i < GOOD; i++) {
    struct client *client = &clients[i];
    if (client->waiting)
      continue;
    if (client->at_ns > now) {
      next = client->at_ns < next ? client->at_ns : next;
      continue;
    }
    client->waiting = true;
    client->at_ns = load_now_ns();
    validator_init(&client->validator, &validator_limits_default);
    load_must(load_send(client->fd, lookup->data, lookup->size), "send");
  }
  now = load_now_ns();
  return next > now ? next - now : 0;
}

static void run_slice(int epoll, uint64_t ms, struct samples *samples, struct random *random) {
  samples->count = 0;
  msgpack_sbuffer lookup = load_lookup(1, 64, 0);
  uint64_t end = load_now_ns() + ms * 1000000;
  struct epoll_event events[GOOD];
  while (load_now_ns() < end) {
    struct timespec wait = {.tv_nsec = (long)send_due(&lookup)};
    int count = epoll_pwait2(epoll, events, GOOD, &wait, NULL);
    for (int i = 0; i < count; i++)
      take_answer(&clients[events[i].data.u32], samples, random);
  }
  msgpack_sbuffer_destroy(&lookup);
}

/* --- figures ------------------------------------------------------------------------------------------------------ */

static int compare(const void *a, const void *b) {
  uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
  return (x > y) - (x < y);
}

/* Ends a slice. */
static void note_slice(struct samples *samples) {
  if (samples->count < 100) {
    fprintf(stderr, "only %u lookups were answered in a slice\n", samples->count);
    exit(1);
  }
  qsort(samples->us, samples->count, sizeof samples->us[0], compare);
  samples->p99_us[samples->slices] = samples->us[(uint64_t)samples->count * 99 / 100];
  samples->p50_us[samples->slices++] = samples->us[samples->count / 2];
  samples->count = 0;
}

/* Of all slices, so that a moment in which the machine did something else does not count. */
static uint32_t median(uint32_t *values, uint32_t count) {
  qsort(values, count, sizeof values[0], compare);
  return values[count / 2];
}

/* What the limits add up to on top of what the daemon takes at rest: each connection's share, those that may hold much,
 * and an answer in the making on each lookup thread. */
static double limit_mb(double rest_mb) {
  double share = (double)(USER_QUEUE_MB - LARGE * LARGE_MB) / USER_CONNECTIONS;
  return rest_mb + CLIENTS * share + LARGE * LARGE_MB + 2 * (double)sysconf(_SC_NPROCESSORS_ONLN) * LOOKUP_THREAD_MB +
         SLACK_MB;
}

static bool sanitized(void) {
#ifdef __SANITIZE_ADDRESS__
  return true; /* freed memory is kept, and everything takes longer */
#else
  return false;
#endif
}

static void stop_daemon(void) {
  int status;
  kill(daemon_pid, SIGTERM);
  load_must(waitpid(daemon_pid, &status, 0) == daemon_pid && WIFEXITED(status) && !WEXITSTATUS(status),
            "the daemon does not end cleanly");
  daemon_pid = 0;
  char command[128];
  snprintf(command, sizeof command, "rm -rf %s", directory);
  load_must(system(command) == 0, "rm");
}

/* What goes on in a slice beside the lookups that are measured. */
enum kind { CALM, BURNING, ABUSED, KINDS };

static void slice(int epoll, enum kind kind, struct samples *samples, struct random *random) {
  if (kind != CALM) /* until all are at it */
    run_slice(epoll, SETTLE_MS, &samples[kind], random);
  run_slice(epoll, SLICE_MS, &samples[kind], random);
  note_slice(&samples[kind]);
}

/* Turns of all kinds, so that what else the machine does falls on all. */
static void measure(int epoll, uint64_t rounds, struct samples *samples) {
  struct random random = {3};
  for (uint64_t round = 0; round < rounds; round++) {
    slice(epoll, CALM, samples, &random);
    signal_burners(SIGCONT);
    slice(epoll, BURNING, samples, &random);
    signal_burners(SIGSTOP);
    start_abusers((uint32_t)round * ABUSIVE);
    slice(epoll, ABUSED, samples, &random);
    stop_abusers();
    run_slice(epoll, SETTLE_MS, &samples[CALM], &random); /* until what they left is gone */
  }
}

int main(int argc, char **argv) {
  static struct samples samples[KINDS];
  const char *torture = getenv("COLDKV_TORTURE_SECONDS");
  uint64_t seconds = torture ? strtoull(torture, NULL, 10) : 0;
  uint64_t rounds = seconds ? seconds * 1000 / ROUND_MS + 1 : SHORT_ROUNDS;
  struct random random = {4};
  load_must(argc == 2 && rounds <= ROUNDS_MAX, "usage: test_abusers COLDKVD");
  for (int kind = 0; kind < KINDS; kind++)
    load_must((samples[kind].us = malloc(SAMPLES_MAX * sizeof *samples->us)) != NULL, "malloc");
  start_daemon(argv[1]);
  load_fill(path);
  start_burners();
  int epoll = epoll_create1(EPOLL_CLOEXEC);
  connect_clients(epoll);
  run_slice(epoll, SETTLE_MS, &samples[CALM], &random); /* warms up */
  double rest_mb = memory_mb("VmRSS");
  measure(epoll, rounds, samples);
  double peak_mb = memory_mb("VmHWM"), most_mb = limit_mb(rest_mb);
  uint32_t p50_us[KINDS], p99_us[KINDS];
  for (int kind = 0; kind < KINDS; kind++) {
    p50_us[kind] = median(samples[kind].p50_us, samples[kind].slices);
    p99_us[kind] = median(samples[kind].p99_us, samples[kind].slices);
  }
  double ratio = (double)p99_us[ABUSED] / (p99_us[CALM] < p99_us[BURNING] ? p99_us[CALM] : p99_us[BURNING]);
  printf("lookups, p50 and p99 in us: calm %u %u; with processors burnt %u %u; abused %u %u; rss at rest %.0f MiB; %u "
         "slices each\n", p50_us[CALM], p99_us[CALM], p50_us[BURNING], p99_us[BURNING], p50_us[ABUSED], p99_us[ABUSED],
         rest_mb, samples[CALM].slices);
  printf("torture: abusers clients=%d abusive=%d p99_ratio=%.2f rss_mb=%.0f limit_mb=%.0f\n", CLIENTS, ABUSIVE, ratio,
         peak_mb, most_mb);
  stop_daemon();
  bool good = (!seconds || ratio <= RATIO_MAX) && peak_mb <= most_mb;
  return good || sanitized() ? 0 : 1;
}
