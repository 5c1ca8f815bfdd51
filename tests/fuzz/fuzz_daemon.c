// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// The daemon itself, on a real archive, from its socket to its threads. Every request is answered once and in time, no
// answer holds a record that was not appended there, what was acknowledged stays, and no client makes the daemon
// report a fault of its own.
//
// Input: commands: kind (1 byte: 5 bits; 64: do not wait for the answer; 128: the second connection), then numbers.
#include "tests/fuzz/fuzz.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "proto/record.h"
#include "tests/fuzz/fuzz_peer.h"
#include "tests/fuzz/fuzz_store.h"

enum { COMMANDS_MAX = 40, NO_WAIT = 64, SECOND = 128, PEERS = 2, RAW_BYTES_MAX = 4096 };

enum command { OPEN, CALIBRATE, APPEND, LOOKUP, READ, TOKENS, CLOSE, DELETE, INFO, LIST, MODEL_LIST, MODEL_GET, STATS,
               VERIFY, HELLO, RAW, RECONNECT, FILL, STATUS, COMMANDS };

static struct peer peers[PEERS];

static struct peer_request about(unsigned name) {
  return (struct peer_request){.name = name, .epoch = peer_truth.epoch[name]};
}

static void do_open(struct peer *peer, struct fuzz_input *input) {
  unsigned name = (unsigned)fuzz_take(input, 1) % PEER_NAMES, flags = (unsigned)fuzz_take(input, 1);
  unsigned mark = flags >> 6;
  struct msg_model model;
  fuzz_model_message(&model, (uint8_t)mark);
  struct msg_open params = {.name = span_str(peer_names[name]), .fingerprint = model.fingerprint,
                            .geometry = model.geometry, .create = flags & 1, .write = flags >> 1 & 1};
  if (flags & 4)
    params.geometry.layers = fuzz_take(input, 2);
  if (flags & 8)
    params.geometry.head_dim = fuzz_take(input, 1);
  if ((flags & 16) && peer_truth.model_known[mark])
    params.model = span_of(peer_truth.model_ids[mark], LIMIT_ID_BYTES);
  peer_send(peer, METHOD_OPEN, &params, about(name));
}

static void do_calibrate(struct peer *peer, struct fuzz_input *input) {
  static float means[FUZZ_BLOCKS * FUZZ_HEAD_DIM];
  unsigned flags = (unsigned)fuzz_take(input, 1);
  struct msg_model params;
  fuzz_model_message(&params, (uint8_t)(flags >> 6));
  means[7] = flags & 1 ? NAN : 0.5f;
  params.mean_k = span_of(means, flags & 2 ? sizeof means - 4 : sizeof means);
  if (flags & 4)
    params.geometry.kv_heads = fuzz_take(input, 2);
  if (flags & 8)
    params.basis = span_str("stored");
  peer_send(peer, METHOD_MODEL_CALIBRATE, &params, (struct peer_request){.mark = flags >> 6});
}

static void send_append(struct peer *peer, unsigned name, uint64_t first, uint32_t count, uint32_t ahead,
                        unsigned flags) {
  static uint8_t records[LIMIT_APPEND_TOKENS_MAX][FUZZ_BLOCKS][RECORD_BYTES];
  static uint32_t ids[LIMIT_APPEND_TOKENS_MAX + LIMIT_AHEAD_MAX];
  if (first > PEER_TOKENS_MAX - LIMIT_APPEND_TOKENS_MAX)
    first = PEER_TOKENS_MAX - LIMIT_APPEND_TOKENS_MAX;
  for (uint32_t i = 0; i < count; i++)
    for (uint32_t b = 0; b < FUZZ_BLOCKS; b++)
      memcpy(records[i][b], peer_record(first + i, b, flags & 1), RECORD_BYTES);
  for (uint32_t i = 0; i < count + ahead; i++)
    ids[i] = fuzz_token_id(first + i);
  if ((flags & 2) && count)
    records[count / 2][0][flags % RECORD_BYTES] ^= 1;
  struct msg_append params = {.conversation = peer->handles[name], .first = first,
                              .ids = span_of(ids, 4 * (size_t)count), .ahead = span_of(ids + count, 4 * (size_t)ahead),
                              .records = span_of(records, (size_t)count * sizeof records[0]), .sync = flags >> 2 & 1};
  if ((flags & 8) && count)
    params.records.size -= RECORD_BYTES;
  struct peer_request request = about(name);
  request.first = first;
  request.count = count;
  peer_send(peer, METHOD_APPEND, &params, request);
}

