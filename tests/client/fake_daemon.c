// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
#include "tests/client/fake_daemon.h"

#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "proto/record.h"
#include "proto/validator.h"
#include "tests/client/fake_store.h"

enum { CONNECTIONS_MAX = 8, MANGLE_ROOM = 1 << 16 };

struct peer {
  int fd; /* -1: free */
  uint8_t *in;
  size_t in_size, in_capacity;
};

struct fake_daemon {
  struct sockaddr_un address;
  pthread_t thread;
  pthread_mutex_t mutex;
  bool stopping;
  int wake[2], listener;
  struct peer peers[CONNECTIONS_MAX];
  struct fake_orders orders;
  struct fake_counters counters;
  uint64_t until_cut;
  struct fake_model models[FAKE_MODELS_MAX];
  uint32_t model_count;
  struct fake_conversation conversations[FAKE_CONVERSATIONS_MAX];
  uint32_t conversation_count;
};

/* --- answers ----------------------------------------------------------------------------------------------------- */

struct answer {
  struct fake_daemon *fake;
  int fd;
  uint32_t id;
  enum method_id method;
};

/* Not locked while it blocks: a test that does not read must still be able to give orders. */
static void send_all(const struct answer *a, const uint8_t *data, size_t size) {
  if (a->fake->orders.mute)
    return;
  pthread_mutex_unlock(&a->fake->mutex);
  ssize_t sent = 1;
  for (size_t at = 0; at < size && sent > 0; at += (size_t)sent)
    sent = send(a->fd, data + at, size - at, MSG_NOSIGNAL); /* fails once the client has hung up */
  pthread_mutex_lock(&a->fake->mutex);
}

static void send_result(const struct answer *a, const void *result) {
  msgpack_sbuffer buffer;
  msgpack_packer packer;
  msgpack_sbuffer_init(&buffer);
  msgpack_packer_init(&packer, &buffer, msgpack_sbuffer_write);
  fake_must(rpc_pack_result(&packer, a->id, methods[a->method].result, result) == 0, "pack");
  size_t size = buffer.size, capacity = size + MANGLE_ROOM;
  uint8_t *data = malloc(capacity);
  if (!data || !buffer.data)
    abort();
  memcpy(data, buffer.data, size);
  if (a->fake->orders.mangle)
    a->fake->orders.mangle(a->fake->orders.mangle_context, a->method, data, &size, capacity);
  send_all(a, data, size);
  free(data);
  msgpack_sbuffer_destroy(&buffer);
}

static void send_fault(const struct answer *a, int code, const char *text) {
  struct error error;
  msgpack_sbuffer buffer;
  msgpack_packer packer;
  error_set(&error, code, "%s", text);
  msgpack_sbuffer_init(&buffer);
  msgpack_packer_init(&packer, &buffer, msgpack_sbuffer_write);
  fake_must(rpc_pack_error(&packer, a->id, &error) == 0, "pack");
  send_all(a, (const uint8_t *)buffer.data, buffer.size);
  msgpack_sbuffer_destroy(&buffer);
}

/* --- models ------------------------------------------------------------------------------------------------------ */

static void answer_hello(const struct answer *a) {
  struct msg_hello_ok ok;
  fake_hello(&a->fake->orders, &ok);
  send_result(a, &ok);
}

static struct fake_model *find_model(struct fake_daemon *fake, struct span id, struct span fingerprint) {
  for (uint32_t i = 0; i < fake->model_count; i++) {
    struct fake_model *m = &fake->models[i];
    if (id.size ? memcmp(m->id, id.data, id.size) == 0
                : memcmp(m->fingerprint, fingerprint.data, sizeof m->fingerprint) == 0)
      return m;
  }
  return NULL;
}

static void calibrate(const struct answer *a, const struct msg_model *wanted) {
  struct fake_daemon *fake = a->fake;
  struct fake_model *m = find_model(fake, (struct span){0}, wanted->fingerprint);
  fake->counters.calibrations++;
  if (!m) {
    fake_must(fake->model_count < FAKE_MODELS_MAX, "models");
    m = &fake->models[fake->model_count];
    memset(m->id, 0x40 + (int)fake->model_count++, sizeof m->id);
    fake_keep_model(m, wanted);
  }
  send_result(a, &m->description);
}

