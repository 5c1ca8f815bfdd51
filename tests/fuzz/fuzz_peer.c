// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
#include "tests/fuzz/fuzz_peer.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

#include "daemon/server.h"
#include "proto/record.h"
#include "tests/fuzz/fuzz.h"
#include "tests/fuzz/fuzz_store.h"

enum { INPUTS_PER_DAEMON = 400, PATIENCE_S = 30, READ_BYTES = 1 << 16 };

struct peer_truth peer_truth;
const char *const peer_names[PEER_NAMES] = {"a", "b", "\xc3\xbc"};

static struct options options;
static pthread_t thread;
static bool running;

/* A child of a process with threads must not allocate under AddressSanitizer, whose locks other threads may hold: the
 * daemon forks to read its catalog at the start, when there are none, and for verify, which goes without here. */
pid_t __real_fork(void);
pid_t __wrap_fork(void);
static atomic_bool listening;

pid_t __wrap_fork(void) {
  if (!atomic_load(&listening))
    return __real_fork();
  errno = EAGAIN;
  return -1;
}

/* --- the daemon --------------------------------------------------------------------------------------------------- */

static void *run(void *argument) {
  struct error error = {0};
  (void)argument;
  if (server_run(&options, &error))
    fuzz_fail(__FILE__, __LINE__, error.text);
  return NULL;
}

static void stop(void) {
  kill(getpid(), SIGTERM); /* the loop of server_run watches for it */
  FUZZ_REQUIRE(pthread_join(thread, NULL) == 0);
  running = false;
  atomic_store(&listening, false);
}

static int try_connect(void) {
  struct sockaddr_un address = {.sun_family = AF_UNIX};
  struct timeval patience = {.tv_sec = PATIENCE_S};
  int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  FUZZ_REQUIRE(fd >= 0 && strlen(options.socket) < sizeof address.sun_path);
  memcpy(address.sun_path, options.socket, strlen(options.socket) + 1);
  FUZZ_REQUIRE(setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience) == 0);
  FUZZ_REQUIRE(setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience) == 0);
  if (connect(fd, (struct sockaddr *)&address, sizeof address) == 0)
    return fd;
  close(fd);
  return -1;
}

static void start(void) {
  char data[512], path[512];
  snprintf(data, sizeof data, "%s/archive", fuzz_directory());
  snprintf(path, sizeof path, "%s/socket", fuzz_directory());
  const char *arguments[] = {"coldkvd", "--data", data, "--socket", path, "--threads", "2", "--tail-memory-mb",
                             "1", "--scan-memory-mb", "16", "--config", "/dev/null", NULL};
  struct error error = {0};
  FUZZ_REQUIRE(options_read(&options, sizeof arguments / sizeof arguments[0] - 1, (char **)(uintptr_t)arguments,
                            &error) == 0);
  fuzz_remove(options.data);
  memset(&peer_truth, 0, sizeof peer_truth);
  if (!freopen("/dev/null", "w", stdout)) /* the daemon's log is not what is looked for */
    abort();
  FUZZ_REQUIRE(pthread_create(&thread, NULL, run, NULL) == 0);
  running = true;
  for (unsigned i = 0; i < PATIENCE_S * 1000; i++) {
    int fd = try_connect();
    if (fd >= 0) {
      close(fd);
      atomic_store(&listening, true);
      return;
    }
    usleep(1000);
  }
  fuzz_fail(__FILE__, __LINE__, "the daemon does not listen");
}

void peer_daemon(void) {
  static unsigned inputs;
  if (running && ++inputs % INPUTS_PER_DAEMON == 0)
    stop();
  if (!running) {
    static bool at_exit;
    if (!at_exit)
      atexit(stop);
    at_exit = true;
    start();
  }
}

/* --- one connection ----------------------------------------------------------------------------------------------- */

void peer_connect(struct peer *peer) {
  *peer = (struct peer){.fd = try_connect()};
  FUZZ_REQUIRE(peer->fd >= 0);
}

void peer_hang_up(struct peer *peer) {
  if (peer->fd >= 0)
    close(peer->fd);
  free(peer->in);
  *peer = (struct peer){.fd = -1};
}

/* False at the end. */
static bool receive(struct peer *peer) {
  if (peer->in_capacity - peer->in_size < READ_BYTES) {
    peer->in_capacity = 2 * peer->in_capacity + READ_BYTES;
    peer->in = realloc(peer->in, peer->in_capacity);
    FUZZ_REQUIRE(peer->in);
  }
  ssize_t got = recv(peer->fd, peer->in + peer->in_size, READ_BYTES, 0);
  FUZZ_REQUIRE(got >= 0 || errno == ECONNRESET); /* anything else: the daemon does not answer */
  peer->in_size += got > 0 ? (size_t)got : 0;
  return got > 0;
}

