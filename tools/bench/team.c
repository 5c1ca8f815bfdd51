// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
#include "tools/bench/team.h"

#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>

#include "tools/bench/measure.h"

struct team {
  struct lookup_team team; /* first: run() gets this and needs the rest */
  pthread_t thread;
  pthread_mutex_t mutex;
  pthread_cond_t changed;
  int core;
  bool leave;
  /* the work under way: tasks next .. tasks - 1 are not taken yet, `open` of those taken are not done */
  void (*task)(void *context, uint32_t index);
  void *context;
  uint32_t next, tasks, open;
};

/* Takes tasks until there are none left. Called and left with the mutex held. */
static void work(struct team *team) {
  while (team->next < team->tasks) {
    uint32_t index = team->next++;
    team->open++;
    pthread_mutex_unlock(&team->mutex);
    team->task(team->context, index);
    pthread_mutex_lock(&team->mutex);
    if (--team->open == 0)
      pthread_cond_broadcast(&team->changed);
  }
}

static void *helper(void *context) {
  struct team *team = context;
  pin_to(team->core);
  pthread_mutex_lock(&team->mutex);
  while (!team->leave) {
    work(team);
    if (!team->leave)
      pthread_cond_wait(&team->changed, &team->mutex);
  }
  pthread_mutex_unlock(&team->mutex);
  return NULL;
}

static void run(const struct lookup_team *base, uint32_t tasks, void (*task)(void *context, uint32_t index),
                void *context) {
  struct team *team = (struct team *)(uintptr_t)base;
  pthread_mutex_lock(&team->mutex);
  team->task = task;
  team->context = context;
  team->next = 0;
  team->tasks = tasks;
  pthread_cond_broadcast(&team->changed);
  work(team);
  while (team->open)
    pthread_cond_wait(&team->changed, &team->mutex);
  pthread_mutex_unlock(&team->mutex);
}

int team_create(struct team **out, int core, struct error *error) {
  struct team *team = calloc(1, sizeof *team);
  if (!team)
    return error_set(error, ERR_MEMORY, "no memory for a thread");
  team->team = (struct lookup_team){.lanes = 2, .run = run};
  team->core = core;
  pthread_mutex_init(&team->mutex, NULL);
  pthread_cond_init(&team->changed, NULL);
  if (pthread_create(&team->thread, NULL, helper, team)) {
    free(team);
    return error_set(error, ERR_MEMORY, "cannot start a second thread");
  }
  *out = team;
  return 0;
}

void team_destroy(struct team *team) {
  if (!team)
    return;
  pthread_mutex_lock(&team->mutex);
  team->leave = true;
  pthread_cond_broadcast(&team->changed);
  pthread_mutex_unlock(&team->mutex);
  pthread_join(team->thread, NULL);
  pthread_cond_destroy(&team->changed);
  pthread_mutex_destroy(&team->mutex);
  free(team);
}

const struct lookup_team *team_of(const struct team *team) { return &team->team; }