static void get_model(const struct answer *a, const struct msg_model_get *get) {
  const struct fake_model *m = find_model(a->fake, get->id, get->fingerprint);
  if (m)
    send_result(a, &m->description);
  else
    send_fault(a, ERR_NO_MODEL, "no such model");
}

/* --- conversations ----------------------------------------------------------------------------------------------- */

static struct fake_conversation *find_conversation(struct fake_daemon *fake, struct span name) {
  for (uint32_t i = 0; i < fake->conversation_count; i++) {
    struct fake_conversation *c = &fake->conversations[i];
    if (strlen(c->name) == name.size && memcmp(c->name, name.data, name.size) == 0)
      return c;
  }
  return NULL;
}

static struct fake_conversation *make_conversation(struct fake_daemon *fake, const struct msg_open *open) {
  fake_must(fake->conversation_count < FAKE_CONVERSATIONS_MAX, "conversations");
  struct fake_conversation *c = &fake->conversations[fake->conversation_count];
  memcpy(c->name, open->name.data, open->name.size);
  memset(c->id, 0x60 + (int)fake->conversation_count++, sizeof c->id);
  c->blocks = open->geometry.layers * open->geometry.kv_heads;
  c->ids = calloc(FAKE_TOKENS_MAX, sizeof *c->ids);
  c->records = calloc(FAKE_TOKENS_MAX, c->blocks * RECORD_BYTES);
  fake_must(c->ids && c->records, "calloc");
  c->writer = -1;
  return c;
}

static void open_conversation(const struct answer *a, const struct msg_open *open) {
  struct fake_daemon *fake = a->fake;
  fake->counters.opens++;
  if (fake->orders.busy_opens) {
    fake->orders.busy_opens--;
    send_fault(a, ERR_BUSY, "another connection writes this conversation");
    return;
  }
  struct fake_conversation *c = find_conversation(fake, open->name);
  bool created = !c && open->create;
  if (created)
    c = make_conversation(fake, open);
  if (!c) {
    send_fault(a, ERR_NO_CONVERSATION, "no such conversation");
    return;
  }
  if (open->write && c->writer >= 0 && c->writer != a->fd) {
    send_fault(a, ERR_BUSY, "another connection writes this conversation");
    return;
  }
  struct fake_model *model = open->model.size ? find_model(fake, open->model, (struct span){0}) : c->model;
  if (open->model.size && (!model || (c->model && c->model != model))) {
    send_fault(a, model ? ERR_MODEL_MISMATCH : ERR_NO_MODEL, "not that model");
    return;
  }
  c->model = model;
  if (open->write)
    c->writer = a->fd;
  struct msg_open_ok ok = {
      .conversation = (uint64_t)(c - fake->conversations) + 100 * (uint64_t)a->fd,
      .id = span_of(c->id, sizeof c->id),
      .model = span_of(c->model ? c->model->id : c->id, c->model ? LIMIT_ID_BYTES : 0),
      .count = c->count,
      .durable = c->durable,
      .ahead = span_of(c->ahead, c->ahead_count * 4),
      .created = created,
  };
  send_result(a, &ok);
}

/* The conversation of a handle, which belongs to this connection. */
static struct fake_conversation *of_handle(const struct answer *a, uint64_t handle) {
  uint64_t i = handle - 100 * (uint64_t)a->fd;
  if (i < a->fake->conversation_count)
    return &a->fake->conversations[i];
  send_fault(a, ERR_NOT_OPEN, "no such handle on this connection");
  return NULL;
}

static bool append_refused(const struct answer *a, const struct fake_conversation *c, const struct msg_append *append) {
  struct fake_daemon *fake = a->fake;
  struct error error;
  if (fake->orders.failing_appends) {
    fake->orders.failing_appends--;
    send_fault(a, fake->orders.append_error, "told to refuse this append");
    return true;
  }
  if (fake_check_append(c, append, &fake->counters, &error))
    send_fault(a, error.code, error.text);
  else
    return false;
  return true;
}

