// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
#include "daemon/options.h"

#include <ctype.h>
#include <errno.h>
#include <getopt.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "proto/defaults.h"
#include "proto/limits.h"

#define CONFIG_BYTES_MAX 65536
#define THREADS_MAX 256u
#define INTERVAL_MS_MAX 3600000u
#define MEMORY_MB_MAX (1u << 24)
#define CONNECTIONS_MAX 65536u
#define USER_COUNT_MAX 1000000u
#define TIMEOUT_S_MAX 86400u
#define SPIN_US_MAX 1000000u

const char *const durability_names[3] = {"always", "interval", "none"};

static const char help[] =
    "usage: coldkvd [--data DIR] [--socket PATH] [options]\n"
    "Keeps the old part of conversations' KV caches on disk and looks it up over a Unix socket.\n"
    "\n"
    "  --data DIR            the archive (default: $COLDKV_DATA, else $XDG_DATA_HOME/coldkv, else\n"
    "                        ~/.local/share/coldkv)\n"
    "  --socket PATH         where to listen (default: $COLDKV_SOCKET, else $XDG_RUNTIME_DIR/coldkv.sock, else\n"
    "                        /tmp/coldkv-UID/coldkv.sock)\n"
    "  --config FILE         read options from FILE first: lines \"key = value\" with the names here, less the dashes\n"
    "                        (default: ~/.config/coldkv/coldkvd.conf if it exists)\n"
    "  --durability MODE     always: acknowledge what is on disk (default); interval: sync now and then;\n"
    "                        none: sync only when a conversation is closed or a segment is sealed\n"
    "  --interval-ms N       time between syncs of durability \"interval\" (default 1000)\n"
    "  --threads N           threads for lookups (default: one per processor)\n"
    "  --spin-us N           look for work for so long before sleeping, which costs processor time and saves the time\n"
    "                        that waking takes (default 0)\n"
    "  --backend WHICH       auto: scan on an NVIDIA GPU if there is one that works (default); cpu: never;\n"
    "                        cuda: do not start without one\n"
    "  --vram-limit N        MiB of the GPU's memory for signatures of conversations; 0: half of it (default)\n"
    "  --vram-codes-limit N  MiB of it for their key codes, with which it also rescores; 0: it does not (default: a\n"
    "                        quarter of it)\n"
    "  --gpu-tokens-min N    lookups over fewer tokens stay on the processor (default 16384)\n"
    "  --tail-memory-mb N    memory for the unsealed ends of conversations; idle ones leave past it (default 1024)\n"
    "  --scan-memory-mb N    memory for the signatures of open conversations (default 4096)\n"
    "  --scrub-mb-s N        read the whole archive again and again, at that rate, to find damage (default 4; 0: off)\n"
    "  --scrub-pause-s N     time between two times (default 600)\n"
    "  --io-uring on|off     read cold pages through io_uring where it is allowed (default on)\n"
    "\n"
    "Who may connect, and what one user may take:\n"
    "  --allow-users LIST    users beside the daemon's own: names or numbers with commas between them (default none)\n"
    "  --allow-groups LIST   groups whose members may connect (default none)\n"
    "  --connections N       connections at a time, of all users (default 1024)\n"
    "  --user-connections N  of one user (default 256)\n"
    "  --user-conversations N  open at a time, of one user (default 1024)\n"
    "  --user-requests N     under way at a time, of one user (default 1024)\n"
    "  --user-queue-mb N     memory for one user's messages and answers (default 768)\n"
    "  --quota-mb N          one user's bytes in the archive; 0: as many as there is room for (default 0)\n"
    "  --client-timeout-s N  hang up on who takes longer to send a whole message or to take an answer; 0: never\n"
    "                        (default 30)\n"
    "\n"
    "  --help, --version\n";

static int set_number(const char *key, const char *value, uint64_t min, uint64_t max, uint64_t *out,
                      struct error *error) {
  char *end;
  errno = 0;
  unsigned long long number = strtoull(value, &end, 10);
  if (errno || end == value || *end || !isdigit((unsigned char)value[0]) || number < min || number > max)
    return error_set(error, ERR_ARGUMENT, "%s: '%.40s' is no number from %llu to %llu", key, value,
                     (unsigned long long)min, (unsigned long long)max);
  *out = number;
  return 0;
}

