// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// The codec against the golden vectors, which an independent program wrote from RECORD.md. Argument: their directory.
#include "client/codec.h"

#include <inttypes.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "tests/proto/random.h"

static const char *directory;

/* n numbers of RECORD.md's generator, times 2^exponent ("zero": 0). */
static void draw(struct random *random, uint32_t n, const char *exponent, float *out) {
  float factor = strcmp(exponent, "zero") == 0 ? 0 : ldexpf(1, atoi(exponent));
  for (uint32_t i = 0; i < n; i++) {
    uint64_t word = random_u64(random);
    int32_t sum = (int32_t)((word & 0xffff) + (word >> 16 & 0xffff) + (word >> 32 & 0xffff) + (word >> 48));
    out[i] = (float)(sum - 131070) * factor;
  }
}

static void check_line(uint32_t head_dim, const char *line) {
  uint64_t seed, token;
  struct random random;
  char exponents[3][8], hex[2 * RECORD_BYTES + 1];
  uint32_t layer, head;
  int fields = sscanf(line, "%" SCNx64 " %" SCNx64 " %7s %7s %7s %" SCNu32 " %" SCNu32 " %" SCNu64 " %208s", &seed,
                      &random.state, exponents[0], exponents[1], exponents[2], &layer, &head, &token, hex);
  assert_int_equal(fields, 9);
  float mean[2][LIMIT_HEAD_DIM_MAX], x[2][LIMIT_HEAD_DIM_MAX];
  for (int side = 0; side < 2; side++)
    draw(&random, head_dim, exponents[0], mean[side]);
  for (int side = 0; side < 2; side++) {
    draw(&random, head_dim, exponents[1 + side], x[side]);
    for (uint32_t i = 0; i < head_dim; i++)
      x[side][i] += mean[side][i];
  }
  struct codec codec;
  assert_int_equal(codec_init(&codec, head_dim, seed, NULL), 0);
  uint8_t record[RECORD_BYTES];
  assert_int_equal(codec_encode(&codec, x[0], x[1], mean[0], mean[1], layer, head, token, record), 0);
  char got[2 * RECORD_BYTES + 1];
  for (int i = 0; i < RECORD_BYTES; i++)
    snprintf(got + 2 * i, 3, "%02x", record[i]);
  assert_string_equal(got, hex);
  assert_true(record_check(record, layer, head, token));
}

static void check_file(uint32_t head_dim) {
  char path[4096], line[1024];
  snprintf(path, sizeof path, "%s/codec-%u.txt", directory, head_dim);
  FILE *file = fopen(path, "r");
  assert_non_null(file);
  int records = 0;
  while (fgets(line, sizeof line, file))
    if (line[0] != '#') {
      check_line(head_dim, line);
      records++;
    }
  fclose(file);
  assert_int_equal(records, 14);
}

static void test_golden(void **state) {
  (void)state;
  static const uint32_t head_dims[] = {64, 72, 96, 120, 128};
  for (size_t i = 0; i < sizeof head_dims / sizeof *head_dims; i++)
    check_file(head_dims[i]);
}

int main(int argc, char **argv) {
  if (argc != 2) {
    fprintf(stderr, "usage: test_codec_golden DIRECTORY\n");
    return 2;
  }
  directory = argv[1];
  const struct CMUnitTest tests[] = {cmocka_unit_test(test_golden)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
