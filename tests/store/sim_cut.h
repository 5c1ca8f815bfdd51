// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// Choosing one of the states that a power cut may leave on a simulated disk.
#ifndef COLDKV_TESTS_STORE_SIM_CUT_H
#define COLDKV_TESTS_STORE_SIM_CUT_H

#include "tests/store/sim_disk.h"

/* Everything is there: what a process leaves that is killed while the machine goes on. Or only what is certain. */
void sim_cut_all(struct sim_disk *disk);
void sim_cut_none(struct sim_disk *disk);

/* How many states there are, UINT64_MAX when more than `most`; and the state with one of these numbers. */
uint64_t sim_cut_states(struct sim_disk *disk, uint64_t most);
void sim_cut_number(struct sim_disk *disk, uint64_t number);

/* Some state, torn at 512 bytes or 4 KiB; extremes are likelier than a coin per sector would make them. */
void sim_cut_random(struct sim_disk *disk, uint64_t *random);

#endif
