// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// Runs a fuzz target over files, without libFuzzer, so that every build and compiler tries what was found:
// PROGRAM FILE|DIRECTORY...  or  PROGRAM --seeds DIRECTORY, which writes the inputs to begin with.
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/fuzz/fuzz.h"

enum { INPUT_BYTES_MAX = 1 << 20 };

static unsigned inputs;

static void replay_file(const char *path) {
  FILE *file = fopen(path, "rb");
  FUZZ_REQUIRE(file);
  uint8_t *bytes = malloc(INPUT_BYTES_MAX);
  FUZZ_REQUIRE(bytes);
  size_t size = fread(bytes, 1, INPUT_BYTES_MAX, file);
  fclose(file);
  uint8_t *exact = malloc(size ? size : 1); /* so that AddressSanitizer sees where it ends */
  FUZZ_REQUIRE(exact);
  memcpy(exact, bytes, size);
  free(bytes);
  fprintf(stderr, "%s\n", path);
  LLVMFuzzerTestOneInput(exact, size);
  free(exact);
  inputs++;
}

static int visible(const struct dirent *entry) { return entry->d_name[0] != '.'; }

static void replay(const char *path) {
  struct dirent **names;
  int count = scandir(path, &names, visible, alphasort);
  if (count < 0) {
    replay_file(path);
    return;
  }
  for (int i = 0; i < count; i++) {
    char child[4096];
    snprintf(child, sizeof child, "%s/%s", path, names[i]->d_name);
    replay(child);
    free(names[i]);
  }
  free(names);
}

int main(int argc, char **argv) {
  if (argc == 3 && strcmp(argv[1], "--seeds") == 0) {
    fuzz_seed_directory = argv[2];
    fuzz_seeds();
    return EXIT_SUCCESS;
  }
  for (int i = 1; i < argc; i++)
    replay(argv[i]);
  printf("%u inputs\n", inputs);
  return inputs ? EXIT_SUCCESS : EXIT_FAILURE;
}