static int set_path(const char *key, const char *value, char *out, struct error *error) {
  if (!*value || strlen(value) >= PATH_MAX)
    return error_set(error, ERR_ARGUMENT, "%s: the path is empty or too long", key);
  memcpy(out, value, strlen(value) + 1);
  return 0;
}

static int set_durability(struct options *options, const char *value, struct error *error) {
  for (int i = 0; i < 3; i++)
    if (strcmp(value, durability_names[i]) == 0) {
      options->durability = (enum durability)i;
      return 0;
    }
  return error_set(error, ERR_ARGUMENT, "durability: '%.40s' is none of always, interval, none", value);
}

static int set_backend(struct options *options, const char *value, struct error *error) {
  static const char *const names[] = {"auto", "cpu", "cuda"};
  for (int i = 0; i < 3; i++)
    if (strcmp(value, names[i]) == 0) {
      options->backend = (enum backend_choice)i;
      return 0;
    }
  return error_set(error, ERR_ARGUMENT, "backend: '%.40s' is none of auto, cpu, cuda", value);
}

static int set_io_uring(struct options *options, const char *value, struct error *error) {
  options->io_uring = strcmp(value, "on") == 0;
  return options->io_uring || strcmp(value, "off") == 0
             ? 0
             : error_set(error, ERR_ARGUMENT, "io-uring: '%.40s' is neither on nor off", value);
}

/* Options that are numbers; `size` is that of the member. */
#define NUMBER(key, member, min, max, initial)                                                                         \
  {key, offsetof(struct options, member), sizeof(((struct options *)0)->member), min, max, initial}
static const struct number_option {
  const char *key;
  size_t offset, size;
  uint64_t min, max, initial;
} numbers[] = {
    NUMBER("threads", threads, 1, THREADS_MAX, 1),
    NUMBER("spin-us", spin_us, 0, SPIN_US_MAX, 0),
    NUMBER("vram-limit", vram_limit, 0, MEMORY_MB_MAX, 0),
    NUMBER("vram-codes-limit", vram_codes_limit, 0, MEMORY_MB_MAX, VRAM_CODES_DEFAULT),
    NUMBER("gpu-tokens-min", gpu_tokens_min, 1, UINT32_MAX, 16384),
    NUMBER("interval-ms", interval_ms, 1, INTERVAL_MS_MAX, 1000),
    NUMBER("tail-memory-mb", tail_memory_mb, 1, MEMORY_MB_MAX, 1024),
    NUMBER("scan-memory-mb", scan_memory_mb, 0, MEMORY_MB_MAX, 4096),
    NUMBER("scrub-mb-s", scrub_mb_s, 0, MEMORY_MB_MAX, 4),
    NUMBER("scrub-pause-s", scrub_pause_s, 0, TIMEOUT_S_MAX, 600),
    NUMBER("connections", connections, 1, CONNECTIONS_MAX, 1024),
    NUMBER("user-connections", user_connections, 1, CONNECTIONS_MAX, 256),
    NUMBER("user-conversations", user_conversations, 1, USER_COUNT_MAX, 1024),
    NUMBER("user-requests", user_requests, 1, USER_COUNT_MAX, 1024),
    NUMBER("user-queue-mb", user_queue_mb, 1, MEMORY_MB_MAX, 768),
    NUMBER("quota-mb", quota_mb, 0, UINT64_MAX >> 20, 0),
    NUMBER("client-timeout-s", client_timeout_s, 0, TIMEOUT_S_MAX, 30),
};

static void put_number(struct options *options, const struct number_option *number, uint64_t value) {
  char *member = (char *)options + number->offset;
  if (number->size == sizeof(unsigned))
    *(unsigned *)(void *)member = (unsigned)value;
  else
    *(uint64_t *)(void *)member = value;
}