static void do_append(struct peer *peer, struct fuzz_input *input) {
  unsigned name = (unsigned)fuzz_take(input, 1) % PEER_NAMES;
  int64_t back = (int64_t)fuzz_take(input, 1);
  back = back < 128 ? back : back - 256;
  uint32_t count = (uint32_t)fuzz_take(input, 1), ahead = (uint32_t)fuzz_take(input, 1);
  uint64_t known = peer_truth.known[name] == UINT64_MAX ? 0 : peer_truth.known[name];
  uint64_t first = back < 0 && known < (uint64_t)-back ? 0 : known + (uint64_t)back;
  send_append(peer, name, first, count, ahead, (unsigned)fuzz_take(input, 1));
}

/* Many tokens at once, so that logs are closed and sealed. */
static void do_fill(struct peer *peer, struct fuzz_input *input) {
  unsigned name = (unsigned)fuzz_take(input, 1) % PEER_NAMES;
  uint64_t frames = fuzz_take(input, 1) % 20, first = peer_truth.known[name] == UINT64_MAX ? 0 : peer_truth.known[name];
  for (uint64_t i = 0; i < frames && first + 256 * (i + 1) < PEER_TOKENS_MAX; i++)
    send_append(peer, name, first + 256 * i, 256, 0, 0);
}

static void do_lookup(struct peer *peer, struct fuzz_input *input) {
  static float queries[16 * FUZZ_HEADS * RECORD_SIGNATURE_BITS];
  unsigned name = (unsigned)fuzz_take(input, 1) % PEER_NAMES, flags = (unsigned)fuzz_take(input, 1);
  struct peer_request request = about(name);
  request.layer = (uint32_t)fuzz_take(input, 1) % (FUZZ_LAYERS + 1);
  request.rows = 1 + fuzz_take(input, 1) % 16;
  request.k = fuzz_take(input, 2);
  request.first = flags & 1 ? fuzz_take(input, 2) : 0;
  request.before = flags & 2 ? fuzz_take(input, 2) : LIMIT_TOKEN_INDEX_MAX;
  uint32_t state = (uint32_t)fuzz_take(input, 2) | 1;
  size_t floats = (size_t)request.rows * FUZZ_HEADS * RECORD_SIGNATURE_BITS;
  for (size_t i = 0; i < floats; i++, state = state * 1664525 + 1013904223)
    queries[i] = (float)(int32_t)state;
  if (flags & 4)
    queries[floats / 2] = flags & 8 ? NAN : INFINITY;
  struct msg_lookup params = {.conversation = peer->handles[name], .layer = request.layer, .rows = request.rows,
                              .queries = span_of(queries, 4 * (flags & 16 ? floats - RECORD_SIGNATURE_BITS : floats)),
                              .k = request.k, .candidates = flags & 32 ? fuzz_take(input, 2) : 0,
                              .mode = flags >> 6, .from = request.first, .before = request.before};
  peer_send(peer, METHOD_LOOKUP, &params, request);
}

static void do_read(struct peer *peer, struct fuzz_input *input, bool tokens) {
  unsigned name = (unsigned)fuzz_take(input, 1) % PEER_NAMES;
  struct peer_request request = about(name);
  uint8_t place = (uint8_t)fuzz_take(input, 1);
  request.first = fuzz_take(input, place & 128 ? 6 : 2);
  request.count = fuzz_take(input, 2);
  request.layer = place % (FUZZ_LAYERS + 1);
  request.head = place >> 3 & 1;
  struct msg_read read = {.conversation = peer->handles[name], .layer = request.layer, .head = request.head,
                          .first = request.first, .count = request.count};
  struct msg_tokens ids = {.conversation = read.conversation, .first = read.first, .count = read.count};
  if (tokens)
    peer_send(peer, METHOD_TOKENS, &ids, request);
  else
    peer_send(peer, METHOD_READ, &read, request);
}

static void do_name(struct peer *peer, struct fuzz_input *input, enum command command) {
  unsigned name = (unsigned)fuzz_take(input, 1);
  bool wrong = name & 64;
  name %= PEER_NAMES;
  struct msg_handle handle = {.conversation = peer->handles[name]};
  struct msg_name info = {.name = span_str(peer_names[name])};
  struct msg_delete delete = {.name = info.name, .confirm = span_str(wrong ? "other" : peer_names[name])};
  if (command == CLOSE) {
    peer_send(peer, METHOD_CLOSE, &handle, about(name));
    peer->handles[name] = 0;
  } else if (command == INFO) {
    peer_send(peer, METHOD_INFO, &info, about(name));
  } else {
    peer_truth.epoch[name]++;
    peer_truth.acknowledged[name] = peer_truth.known[name] = 0;
    peer_send(peer, METHOD_DELETE, &delete, about(name));
  }
}