static void append_tokens(const struct answer *a, const struct msg_append *append) {
  struct fake_daemon *fake = a->fake;
  struct fake_conversation *c = of_handle(a, append->conversation);
  fake->counters.appends++;
  if (!c || append_refused(a, c, append))
    return;
  uint64_t n = append->ids.size / 4, bytes = c->blocks * RECORD_BYTES, end = append->first + n;
  if (end > c->count) {
    memcpy(c->ids + append->first, append->ids.data, append->ids.size);
    memcpy(c->records + append->first * bytes, append->records.data, append->records.size);
    c->count = end;
  }
  if (end == c->count) {
    if (append->ahead.size)
      memcpy(c->ahead, append->ahead.data, append->ahead.size);
    c->ahead_count = (uint32_t)(append->ahead.size / 4);
  }
  if (append->sync || !fake->orders.durable_every || fake->counters.appends % fake->orders.durable_every == 0)
    c->durable = c->count;
  struct msg_append_ok ok = {.stored = c->count, .durable = c->durable};
  send_result(a, &ok);
}

/* --- lookups ----------------------------------------------------------------------------------------------------- */

static void look_up(const struct answer *a, const struct msg_lookup *lookup) {
  struct fake_daemon *fake = a->fake;
  struct fake_conversation *c = of_handle(a, lookup->conversation);
  fake->counters.lookups++;
  fake->counters.lookup_rows += lookup->rows;
  if (!c || fake->orders.mute_lookups)
    return;
  uint64_t before = lookup->before < c->count ? lookup->before : c->count;
  if (before < lookup->from)
    before = lookup->from;
  uint32_t count = c->model ? (uint32_t)c->model->description.geometry.kv_heads : 0;
  struct msg_lookup_head *heads = calloc(count + 1, sizeof *heads);
  fake_must(heads, "calloc");
  for (uint32_t head = 0; head < count; head++) {
    fake_look_up(c, lookup, head, before, &heads[head]);
    fake->counters.records_sent += heads[head].tokens.size / 8;
    for (uint64_t i = 0; i < fake->orders.spoil_records && i * 8 < heads[head].tokens.size; i++)
      ((uint8_t *)(uintptr_t)heads[head].records.data)[i * RECORD_BYTES + 40 + i % 8] ^= 4;
  }
  struct msg_lookup_ok ok = {.k = lookup->k, .candidates = 1024, .scanned = before - lookup->from,
                             .heads = {.count = count, .items = heads}};
  send_result(a, &ok);
  for (uint32_t head = 0; head < count; head++)
    fake_free_head(&heads[head]);
  free(heads);
}

static void answer_tokens(const struct answer *a, const struct msg_tokens *tokens) {
  struct fake_conversation *c = of_handle(a, tokens->conversation);
  if (!c)
    return;
  if (tokens->first + tokens->count > c->count) {
    send_fault(a, ERR_RANGE, "tokens outside the conversation");
    return;
  }
  struct msg_tokens_ok ok = {.first = tokens->first, .ids = span_of(c->ids + tokens->first, tokens->count * 4)};
  send_result(a, &ok);
}

static void close_handle(const struct answer *a, const struct msg_handle *handle) {
  struct fake_conversation *c = of_handle(a, handle->conversation);
  struct msg_empty empty = {0};
  a->fake->counters.closes++;
  if (!c)
    return;
  if (c->writer == a->fd)
    c->writer = -1;
  send_result(a, &empty);
}

/* --- the loop ---------------------------------------------------------------------------------------------------- */

