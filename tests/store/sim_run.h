// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// A run of the store whose every step notes, beside the trace of its disk, what it asked for and what it was told: what
// has to be there after a power cut at any place of the trace, and what may be.
#ifndef COLDKV_TESTS_STORE_SIM_RUN_H
#define COLDKV_TESTS_STORE_SIM_RUN_H

#include "tests/store/fixture.h"
#include "tests/store/sim_trace.h"

enum { SIM_CONVERSATIONS = 3, SIM_MODELS = 2, SIM_STATES_MAX = 48 };

/* What a conversation may hold. */
struct sim_state {
  uint64_t count;
  uint32_t ahead;
};

struct sim_conversation {
  uint64_t salt; /* what its tokens follow from; another one for each conversation that gets the name */
  bool begun;    /* it may be there */
  bool there;    /* it has to be there, unless */
  bool doomed;   /* its deletion has begun */
  bool bind_begun, bound; /* to model 0 */
  uint32_t state_count;   /* [0]: acknowledged as durable; then what was asked for after that, in order */
  struct sim_state states[SIM_STATES_MAX];
};

struct sim_expect {
  struct sim_conversation conversations[SIM_CONVERSATIONS];
  bool model_begun[SIM_MODELS], model_there[SIM_MODELS];
};

/* What holds from which operation of the trace on. */
struct sim_history {
  const struct sim_trace *trace; /* NULL: nothing is noted */
  struct {
    uint32_t at;
    struct sim_expect expect;
  } *notes;
  uint32_t count, room;
};

void sim_history_begin(struct sim_history *history, const struct sim_trace *trace, const struct sim_expect *expect);
void sim_history_finish(struct sim_history *history);
/* Number of the note that holds for a cut after `operations` operations. */
uint32_t sim_history_at(const struct sim_history *history, uint32_t operations);

struct sim_run {
  char dir[1024]; /* of the archive */
  struct sim_history *history;
  struct sim_expect expect;
  bool lies; /* acknowledges as durable what it never synced */
  uint64_t salts;
  struct archive *archive;
  struct conversation *held[SIM_CONVERSATIONS];
  struct error error;
};

/* Steps. They return 0, or negative with a sentence in run->error; none may fail on a disk that works. */
int sim_run_open(struct sim_run *run);
void sim_run_close(struct sim_run *run); /* whatever is open */
int sim_run_freeze(struct sim_run *run, unsigned mark);
int sim_run_hold(struct sim_run *run, unsigned which, bool bind); /* opens a conversation, made if need be */
int sim_run_append(struct sim_run *run, unsigned which, uint32_t count, uint32_t ahead);
int sim_run_fill(struct sim_run *run, unsigned which, uint64_t end);
int sim_run_sync(struct sim_run *run, unsigned which);
int sim_run_seal(struct sim_run *run, unsigned which);
int sim_run_unload(struct sim_run *run, unsigned which);
void sim_run_release(struct sim_run *run, unsigned which);
int sim_run_delete(struct sim_run *run, unsigned which);
const char *sim_run_name(unsigned which);

/* Steps chosen at random; the archive stays open or not, as it happens. */
int sim_run_random(struct sim_run *run, uint64_t *random, unsigned steps);

/* What is there now, as a start after the cut found it, is durable from now on. */
void sim_run_acknowledge(struct sim_run *run);

#endif