static void do_list(struct peer *peer, struct fuzz_input *input, bool models) {
  static char after[LIMIT_NAME_BYTES_MAX];
  struct msg_list params = {.limit = fuzz_take(input, 1) * 5 + 1};
  memset(after, 'a', sizeof after);
  params.after = span_of(after, fuzz_take(input, 1));
  peer_send(peer, models ? METHOD_MODEL_LIST : METHOD_LIST, &params, about(0));
}

static void do_model_get(struct peer *peer, struct fuzz_input *input) {
  unsigned flags = (unsigned)fuzz_take(input, 1), mark = flags >> 6;
  struct msg_model model;
  struct msg_model_get params = {0};
  fuzz_model_message(&model, (uint8_t)mark);
  if (flags & 1)
    params.fingerprint = model.fingerprint;
  if (flags & 2)
    params.id = span_of(peer_truth.model_ids[mark], LIMIT_ID_BYTES);
  peer_send(peer, METHOD_MODEL_GET, &params, about(0));
}

static void do_raw(struct fuzz_input *input) {
  struct fuzz_input bytes = fuzz_take_bytes(input, fuzz_take(input, 2) % RAW_BYTES_MAX);
  for (unsigned name = 0; name < PEER_NAMES; name++) { /* whatever they do to the conversations */
    peer_truth.epoch[name]++;
    peer_truth.acknowledged[name] = 0;
  }
  peer_raw(bytes.data, bytes.size);
}

static void run(struct peer *peer, enum command command, struct fuzz_input *input) {
  struct msg_hello hello = {.protocol = 1};
  const struct msg_empty empty = {0};
  switch (command) {
  case OPEN: do_open(peer, input); break;
  case CALIBRATE: do_calibrate(peer, input); break;
  case APPEND: do_append(peer, input); break;
  case LOOKUP: do_lookup(peer, input); break;
  case READ: case TOKENS: do_read(peer, input, command == TOKENS); break;
  case CLOSE: case DELETE: case INFO: do_name(peer, input, command); break;
  case LIST: case MODEL_LIST: do_list(peer, input, command == MODEL_LIST); break;
  case MODEL_GET: do_model_get(peer, input); break;
  case STATS: peer_send(peer, METHOD_STATS, &empty, about(0)); break;
  case STATUS: peer_send(peer, METHOD_STATUS, &empty, about(0)); break;
  case VERIFY: peer_send(peer, METHOD_VERIFY, &empty, about(0)); break;
  case HELLO:
    hello.protocol = fuzz_take(input, 1);
    peer_send(peer, METHOD_HELLO, &hello, about(0));
    break;
  case RAW: do_raw(input); break;
  case RECONNECT:
    peer_hang_up(peer);
    peer_connect(peer);
    break;
  case FILL: do_fill(peer, input); break;
  case COMMANDS: break;
  }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  struct fuzz_input input = {data, size};
  peer_daemon();
  memset(peer_truth.acknowledged, 0, sizeof peer_truth.acknowledged);
  memset(peer_truth.known, 0, sizeof peer_truth.known);
  for (unsigned i = 0; i < PEERS; i++)
    peer_connect(&peers[i]);
  for (unsigned i = 0; i < COMMANDS_MAX && input.size; i++) {
    unsigned byte = (unsigned)fuzz_take(&input, 1);
    struct peer *peer = &peers[byte & SECOND ? 1 : 0];
    run(peer, (enum command)((byte & 31) % COMMANDS), &input);
    if (!(byte & NO_WAIT))
      peer_wait(peer);
  }
  for (unsigned i = 0; i < PEERS; i++) {
    peer_wait(&peers[i]);
    peer_hang_up(&peers[i]);
  }
  peer_clean();
  return 0;
}

/* --- seeds -------------------------------------------------------------------------------------------------------- */

#define SEED(name, ...)                                                                                                \
  do {                                                                                                                 \
    static const uint8_t bytes[] = {__VA_ARGS__};                                                                      \
    fuzz_seed(name, bytes, sizeof bytes);                                                                              \
  } while (0)
#define READY CALIBRATE, 0, OPEN, 0, 1 | 2 | 16
#define AGAIN OPEN | NO_WAIT, 0, 0, OPEN | NO_WAIT | SECOND, 1, 64, OPEN | NO_WAIT, 1, 64, OPEN | NO_WAIT | SECOND, 0, 0
#define LOOK LOOKUP, 0, 0, 0, 2, 8, 0, 1, 0

