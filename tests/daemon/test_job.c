// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

#include "daemon/job.h"

#define JOBS 2000

struct counted {
  struct job job;
  int number;
  struct job_returns *returns;
};

static atomic_int ran;
static int returned, last_number, out_of_order;

static void run(struct job *job, void *worker) {
  (void)job;
  atomic_fetch_add((atomic_int *)worker, 1);
  atomic_fetch_add(&ran, 1);
}

static void done(struct job *job) {
  struct counted *counted = (struct counted *)(void *)job;
  out_of_order += counted->number < last_number;
  last_number = counted->number;
  if (++returned == JOBS)
    job_returns_close(counted->returns);
}

static void run_pool(unsigned threads) {
  uv_loop_t loop;
  struct job_returns returns;
  struct job_pool pool;
  struct error error = {0};
  static struct counted jobs[JOBS];
  atomic_int *per_thread = calloc(threads, sizeof *per_thread);
  void **workers = calloc(threads, sizeof *workers);
  assert_non_null(per_thread);
  assert_non_null(workers);
  for (unsigned i = 0; i < threads; i++)
    workers[i] = &per_thread[i];
  atomic_store(&ran, 0);
  returned = last_number = out_of_order = 0;
  assert_int_equal(uv_loop_init(&loop), 0);
  assert_int_equal(job_returns_init(&returns, &loop, &error), 0);
  assert_int_equal(job_pool_start(&pool, threads, NULL, workers, &returns, &error), 0);
  for (int i = 0; i < JOBS; i++) {
    jobs[i] = (struct counted){.job = {.run = run, .done = done}, .number = i, .returns = &returns};
    job_pool_put(&pool, &jobs[i].job);
  }
  uv_run(&loop, UV_RUN_DEFAULT);
  assert_int_equal(returned, JOBS);
  assert_int_equal(atomic_load(&ran), JOBS);
  int sum = 0;
  for (unsigned i = 0; i < threads; i++)
    sum += atomic_load(&per_thread[i]);
  assert_int_equal(sum, JOBS);
  job_pool_stop(&pool);
  job_returns_finish(&returns);
  assert_int_equal(uv_loop_close(&loop), 0);
  free(workers);
  free(per_thread);
}

static void test_every_job_returns_once(void **state) {
  (void)state;
  run_pool(4);
}

static void test_one_thread_keeps_order(void **state) {
  (void)state;
  run_pool(1);
  assert_int_equal(out_of_order, 0);
}

static void test_stop_finishes_what_is_queued(void **state) {
  (void)state;
  struct job_queue queue;
  struct error error = {0};
  struct job jobs[3];
  assert_int_equal(job_queue_init(&queue, &error), 0);
  for (int i = 0; i < 3; i++)
    job_queue_put(&queue, &jobs[i]);
  job_queue_stop(&queue);
  assert_ptr_equal(job_queue_take(&queue, NULL), &jobs[0]);
  assert_ptr_equal(job_queue_take_all(&queue), &jobs[1]);
  assert_null(job_queue_take(&queue, NULL));
  job_queue_finish(&queue);
}

/* Shares called from jobs: every index runs once, whoever runs it, and the caller sees all of them done. */
#define SHARE_JOBS 200
#define SHARE_TASKS 37

struct sharing {
  struct job job;
  struct job_pool *pool;
  struct job_returns *returns;
  atomic_int calls[SHARE_TASKS];
  int missing;
};

static void run_one_task(void *context, uint32_t index, void *worker) {
  struct sharing *sharing = context;
  atomic_fetch_add(&sharing->calls[index], 1);
  atomic_fetch_add((atomic_int *)worker, 1);
}

static void run_sharing(struct job *job, void *worker) {
  struct sharing *sharing = (struct sharing *)(void *)job;
  job_pool_share(sharing->pool, SHARE_TASKS, run_one_task, sharing, worker);
  for (int i = 0; i < SHARE_TASKS; i++)
    sharing->missing += atomic_load(&sharing->calls[i]) != 1;
}

static void done_sharing(struct job *job) {
  struct sharing *sharing = (struct sharing *)(void *)job;
  if (++returned == SHARE_JOBS)
    job_returns_close(sharing->returns);
}

static void test_shares_run_every_task_once(void **state) {
  (void)state;
  uv_loop_t loop;
  struct job_returns returns;
  struct job_pool pool;
  struct error error = {0};
  static struct sharing jobs[SHARE_JOBS];
  static atomic_int per_thread[3];
  void *workers[3] = {&per_thread[0], &per_thread[1], &per_thread[2]};
  returned = 0;
  assert_int_equal(uv_loop_init(&loop), 0);
  assert_int_equal(job_returns_init(&returns, &loop, &error), 0);
  assert_int_equal(job_pool_start(&pool, 3, NULL, workers, &returns, &error), 0);
  for (int i = 0; i < SHARE_JOBS; i++) {
    jobs[i].job = (struct job){.run = run_sharing, .done = done_sharing};
    jobs[i].pool = &pool;
    jobs[i].returns = &returns;
    job_pool_put(&pool, &jobs[i].job);
  }
  uv_run(&loop, UV_RUN_DEFAULT);
  job_pool_stop(&pool);
  job_returns_finish(&returns);
  assert_int_equal(uv_loop_close(&loop), 0);
  for (int i = 0; i < SHARE_JOBS; i++)
    assert_int_equal(jobs[i].missing, 0);
  assert_int_equal(atomic_load(&per_thread[0]) + atomic_load(&per_thread[1]) + atomic_load(&per_thread[2]),
                   SHARE_JOBS * SHARE_TASKS);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_every_job_returns_once),
      cmocka_unit_test(test_one_thread_keeps_order),
      cmocka_unit_test(test_stop_finishes_what_is_queued),
      cmocka_unit_test(test_shares_run_every_task_once),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
