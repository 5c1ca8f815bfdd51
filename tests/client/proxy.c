// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
#include "tests/client/proxy.h"

#include <poll.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "client/clock.h"
#include "tests/client/fake_store.h"

enum { LINES_MAX = 4, CHUNK_BYTES = 32768, CHUNKS = 16, TURN_MS = 2 };

struct chunk {
  uint64_t due_ms;
  size_t size, sent;
  uint8_t data[CHUNK_BYTES];
};

/* Bytes on their way from one socket to another. */
struct way {
  int from, to;
  uint64_t bytes; /* passed on so far */
  uint32_t first, count;
  struct chunk chunks[CHUNKS];
};

struct line {
  bool used;
  struct way up, down;
};

struct proxy {
  struct sockaddr_un to;
  char path[108];
  pthread_t thread;
  pthread_mutex_t mutex;
  bool stopping;
  int listener;
  struct proxy_orders orders;
  struct proxy_counters counters;
  struct line lines[LINES_MAX];
};

static void hang_up(struct line *line) {
  close(line->up.from);
  close(line->up.to);
  line->used = false;
}

static int bound_socket(const char *path) {
  struct sockaddr_un address = {.sun_family = AF_UNIX};
  fake_must(strlen(path) < sizeof address.sun_path, "path");
  memcpy(address.sun_path, path, strlen(path) + 1);
  int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  unlink(path);
  fake_must(bind(fd, (struct sockaddr *)&address, sizeof address) == 0 && listen(fd, 8) == 0, "listen");
  return fd;
}

