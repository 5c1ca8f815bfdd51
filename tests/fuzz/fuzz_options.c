// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// The config file. What is accepted must lie within its limits, and must be read the same when it is written out again.
//
// Input: the file.
#include "tests/fuzz/fuzz.h"

#include <stdio.h>
#include <stdlib.h>

#include "daemon/options.h"

static void start(struct options *options) {
  memset(options, 0, sizeof *options);
  options->threads = options->interval_ms = 1;
  options->tail_memory_mb = options->scan_memory_mb = 1;
}

static int write_out(const struct options *o, char *text, size_t size) {
  int length = snprintf(text, size,
                        "durability = %s\nthreads=%u\ninterval-ms =%u # how often\ntail-memory-mb=%llu\n"
                        "scan-memory-mb=%llu\nio-uring=%s\n",
                        durability_names[o->durability], o->threads, o->interval_ms,
                        (unsigned long long)o->tail_memory_mb, (unsigned long long)o->scan_memory_mb,
                        o->io_uring ? "on" : "off");
  if (o->data[0])
    length += snprintf(text + length, size - (size_t)length, "data = %s\n", o->data);
  if (o->socket[0])
    length += snprintf(text + length, size - (size_t)length, "  socket=%s", o->socket);
  return length;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  static struct options options, again;
  static char text[4 * PATH_MAX];
  struct error error = {0};
  start(&options);
  int result = options_read_file(&options, fuzz_file(0, data, size), &error);
  if (result) {
    FUZZ_REQUIRE(result == -error.code && error.text[0]);
    return 0;
  }
  FUZZ_REQUIRE(options.threads >= 1 && options.threads <= 256 && options.interval_ms >= 1);
  FUZZ_REQUIRE(options.durability <= DURABILITY_NONE && options.tail_memory_mb >= 1);
  FUZZ_REQUIRE(memchr(options.data, 0, sizeof options.data) && memchr(options.socket, 0, sizeof options.socket));
  int length = write_out(&options, text, sizeof text);
  FUZZ_REQUIRE(length > 0 && (size_t)length < sizeof text);
  start(&again);
  FUZZ_REQUIRE(options_read_file(&again, fuzz_file(1, text, (size_t)length), &error) == 0);
  FUZZ_REQUIRE(again.durability == options.durability && again.threads == options.threads &&
               again.interval_ms == options.interval_ms && again.tail_memory_mb == options.tail_memory_mb &&
               again.scan_memory_mb == options.scan_memory_mb && again.io_uring == options.io_uring);
  FUZZ_REQUIRE(strcmp(again.data, options.data) == 0 && strcmp(again.socket, options.socket) == 0);
  return 0;
}

void fuzz_seeds(void) {
  static const char *const texts[] = {
      "# nothing\n\n", "threads = 4\ninterval-ms=100\n", "durability = interval\n  data = /var/lib/coldkv # here\n",
      "tail-memory-mb=7\nscan-memory-mb=0\nio-uring=off", "socket=/run/x\ndurability=none\n", "threads = 0\n",
      "no line\n", "threads = 99999999999999999999\n", "durability = = always\n", "data =\n",
  };
  for (size_t i = 0; i < sizeof texts / sizeof texts[0]; i++) {
    char name[32];
    snprintf(name, sizeof name, "config-%02zu", i);
    fuzz_seed(name, texts[i], strlen(texts[i]));
  }
}
