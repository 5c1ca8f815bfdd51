// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// What the fuzz targets share. Each target is one file with LLVMFuzzerTestOneInput and fuzz_seeds; it is linked with
// libFuzzer, or with replay.c, which runs it over files.
#ifndef COLDKV_TESTS_FUZZ_FUZZ_H
#define COLDKV_TESTS_FUZZ_FUZZ_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* The target: returns 0, or ends the program when something is wrong. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* Makes inputs to begin with, by the real code, and hands each to fuzz_seed. */
void fuzz_seeds(void);
void fuzz_seed(const char *name, const void *data, size_t size);
extern const char *fuzz_seed_directory;

/* Ends the program, as a crash that the fuzzer keeps the input of. */
_Noreturn void fuzz_fail(const char *file, int line, const char *what);
#define FUZZ_REQUIRE(condition)                                                                                        \
  do {                                                                                                                 \
    if (!(condition))                                                                                                  \
      fuzz_fail(__FILE__, __LINE__, #condition);                                                                       \
  } while (0)

/* The path of a file in memory with these bytes; one of each number (0 to 3), which the next call replaces. */
const char *fuzz_file(unsigned number, const void *data, size_t size);

/* A directory of this process, in memory where there is /dev/shm; removed at exit. */
const char *fuzz_directory(void);
void fuzz_remove(const char *path); /* with all that is in it */

/* Numbers and bytes taken from the front of an input; 0 and nothing once it is used up. */
struct fuzz_input {
  const uint8_t *data;
  size_t size;
};

static inline uint64_t fuzz_take(struct fuzz_input *input, unsigned bytes) {
  uint64_t value = 0;
  for (unsigned i = 0; i < bytes && input->size; i++, input->data++, input->size--)
    value |= (uint64_t)*input->data << 8 * i;
  return value;
}

static inline struct fuzz_input fuzz_take_bytes(struct fuzz_input *input, size_t size) {
  struct fuzz_input taken = {input->data, size < input->size ? size : input->size};
  input->data += taken.size;
  input->size -= taken.size;
  return taken;
}

/* The bytes of a seed, put together. */
struct fuzz_output {
  uint8_t *data;
  size_t size;
};
void fuzz_put(struct fuzz_output *output, const void *data, size_t size);
void fuzz_put_number(struct fuzz_output *output, uint64_t value, unsigned bytes);
void fuzz_put_done(struct fuzz_output *output, const char *name); /* hands it to fuzz_seed and empties it */

#endif