static bool handle_message(struct fake_daemon *fake, struct peer *peer, size_t size) {
  msgpack_zone zone;
  msgpack_object root;
  struct rpc rpc;
  struct error error;
  fake_must(msgpack_zone_init(&zone, MSGPACK_ZONE_CHUNK_SIZE), "zone");
  bool good = rpc_parse(peer->in, size, &zone, &root, &rpc, &error) == 0 && rpc.kind == RPC_REQUEST;
  struct answer a = {.fake = fake, .fd = peer->fd, .id = rpc.id};
  a.method = good ? method_find(rpc.method) : METHOD_COUNT;
  union {
    struct msg_hello hello;
    struct msg_model model;
    struct msg_model_get get;
    struct msg_open open;
    struct msg_append append;
    struct msg_lookup lookup;
    struct msg_tokens tokens;
    struct msg_handle handle;
  } params;
  good = good && a.method < METHOD_COUNT && message_unpack(methods[a.method].params, rpc.body, &params, &error) == 0;
  if (good)
    switch (a.method) {
    case METHOD_HELLO: answer_hello(&a); break;
    case METHOD_MODEL_CALIBRATE: calibrate(&a, &params.model); break;
    case METHOD_MODEL_GET: get_model(&a, &params.get); break;
    case METHOD_OPEN: open_conversation(&a, &params.open); break;
    case METHOD_APPEND: append_tokens(&a, &params.append); break;
    case METHOD_LOOKUP: look_up(&a, &params.lookup); break;
    case METHOD_TOKENS: answer_tokens(&a, &params.tokens); break;
    case METHOD_CLOSE: close_handle(&a, &params.handle); break;
    default: send_fault(&a, ERR_NOT_SUPPORTED, "the fake does not do that"); break;
    }
  msgpack_zone_destroy(&zone);
  return good;
}

static void hang_up(struct fake_daemon *fake, struct peer *peer) {
  for (uint32_t i = 0; i < fake->conversation_count; i++)
    if (fake->conversations[i].writer == peer->fd)
      fake->conversations[i].writer = -1;
  close(peer->fd);
  peer->fd = -1;
  peer->in_size = 0;
}

static void lose_tokens(struct fake_daemon *fake) {
  for (uint32_t i = 0; i < fake->conversation_count; i++)
    fake->conversations[i].count = fake->conversations[i].durable;
}

/* Answers every complete message; false when the connection has to end. */
static bool serve(struct fake_daemon *fake, struct peer *peer) {
  while (peer->in) {
    struct validator v;
    struct error error;
    size_t used;
    validator_init(&v, &validator_limits_default);
    if (validator_feed(&v, peer->in, peer->in_size, &used, &error)) {
      fake->counters.bad_messages++;
      return false;
    }
    if (!v.done)
      return true;
    if (!handle_message(fake, peer, used)) {
      fake->counters.bad_messages++;
      return false;
    }
    memmove(peer->in, peer->in + used, peer->in_size - used);
    peer->in_size -= used;
  }
  return false;
}

static void read_peer(struct fake_daemon *fake, struct peer *peer) {
  if (peer->in_capacity - peer->in_size < 65536) {
    peer->in_capacity = 2 * peer->in_capacity + 65536;
    peer->in = realloc(peer->in, peer->in_capacity);
    fake_must(peer->in, "realloc");
  }
  ssize_t got = recv(peer->fd, peer->in + peer->in_size, 65536, MSG_DONTWAIT);
  if (got <= 0) {
    hang_up(fake, peer);
    return;
  }
  if (fake->orders.cut_after_bytes) {
    fake->until_cut += (uint64_t)got;
    if (fake->until_cut >= fake->orders.cut_after_bytes) {
      fake->until_cut = 0;
      fake->counters.cuts++;
      hang_up(fake, peer);
      if (fake->orders.lose)
        lose_tokens(fake);
      return;
    }
  }
  peer->in_size += (size_t)got;
  if (!serve(fake, peer))
    hang_up(fake, peer);
}

static void accept_peer(struct fake_daemon *fake) {
  int fd = accept4(fake->listener, NULL, NULL, SOCK_CLOEXEC);
  fake->counters.accepted++;
  for (uint32_t i = 0; i < CONNECTIONS_MAX && fd >= 0; i++)
    if (fake->peers[i].fd < 0) {
      fake->peers[i].fd = fd;
      return;
    }
  if (fd >= 0)
    close(fd);
}

