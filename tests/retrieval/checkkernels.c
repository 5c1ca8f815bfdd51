// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// usage: checkkernels [--bench [PART OF A NAME]]
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "proto/cpu.h"
#include "tests/retrieval/check.h"

static const struct check_level levels[] = {
    {"c", 0},
#if defined(__x86_64__)
    {"avx2", CPU_SSE42 | CPU_AVX2},
    {"avx512", CPU_SSE42 | CPU_AVX2 | CPU_AVX512},
    {"avx512_vpopcnt", CPU_SSE42 | CPU_AVX2 | CPU_AVX512 | CPU_AVX512_VPOPCNT},
#elif defined(__aarch64__)
    {"neon", CPU_NEON},
#endif
};

static bool bench;
static const char *wanted = ""; /* kernels to time */
static unsigned checks, failures;

void check_report(const char *kernel, const char *level, bool right) {
  checks++;
  if (right)
    return;
  failures++;
  if (failures <= 20)
    fprintf(stderr, "WRONG: %s of %s\n", kernel, level);
}

bool check_bench(void) { return bench; }

static double now(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return (double)time.tv_sec + (double)time.tv_nsec * 1e-9;
}

void check_time(const char *kernel, const char *level, check_body *body, void *context, double units, double bytes) {
  if (!strstr(kernel, wanted))
    return;
  body(context);
  double start = now();
  body(context);
  double once = now() - start, best = 1e9;
  int repeat = once < 1e-3 ? (int)(1e-3 / (once + 1e-9)) + 1 : 1;
  for (int run = 0; run < 15; run++) {
    start = now();
    for (int i = 0; i < repeat; i++)
      body(context);
    double each = (now() - start) / repeat;
    best = each < best ? each : best;
  }
  printf("  %-28s %-15s %9.3f ns", kernel, level, best / units * 1e9);
  if (bytes > 0)
    printf(" %7.2f GB/s", bytes * units / best * 1e-9);
  putchar('\n');
}

int main(int argc, char **argv) {
  bench = argc > 1 && strcmp(argv[1], "--bench") == 0;
  if (argc > 3 || (argc > 1 && !bench)) {
    fprintf(stderr, "usage: checkkernels [--bench [PART OF A NAME]]\n");
    return 2;
  }
  if (argc == 3)
    wanted = argv[2];
  for (size_t i = 0; i < sizeof levels / sizeof *levels; i++) {
    if ((cpu_flags() & levels[i].flags) != levels[i].flags) {
      printf("%s: not on this processor\n", levels[i].name);
      continue;
    }
    unsigned before = failures;
    check_scan(&levels[i]);
    check_rescore(&levels[i]);
    check_select(&levels[i]);
    check_codec(&levels[i]);
    printf("%s: %s\n", levels[i].name, failures == before ? "all right" : "WRONG");
  }
  if (bench) {
    check_encode();
    check_lookup();
  }
  printf("%u checks, %u failures\n", checks, failures);
  return failures != 0;
}
