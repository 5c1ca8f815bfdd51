// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// Clients as they should not be. Each is a process of its own and goes on until it is killed.
#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "tests/integration/load.h"
#include "tests/proto/random.h"

enum { GARBAGE_BYTES = 4096, PIPELINE = 64, MESSAGE_BYTES = 24 << 20, DRIBBLE_BYTES = 4096 };

static void nap_ms(long ms) { nanosleep(&(struct timespec){ms / 1000, ms % 1000 * 1000000}, NULL); }

/* A connection with the conversation open, or -1. */
static int join(const char *path) {
  int fd = load_connect(path);
  if (fd < 0)
    return -1;
  msgpack_sbuffer open = load_open(false, NULL);
  bool sent = load_send(fd, open.data, open.size);
  msgpack_sbuffer_destroy(&open);
  if (sent) {
    load_receive(fd);
    return fd;
  }
  close(fd);
  return -1;
}

/* Bytes that are no message, again and again. */
static void send_garbage(const char *path, struct random *random) {
  uint8_t bytes[GARBAGE_BYTES];
  int fd = load_connect(path);
  if (fd < 0)
    return;
  for (size_t i = 0; i < sizeof bytes; i++)
    bytes[i] = (uint8_t)random_below(random, 256);
  load_send(fd, bytes, sizeof bytes);
  while (recv(fd, bytes, sizeof bytes, 0) > 0)
    continue;
  close(fd);
}

/* Asks for large answers and takes a little of them now and then. */
static void read_slowly(const char *path) {
  char taken[512];
  int fd = join(path);
  if (fd < 0)
    return;
  msgpack_sbuffer lookup = load_lookup(64, 256, 0);
  while (send(fd, lookup.data, lookup.size, MSG_DONTWAIT | MSG_NOSIGNAL) == (ssize_t)lookup.size)
    continue;
  while (recv(fd, taken, sizeof taken, 0) > 0)
    nap_ms(50);
  msgpack_sbuffer_destroy(&lookup);
  close(fd);
}

/* Announces a large message and sends it piece by piece. */
static void write_slowly(const char *path) {
  static const uint8_t head[] = {0x94, 0x00, 0x01, 0xa5, 'h', 'e', 'l', 'l', 'o', 0x81, 0xa1, 'x', 0xc6,
                                 MESSAGE_BYTES >> 24, MESSAGE_BYTES >> 16 & 255, MESSAGE_BYTES >> 8 & 255, 0};
  static const char body[DRIBBLE_BYTES];
  int fd = load_connect(path);
  if (fd < 0)
    return;
  bool sent = load_send(fd, head, sizeof head);
  for (int i = 0; i < 3000 && sent; i++) /* half of it quickly, to take memory */
    sent = load_send(fd, body, sizeof body);
  while (sent) {
    sent = load_send(fd, body, 1);
    nap_ms(20);
  }
  close(fd);
}

/* As many lookups under way as may be. Takes over `lookup`. */
static void want_everything(const char *path, msgpack_sbuffer lookup) {
  static char taken[1 << 20];
  int fd = join(path);
  if (fd < 0) {
    msgpack_sbuffer_destroy(&lookup);
    return;
  }
  char *many = malloc(lookup.size * PIPELINE);
  load_must(many != NULL, "malloc");
  for (size_t i = 0; i < PIPELINE; i++)
    memcpy(many + i * lookup.size, lookup.data, lookup.size);
  size_t size = lookup.size * PIPELINE, at = 0;
  for (;;) {
    ssize_t sent = send(fd, many + at, size - at, MSG_DONTWAIT | MSG_NOSIGNAL);
    at = sent > 0 ? (at + (size_t)sent) % size : at;
    ssize_t got = recv(fd, taken, sizeof taken, sent > 0 ? MSG_DONTWAIT : 0);
    if (got == 0 || (got < 0 && errno != EAGAIN && errno != EINTR))
      break;
  }
  free(many);
  msgpack_sbuffer_destroy(&lookup);
  close(fd);
}

void abuse_run(enum abuse kind, const char *path, uint32_t seed) {
  struct random random = {seed};
  for (;;) {
    if (kind == ABUSE_GARBAGE)
      send_garbage(path, &random);
    else if (kind == ABUSE_SLOW_READER)
      read_slowly(path);
    else if (kind == ABUSE_SLOW_WRITER)
      write_slowly(path);
    else
      want_everything(path, kind == ABUSE_GREEDY ? load_lookup(128, 512, 4096)
                            : kind == ABUSE_BUSY ? load_lookup(64, 64, 4096)
                                                 : load_lookup(1, 64, 0));
  }
}