static void raw_seed(const char *name, const struct error *fault) {
  struct fuzz_output output = {0};
  msgpack_sbuffer buffer;
  msgpack_packer packer;
  msgpack_sbuffer_init(&buffer);
  msgpack_packer_init(&packer, &buffer, msgpack_sbuffer_write);
  struct msg_hello hello = {.protocol = 1, .client = span_str("x")};
  struct msg_model model;
  fuzz_model_message(&model, 0);
  struct msg_open open = {.name = span_str("a"), .fingerprint = model.fingerprint, .geometry = model.geometry,
                          .create = 1, .write = 1};
  struct msg_tokens tokens = {.conversation = LIMIT_HANDLES_PER_CONNECTION_MAX, .count = 5};
  if (fault) {
    FUZZ_REQUIRE(rpc_pack_error(&packer, 1, fault) == 0);
  } else {
    FUZZ_REQUIRE(rpc_pack_request(&packer, 1, METHOD_HELLO, &hello) == 0);
    FUZZ_REQUIRE(rpc_pack_request(&packer, 2, METHOD_OPEN, &open) == 0);
    FUZZ_REQUIRE(rpc_pack_request(&packer, 3, METHOD_TOKENS, &tokens) == 0);
  }
  fuzz_put_number(&output, RAW, 1);
  fuzz_put_number(&output, buffer.size, 2);
  fuzz_put(&output, buffer.data, buffer.size);
  msgpack_sbuffer_destroy(&buffer);
  fuzz_put_done(&output, name);
}

void fuzz_seeds(void) {
  static const struct error fault = {.code = ERR_GAP, .text = "no"};
  SEED("nothing", HELLO, 1, STATS, STATUS, LIST, 1, 0, MODEL_LIST, 1, 0);
  SEED("write", READY, APPEND, 0, 0, 9, 3, 0, READ, 0, 0, 0, 0, 9, 0, TOKENS, 0, 0, 0, 0, 12, 0, LOOK, INFO, 0);
  SEED("pipeline", READY, APPEND | NO_WAIT, 0, 0, 9, 3, 0, LOOKUP | NO_WAIT, 0, 0, 1, 2, 8, 0, 1, 0, CLOSE, 0);
  SEED("repeat", READY, APPEND, 0, 0, 9, 0, 0, APPEND, 0, 0xf7, 9, 0, 0, APPEND, 0, 0xf7, 9, 0, 1);
  SEED("refused", READY, APPEND, 0, 0, 9, 0, 2, APPEND, 0, 5, 1, 0, 0, APPEND, 0, 0, 3, 0, 8, APPEND, 1, 0, 1, 0, 0);
  SEED("lease", READY, OPEN | SECOND, 0, 2, APPEND, 0, 0, 4, 0, 4, RECONNECT, OPEN | SECOND, 0, 2);
  SEED("delete", READY, APPEND, 0, 0, 9, 3, 0, DELETE, 0, CLOSE, 0, DELETE, 64, DELETE, 0, OPEN, 0, 19);
  SEED("seal", READY, FILL, 0, 17, LOOK, READ, 0, 1, 0, 15, 0, 16, VERIFY, STATS, RECONNECT, OPEN, 0, 18, LOOK);
  SEED("two", READY, CALIBRATE, 64, OPEN, 1, 64 | 19, FILL, 0, 3, FILL, 1, 2, LOOK, VERIFY, LIST, 0, 0);
  SEED("models", CALIBRATE, 1, CALIBRATE, 2, CALIBRATE, 4, 9, 0, CALIBRATE, 8, MODEL_GET, 1, MODEL_GET, 2, MODEL_GET,
       3);
  SEED("bad-open", OPEN, 0, 2, OPEN, 0, 7, 1, 1, OPEN, 0, 11, 65, OPEN, 0, 3, APPEND, 0, 0, 1, 0, 0, LOOK);
  SEED("bad-lookup", READY, APPEND, 0, 0, 9, 0, 0, LOOKUP, 0, 4, 0, 1, 8, 0, 1, 0, LOOKUP, 0, 16, 0, 1, 8, 0, 1, 0);
  SEED("put-away", READY, CALIBRATE, 64, OPEN, 1, 64 | 19, APPEND, 0, 0, 2, 0, 0, APPEND, 1, 0, 2, 0, 0, AGAIN, AGAIN,
       AGAIN, AGAIN, INFO, 0);
  raw_seed("raw", NULL);
  raw_seed("raw-response", &fault);
}
