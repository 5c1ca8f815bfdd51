// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// Many clients at once, for ThreadSanitizer: load COLDKVD SECONDS starts a daemon of little memory for tails and lets
// threads append, seal, look up, read, resume, delete, list, verify and hang up at the same time. What each engine
// wrote must come back to it. Ends with the daemon's stop, which must be a clean one.
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "client/client.h"
#include "client/clock.h"
#include "client/coldkv.h"
#include "proto/record.h"

enum { HEAD_DIM = 64, ENGINES = 3, WRITERS = 2, READERS = 2, DELETERS = 1, OBSERVERS = 1, FRAME = 128,
       WRITER_TOKENS = 4096 + 1024, CALL_MS = 60000 };

static char directory[64] = "/tmp/coldkv-load-XXXXXX", socket_path[96];
static atomic_bool stopping;
static atomic_uint done, refused;

static _Noreturn void die(const char *what, const char *why) {
  fprintf(stderr, "load: %s: %s\n", what, why);
  _exit(1);
}

static uint8_t fingerprint[32] = "load";

static void describe(struct coldkv_model_description *description) {
  *description = (struct coldkv_model_description){.name = "load", .layers = 1, .kv_heads = 1, .group = 1,
                                                   .head_dim = HEAD_DIM, .window = 2048, .rope = COLDKV_ROPE_NONE};
  memcpy(description->fingerprint, fingerprint, sizeof fingerprint);
}

static void shape(struct msg_geometry *geometry) {
  *geometry = (struct msg_geometry){.layers = 1, .kv_heads = 1, .group = 1, .head_dim = HEAD_DIM, .window = 2048};
}

/* --- engines: the library --------------------------------------------------------------------------------------- */

static void forward(coldkv_conv *conv, const uint32_t *ids, uint32_t n) {
  float q[COLDKV_BLOCK_MAX * HEAD_DIM], out[COLDKV_BLOCK_MAX * HEAD_DIM];
  for (uint32_t i = 0; i < n * HEAD_DIM; i++)
    q[i] = (float)((ids[i / HEAD_DIM] * 37 + i * 11) % 101) - 50;
  if (coldkv_begin(conv, ids, n) || coldkv_attend(conv, 0, q, q, q, out) || coldkv_end(conv))
    die("a block", coldkv_error());
  atomic_fetch_add(&done, 1);
}

/* One life of an engine: resume, go on, sync, close. */
static void engine_life(coldkv_model *model, const char *name, uint64_t *tokens) {
  coldkv_conv *conv;
  uint32_t ids[COLDKV_BLOCK_MAX];
  if (coldkv_open(&conv, model, name, NULL))
    die("open", coldkv_error());
  uint64_t fed = 0;
  for (int n; (n = coldkv_resume(conv, ids)) > 0; fed += (uint64_t)n) {
    struct coldkv_status status;
    coldkv_get_status(conv, &status);
    uint64_t first = fed ? status.tokens - status.resume_left : 0; /* sinks first, then the end */
    for (int i = 0; i < n; i++)
      if (ids[i] != (uint32_t)((first + (uint64_t)i) % 1000))
        die(name, "another id came back");
    forward(conv, ids, (uint32_t)n);
  }
  struct coldkv_status status;
  coldkv_get_status(conv, &status);
  if (status.tokens != *tokens)
    die(name, "tokens are lost");
  for (int block = 0; block < 12 && !atomic_load(&stopping); block++) {
    for (uint32_t i = 0; i < COLDKV_BLOCK_MAX; i++)
      ids[i] = (uint32_t)((*tokens + i) % 1000);
    forward(conv, ids, COLDKV_BLOCK_MAX);
    *tokens += COLDKV_BLOCK_MAX;
  }
  if (coldkv_sync(conv))
    die("sync", coldkv_error());
  coldkv_close(conv);
}

static void *engine(void *argument) {
  static const struct coldkv_client_options options = {.timeout_ms = CALL_MS, .sync_timeout_ms = CALL_MS,
                                                       .block_timeout_ms = CALL_MS};
  struct coldkv_model_description description;
  char name[32];
  uint64_t tokens = 0;
  snprintf(name, sizeof name, "engine-%ld", (long)(intptr_t)argument);
  describe(&description);
  while (!atomic_load(&stopping)) {
    coldkv_client *client;
    coldkv_model *model;
    if (coldkv_client_create(&client, socket_path, &options) || coldkv_model_create(&model, client, &description))
      die("a client", coldkv_error());
    engine_life(model, name, &tokens);
    coldkv_model_destroy(model);
    coldkv_client_destroy(client);
  }
  return NULL;
}

