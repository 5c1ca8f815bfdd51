// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
#include "tests/fuzz/fuzz.h"

#include <ftw.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

const char *fuzz_seed_directory = ".";

void fuzz_fail(const char *file, int line, const char *what) {
  fprintf(stderr, "%s:%d: does not hold: %s\n", file, line, what);
  abort();
}

void fuzz_seed(const char *name, const void *data, size_t size) {
  char path[4096];
  snprintf(path, sizeof path, "%s/%s", fuzz_seed_directory, name);
  FILE *file = fopen(path, "wb");
  FUZZ_REQUIRE(file && fwrite(data, 1, size, file) == size && fclose(file) == 0);
}

const char *fuzz_file(unsigned number, const void *data, size_t size) {
  static int fds[4] = {-1, -1, -1, -1};
  static char paths[4][32];
  FUZZ_REQUIRE(number < 4);
  if (fds[number] < 0) {
    fds[number] = memfd_create("fuzz", MFD_CLOEXEC);
    FUZZ_REQUIRE(fds[number] >= 0);
    snprintf(paths[number], sizeof paths[0], "/proc/self/fd/%d", fds[number]);
  }
  FUZZ_REQUIRE(ftruncate(fds[number], 0) == 0);
  FUZZ_REQUIRE(pwrite(fds[number], data, size, 0) == (ssize_t)size);
  return paths[number];
}

static int remove_entry(const char *path, const struct stat *status, int kind, struct FTW *walk) {
  (void)status;
  (void)kind;
  (void)walk;
  return remove(path);
}

void fuzz_remove(const char *path) { nftw(path, remove_entry, 16, FTW_DEPTH | FTW_PHYS); }

static char directory[256];
static pid_t owner;

static void remove_directory(void) {
  if (getpid() == owner) /* a child that ends is not the end */
    fuzz_remove(directory);
}

const char *fuzz_directory(void) {
  if (directory[0])
    return directory;
  const char *wanted = getenv("TMPDIR");
  struct stat status;
  const char *base = wanted && strlen(wanted) < 128 && stat(wanted, &status) == 0 ? wanted
                     : access("/dev/shm", W_OK) == 0                             ? "/dev/shm"
                                                                                 : "/tmp";
  snprintf(directory, sizeof directory, "%s/coldkv-fuzz-XXXXXX", base);
  FUZZ_REQUIRE(mkdtemp(directory));
  owner = getpid();
  atexit(remove_directory);
  return directory;
}

void fuzz_put(struct fuzz_output *output, const void *data, size_t size) {
  output->data = realloc(output->data, output->size + size + 1);
  FUZZ_REQUIRE(output->data);
  if (size)
    memcpy(output->data + output->size, data, size);
  output->size += size;
}

void fuzz_put_number(struct fuzz_output *output, uint64_t value, unsigned bytes) {
  for (unsigned i = 0; i < bytes; i++) {
    uint8_t byte = (uint8_t)(value >> 8 * i);
    fuzz_put(output, &byte, 1);
  }
}

void fuzz_put_done(struct fuzz_output *output, const char *name) {
  fuzz_seed(name, output->data, output->size);
  free(output->data);
  *output = (struct fuzz_output){0};
}