/* One option by its long name, from either place. */
static int set_option(struct options *options, const char *key, const char *value, struct error *error) {
  if (strcmp(key, "data") == 0)
    return set_path(key, value, options->data, error);
  if (strcmp(key, "socket") == 0)
    return set_path(key, value, options->socket, error);
  if (strcmp(key, "durability") == 0)
    return set_durability(options, value, error);
  if (strcmp(key, "backend") == 0)
    return set_backend(options, value, error);
  if (strcmp(key, "io-uring") == 0)
    return set_io_uring(options, value, error);
  if (strcmp(key, "allow-users") == 0)
    return access_set_users(&options->access, value, error);
  if (strcmp(key, "allow-groups") == 0)
    return access_set_groups(&options->access, value, error);
  for (size_t i = 0; i < sizeof numbers / sizeof numbers[0]; i++)
    if (strcmp(key, numbers[i].key) == 0) {
      uint64_t number = 0;
      int result = set_number(key, value, numbers[i].min, numbers[i].max, &number, error);
      if (!result)
        put_number(options, &numbers[i], number);
      return result;
    }
  return error_set(error, ERR_ARGUMENT, "'%.40s' is no option", key);
}

/* Cuts blanks off both ends, in place. */
static char *trim(char *text) {
  while (isspace((unsigned char)*text))
    text++;
  size_t size = strlen(text);
  while (size && isspace((unsigned char)text[size - 1]))
    text[--size] = 0;
  return text;
}

static int read_line(struct options *options, char *line, struct error *error) {
  char *comment = strchr(line, '#');
  if (comment)
    *comment = 0;
  line = trim(line);
  if (!*line)
    return 0;
  char *equals = strchr(line, '=');
  if (!equals)
    return error_set(error, ERR_ARGUMENT, "wanted \"key = value\"");
  *equals = 0;
  return set_option(options, trim(line), trim(equals + 1), error);
}

int options_read_file(struct options *options, const char *path, struct error *error) {
  FILE *file = fopen(path, "re");
  if (!file)
    return error_set_errno(error, errno, "cannot read config file %s", path);
  char *text = malloc(CONFIG_BYTES_MAX + 1);
  size_t size = text ? fread(text, 1, CONFIG_BYTES_MAX + 1, file) : 0;
  int failed = ferror(file);
  fclose(file);
  int result = 0;
  if (!text)
    return error_set(error, ERR_MEMORY, "out of memory for config file %s", path);
  if (failed || size > CONFIG_BYTES_MAX || memchr(text, 0, size))
    result = error_set(error, ERR_ARGUMENT, "config file %s is no text of at most %d bytes", path, CONFIG_BYTES_MAX);
  else
    text[size] = 0;
  unsigned number = 0;
  for (char *line = text, *next; !result && line; line = next) {
    next = strchr(line, '\n');
    if (next)
      *next++ = 0;
    number++;
    if (read_line(options, line, error))
      result = error_prefix(error, "config file %s, line %u", path, number);
  }
  free(text);
  return result;
}

static int read_default_file(struct options *options, struct error *error) {
  const char *base = getenv("XDG_CONFIG_HOME"), *home = getenv("HOME");
  char path[PATH_MAX];
  int length = base && *base   ? snprintf(path, sizeof path, "%s/coldkv/coldkvd.conf", base)
               : home && *home ? snprintf(path, sizeof path, "%s/.config/coldkv/coldkvd.conf", home)
                               : -1;
  if (length < 0 || (size_t)length >= sizeof path || access(path, F_OK))
    return 0;
  return options_read_file(options, path, error);
}

static void set_defaults(struct options *options) {
  memset(options, 0, sizeof *options);
  for (size_t i = 0; i < sizeof numbers / sizeof numbers[0]; i++)
    put_number(options, &numbers[i], numbers[i].initial);
  long processors = sysconf(_SC_NPROCESSORS_ONLN);
  options->threads = processors < 1 ? 1 : processors > (long)THREADS_MAX ? THREADS_MAX : (unsigned)processors;
  options->io_uring = true;
  if (default_data_dir(options->data, sizeof options->data))
    options->data[0] = 0;
  if (default_socket_path(options->socket, sizeof options->socket))
    options->socket[0] = 0;
}

#define LARGE_BYTES ((uint64_t)LIMIT_LARGE_PER_USER_MAX * LIMIT_OUTPUT_BYTES_PER_CONNECTION_MAX)
#define CONNECTION_BYTES_MIN 131072u

