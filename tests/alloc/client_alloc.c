// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// The library with one allocation after another failing: client_alloc SOCKET CONTROL SECONDS, with failalloc preloaded.
// Every call that fails says so in a sentence and can be made again, and what was synced comes back on resume. Prints
// how many allocations failed.
#include <fcntl.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#include "client/coldkv.h"

enum { HEAD_DIM = 64, BLOCKS = 7, TRIES_MAX = 4 };

struct control {
  _Atomic int64_t countdown;
  _Atomic uint64_t count, failed;
};

static volatile struct control *control;

static _Noreturn void die(const char *what, int code) {
  atomic_store(&control->countdown, 0);
  fprintf(stderr, "%s: %d, %s\n", what, code, coldkv_error());
  exit(1);
}

/* Calls again what failed for want of memory; anything else is wrong. */
#define MUST(call)                                                                                                     \
  do {                                                                                                                 \
    int tries_ = 0, result_;                                                                                           \
    while ((result_ = (call)) < 0)                                                                                     \
      if (++tries_ == TRIES_MAX || !coldkv_error()[0] || !atomic_load(&control->failed))                               \
        die(#call, result_);                                                                                           \
  } while (0)

static int block(coldkv_conv *conv, const uint32_t *ids, uint32_t n) {
  static float q[COLDKV_BLOCK_MAX * HEAD_DIM], k[COLDKV_BLOCK_MAX * HEAD_DIM], out[COLDKV_BLOCK_MAX * HEAD_DIM];
  for (uint32_t i = 0; i < n; i++)
    for (uint32_t c = 0; c < HEAD_DIM; c++)
      q[i * HEAD_DIM + c] = k[i * HEAD_DIM + c] = (float)((ids[i] * 37 + c * 11) % 101) - 50;
  int result = coldkv_begin(conv, ids, n);
  if (result)
    return result;
  result = coldkv_attend(conv, 0, q, k, k, out);
  if (!result)
    return coldkv_end(conv);
  int aborted = coldkv_abort(conv);
  return aborted ? aborted : result;
}

static void write_and_sync(coldkv_model *model, const char *name) {
  coldkv_conv *conv;
  uint32_t ids[COLDKV_BLOCK_MAX];
  MUST(coldkv_open(&conv, model, name, NULL));
  for (uint32_t b = 0; b < BLOCKS; b++) {
    for (uint32_t i = 0; i < COLDKV_BLOCK_MAX; i++)
      ids[i] = b * COLDKV_BLOCK_MAX + i;
    MUST(block(conv, ids, COLDKV_BLOCK_MAX));
  }
  MUST(coldkv_sync(conv));
  coldkv_close(conv);
}

static void read_back(coldkv_model *model, const char *name) {
  coldkv_conv *conv;
  uint32_t ids[COLDKV_BLOCK_MAX];
  struct coldkv_status status;
  int n;
  MUST(coldkv_open(&conv, model, name, NULL));
  for (uint64_t fed = 0;; fed += (uint64_t)n) {
    MUST(n = coldkv_resume(conv, ids));
    if (!n)
      break;
    MUST(coldkv_get_status(conv, &status));
    uint64_t first = fed ? status.tokens - status.resume_left : 0; /* sinks first, then the end */
    for (int i = 0; i < n; i++)
      if (ids[i] != first + (uint64_t)i)
        die("another id came back", (int)ids[i]);
    MUST(block(conv, ids, (uint32_t)n));
  }
  MUST(coldkv_get_status(conv, &status));
  if (status.tokens != BLOCKS * COLDKV_BLOCK_MAX)
    die("tokens are lost", (int)status.tokens);
  coldkv_close(conv);
}

static void scenario(const char *path, unsigned number) {
  static const struct coldkv_client_options options = {.timeout_ms = 5000};
  struct coldkv_model_description description = {.name = "m", .layers = 1, .kv_heads = 1, .group = 1,
                                                 .head_dim = HEAD_DIM, .window = 2048, .rope = COLDKV_ROPE_HALF,
                                                 .rope_theta = 10000};
  coldkv_client *client;
  coldkv_model *model;
  char name[32];
  snprintf(name, sizeof name, "alloc-%u", number);
  memset(description.fingerprint, 5, sizeof description.fingerprint);
  MUST(coldkv_client_create(&client, path, &options));
  MUST(coldkv_model_create(&model, client, &description));
  write_and_sync(model, name);
  read_back(model, name);
  coldkv_model_destroy(model);
  coldkv_client_destroy(client);
}

int main(int argc, char **argv) {
  if (argc != 4)
    return 2;
  int fd = open(argv[2], O_RDWR | O_CLOEXEC);
  void *bytes = mmap(NULL, sizeof *control, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (fd < 0 || bytes == MAP_FAILED)
    return 2;
  control = bytes;
  atomic_store(&control->count, 0);
  atomic_store(&control->failed, 0);
  scenario(argv[1], 0);
  uint64_t total = atomic_load(&control->count);
  time_t end = time(NULL) + atoi(argv[3]);
  unsigned failed = 0;
  /* a number that shares no factor with the total visits all of them, the early ones and the late ones in turn */
  uint64_t step = 1 + total * 381966 / 1000000;
  for (uint64_t i = 0, at = 0; i < total && time(NULL) < end; i++, at = (at + step) % total) {
    atomic_store(&control->failed, 0);
    atomic_store(&control->countdown, (int64_t)at + 1);
    scenario(argv[1], (unsigned)i + 1);
    atomic_store(&control->countdown, 0);
    failed += (unsigned)atomic_load(&control->failed);
  }
  printf("%u of %llu\n", failed, (unsigned long long)total);
  return failed ? 0 : 1;
}
