// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// Runs as the machine is, and with COLDKV_CPU_MASK=0, where nothing may be left.
#include "proto/cpu.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

static void test_flags_imply_each_other(void **state) {
  (void)state;
  unsigned flags = cpu_flags();
  if (flags & CPU_AVX512_VPOPCNT)
    assert_true(flags & CPU_AVX512);
  if (flags & CPU_AVX512)
    assert_true(flags & CPU_AVX2);
  if (flags & CPU_AVX2)
    assert_true(flags & CPU_SSE42);
  assert_int_equal(cpu_flags(), flags);
}

static void test_mask(void **state) {
  (void)state;
  if (!getenv("COLDKV_CPU_MASK"))
    skip();
  assert_int_equal(cpu_flags(), 0);
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(test_flags_imply_each_other), cmocka_unit_test(test_mask)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
