// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
#include "tools/quality/driver.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "client/coldkv.h"

enum { TOKENS_MAX = 1 << 20, VOCABULARY_MAX = 1024, LINE_MAX_BYTES = 1024, PLAIN_SPARE = 128 };

static const struct driver_engine *engine;
static uint32_t ids[TOKENS_MAX];
static float logits[DRIVER_BLOCK * VOCABULARY_MAX];

_Noreturn void driver_fail(const char *what, const char *why) {
  printf("failed: %s: %s\n", what, why);
  exit(EXIT_FAILURE);
}

/* A piece of a file, whose bytes are the tokens. */
struct piece {
  char path[256];
  unsigned from, count, slots;
};

static void load(const struct piece *piece) {
  static unsigned char text[TOKENS_MAX];
  FILE *file = fopen(piece->path, "rb");
  if (!file || piece->count > TOKENS_MAX || fseek(file, piece->from, SEEK_SET) ||
      fread(text, 1, piece->count, file) != piece->count)
    driver_fail(piece->path, "cannot be read, or is too short");
  fclose(file);
  for (unsigned i = 0; i < piece->count; i++)
    ids[i] = text[i];
}

static void scan_piece(const char *arguments, struct piece *piece) {
  if (sscanf(arguments, "%255s %u %u %u", piece->path, &piece->from, &piece->count, &piece->slots) != 4)
    driver_fail(arguments, "wanted FILE FROM COUNT SLOTS");
  load(piece);
}

static uint32_t best(void) {
  uint32_t found = 0;
  for (uint32_t i = 1; i < engine->vocabulary; i++)
    if (logits[i] > logits[found])
      found = i;
  return found;
}

static void ask(const char *arguments) {
  unsigned digits;
  int at;
  struct piece piece;
  uint64_t end = engine->tokens();
  if (sscanf(arguments, "%u%n", &digits, &at) != 1)
    driver_fail(arguments, "wanted DIGITS");
  scan_piece(arguments + at, &piece);
  engine->feed(ids, piece.count, piece.slots, logits, false);
  for (unsigned i = 0; i < digits; i++) {
    uint32_t id = best();
    printf("%u%c", id, i + 1 < digits ? ' ' : '\n');
    if (i + 1 < digits)
      engine->feed(&id, 1, piece.slots, logits, false);
  }
  engine->rewind(end);
}

static void write_logits(const char *arguments) {
  char path[256];
  int at;
  struct piece piece;
  if (sscanf(arguments, "%255s%n", path, &at) != 1)
    driver_fail(arguments, "wanted OUT");
  scan_piece(arguments + at, &piece);
  FILE *file = fopen(path, "ab");
  if (!file)
    driver_fail(path, "cannot be written");
  for (unsigned done = 0, size; done < piece.count; done += size) {
    size = piece.count - done < DRIVER_BLOCK ? piece.count - done : DRIVER_BLOCK;
    engine->feed(ids + done, size, piece.slots, logits, true);
    fwrite(logits, sizeof *logits, (size_t)size * engine->vocabulary, file);
  }
  if (fclose(file))
    driver_fail(path, "cannot be written");
}

static double seconds(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

static void decode(const char *arguments) {
  unsigned count, slots;
  uint64_t end = engine->tokens();
  uint32_t id = '\n';
  if (sscanf(arguments, "%u %u", &count, &slots) != 2)
    driver_fail(arguments, "wanted COUNT SLOTS");
  engine->feed(&id, 1, slots, logits, false);
  double start = seconds();
  for (unsigned i = 0; i < count; i++) {
    id = best();
    engine->feed(&id, 1, slots, logits, false);
  }
  printf("%.6f\n", seconds() - start);
  engine->rewind(end);
}

static unsigned long resident_bytes(void) {
  unsigned long pages = 0;
  FILE *file = fopen("/proc/self/statm", "r");
  if (!file || fscanf(file, "%*u %lu", &pages) != 1)
    driver_fail("/proc/self/statm", "cannot be read");
  fclose(file);
  return pages * (unsigned long)sysconf(_SC_PAGESIZE);
}

static void open_conversation(const char *arguments) {
  char name[64];
  int at;
  if (sscanf(arguments, "%63s%n", name, &at) != 1)
    driver_fail(arguments, "wanted NAME");
  engine->open(name, arguments + at);
}

static coldkv_conv *conversation(void) {
  coldkv_conv *found = engine->conversation();
  if (!found)
    driver_fail("no conversation", "nothing was opened");
  return found;
}

static void show_missed(void) {
  struct coldkv_status status;
  if (coldkv_get_status(conversation(), &status))
    driver_fail("status", coldkv_error());
  printf("%llu\n", (unsigned long long)(status.lookups_missed + status.bad_records));
}

/* A line that is answered otherwise than by the number of tokens; false for another. */
static bool tell(const char *verb, const char *arguments) {
  if (strcmp(verb, "ask") == 0)
    ask(arguments);
  else if (strcmp(verb, "decode") == 0)
    decode(arguments);
  else if (strcmp(verb, "missed") == 0)
    show_missed();
  else if (strcmp(verb, "memory") == 0)
    printf("%lu\n", resident_bytes());
  else if (strcmp(verb, "about") == 0)
    printf("%u %u %s\n", engine->window, engine->vocabulary, engine->version);
  else
    return false;
  return true;
}

static void obey(const char *verb, const char *arguments) {
  struct piece piece;
  if (strcmp(verb, "open") == 0) {
    open_conversation(arguments);
  } else if (strcmp(verb, "plain") == 0) {
    engine->plain(engine->window + PLAIN_SPARE, arguments);
  } else if (strcmp(verb, "feed") == 0) {
    scan_piece(arguments, &piece);
    engine->feed(ids, piece.count, piece.slots, NULL, false);
  } else if (strcmp(verb, "logits") == 0) {
    write_logits(arguments);
  } else if (strcmp(verb, "rewind") == 0) {
    engine->rewind(strtoull(arguments, NULL, 10));
  } else if (strcmp(verb, "sync") == 0) {
    if (coldkv_sync(conversation()))
      driver_fail("sync", coldkv_error());
  } else if (strcmp(verb, "close") == 0) {
    engine->close();
  } else {
    driver_fail(verb, "no such command");
  }
}

void driver_run(const struct driver_engine *given) {
  char line[LINE_MAX_BYTES], verb[16];
  int at;
  engine = given;
  if (engine->vocabulary > VOCABULARY_MAX)
    driver_fail("the model", "has another vocabulary than bytes");
  while (fgets(line, sizeof line, stdin) && sscanf(line, "%15s%n", verb, &at) == 1) {
    if (!tell(verb, line + at)) {
      obey(verb, line + at);
      printf("%llu\n", (unsigned long long)engine->tokens());
    }
    fflush(stdout);
  }
  engine->close();
}
