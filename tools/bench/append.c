// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// coldkv-bench append: durable appends through the socket, one request after another, as a conversation makes them.
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <unistd.h>

#include "proto/record.h"
#include "tools/bench/measure.h"
#include "tools/bench/peer.h"
#include "tools/bench/read.h"

enum { APPENDS_MAX = 512 };

static const struct {
  const char *name, *what;
  uint32_t layers, kv_heads, head_dim;
} shapes[] = {
    {"tiny", "6 layers x 2 kv heads of 128, 1.2 KB a token", 6, 2, 128},
    {"8b", "32 layers x 8 kv heads of 128, 26.6 KB a token", 32, 8, 128},
};
enum { SHAPES = sizeof shapes / sizeof *shapes };

static const struct {
  uint32_t tokens, appends, appends_quick;
} loads[] = {{1, 512, 64}, {64, 192, 24}};
enum { LOADS = sizeof loads / sizeof *loads };

/* Durable appends of `tokens` tokens: rates and latencies. */
static int measure(struct peer *peer, const char *shape, uint32_t tokens, uint32_t appends,
                   double read_rate, struct bench_output *output, struct error *error) {
  double seconds[APPENDS_MAX], sum = 0;
  char name[64];
  const struct msg_geometry *geometry = &peer->shape.model.geometry;
  double token_bytes = (double)(geometry->layers * geometry->kv_heads * RECORD_BYTES);
  for (uint32_t i = 0; i < appends; i++) {
    int result = peer_append(peer, tokens, &seconds[i], error);
    if (result)
      return result;
    sum += seconds[i];
  }
  double rate = (double)tokens * appends / sum;
  snprintf(name, sizeof name, "append%u_%s_tokens_per_s", tokens, shape);
  bench_figure(output, name, rate, "tokens per second");
  snprintf(name, sizeof name, "append%u_%s_mb_per_s", tokens, shape);
  bench_figure(output, name, rate * token_bytes / 1e6, "MB of records per second");
  snprintf(name, sizeof name, "append%u_%s_over_read", tokens, shape);
  bench_figure(output, name, rate * token_bytes / read_rate, "of read_gb_s");
  snprintf(name, sizeof name, "append%u_%s_p50_ms", tokens, shape);
  bench_figure(output, name, 1e3 * median(seconds, appends), "ms until durable, median");
  snprintf(name, sizeof name, "append%u_%s_p99_ms", tokens, shape);
  bench_figure(output, name, 1e3 * quantile(seconds, appends, 0.99), "ms, 99 of 100");
  return 0;
}

/* What the archive's disk takes for a write and fdatasync of 4 KiB: below that no durable append can be. */
static int measure_disk(const char *folder, uint32_t writes, struct bench_output *output, struct error *error) {
  static const uint8_t page[4096];
  char path[PATH_MAX + 16];
  double seconds[APPENDS_MAX];
  bool good = true;
  snprintf(path, sizeof path, "%s/write", folder);
  int file = open(path, O_CREAT | O_WRONLY | O_CLOEXEC, 0600);
  for (uint32_t i = 0; i < writes && file >= 0 && good; i++) {
    double start = now_s();
    good = pwrite(file, page, sizeof page, (off_t)(i * sizeof page)) == (ssize_t)sizeof page && fdatasync(file) == 0;
    seconds[i] = now_s() - start;
  }
  int reason = errno;
  if (file >= 0)
    close(file);
  if (file < 0 || !good)
    return error_set_errno(error, reason, "%s: cannot be written", path);
  bench_figure(output, "disk_sync_ms", 1e3 * median(seconds, writes), "ms for 4 KiB written and synced, no daemon");
  return 0;
}

int bench_append(const struct bench_options *options, struct bench_output *output, struct error *error) {
  double read_rate;
  bench_machine(output, "append", "durable appends through the socket, one after another");
  bench_text(output, "kernel", "none", "what counts is the disk");
  int result = read_measure(output, &read_rate, error);
  for (int s = 0; s < SHAPES && !result; s++) {
    struct peer peer;
    char name[64];
    result = peer_start(&peer, options, shapes[s].layers, shapes[s].kv_heads, shapes[s].head_dim, error);
    if (!result && s == 0)
      result = measure_disk(peer.scratch, options->quick ? 32 : 256, output, error);
    snprintf(name, sizeof name, "shape_%s", shapes[s].name);
    if (!result)
      bench_text(output, name, shapes[s].what, "");
    for (int l = 0; l < LOADS && !result; l++)
      result = measure(&peer, shapes[s].name, loads[l].tokens,
                       options->quick ? loads[l].appends_quick : loads[l].appends, read_rate, output, error);
    peer_stop(&peer);
  }
  return result;
}