static void take_answer(struct peer *peer, const struct rpc *rpc) {
  FUZZ_REQUIRE(rpc->kind == RPC_RESPONSE);
  unsigned i = 0;
  while (i < peer->request_count && peer->requests[i].id != rpc->id)
    i++;
  FUZZ_REQUIRE(i < peer->request_count); /* every answer has its question, once */
  struct peer_request request = peer->requests[i];
  peer->requests[i] = peer->requests[--peer->request_count];
  peer_judge(peer, &request, rpc);
}

/* Hands out the messages that are complete. */
static void take_messages(struct peer *peer, bool judged) {
  size_t at = 0;
  for (;;) {
    struct validator validator;
    struct error error = {0};
    size_t used = 0;
    validator_init(&validator, &validator_limits_default);
    FUZZ_REQUIRE(validator_feed(&validator, peer->in + at, peer->in_size - at, &used, &error) == 0);
    if (!validator.done)
      break;
    msgpack_zone zone;
    msgpack_object root;
    struct rpc rpc;
    FUZZ_REQUIRE(msgpack_zone_init(&zone, 4096));
    FUZZ_REQUIRE(rpc_parse(peer->in + at, used, &zone, &root, &rpc, &error) == 0 && rpc.kind != RPC_REQUEST);
    if (judged)
      take_answer(peer, &rpc);
    msgpack_zone_destroy(&zone);
    at += used;
  }
  memmove(peer->in, peer->in + at, peer->in_size - at);
  peer->in_size -= at;
}

void peer_wait(struct peer *peer) {
  while (peer->request_count) {
    FUZZ_REQUIRE(receive(peer)); /* it does not hang up on good requests */
    take_messages(peer, true);
  }
}

static void send_all(int fd, const void *data, size_t size, bool may_fail) {
  for (size_t sent = 0; sent < size;) {
    ssize_t now = send(fd, (const char *)data + sent, size - sent, MSG_NOSIGNAL);
    if (now < 0 && may_fail && (errno == EPIPE || errno == ECONNRESET))
      return;
    FUZZ_REQUIRE(now > 0);
    sent += (size_t)now;
  }
}

void peer_send(struct peer *peer, enum method_id method, const void *params, struct peer_request request) {
  if (peer->request_count == PEER_REQUESTS_MAX)
    peer_wait(peer);
  msgpack_sbuffer buffer;
  msgpack_packer packer;
  msgpack_sbuffer_init(&buffer);
  msgpack_packer_init(&packer, &buffer, msgpack_sbuffer_write);
  request.id = peer->next_id++;
  request.method = method;
  request.acknowledged = peer_truth.acknowledged[request.name];
  FUZZ_REQUIRE(rpc_pack_request(&packer, request.id, method, params) == 0);
  peer->requests[peer->request_count++] = request;
  send_all(peer->fd, buffer.data, buffer.size, false);
  msgpack_sbuffer_destroy(&buffer);
}

void peer_raw(const uint8_t *data, size_t size) {
  struct peer peer;
  peer_connect(&peer);
  send_all(peer.fd, data, size, true);
  shutdown(peer.fd, SHUT_WR);
  while (receive(&peer))
    take_messages(&peer, false);
  peer_hang_up(&peer);
}

/* --- tokens ------------------------------------------------------------------------------------------------------- */

const uint8_t *peer_record(uint64_t token, uint32_t block, bool variant) {
  static uint8_t (*records)[2][FUZZ_BLOCKS][RECORD_BYTES];
  FUZZ_REQUIRE(token < PEER_TOKENS_MAX && block < FUZZ_BLOCKS);
  if (!records) {
    records = calloc(PEER_TOKENS_MAX, sizeof *records);
    FUZZ_REQUIRE(records);
  }
  uint8_t *record = records[token][variant][block];
  if (!load_u32(record + RECORD_CRC)) {
    fuzz_record(record, block / FUZZ_HEADS, block % FUZZ_HEADS, token);
    record[RECORD_V_CODE] ^= variant;
    record_seal(record, block / FUZZ_HEADS, block % FUZZ_HEADS, token);
  }
  return record;
}

/* --- the end of an input ------------------------------------------------------------------------------------------ */

/* Handles are given up a moment after a connection ends. */
static bool still_there(struct peer *peer, unsigned name) {
  struct msg_name params = {.name = span_str(peer_names[name])};
  peer_send(peer, METHOD_INFO, &params, (struct peer_request){.name = name, .epoch = peer_truth.epoch[name]});
  peer_wait(peer);
  return peer_truth.known[name] != UINT64_MAX;
}

void peer_clean(void) {
  struct peer peer;
  peer_connect(&peer);
  for (unsigned name = 0; name < PEER_NAMES; name++)
    for (unsigned tries = 0; still_there(&peer, name); tries++) {
      struct msg_delete params = {.name = span_str(peer_names[name]), .confirm = span_str(peer_names[name])};
      if (tries)
        usleep(500);
      FUZZ_REQUIRE(tries < PATIENCE_S * 2000);
      peer_truth.epoch[name]++;
      peer_truth.acknowledged[name] = 0;
      peer_send(&peer, METHOD_DELETE, &params, (struct peer_request){.name = name});
      peer_wait(&peer);
    }
  peer_hang_up(&peer);
}