/* --- the protocol ------------------------------------------------------------------------------------------------- */

struct opened {
  uint64_t handle, count;
};

static int take_open(void *context, const msgpack_object *result, struct error *error) {
  struct opened *opened = context;
  struct msg_open_ok answer;
  int failed = message_unpack(&message_open_ok, result, &answer, error);
  *opened = (struct opened){.handle = answer.conversation, .count = answer.count};
  return failed;
}

/* 0 or the error's code; codes that other threads may cause are counted. */
static int call(coldkv_client *client, enum method_id method, const void *params, take_fn *take, void *context) {
  struct error error = {0};
  int result = client_call(client, method, params, take, context, clock_ms() + CALL_MS, &error);
  atomic_fetch_add(&done, 1);
  if (!result)
    return 0;
  atomic_fetch_add(&refused, 1);
  if (error.code != ERR_BUSY && error.code != ERR_NO_CONVERSATION && error.code != ERR_NOT_OPEN &&
      error.code != ERR_RANGE && error.code != ERR_NO_MODEL && error.code != ERR_LIMIT)
    die(methods[method].name, error.text);
  return error.code;
}

static coldkv_client *connect_client(void) {
  coldkv_client *client;
  if (coldkv_client_create(&client, socket_path, NULL))
    die("a client", coldkv_error());
  return client;
}

static int open_named(coldkv_client *client, const char *name, bool create, const uint8_t *model_id,
                      struct opened *opened) {
  struct msg_open params = {.name = span_str(name), .fingerprint = span_of(fingerprint, sizeof fingerprint),
                            .create = create, .write = create};
  shape(&params.geometry);
  if (model_id)
    params.model = span_of(model_id, LIMIT_ID_BYTES);
  return call(client, METHOD_OPEN, &params, take_open, opened);
}

static int take_model(void *context, const msgpack_object *result, struct error *error) {
  struct msg_model answer;
  int failed = message_unpack(&message_model, result, &answer, error);
  if (!failed)
    memcpy(context, answer.id.data, LIMIT_ID_BYTES);
  return failed;
}

static void calibrate(coldkv_client *client, uint8_t id[LIMIT_ID_BYTES]) {
  static const float means[HEAD_DIM];
  struct msg_model params = {.fingerprint = span_of(fingerprint, sizeof fingerprint), .basis = span_str("hadamard"),
                             .codec = 1, .seed = 9, .tokens = 192, .mean_k = span_of(means, sizeof means),
                             .mean_v = span_of(means, sizeof means)};
  shape(&params.geometry);
  call(client, METHOD_MODEL_CALIBRATE, &params, take_model, id);
}

static int append(coldkv_client *client, const struct opened *opened, uint32_t count) {
  uint32_t ids[FRAME];
  uint8_t(*records)[RECORD_BYTES] = calloc(count, RECORD_BYTES);
  if (!records)
    die("append", "no memory");
  for (uint32_t i = 0; i < count; i++) {
    ids[i] = (uint32_t)(opened->count + i);
    memset(records[i], (int)(opened->count + i) & 0x3f, RECORD_CRC);
    record_seal(records[i], 0, 0, opened->count + i);
  }
  struct msg_append params = {.conversation = opened->handle, .first = opened->count, .ids = span_of(ids, 4UL * count),
                              .records = span_of(records, (size_t)count * RECORD_BYTES)};
  int result = call(client, METHOD_APPEND, &params, NULL, NULL);
  free(records);
  return result;
}

/* Appends past the end of a segment, closes and opens while it is being sealed; then hangs up and begins anew. */
static void *writer(void *argument) {
  char name[32];
  snprintf(name, sizeof name, "writer-%ld", (long)(intptr_t)argument);
  while (!atomic_load(&stopping)) {
    coldkv_client *client = connect_client();
    uint8_t id[LIMIT_ID_BYTES];
    struct opened opened;
    calibrate(client, id);
    if (open_named(client, name, true, id, &opened) == 0)
      for (int i = 0; i < 16 && opened.count < WRITER_TOKENS && !atomic_load(&stopping); i++, opened.count += FRAME)
        if (append(client, &opened, FRAME))
          break;
    struct msg_delete params = {.name = span_str(name), .confirm = span_str(name)};
    struct msg_handle close = {.conversation = opened.handle};
    if (opened.count >= WRITER_TOKENS && call(client, METHOD_CLOSE, &close, NULL, NULL) == 0)
      call(client, METHOD_DELETE, &params, NULL, NULL);
    coldkv_client_destroy(client);
  }
  return NULL;
}

