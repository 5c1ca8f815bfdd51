// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// A lookup team of two: the calling thread, and one on another processor.
#ifndef COLDKV_TOOLS_BENCH_TEAM_H
#define COLDKV_TOOLS_BENCH_TEAM_H

#include "retrieval/lookup.h"

struct team;

/* The second thread runs on processor `core`. */
int team_create(struct team **team, int core, struct error *error);
void team_destroy(struct team *team); /* NULL is allowed */
const struct lookup_team *team_of(const struct team *team);

#endif
