// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// coldkv-bench codec: records encoded and decoded per second by one core, with the best kernels and with plain C. A
// process chooses its kernels once, so plain C runs in a process of its own, and the two take turns.
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#include "client/codec.h"
#include "proto/cpu.h"
#include "tools/bench/columns.h"
#include "tools/bench/measure.h"
#include "tools/bench/read.h"
#include "tools/demo/process.h"

enum {
  VECTORS = 256, /* different keys and values, 256 KiB at head_dim 128 */
  RECORDS = 8192, /* of one turn */
  RECORDS_QUICK = 2048,
  ROUNDS = 31,
  ROUNDS_QUICK = 7,
};

static const uint32_t head_dims[] = {128, 64, 96, 80};
enum { DIMS = sizeof head_dims / sizeof *head_dims };

struct turn {
  double encode, decode; /* seconds of `records` records */
};

struct vectors {
  struct codec codec;
  float k[VECTORS][LIMIT_HEAD_DIM_MAX], v[VECTORS][LIMIT_HEAD_DIM_MAX];
  float mean_k[LIMIT_HEAD_DIM_MAX], mean_v[LIMIT_HEAD_DIM_MAX];
  uint8_t records[VECTORS][RECORD_BYTES];
};

/* The process of plain C. */
struct reference {
  pid_t pid;
  int to, from; /* it gets the number of a head_dim and answers a turn */
};

static int prepare(struct vectors *vectors, uint32_t head_dim, struct error *error) {
  uint64_t state = head_dim;
  for (uint32_t i = 0; i < LIMIT_HEAD_DIM_MAX; i++) {
    vectors->mean_k[i] = 2 * noise_gauss(&state);
    vectors->mean_v[i] = noise_gauss(&state);
  }
  for (uint32_t n = 0; n < VECTORS; n++)
    for (uint32_t i = 0; i < head_dim; i++) {
      vectors->k[n][i] = vectors->mean_k[i] + noise_gauss(&state);
      vectors->v[n][i] = vectors->mean_v[i] + noise_gauss(&state);
    }
  return codec_init(&vectors->codec, head_dim, 1, error);
}

/* Encodes and decodes `records` records. Returns false when one cannot be. */
static bool take_turn(struct vectors *vectors, uint32_t records, struct turn *turn) {
  float k[LIMIT_HEAD_DIM_MAX], v[LIMIT_HEAD_DIM_MAX];
  bool good = true;
  double start = core_s();
  for (uint32_t i = 0; i < records; i++) {
    uint32_t n = i % VECTORS;
    good &= !codec_encode(&vectors->codec, vectors->k[n], vectors->v[n], vectors->mean_k, vectors->mean_v, 0, 0, i,
                          vectors->records[n]);
  }
  double middle = core_s();
  for (uint32_t i = 0; i < records; i++)
    codec_decode(&vectors->codec, vectors->records[i % VECTORS], vectors->mean_k, vectors->mean_v, k, v);
  turn->decode = core_s() - middle;
  turn->encode = middle - start;
  return good && isfinite(k[0] + v[0]);
}

/* --- plain C ----------------------------------------------------------------------------------------------------- */

static void serve(int in, int out, uint32_t records, pid_t parent) {
  char mask[16];
  struct error error;
  struct vectors *vectors = calloc(1, sizeof *vectors);
  uint32_t head_dim;
  process_follow(parent);
  snprintf(mask, sizeof mask, "%d", CPU_SSE42 | CPU_ARM_CRC); /* the CRC is as fast on both sides */
  setenv("COLDKV_CPU_MASK", mask, 1);
  while (vectors && read(in, &head_dim, sizeof head_dim) == sizeof head_dim) {
    struct turn turn;
    if ((vectors->codec.head_dim != head_dim && prepare(vectors, head_dim, &error)) ||
        !take_turn(vectors, records, &turn) || write(out, &turn, sizeof turn) != sizeof turn)
      break;
  }
  _exit(0);
}

static int start(struct reference *reference, uint32_t records, struct error *error) {
  int to[2], from[2];
  pid_t parent = getpid();
  if (pipe(to) || pipe(from))
    return error_set_errno(error, errno, "cannot make a pipe");
  reference->pid = fork();
  if (reference->pid < 0)
    return error_set_errno(error, errno, "cannot start a second process");
  if (reference->pid == 0) {
    close(to[1]);
    serve(to[0], from[1], records, parent);
  }
  close(to[0]);
  close(from[1]);
  reference->to = to[1];
  reference->from = from[0];
  return 0;
}

