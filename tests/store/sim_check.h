// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// What a start of the store has to find after a power cut.
#ifndef COLDKV_TESTS_STORE_SIM_CHECK_H
#define COLDKV_TESTS_STORE_SIM_CHECK_H

#include "tests/store/sim_run.h"

struct sim_verdict {
  unsigned lost, wrong;   /* acknowledged things that are gone; anything else that should not be */
  unsigned unsynced_gone; /* tokens that were never acknowledged, and are gone, as they may */
  char text[1024];        /* the first of the lost and wrong */
};

/* Opens the archive that a cut left at run->dir, compares it with run->expect, goes on working with it, closes it;
 * with `twice`, verifies and looks at all of it again. What is found is acknowledged in run->history, since a second
 * cut may follow. */
void sim_check(struct sim_run *run, bool twice, struct sim_verdict *verdict);

#endif
