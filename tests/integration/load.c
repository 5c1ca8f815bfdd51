// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
#include "tests/integration/load.h"

#include <math.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "proto/record.h"
#include "proto/validator.h"
#include "tests/proto/random.h"

static const uint8_t fingerprint[LIMIT_FINGERPRINT_BYTES] = {1, 2, 3};
static double rope_freqs[LOAD_HEAD_DIM / 2];

int load_connect(const char *path) {
  struct sockaddr_un address = {.sun_family = AF_UNIX};
  snprintf(address.sun_path, sizeof address.sun_path, "%s", path);
  int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  load_must(fd >= 0, "socket");
  if (connect(fd, (const struct sockaddr *)&address, sizeof address) == 0)
    return fd;
  close(fd);
  return -1;
}

bool load_send(int fd, const void *data, size_t size) {
  const char *at = data;
  while (size) {
    ssize_t sent = send(fd, at, size, MSG_NOSIGNAL);
    if (sent <= 0)
      return false;
    at += sent;
    size -= (size_t)sent;
  }
  return true;
}

/* Bytes of one answer, less its outermost five; it is malloc'd. */
static uint8_t *receive(int fd, size_t *size) {
  static uint8_t piece[65536];
  struct validator validator;
  uint8_t *message = NULL;
  struct error error = {0};
  *size = 0;
  validator_init(&validator, &validator_limits_default);
  while (!validator.done) {
    size_t used;
    ssize_t got = recv(fd, piece, sizeof piece, 0);
    load_must(got > 0, "the daemon hung up");
    load_must(validator_feed(&validator, piece, (size_t)got, &used, &error) == 0, error.text);
    message = realloc(message, *size + used);
    load_must(message != NULL, "realloc");
    memcpy(message + *size, piece, used);
    *size += used;
  }
  return message;
}

/* Calls `take` with the answer, unless it is an error. */
static void receive_answer(int fd, const struct message *type, void *result, uint8_t **message, msgpack_zone *zone) {
  msgpack_object root;
  struct rpc rpc;
  struct error error = {0};
  size_t size;
  *message = receive(fd, &size);
  load_must(msgpack_zone_init(zone, 4096), "zone");
  load_must(rpc_parse(*message, size, zone, &root, &rpc, &error) == 0, error.text);
  if (rpc.kind != RPC_RESPONSE || rpc.fault) {
    rpc_fault(rpc.kind == RPC_RESPONSE ? rpc.fault : rpc.body, &error);
    fprintf(stderr, "the daemon answers: %s\n", error.text);
    exit(1);
  }
  if (type)
    load_must(message_unpack(type, rpc.body, result, &error) == 0, error.text);
}

void load_receive(int fd) {
  uint8_t *message;
  msgpack_zone zone;
  receive_answer(fd, NULL, NULL, &message, &zone);
  msgpack_zone_destroy(&zone);
  free(message);
}

static msgpack_sbuffer pack(enum method_id method, const void *params) {
  msgpack_sbuffer buffer;
  msgpack_packer packer;
  msgpack_sbuffer_init(&buffer);
  msgpack_packer_init(&packer, &buffer, msgpack_sbuffer_write);
  load_must(rpc_pack_request(&packer, 1, method, params) == 0, "pack");
  return buffer;
}

static struct msg_geometry geometry(void) {
  for (int i = 0; i < LOAD_HEAD_DIM / 2; i++)
    rope_freqs[i] = pow(10000, -2.0 * i / LOAD_HEAD_DIM);
  return (struct msg_geometry){.layers = LOAD_LAYERS, .kv_heads = LOAD_KV_HEADS, .group = 1, .head_dim = LOAD_HEAD_DIM,
                               .window = 2048, .rope_layout = ROPE_HALF, .rope_dims = LOAD_HEAD_DIM,
                               .rope_freqs = span_of(rope_freqs, sizeof rope_freqs)};
}

msgpack_sbuffer load_open(bool write, const uint8_t *model) {
  struct msg_open open = {.name = span_str("shared"), .fingerprint = span_of(fingerprint, sizeof fingerprint),
                          .geometry = geometry(), .model = span_of(model, model ? LIMIT_ID_BYTES : 0), .create = write,
                          .write = write};
  return pack(METHOD_OPEN, &open);
}

msgpack_sbuffer load_lookup(uint32_t rows, uint32_t k, uint32_t candidates) {
  size_t count = (size_t)rows * LOAD_KV_HEADS * RECORD_SIGNATURE_BITS;
  float *queries = malloc(count * sizeof *queries);
  struct random random = {rows};
  load_must(queries != NULL, "malloc");
  for (size_t i = 0; i < count; i++)
    queries[i] = (float)random_below(&random, 2000) / 1000 - 1;
  struct msg_lookup lookup = {.conversation = LOAD_HANDLE, .rows = rows, .k = k, .candidates = candidates,
                              .queries = span_of(queries, count * sizeof *queries), .before = LIMIT_TOKEN_INDEX_MAX};
  msgpack_sbuffer buffer = pack(METHOD_LOOKUP, &lookup);
  free(queries);
  return buffer;
}

static void call(int fd, msgpack_sbuffer request) {
  load_must(load_send(fd, request.data, request.size), "send");
  msgpack_sbuffer_destroy(&request);
  load_receive(fd);
}

static void append(int fd, uint64_t first, struct random *random) {
  static uint8_t records[LOAD_FRAME][LOAD_LAYERS][LOAD_KV_HEADS][RECORD_BYTES];
  uint32_t ids[LOAD_FRAME];
  for (uint32_t i = 0; i < LOAD_FRAME; i++) {
    ids[i] = i;
    for (uint32_t layer = 0; layer < LOAD_LAYERS; layer++)
      for (uint32_t head = 0; head < LOAD_KV_HEADS; head++) {
        uint8_t *record = records[i][layer][head];
        for (int at = 0; at < RECORD_CRC; at++)
          record[at] = (uint8_t)random_below(random, 256);
        record[RECORD_K_SCALE + 1] = record[RECORD_V_SCALE + 1] = 0x38; /* about 0.5 */
        record_seal(record, layer, head, first + i);
      }
  }
  struct msg_append message = {.conversation = LOAD_HANDLE, .first = first, .ids = span_of(ids, sizeof ids),
                               .records = span_of(records, sizeof records)};
  call(fd, pack(METHOD_APPEND, &message));
}

void load_fill(const char *path) {
  static float means[LOAD_LAYERS * LOAD_KV_HEADS * LOAD_HEAD_DIM];
  struct msg_model wanted = {.name = span_str("load"), .fingerprint = span_of(fingerprint, sizeof fingerprint),
                             .geometry = geometry(), .basis = span_str("hadamard"), .codec = 1, .seed = 7,
                             .tokens = 192, .mean_k = span_of(means, sizeof means),
                             .mean_v = span_of(means, sizeof means)};
  struct msg_model frozen;
  struct random random = {1};
  uint8_t *message;
  msgpack_zone zone;
  int fd = load_connect(path);
  load_must(fd >= 0, "connect");
  msgpack_sbuffer request = pack(METHOD_MODEL_CALIBRATE, &wanted);
  load_must(load_send(fd, request.data, request.size), "send");
  msgpack_sbuffer_destroy(&request);
  receive_answer(fd, &message_model, &frozen, &message, &zone);
  call(fd, load_open(true, frozen.id.data));
  msgpack_zone_destroy(&zone);
  free(message);
  for (uint64_t first = 0; first < LOAD_TOKENS; first += LOAD_FRAME)
    append(fd, first, &random);
  close(fd);
}
