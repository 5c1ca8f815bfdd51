// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
#include "tools/bench/measure.h"

#include <math.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

enum { ROUNDS_MAX = 1024 };

static double read_clock(clockid_t clock) {
  struct timespec now;
  clock_gettime(clock, &now);
  return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

double now_s(void) { return read_clock(CLOCK_MONOTONIC); }

double core_s(void) { return read_clock(CLOCK_THREAD_CPUTIME_ID); }

static int ascending(const void *a, const void *b) {
  double x = *(const double *)a, y = *(const double *)b;
  return (x > y) - (x < y);
}

double quantile(double *samples, size_t count, double part) {
  if (!count)
    return NAN;
  qsort(samples, count, sizeof *samples, ascending);
  size_t place = (size_t)(part * (double)count);
  return samples[place < count ? place : count - 1];
}

double median(double *samples, size_t count) {
  if (!count)
    return NAN;
  qsort(samples, count, sizeof *samples, ascending);
  return (samples[(count - 1) / 2] + samples[count / 2]) / 2;
}

double ratio_median(const double *a, const double *b, size_t count) {
  double ratios[ROUNDS_MAX];
  if (count > ROUNDS_MAX)
    count = ROUNDS_MAX;
  for (size_t i = 0; i < count; i++)
    ratios[i] = a[i] / b[i];
  return median(ratios, count);
}

void pin_here(int *other) {
  int core = sched_getcpu();
  cpu_set_t allowed;
  *other = -1;
  if (core < 0 || sched_getaffinity(0, sizeof allowed, &allowed))
    return;
  for (int i = 0; i < CPU_SETSIZE && *other < 0; i++)
    if (i != core && CPU_ISSET(i, &allowed))
      *other = i;
  pin_to(core);
}

void pin_to(int core) {
  if (core < 0)
    return;
  cpu_set_t one;
  CPU_ZERO(&one);
  CPU_SET(core, &one);
  sched_setaffinity(0, sizeof one, &one);
}

uint64_t noise_u64(uint64_t *state) {
  uint64_t z = *state += UINT64_C(0x9e3779b97f4a7c15); /* splitmix64, as in client/codec.c */
  z = (z ^ z >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
  z = (z ^ z >> 27) * UINT64_C(0x94d049bb133111eb);
  return z ^ z >> 31;
}

float noise_gauss(uint64_t *state) {
  uint64_t bits = noise_u64(state); /* the sum of four uniform numbers has variance 4/12 */
  float sum = 0;
  for (int i = 0; i < 4; i++)
    sum += (float)(bits >> 16 * i & 0xffff) / 65536.0f - 0.5f;
  return sum * sqrtf(3);
}

void noise_bytes(uint64_t *state, void *data, size_t size) {
  uint8_t *p = data;
  for (; size >= 8; size -= 8, p += 8) {
    uint64_t word = noise_u64(state);
    memcpy(p, &word, sizeof word);
  }
  uint64_t word = noise_u64(state);
  memcpy(p, &word, size);
}

void *pages_alloc(size_t size) {
  void *pages = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (pages == MAP_FAILED)
    return NULL;
  madvise(pages, size, MADV_NOHUGEPAGE);
  memset(pages, 1, size);
  return pages;
}

void pages_free(void *pages, size_t size) {
  if (pages)
    munmap(pages, size);
}

/* "model name" of /proc/cpuinfo. */
static void cpu_name(char name[128]) {
  char line[256];
  FILE *file = fopen("/proc/cpuinfo", "r");
  snprintf(name, 128, "unknown");
  while (file && fgets(line, sizeof line, file)) {
    if (strncmp(line, "model name", 10) != 0)
      continue;
    const char *value = strchr(line, ':');
    if (value)
      snprintf(name, 128, "%s", value + 1 + strspn(value + 1, " \t"));
    name[strcspn(name, "\n")] = 0;
    break;
  }
  if (file)
    fclose(file);
}

void bench_machine(struct bench_output *output, const char *command, const char *what) {
  char name[128];
  double load = NAN;
  cpu_name(name);
  if (getloadavg(&load, 1) != 1)
    load = NAN;
  bench_text(output, "command", command, what);
  bench_text(output, "machine", name, "processor");
  bench_integer(output, "cores", (uint64_t)sysconf(_SC_NPROCESSORS_ONLN), "processors online");
  bench_figure(output, "load", load, "load average of the last minute when the run began: who else was busy");
}