/* Somebody comes: a line, or, when the daemon does not listen, nothing. */
static void take(struct proxy *proxy) {
  int client = accept4(proxy->listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
  if (client < 0)
    return;
  proxy->counters.accepted++;
  struct line *line = NULL;
  for (int i = 0; i < LINES_MAX && !line; i++)
    line = proxy->lines[i].used ? NULL : &proxy->lines[i];
  int daemon = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  if (!line || connect(daemon, (struct sockaddr *)&proxy->to, sizeof proxy->to)) {
    close(client);
    close(daemon);
    return;
  }
  line->used = true;
  line->up.from = line->down.to = client;
  line->up.to = line->down.from = daemon;
  line->up.bytes = line->down.bytes = 0;
  line->up.count = line->down.count = 0;
}

/* Takes what there is, and passes on what is due; false when the line ends. */
static bool carry(struct way *way, uint32_t delay_ms, uint64_t cut, uint64_t *total) {
  while (way->count < CHUNKS) {
    struct chunk *chunk = &way->chunks[(way->first + way->count) % CHUNKS];
    ssize_t got = recv(way->from, chunk->data, CHUNK_BYTES, 0);
    if (got == 0 && way->count == 0)
      return false;
    if (got <= 0)
      break;
    chunk->due_ms = clock_ms() + delay_ms;
    chunk->size = (size_t)got;
    chunk->sent = 0;
    way->count++;
  }
  while (way->count && way->chunks[way->first % CHUNKS].due_ms <= clock_ms()) {
    struct chunk *chunk = &way->chunks[way->first % CHUNKS];
    size_t size = chunk->size - chunk->sent;
    if (cut && way->bytes + size > cut)
      size = way->bytes < cut ? (size_t)(cut - way->bytes) : 0;
    ssize_t sent = send(way->to, chunk->data + chunk->sent, size, MSG_NOSIGNAL);
    if (sent > 0) {
      way->bytes += (uint64_t)sent;
      *total += (uint64_t)sent;
      chunk->sent += (size_t)sent;
    }
    if (cut && way->bytes >= cut)
      return false;
    if (sent <= 0)
      break;
    if (chunk->sent == chunk->size) {
      way->first++;
      way->count--;
    }
  }
  return true;
}

static void flood(const struct line *line) {
  static const uint8_t word[] = {0x93, 0x02, 0xa1, 'x', 0x80}; /* [2, "x", {}] */
  uint8_t many[sizeof word * 4096];
  for (size_t i = 0; i < sizeof many; i += sizeof word)
    memcpy(many + i, word, sizeof word);
  for (ssize_t sent = sizeof many; sent == sizeof many;)
    sent = send(line->down.to, many, sizeof many, MSG_NOSIGNAL);
}

static void turn(struct proxy *proxy) {
  const struct proxy_orders *orders = &proxy->orders;
  take(proxy);
  for (int i = 0; i < LINES_MAX; i++) {
    struct line *line = &proxy->lines[i];
    if (!line->used || orders->stall)
      continue;
    if (orders->flood) {
      flood(line);
      continue;
    }
    uint64_t up = line->up.bytes, down = line->down.bytes;
    if (carry(&line->up, 0, orders->cut_up, &proxy->counters.bytes_up) &&
        carry(&line->down, orders->delay_ms, orders->cut_down, &proxy->counters.bytes_down))
      continue;
    proxy->counters.cuts += (orders->cut_up && up + CHUNK_BYTES >= orders->cut_up) ||
                            (orders->cut_down && down + CHUNK_BYTES >= orders->cut_down);
    hang_up(line);
  }
}

static void *run(void *context) {
  struct proxy *proxy = context;
  for (bool stopping = false; !stopping;) {
    struct pollfd wanted[1 + 2 * LINES_MAX] = {{.fd = proxy->listener, .events = POLLIN}};
    pthread_mutex_lock(&proxy->mutex);
    turn(proxy);
    bool flooding = proxy->orders.flood;
    for (int i = 0; i < LINES_MAX; i++) {
      const struct line *line = &proxy->lines[i];
      bool listens = line->used && !proxy->orders.stall && !flooding;
      wanted[1 + 2 * i] = (struct pollfd){.fd = listens && !line->up.count ? line->up.from : -1, .events = POLLIN};
      wanted[2 + 2 * i] = (struct pollfd){.fd = listens && !line->down.count ? line->down.from : -1, .events = POLLIN};
    }
    stopping = proxy->stopping;
    pthread_mutex_unlock(&proxy->mutex);
    if (flooding)
      usleep(50);
    else
      poll(wanted, 1 + 2 * LINES_MAX, TURN_MS);
  }
  return NULL;
}

struct proxy *proxy_create(const char *path, const char *to) {
  struct proxy *proxy = calloc(1, sizeof *proxy);
  fake_must(proxy && strlen(to) < sizeof proxy->to.sun_path && strlen(path) < sizeof proxy->path, "path");
  proxy->to.sun_family = AF_UNIX;
  memcpy(proxy->to.sun_path, to, strlen(to) + 1);
  memcpy(proxy->path, path, strlen(path) + 1);
  pthread_mutex_init(&proxy->mutex, NULL);
  proxy->listener = bound_socket(path);
  fake_must(pthread_create(&proxy->thread, NULL, run, proxy) == 0, "thread");
  return proxy;
}

void proxy_destroy(struct proxy *proxy) {
  proxy_lock(proxy);
  proxy->stopping = true;
  proxy_unlock(proxy);
  pthread_join(proxy->thread, NULL);
  for (int i = 0; i < LINES_MAX; i++)
    if (proxy->lines[i].used)
      hang_up(&proxy->lines[i]);
  close(proxy->listener);
  unlink(proxy->path);
  pthread_mutex_destroy(&proxy->mutex);
  free(proxy);
}

struct proxy_orders *proxy_lock(struct proxy *proxy) {
  pthread_mutex_lock(&proxy->mutex);
  return &proxy->orders;
}

void proxy_unlock(struct proxy *proxy) { pthread_mutex_unlock(&proxy->mutex); }

struct proxy_counters proxy_counters(struct proxy *proxy) {
  pthread_mutex_lock(&proxy->mutex);
  struct proxy_counters counters = proxy->counters;
  pthread_mutex_unlock(&proxy->mutex);
  return counters;
}