static int ask(const struct reference *reference, uint32_t head_dim, struct turn *turn, struct error *error) {
  if (write(reference->to, &head_dim, sizeof head_dim) != sizeof head_dim ||
      read(reference->from, turn, sizeof *turn) != sizeof *turn)
    return error_set(error, ERR_INTERNAL, "the process of plain C failed");
  return 0;
}

/* --- both -------------------------------------------------------------------------------------------------------- */

static void print(uint32_t head_dim, uint32_t records, double times[4][ROUNDS], uint32_t rounds, double read_rate,
                  struct bench_output *output) {
  static const char *const names[] = {"encode", "decode", "encode_ref", "decode_ref"};
  static const char *const words[] = {"encoded", "decoded", "encoded by plain C", "decoded by plain C"};
  char name[48], what[96];
  for (int side = 0; side < 2; side++) {
    const char *end = side ? "decode_over_ref" : "encode_over_ref";
    snprintf(name, sizeof name, head_dim == LIMIT_HEAD_DIM_MAX ? "%s" : "%s_d%u", end, head_dim);
    snprintf(what, sizeof what, "d = %u%s", head_dim,
             side || head_dim != LIMIT_HEAD_DIM_MAX ? "" : "; wanted: at least 6");
    bench_figure(output, name, ratio_median(times[2 + side], times[side], rounds), what);
  }
  for (int i = 0; i < 4; i++) {
    snprintf(name, sizeof name, "%s_d%u_per_s", names[i], head_dim);
    snprintf(what, sizeof what, "records %s per second and core", words[i]);
    bench_figure(output, name, records / median(times[i], rounds), what);
  }
  double bytes = 2.0 * head_dim * sizeof(float) + RECORD_BYTES;
  snprintf(name, sizeof name, "encode_d%u_over_read", head_dim);
  bench_figure(output, name, bytes * records / median(times[0], rounds) / read_rate, "floats and record, of read_gb_s");
}

static int measure(struct vectors *vectors, const struct reference *reference, uint32_t head_dim, uint32_t records,
                   uint32_t rounds, double read_rate, struct bench_output *output, struct error *error) {
  double times[4][ROUNDS];
  int result = prepare(vectors, head_dim, error);
  for (uint32_t i = 0; i < rounds && !result; i++) {
    struct turn ours, theirs;
    result = ask(reference, head_dim, &theirs, error);
    if (!result && !take_turn(vectors, records, &ours))
      result = error_set(error, ERR_INTERNAL, "a vector could not be encoded");
    if (result)
      return result;
    times[0][i] = ours.encode;
    times[1][i] = ours.decode;
    times[2][i] = theirs.encode;
    times[3][i] = theirs.decode;
  }
  if (!result)
    print(head_dim, records, times, rounds, read_rate, output);
  return result;
}

int bench_codec(const struct bench_options *options, struct bench_output *output, struct error *error) {
  uint32_t records = options->quick ? RECORDS_QUICK : RECORDS, rounds = options->quick ? ROUNDS_QUICK : ROUNDS;
  struct reference reference = {0};
  double read_rate = 1;
  int other, result = start(&reference, records, error); /* before anything asks for a kernel */
  if (result)
    return result;
  pin_here(&other);
  struct vectors *vectors = calloc(1, sizeof *vectors);
  if (!vectors)
    result = error_set(error, ERR_MEMORY, "no memory for keys and values");
  if (!result) {
    bench_machine(output, "codec", "records encoded and decoded by one core");
    bench_text(output, "kernel", codec_kernel_name(), "kernels in use");
    bench_integer(output, "records", records, "N, of one turn");
    bench_integer(output, "record_bytes", RECORD_BYTES, "bytes of a record, from 2 x 4 d bytes of floats");
    bench_integer(output, "rounds", rounds, "turns of both; medians count");
    result = read_measure(output, &read_rate, error);
  }
  for (int i = 0; i < DIMS && !result; i++)
    result = measure(vectors, &reference, head_dims[i], records, rounds, read_rate, output, error);
  free(vectors);
  close(reference.to);
  close(reference.from);
  waitpid(reference.pid, NULL, 0);
  return result;
}
