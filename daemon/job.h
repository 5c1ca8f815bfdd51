// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// Work that leaves the event loop: queues that threads take jobs from, and the way back to the loop.
#ifndef COLDKV_DAEMON_JOB_H
#define COLDKV_DAEMON_JOB_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <uv.h>

#include "proto/error.h"

/* A piece of work, embedded in what it works on. A job is in at most one queue at a time. */
struct job {
  struct job *next;
  void (*run)(struct job *job, void *worker); /* on a thread of a pool; `worker` is that thread's own state */
  void (*done)(struct job *job);              /* on the loop, after job_return */
};

/* Calls task(context, index, worker) that other threads of the same pool may take a part of; lives in job_pool_share.
 * */
struct job_share {
  struct job_share *next;
  void (*task)(void *context, uint32_t index, void *worker);
  void *context;
  uint32_t tasks, begun;
  _Atomic uint32_t ended; /* changes with the lock held */
};

/* First in, first out; any thread may put and take. */
struct job_queue {
  pthread_mutex_t lock;
  pthread_cond_t filled;
  pthread_cond_t share_ended;
  struct job *first, *last;
  struct job_share *shares; /* with tasks that nobody has begun */
  uint32_t jobs;            /* in the queue */
  uint32_t sleepers, spinners; /* threads that wait and may take part in shares */
  uint64_t spin_ns;         /* for so long they look for work before they sleep, */
  uint32_t spinners_max;    /* so many at a time, */
  uint32_t shared;          /* and no more than the last share had tasks for: others would only slow these down */
  _Atomic uint32_t posted;  /* changes when work comes */
  bool stopped;
};

int job_queue_init(struct job_queue *queue, struct error *error);
void job_queue_finish(struct job_queue *queue);
void job_queue_put(struct job_queue *queue, struct job *job);
/* Waits for a job, and meanwhile takes part in shares; NULL once the queue is stopped and empty. */
struct job *job_queue_take(struct job_queue *queue, void *worker);
/* Waits, then takes everything that is there as one list; NULL once the queue is stopped and empty. */
struct job *job_queue_take_all(struct job_queue *queue);
void job_queue_stop(struct job_queue *queue);

/* For loops that wait a few microseconds for another thread. */
static inline void job_pause(void) {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#else
  __asm__ volatile("" ::: "memory");
#endif
}

/* The way back: jobs whose done() the loop calls in the order they were returned. There is no lock, nor uv_async_t, for
 * which the loop waits while another thread is in the middle of uv_async_send: a thread of low priority that has lost
 * its processor there would keep everybody waiting. */
struct job_returns {
  struct job *_Atomic newest; /* each points to the one before */
  int fd;                     /* eventfd that wakes the loop */
  uv_poll_t wake;
};

int job_returns_init(struct job_returns *returns, uv_loop_t *loop, struct error *error);
void job_return(struct job_returns *returns, struct job *job); /* from any thread */
/* Closes the handle, so that the loop can end: nothing more comes back. */
void job_returns_close(struct job_returns *returns);
/* After the loop, and after every thread that returned anything has ended: one may still be about to leave job_return
 * when the loop has its job. Closes the handle if the loop never ran. All zero, or never made, it is left alone. */
void job_returns_finish(struct job_returns *returns);

/* Threads that run jobs of one queue and return them. */
struct job_pool {
  struct job_queue queue;
  struct job_returns *returns;
  pthread_t *threads;
  unsigned thread_count;
};

/* Starts `threads` threads, each of which calls `begin` first unless that is NULL; workers[i] is handed to the jobs
 * that thread i runs. */
int job_pool_start(struct job_pool *pool, unsigned threads, void (*begin)(void), void **workers,
                   struct job_returns *returns, struct error *error);
void job_pool_put(struct job_pool *pool, struct job *job);
/* From a job of this pool: calls task(context, index, worker) once for every index < tasks, on this thread and on those
 * that have no job to do, each with its own worker, and returns when all calls have. */
void job_pool_share(struct job_pool *pool, uint32_t tasks, void (*task)(void *context, uint32_t index, void *worker),
                    void *context, void *worker);
/* Threads that have nothing more to do look for work for so long before they sleep; 0, as at the start: not at all. At
 * most half of them and one do, since others need processors, too. */
void job_pool_set_spin(struct job_pool *pool, uint64_t spin_us);
/* Lets queued jobs finish, then joins the threads. Harmless on a pool that was never started. */
void job_pool_stop(struct job_pool *pool);

#endif