static void *run(void *context) {
  struct fake_daemon *fake = context;
  for (;;) {
    struct pollfd wanted[2 + CONNECTIONS_MAX] = {{.fd = fake->wake[0], .events = POLLIN},
                                                 {.fd = fake->listener, .events = POLLIN}};
    for (uint32_t i = 0; i < CONNECTIONS_MAX; i++)
      wanted[2 + i] = (struct pollfd){.fd = fake->peers[i].fd, .events = POLLIN};
    poll(wanted, 2 + CONNECTIONS_MAX, -1);
    pthread_mutex_lock(&fake->mutex);
    bool stopping = fake->stopping;
    if (!stopping) {
      if (wanted[1].revents)
        accept_peer(fake);
      for (uint32_t i = 0; i < CONNECTIONS_MAX; i++)
        if (wanted[2 + i].revents && fake->peers[i].fd == wanted[2 + i].fd)
          read_peer(fake, &fake->peers[i]);
    }
    pthread_mutex_unlock(&fake->mutex);
    if (stopping)
      return NULL;
  }
}

void fake_start(struct fake_daemon *fake) {
  fake->stopping = false;
  fake_must(pipe(fake->wake) == 0, "pipe");
  fake->listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  unlink(fake->address.sun_path);
  fake_must(bind(fake->listener, (struct sockaddr *)&fake->address, sizeof fake->address) == 0, "bind");
  fake_must(listen(fake->listener, 8) == 0, "listen");
  fake_must(pthread_create(&fake->thread, NULL, run, fake) == 0, "thread");
}

void fake_stop(struct fake_daemon *fake, bool lose) {
  pthread_mutex_lock(&fake->mutex);
  fake->stopping = true;
  for (uint32_t i = 0; i < CONNECTIONS_MAX; i++)
    if (fake->peers[i].fd >= 0)
      shutdown(fake->peers[i].fd, SHUT_RDWR);
  pthread_mutex_unlock(&fake->mutex);
  fake_must(write(fake->wake[1], "", 1) == 1, "wake");
  pthread_join(fake->thread, NULL);
  for (uint32_t i = 0; i < CONNECTIONS_MAX; i++)
    if (fake->peers[i].fd >= 0)
      hang_up(fake, &fake->peers[i]);
  close(fake->listener);
  close(fake->wake[0]);
  close(fake->wake[1]);
  unlink(fake->address.sun_path);
  if (lose)
    lose_tokens(fake);
}

struct fake_daemon *fake_create(const char *path) {
  struct fake_daemon *fake = calloc(1, sizeof *fake);
  fake_must(fake && strlen(path) < sizeof fake->address.sun_path, "path");
  fake->address.sun_family = AF_UNIX;
  memcpy(fake->address.sun_path, path, strlen(path) + 1);
  pthread_mutex_init(&fake->mutex, NULL);
  for (uint32_t i = 0; i < CONNECTIONS_MAX; i++)
    fake->peers[i].fd = -1;
  fake_start(fake);
  return fake;
}

void fake_destroy(struct fake_daemon *fake) {
  if (!fake->stopping)
    fake_stop(fake, false);
  for (uint32_t i = 0; i < CONNECTIONS_MAX; i++)
    free(fake->peers[i].in);
  for (uint32_t i = 0; i < fake->model_count; i++)
    free(fake->models[i].means);
  for (uint32_t i = 0; i < fake->conversation_count; i++) {
    free(fake->conversations[i].ids);
    free(fake->conversations[i].records);
  }
  pthread_mutex_destroy(&fake->mutex);
  free(fake);
}

struct fake_orders *fake_lock(struct fake_daemon *fake) {
  pthread_mutex_lock(&fake->mutex);
  return &fake->orders;
}

void fake_unlock(struct fake_daemon *fake) { pthread_mutex_unlock(&fake->mutex); }

struct fake_counters *fake_counters(struct fake_daemon *fake) { return &fake->counters; }

struct fake_conversation *fake_conversation(struct fake_daemon *fake, const char *name) {
  return find_conversation(fake, span_str(name));
}

struct fake_model *fake_model(struct fake_daemon *fake) { return fake->model_count ? &fake->models[0] : NULL; }
