// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// Writes an archive for the tests of the coldkv command: make_archive DIR. Two conversations of one model ("diary" with
// a segment and a log, and one with a name that needs care) and one without a model. Prints, for some places, the key
// and the value that went in.
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "client/codec.h"
#include "store/archive.h"
#include "tests/proto/random.h"

enum { LAYERS = 3, KV_HEADS = 2, HEAD_DIM = 64, FRAME = 64, DIARY_TOKENS = 4096 + 700, SHORT_TOKENS = 3, AHEAD = 5 };
enum { BLOCKS = LAYERS * KV_HEADS };

static const uint64_t seed = 0x0123456789abcdef;
static const char careful_name[] = "caf\xc3\xa9 \"\\' \xf0\x9f\x98\x80 / \xe4\xb8\xad";
static float mean_k[BLOCKS][HEAD_DIM], mean_v[BLOCKS][HEAD_DIM];
static double rope_freqs[HEAD_DIM / 2];

static void check(int result, const struct error *error) {
  if (result >= 0)
    return;
  fprintf(stderr, "make_archive: %s\n", error->text);
  exit(1);
}

static struct msg_geometry geometry(void) {
  for (int i = 0; i < HEAD_DIM / 2; i++)
    rope_freqs[i] = pow(10000, -2.0 * i / HEAD_DIM);
  return (struct msg_geometry){.layers = LAYERS, .kv_heads = KV_HEADS, .group = 2, .head_dim = HEAD_DIM, .window = 512,
                               .rope_layout = ROPE_HALF, .rope_dims = HEAD_DIM,
                               .rope_freqs = span_of(rope_freqs, sizeof rope_freqs)};
}

static void random_vector(struct random *random, const float *mean, float *out) {
  for (int i = 0; i < HEAD_DIM; i++) {
    float sum = 0;
    for (int j = 0; j < 12; j++)
      sum += (float)random_below(random, 1 << 20) / (1 << 20);
    out[i] = mean[i] + sum - 6;
  }
}

/* Key and value depend on the place alone. */
static void key_value(uint32_t layer, uint32_t head, uint64_t token, float *k, float *v) {
  struct random random = {(token * LAYERS + layer) * KV_HEADS + head};
  random_vector(&random, mean_k[layer * KV_HEADS + head], k);
  random_vector(&random, mean_v[layer * KV_HEADS + head], v);
}

static void append(struct conversation *conversation, const struct codec *codec, uint64_t first, uint32_t count) {
  static const char text[] = "The quick brown fox jumps over the lazy dog.\n";
  static uint8_t records[FRAME * BLOCKS * RECORD_BYTES];
  uint32_t ids[FRAME], ahead[AHEAD] = {1000, 1001, 1002, 1003, 1004};
  float k[HEAD_DIM], v[HEAD_DIM];
  uint8_t *record = records;
  for (uint32_t i = 0; i < count; i++) {
    ids[i] = (first + i) % 100 == 99 ? 300 : (uint8_t)text[(first + i) % (sizeof text - 1)];
    for (uint32_t layer = 0; layer < LAYERS; layer++)
      for (uint32_t head = 0; head < KV_HEADS; head++, record += RECORD_BYTES) {
        uint32_t block = layer * KV_HEADS + head;
        key_value(layer, head, first + i, k, v);
        if (codec_encode(codec, k, v, mean_k[block], mean_v[block], layer, head, first + i, record))
          exit(1);
      }
  }
  const struct msg_append message = {.first = first, .ids = span_of(ids, 4 * (size_t)count),
                                     .ahead = span_of(ahead, sizeof ahead),
                                     .records = span_of(records, (size_t)(record - records))};
  struct error error;
  bool wrote;
  check(conversation_append(conversation, &message, &wrote, &error), &error);
}

static void make_conversation(struct archive *archive, const struct codec *codec, const char *name,
                              struct span model, uint64_t tokens) {
  struct error error;
  struct conversation *conversation;
  bool created;
  static const uint8_t fingerprint[LIMIT_FINGERPRINT_BYTES] = {7};
  const struct msg_open wanted = {.name = span_str(name), .fingerprint = span_of(fingerprint, sizeof fingerprint),
                                  .geometry = geometry(), .model = model, .create = 1, .write = 1};
  check(conversation_open(archive, (uint32_t)geteuid(), &wanted, &conversation, &created, &error), &error);
  check(conversation_load(conversation, &error), &error);
  for (uint64_t first = 0; first < tokens; first += FRAME) {
    append(conversation, codec, first, tokens - first < FRAME ? (uint32_t)(tokens - first) : FRAME);
    check(conversation_sync(conversation, &error), &error); /* each frame tells what was synced before it */
  }
  while (conversation_wants_seal(conversation))
    check(conversation_seal(conversation, &error), &error);
  conversation_release(conversation);
}

static void print_vector(const char *name, const float *x) {
  printf(", \"%s\": [", name);
  for (int i = 0; i < HEAD_DIM; i++)
    printf("%s%.6g", i ? ", " : "", (double)x[i]);
  putchar(']');
}

static void print_samples(void) {
  static const uint64_t places[][3] = {{0, 0, 0}, {1, 1, 63}, {2, 0, 4095}, {2, 1, 4096}, {0, 1, DIARY_TOKENS - 1}};
  printf("{\"tokens\": %d, \"samples\": [", DIARY_TOKENS);
  for (size_t i = 0; i < sizeof places / sizeof places[0]; i++) {
    float k[HEAD_DIM], v[HEAD_DIM];
    key_value((uint32_t)places[i][0], (uint32_t)places[i][1], places[i][2], k, v);
    printf("%s{\"layer\": %" PRIu64 ", \"head\": %" PRIu64 ", \"token\": %" PRIu64, i ? ",\n" : "", places[i][0],
           places[i][1], places[i][2]);
    print_vector("key", k);
    print_vector("value", v);
    putchar('}');
  }
  puts("]}");
}

int main(int argc, char **argv) {
  struct error error;
  struct archive *archive;
  struct model *model;
  struct codec codec;
  struct random random = {1};
  if (argc != 2)
    return 2;
  for (int block = 0; block < BLOCKS; block++)
    for (int i = 0; i < HEAD_DIM; i++) {
      mean_k[block][i] = (float)random_below(&random, 2000) / 500 - 2;
      mean_v[block][i] = (float)random_below(&random, 2000) / 1000 - 1;
    }
  const uint8_t fingerprint[LIMIT_FINGERPRINT_BYTES] = {7};
  const struct msg_model wanted = {.name = span_str("tiny \xce\xbb"),
                                   .fingerprint = span_of(fingerprint, sizeof fingerprint), .geometry = geometry(),
                                   .basis = span_str("hadamard"), .codec = 1, .seed = seed, .tokens = 192,
                                   .mean_k = span_of(mean_k, sizeof mean_k), .mean_v = span_of(mean_v, sizeof mean_v)};
  check(codec_init(&codec, HEAD_DIM, seed, &error), &error);
  check(archive_open(&archive, argv[1], &(struct archive_options){0}, &error), &error);
  check(model_freeze(archive, (uint32_t)geteuid(), &wanted, &model, &error), &error);
  struct span id = model_description(model)->id;
  make_conversation(archive, &codec, "diary", id, DIARY_TOKENS);
  make_conversation(archive, &codec, careful_name, id, SHORT_TOKENS);
  make_conversation(archive, &codec, "empty", span_of(NULL, 0), 0);
  model_release(model);
  archive_close(archive);
  print_samples();
  return 0;
}