/* Reads what the others write. */
static void *reader(void *argument) {
  static const char *const names[] = {"writer-0", "engine-1", "writer-1", "engine-0"};
  float query[RECORD_SIGNATURE_BITS] = {1, -2, 3};
  for (unsigned turn = (unsigned)(intptr_t)argument; !atomic_load(&stopping); turn++) {
    coldkv_client *client = connect_client();
    struct opened opened;
    if (open_named(client, names[turn % 4], false, NULL, &opened) == 0)
      for (int i = 0; i < 20 && !atomic_load(&stopping); i++) {
        struct msg_lookup lookup = {.conversation = opened.handle, .rows = 1, .queries = span_of(query, sizeof query),
                                    .k = 16, .before = LIMIT_TOKEN_INDEX_MAX};
        struct msg_read read = {.conversation = opened.handle, .first = opened.count / 2, .count = 8};
        struct msg_tokens tokens = {.conversation = opened.handle, .count = 500};
        call(client, METHOD_LOOKUP, &lookup, NULL, NULL);
        call(client, METHOD_READ, &read, NULL, NULL);
        call(client, METHOD_TOKENS, &tokens, NULL, NULL);
      }
    coldkv_client_destroy(client);
  }
  return NULL;
}

static void *deleter(void *argument) {
  (void)argument;
  coldkv_client *client = connect_client();
  uint8_t id[LIMIT_ID_BYTES];
  calibrate(client, id);
  while (!atomic_load(&stopping)) {
    struct opened opened;
    struct msg_delete params = {.name = span_str("brief"), .confirm = span_str("brief")};
    if (open_named(client, "brief", true, id, &opened) == 0) {
      struct msg_handle close = {.conversation = opened.handle};
      append(client, &opened, 5);
      call(client, METHOD_CLOSE, &close, NULL, NULL);
    }
    call(client, METHOD_DELETE, &params, NULL, NULL);
  }
  coldkv_client_destroy(client);
  return NULL;
}

static void *observer(void *argument) {
  (void)argument;
  coldkv_client *client = connect_client();
  const struct msg_empty empty = {0};
  struct msg_list list = {.limit = 100};
  struct msg_name info = {.name = span_str("writer-0")};
  while (!atomic_load(&stopping)) {
    call(client, METHOD_STATS, &empty, NULL, NULL);
    call(client, METHOD_VERIFY, &empty, NULL, NULL);
    call(client, METHOD_LIST, &list, NULL, NULL);
    call(client, METHOD_MODEL_LIST, &list, NULL, NULL);
    call(client, METHOD_INFO, &info, NULL, NULL);
  }
  coldkv_client_destroy(client);
  return NULL;
}

/* --- the run ------------------------------------------------------------------------------------------------------ */

static pid_t start_daemon(const char *program, char *data) {
  pid_t child = fork();
  if (child == 0) {
    execl(program, program, "--data", data, "--socket", socket_path, "--threads", "3", "--tail-memory-mb", "1",
          "--config", "/dev/null", (char *)NULL);
    _exit(127);
  }
  for (int i = 0; i < 600 && access(socket_path, F_OK); i++)
    usleep(100000);
  return child;
}

int main(int argc, char **argv) {
  static const struct {
    void *(*run)(void *);
    long count;
  } kinds[] = {{engine, ENGINES}, {writer, WRITERS}, {reader, READERS}, {deleter, DELETERS}, {observer, OBSERVERS}};
  pthread_t threads[16];
  unsigned count = 0;
  char data[96];
  if (argc != 3 || !mkdtemp(directory))
    return 2;
  snprintf(socket_path, sizeof socket_path, "%s/socket", directory);
  snprintf(data, sizeof data, "%s/data", directory);
  pid_t child = start_daemon(argv[1], data);
  for (size_t kind = 0; kind < sizeof kinds / sizeof kinds[0]; kind++)
    for (long i = 0; i < kinds[kind].count; i++)
      if (pthread_create(&threads[count++], NULL, kinds[kind].run, (void *)(intptr_t)i))
        die("a thread", "cannot be started");
  sleep((unsigned)atoi(argv[2]));
  atomic_store(&stopping, true);
  for (unsigned i = 0; i < count; i++)
    pthread_join(threads[i], NULL);
  int status = -1;
  kill(child, SIGTERM);
  waitpid(child, &status, 0);
  char command[128];
  snprintf(command, sizeof command, "rm -rf %s", directory);
  if (system(command) != 0)
    return 1;
  printf("load: %u requests and blocks, %u refused, daemon's status %d\n", atomic_load(&done), atomic_load(&refused),
         status);
  return status != 0;
}