uint64_t options_connection_bytes(const struct options *options) {
  uint64_t queue = options->user_queue_mb << 20;
  uint64_t each = queue > LARGE_BYTES ? (queue - LARGE_BYTES) / options->user_connections : 0;
  return each < CONNECTION_BYTES_MIN                     ? 0
         : each > LIMIT_OUTPUT_BYTES_PER_CONNECTION_MAX ? LIMIT_OUTPUT_BYTES_PER_CONNECTION_MAX
                                                        : each;
}

static int check_complete(const struct options *options, struct error *error) {
  if (!options->data[0])
    return error_set(error, ERR_ARGUMENT, "no place for the archive: give --data DIR, or set HOME");
  if (!options->socket[0])
    return error_set(error, ERR_ARGUMENT, "no place for the socket: give --socket PATH");
  if (!options_connection_bytes(options))
    return error_set(error, ERR_ARGUMENT,
                     "user-queue-mb: %llu are too few for user-connections = %llu; it takes %llu, or fewer connections",
                     (unsigned long long)options->user_queue_mb, (unsigned long long)options->user_connections,
                     (unsigned long long)((LARGE_BYTES + options->user_connections * CONNECTION_BYTES_MIN +
                                           ((UINT64_C(1) << 20) - 1)) >> 20));
  return 0;
}

int options_read(struct options *options, int argc, char **argv, struct error *error) {
  static const struct option names[] = {
      {"data", required_argument, NULL, 'o'},
      {"socket", required_argument, NULL, 'o'},
      {"durability", required_argument, NULL, 'o'},
      {"threads", required_argument, NULL, 'o'},
      {"spin-us", required_argument, NULL, 'o'},
      {"backend", required_argument, NULL, 'o'},
      {"vram-limit", required_argument, NULL, 'o'},
      {"vram-codes-limit", required_argument, NULL, 'o'},
      {"gpu-tokens-min", required_argument, NULL, 'o'},
      {"interval-ms", required_argument, NULL, 'o'},
      {"tail-memory-mb", required_argument, NULL, 'o'},
      {"scan-memory-mb", required_argument, NULL, 'o'},
      {"scrub-mb-s", required_argument, NULL, 'o'},
      {"scrub-pause-s", required_argument, NULL, 'o'},
      {"io-uring", required_argument, NULL, 'o'},
      {"allow-users", required_argument, NULL, 'o'},
      {"allow-groups", required_argument, NULL, 'o'},
      {"connections", required_argument, NULL, 'o'},
      {"user-connections", required_argument, NULL, 'o'},
      {"user-conversations", required_argument, NULL, 'o'},
      {"user-requests", required_argument, NULL, 'o'},
      {"user-queue-mb", required_argument, NULL, 'o'},
      {"quota-mb", required_argument, NULL, 'o'},
      {"client-timeout-s", required_argument, NULL, 'o'},
      {"config", required_argument, NULL, 'c'},
      {"help", no_argument, NULL, 'h'},
      {"version", no_argument, NULL, 'v'},
      {NULL, 0, NULL, 0}};
  int letter, index = 0;
  const char *config = NULL;
  set_defaults(options);
  optind = 0; /* makes getopt start afresh */
  while ((letter = getopt_long(argc, argv, "", names, &index)) != -1) {
    if (letter == 'h' || letter == 'v') {
      fputs(letter == 'h' ? help : "coldkvd " COLDKV_VERSION_STRING "\n", stdout);
      return 1;
    }
    if (letter == 'c')
      config = optarg;
    else if (letter != 'o')
      return error_set(error, ERR_ARGUMENT, "see coldkvd --help");
  }
  if (optind < argc)
    return error_set(error, ERR_ARGUMENT, "'%s' is no option; see coldkvd --help", argv[optind]);
  int result = config ? options_read_file(options, config, error) : read_default_file(options, error);
  optind = 0;
  while (!result && (letter = getopt_long(argc, argv, "", names, &index)) != -1)
    if (letter == 'o')
      result = set_option(options, names[index].name, optarg, error);
  return result ? result : check_complete(options, error);
}
