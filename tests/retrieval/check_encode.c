// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
#include <stdio.h>
#include <stdlib.h>

#include "client/codec.h"
#include "tests/retrieval/check.h"

enum { BENCH = 64 };

struct bench {
  struct codec codec;
  float k[BENCH][LIMIT_HEAD_DIM_MAX], v[BENCH][LIMIT_HEAD_DIM_MAX], mean[LIMIT_HEAD_DIM_MAX];
  uint8_t records[BENCH][RECORD_BYTES];
};

static void bench_encode(void *context) {
  struct bench *bench = context;
  for (int i = 0; i < BENCH; i++)
    if (codec_encode(&bench->codec, bench->k[i], bench->v[i], bench->mean, bench->mean, 0, 0, 0, bench->records[i]))
      abort();
}

static void bench_decode(void *context) {
  struct bench *bench = context;
  for (int i = 0; i < BENCH; i++)
    codec_decode(&bench->codec, bench->records[i], bench->mean, bench->mean, bench->k[i], bench->v[i]);
}

void check_encode(void) {
  static struct bench bench;
  struct random random = {8};
  for (int i = 0; i < BENCH; i++)
    for (uint32_t j = 0; j < LIMIT_HEAD_DIM_MAX; j++) {
      bench.k[i][j] = (float)((int)random_below(&random, 2001) - 1000) * 1e-3f;
      bench.v[i][j] = (float)((int)random_below(&random, 2001) - 1000) * 1e-3f;
    }
  for (uint32_t d = 64; d <= 128; d += 32) {
    char name[32];
    if (codec_init(&bench.codec, d, 5, NULL))
      abort();
    snprintf(name, sizeof name, "encode, head_dim %u", d);
    check_time(name, codec_kernel_name(), bench_encode, &bench, BENCH, 0);
    snprintf(name, sizeof name, "decode, head_dim %u", d);
    check_time(name, codec_kernel_name(), bench_decode, &bench, BENCH, 0);
  }
}
