// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// The library against a daemon that answers as the input says. Whatever it hears, attention stays finite, slots are
// sound and hold what was stored, counts only grow, it sends good requests only, and no call waits past its time (of a
// clock that moves only while nothing comes).
//
// Input: orders, one for every time that the library waits (1 byte: 3 bits what, 5 bits more).
#include "tests/fuzz/fuzz.h"

#include <errno.h>
#include <math.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "client/coldkv.h"
#include "proto/validator.h"
#include "tests/fuzz/fuzz_honest.h"

enum { HONEST, SPOIL, RAW, FAULT, HANG_UP, MUTE, LATE, OLDER };
enum { HEAD_DIM = 64, REQUESTS_MAX = 64, WAITS_MAX = 20000 };

static struct fuzz_input orders;
static int listener = -1, peer = -1;
static struct sockaddr_un address = {.sun_family = AF_UNIX};
static uint64_t now_ms = 1000000, waits;
static bool model_honest; /* means carry no check: whoever makes them up makes up every key */

static uint8_t *in; /* requests that came and were not answered */
static size_t in_size;

/* --- the peer ----------------------------------------------------------------------------------------------------- */

static void hang_up(void) {
  if (peer >= 0)
    close(peer);
  peer = -1;
  in_size = 0;
}

static void receive(void) {
  enum { PIECE = 1 << 16 };
  for (;;) {
    if (peer < 0)
      peer = accept4(listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (peer < 0)
      return;
    in = realloc(in, in_size + PIECE);
    FUZZ_REQUIRE(in);
    ssize_t got = recv(peer, in + in_size, PIECE, 0);
    if (got > 0) {
      in_size += (size_t)got;
    } else if (got < 0 && errno == EAGAIN) {
      return;
    } else {
      hang_up();
    }
  }
}

static void say(const void *data, size_t size) {
  if (peer >= 0 && size && send(peer, data, size, MSG_NOSIGNAL) < 0)
    hang_up();
}

/* Bytes of the first request that came, 0 when none is complete. */
static size_t first_request(void) {
  struct validator validator;
  struct error error = {0};
  size_t used = 0;
  validator_init(&validator, &validator_limits_default);
  FUZZ_REQUIRE(validator_feed(&validator, in, in_size, &used, &error) == 0);
  return validator.done ? used : 0;
}

static void forget_request(size_t size) {
  memmove(in, in + size, in_size - size);
  in_size -= size;
}

/* Answers the oldest request, honestly but for some bytes; false when there is none. */
static bool answer(unsigned spoilt) {
  size_t size = in_size ? first_request() : 0;
  if (!size)
    return false;
  msgpack_sbuffer buffer;
  msgpack_sbuffer_init(&buffer);
  enum method_id method = honest_answer(in, size, &buffer);
  if (spoilt && (method == METHOD_MODEL_CALIBRATE || method == METHOD_MODEL_GET))
    model_honest = false;
  for (unsigned i = 0; i < spoilt; i++) {
    size_t at = fuzz_take(&orders, 2) % buffer.size;
    buffer.data[at] ^= (char)fuzz_take(&orders, 1);
  }
  forget_request(size);
  say(buffer.data, buffer.size);
  msgpack_sbuffer_destroy(&buffer);
  return true;
}

static void refuse(unsigned more) {
  size_t size = in_size ? first_request() : 0;
  struct error error = {0};
  msgpack_sbuffer buffer;
  msgpack_packer packer;
  if (size < 7)
    return;
  error_set(&error, (int)more, "so ordered");
  msgpack_sbuffer_init(&buffer);
  msgpack_packer_init(&packer, &buffer, msgpack_sbuffer_write);
  msgpack_zone zone;
  msgpack_object root;
  struct rpc rpc;
  FUZZ_REQUIRE(msgpack_zone_init(&zone, 4096) && rpc_parse(in, size, &zone, &root, &rpc, &error) == 0);
  FUZZ_REQUIRE(rpc_pack_error(&packer, rpc.id, &error) == 0);
  msgpack_zone_destroy(&zone);
  forget_request(size);
  say(buffer.data, buffer.size);
  msgpack_sbuffer_destroy(&buffer);
}

static void obey(void) {
  receive();
  unsigned byte = (unsigned)fuzz_take(&orders, 1), more = byte >> 3;
  struct fuzz_input raw;
  switch (byte & 7) {
  case HONEST:
    while (answer(0))
      continue;
    break;
  case SPOIL: answer(1 + more); break;
  case RAW:
    raw = fuzz_take_bytes(&orders, more * 8);
    model_honest = false;
    say(raw.data, raw.size);
    break;
  case FAULT: refuse(more); break;
  case HANG_UP: hang_up(); break;
  case MUTE: break;
  case LATE: /* the newest waits longer */
    for (unsigned i = 0; i < more; i++)
      answer(0);
    break;
  case OLDER: honest_truncate(more * 32); break;
  }
}

/* --- what the library waits with ---------------------------------------------------------------------------------- */

int __real_poll(struct pollfd *wanted, nfds_t count, int timeout_ms);
int __wrap_poll(struct pollfd *wanted, nfds_t count, int timeout_ms);
int __wrap_clock_gettime(clockid_t clock, struct timespec *time);

int __wrap_poll(struct pollfd *wanted, nfds_t count, int timeout_ms) {
  FUZZ_REQUIRE(++waits < WAITS_MAX); /* it goes round for nothing */
  obey();
  int ready = count ? __real_poll(wanted, count, 0) : 0;
  if (!ready && timeout_ms > 0)
    now_ms += (uint64_t)timeout_ms;
  return ready;
}

int __wrap_clock_gettime(clockid_t clock, struct timespec *time) {
  (void)clock;
  *time = (struct timespec){.tv_sec = (time_t)(now_ms / 1000), .tv_nsec = (long)(now_ms % 1000) * 1000000};
  return 0;
}

/* --- the engine --------------------------------------------------------------------------------------------------- */

static coldkv_client *client;
static coldkv_model *model;

/* Values that differ by token. */
static void fill(float *x, size_t size, uint32_t seed) {
  for (size_t i = 0; i < size; i++, seed = seed * 1664525 + 1013904223)
    x[i] = (float)(int32_t)seed * 0x1p-31f;
}

static void check_status(const coldkv_conv *conv, struct coldkv_status *before) {
  struct coldkv_status status;
  FUZZ_REQUIRE(coldkv_get_status(conv, &status) == 0);
  FUZZ_REQUIRE(status.hot_first <= status.tokens && status.durable <= status.stored);
  FUZZ_REQUIRE(status.lookups_missed <= status.lookups && status.tokens >= before->tokens);
  FUZZ_REQUIRE(status.lookups >= before->lookups && status.bad_records >= before->bad_records);
  *before = status;
}

static void check_slots(const struct coldkv_slots *slots) {
  for (uint32_t head = 0; head < slots->kv_heads; head++)
    for (uint32_t i = 0; i < slots->count[head]; i++) {
      uint64_t token = slots->tokens[head][i];
      FUZZ_REQUIRE(token >= COLDKV_SINKS && token < slots->hot_first);
      FUZZ_REQUIRE(!i || token > slots->tokens[head][i - 1]);
      const float *key = slots->keys[head] + (size_t)i * HEAD_DIM, *value = slots->values[head] + (size_t)i * HEAD_DIM;
      for (uint32_t c = 0; c < HEAD_DIM; c++)
        FUZZ_REQUIRE(isfinite(key[c]) && isfinite(value[c]));
      float own_key[HEAD_DIM], own_value[HEAD_DIM];
      if (!model_honest)
        continue;
      honest_decode(token, own_key, own_value);
      FUZZ_REQUIRE(memcmp(key, own_key, sizeof own_key) == 0 && memcmp(value, own_value, sizeof own_value) == 0);
    }
  for (uint32_t row = 0; row < slots->rows; row++)
    for (uint32_t i = 0; i < slots->kv_heads * slots->k; i++) {
      uint32_t place = slots->index[(size_t)row * slots->kv_heads * slots->k + i];
      FUZZ_REQUIRE(place == UINT32_MAX || place < slots->count[i / slots->k]);
    }
}

/* One block; false when it was given up. */
enum engine { PUSH, RETRIEVE, ATTEND };

static bool forward(coldkv_conv *conv, const uint32_t *ids, uint32_t n, enum engine engine) {
  static float q[COLDKV_BLOCK_MAX * HEAD_DIM], k[COLDKV_BLOCK_MAX * HEAD_DIM], v[COLDKV_BLOCK_MAX * HEAD_DIM],
      out[COLDKV_BLOCK_MAX * HEAD_DIM];
  size_t size = (size_t)n * HEAD_DIM;
  uint64_t began = now_ms;
  if (coldkv_begin(conv, ids, n))
    return false;
  fill(q, size, ids[0]);
  fill(k, size, ids[0] + 1);
  fill(v, size, ids[0] + 2);
  int result;
  if (engine != ATTEND) {
    struct coldkv_slots slots;
    result = coldkv_push(conv, 0, k, v);
    if (!result && engine == RETRIEVE && (result = coldkv_retrieve(conv, 0, q, &slots)) == 0)
      check_slots(&slots);
  } else {
    result = coldkv_attend(conv, 0, q, k, v, out);
    for (size_t i = 0; i < size && !result; i++)
      FUZZ_REQUIRE(isfinite(out[i]));
  }
  result = result ? coldkv_abort(conv) - 1 : coldkv_end(conv);
  FUZZ_REQUIRE(now_ms - began <= 2 * 400 + 100); /* block_timeout_ms, and the call that waits in vain */
  return result == 0;
}

static void converse(void) {
  coldkv_conv *conv = NULL;
  struct coldkv_status status = {0};
  uint32_t ids[COLDKV_BLOCK_MAX];
  const struct coldkv_conv_options options = {.k = 4};
  if (coldkv_open(&conv, model, "fuzz", &options)) {
    FUZZ_REQUIRE(!conv && coldkv_error()[0]);
    return;
  }
  check_status(conv, &status);
  for (int n, blocks = 0; (n = coldkv_resume(conv, ids)) > 0 && blocks < 12; blocks++)
    if (!forward(conv, ids, (uint32_t)n, PUSH))
      break;
  if (!status.resume_left)
    for (uint32_t block = 0; block < 8; block++) {
      uint32_t n = block < 6 ? COLDKV_BLOCK_MAX : 2;
      for (uint32_t i = 0; i < n; i++)
        ids[i] = block * COLDKV_BLOCK_MAX + i;
      forward(conv, ids, n, block < 5 ? PUSH : block & 1 ? RETRIEVE : ATTEND);
      check_status(conv, &status);
    }
  coldkv_sync(conv);
  check_status(conv, &status);
  coldkv_close(conv);
}

static void start(void) {
  snprintf(address.sun_path, sizeof address.sun_path, "%s/socket", fuzz_directory());
  listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  FUZZ_REQUIRE(listener >= 0 && bind(listener, (struct sockaddr *)&address, sizeof address) == 0);
  FUZZ_REQUIRE(listen(listener, 64) == 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  const struct coldkv_client_options options = {.timeout_ms = 200, .sync_timeout_ms = 400, .block_timeout_ms = 400};
  struct coldkv_model_description description = {.name = "m", .layers = 1, .kv_heads = 1, .group = 1,
                                                 .head_dim = HEAD_DIM, .window = 512, .rope = COLDKV_ROPE_HALF,
                                                 .rope_theta = 10000};
  if (listener < 0)
    start();
  orders = (struct fuzz_input){data, size};
  waits = 0;
  model_honest = true;
  honest_reset();
  FUZZ_REQUIRE(coldkv_client_create(&client, address.sun_path, &options) == 0);
  FUZZ_REQUIRE(coldkv_model_create(&model, client, &description) == 0);
  converse();
  converse(); /* on what is there now */
  coldkv_model_destroy(model);
  coldkv_client_destroy(client);
  hang_up();
  for (int left; (left = accept4(listener, NULL, NULL, SOCK_CLOEXEC)) >= 0;)
    close(left);
  return 0;
}

/* --- seeds -------------------------------------------------------------------------------------------------------- */

#define ORDER(what, more) (uint8_t)((what) | (more) << 3)
#define SEED(name, ...)                                                                                                \
  do {                                                                                                                 \
    static const uint8_t bytes[] = {__VA_ARGS__};                                                                      \
    fuzz_seed(name, bytes, sizeof bytes);                                                                              \
  } while (0)

void fuzz_seeds(void) {
  SEED("honest", 0, 0, 0);
  SEED("mute", 0, 0, ORDER(MUTE, 0), ORDER(MUTE, 0), ORDER(MUTE, 0));
  SEED("hang-up", 0, 0, 0, ORDER(HANG_UP, 0), 0, 0, ORDER(HANG_UP, 0));
  SEED("spoilt-hello", ORDER(SPOIL, 0), 30, 0, 1);
  SEED("spoilt-open", 0, ORDER(SPOIL, 0), 40, 0, 0x80);
  SEED("spoilt-model", 0, 0, ORDER(SPOIL, 1), 100, 0, 1, 200, 1, 0x7f);
  SEED("spoilt-append", 0, 0, 0, ORDER(SPOIL, 0), 18, 0, 1, ORDER(SPOIL, 0), 20, 0, 3);
  SEED("spoilt-lookup", 0, 0, 0, 0, 0, ORDER(SPOIL, 0), 90, 0, 8, ORDER(SPOIL, 1), 100, 1, 2, 50, 2, 4);
  SEED("refused", 0, ORDER(FAULT, ERR_BUSY), 0, 0, ORDER(FAULT, ERR_NO_SPACE), 0, ORDER(FAULT, ERR_GAP));
  SEED("raw", 0, ORDER(RAW, 1), 0x94, 1, 0, 0xc0, 0x80, 0xc1, 0xc1, 0xc1, 0, 0);
  SEED("older", 0, 0, 0, 0, 0, 0, ORDER(OLDER, 1), ORDER(HANG_UP, 0), 0, 0, 0);
  SEED("bad-record", 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, ORDER(SPOIL, 0), 120, 0,
       0x41); /* in the first lookup's answer */
  SEED("bad-durable", 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, ORDER(SPOIL, 0), 79, 0,
       0x7e); /* in the second open's answer */
  SEED("late", ORDER(LATE, 1), ORDER(LATE, 1), ORDER(LATE, 1), ORDER(LATE, 2), ORDER(LATE, 1), ORDER(LATE, 1));
}
