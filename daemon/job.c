// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
#include "daemon/job.h"

#include <errno.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

/* Before a thread sleeps until the last tasks of its share have ended, which takes longer than they do as a rule. */
enum { SHARE_SPINS = 1000 };

int job_queue_init(struct job_queue *queue, struct error *error) {
  memset(queue, 0, sizeof *queue);
  if (pthread_mutex_init(&queue->lock, NULL))
    return error_set(error, ERR_MEMORY, "cannot make a mutex");
  if (pthread_cond_init(&queue->filled, NULL)) {
    pthread_mutex_destroy(&queue->lock);
    return error_set(error, ERR_MEMORY, "cannot make a condition variable");
  }
  if (pthread_cond_init(&queue->share_ended, NULL)) {
    pthread_cond_destroy(&queue->filled);
    pthread_mutex_destroy(&queue->lock);
    return error_set(error, ERR_MEMORY, "cannot make a condition variable");
  }
  return 0;
}

void job_queue_finish(struct job_queue *queue) {
  pthread_cond_destroy(&queue->share_ended);
  pthread_cond_destroy(&queue->filled);
  pthread_mutex_destroy(&queue->lock);
}

void job_queue_put(struct job_queue *queue, struct job *job) {
  job->next = NULL;
  pthread_mutex_lock(&queue->lock);
  if (queue->last)
    queue->last->next = job;
  else
    queue->first = job;
  queue->last = job;
  queue->posted++;
  bool wake = ++queue->jobs > queue->spinners; /* one that spins takes one */
  pthread_mutex_unlock(&queue->lock);
  if (wake)
    pthread_cond_signal(&queue->filled);
}

/* Runs the next task of a share; the lock is given back meanwhile, and `wake` threads are woken first. The last task to
 * begin takes the share off the list. */
static void run_task(struct job_queue *queue, struct job_share *share, uint32_t wake, void *worker) {
  uint32_t index = share->begun++;
  if (share->begun == share->tasks) {
    struct job_share **link = &queue->shares;
    while (*link != share)
      link = &(*link)->next;
    *link = share->next;
  }
  pthread_mutex_unlock(&queue->lock);
  for (uint32_t i = 0; i < wake; i++)
    pthread_cond_signal(&queue->filled);
  share->task(share->context, index, worker);
  pthread_mutex_lock(&queue->lock);
  if (++share->ended == share->tasks)
    pthread_cond_broadcast(&queue->share_ended);
}

/* Gives the lock back until work comes or the time is over. */
static void spin(struct job_queue *queue, uint64_t until_ns) {
  uint32_t seen = queue->posted;
  queue->spinners++;
  pthread_mutex_unlock(&queue->lock);
  while (queue->posted == seen && uv_hrtime() < until_ns)
    job_pause();
  pthread_mutex_lock(&queue->lock);
  queue->spinners--;
}

static uint32_t spinners_max(const struct job_queue *queue) {
  return queue->shared < queue->spinners_max ? queue->shared : queue->spinners_max;
}

/* Jobs come first: a share gets on without help, a job does not. */
static void wait_filled(struct job_queue *queue, bool may_help, void *worker) {
  uint64_t until_ns = may_help && queue->spin_ns ? uv_hrtime() + queue->spin_ns : 0;
  while (!queue->first && !queue->stopped) {
    if (may_help && queue->shares) {
      run_task(queue, queue->shares, 0, worker);
      until_ns = queue->spin_ns ? uv_hrtime() + queue->spin_ns : 0;
    } else if (until_ns && queue->spinners < spinners_max(queue) && uv_hrtime() < until_ns) {
      spin(queue, until_ns);
    } else {
      queue->sleepers += may_help;
      pthread_cond_wait(&queue->filled, &queue->lock);
      queue->sleepers -= may_help;
    }
  }
}

struct job *job_queue_take(struct job_queue *queue, void *worker) {
  pthread_mutex_lock(&queue->lock);
  wait_filled(queue, true, worker);
  struct job *job = queue->first;
  if (job) {
    queue->jobs--;
    queue->first = job->next;
    if (!queue->first)
      queue->last = NULL;
    job->next = NULL;
  }
  pthread_mutex_unlock(&queue->lock);
  return job;
}

struct job *job_queue_take_all(struct job_queue *queue) {
  pthread_mutex_lock(&queue->lock);
  wait_filled(queue, false, NULL);
  struct job *jobs = queue->first;
  queue->first = queue->last = NULL;
  queue->jobs = 0;
  pthread_mutex_unlock(&queue->lock);
  return jobs;
}

void job_queue_stop(struct job_queue *queue) {
  pthread_mutex_lock(&queue->lock);
  queue->stopped = true;
  queue->posted++;
  pthread_cond_broadcast(&queue->filled);
  pthread_mutex_unlock(&queue->lock);
}

/* --- the way back ------------------------------------------------------------------------------------------------- */

/* Oldest first. */
static struct job *take_returned(struct job_returns *returns) {
  struct job *oldest = NULL;
  for (struct job *job = atomic_exchange(&returns->newest, NULL), *next; job; job = next) {
    next = job->next;
    job->next = oldest;
    oldest = job;
  }
  return oldest;
}

static void on_wake(uv_poll_t *wake, int status, int events) {
  struct job_returns *returns = wake->data;
  eventfd_t count;
  (void)status;
  (void)events;
  (void)eventfd_read(returns->fd, &count); /* before the list is taken, so that nothing is left in it unnoticed */
  for (struct job *job = take_returned(returns), *next; job; job = next) {
    next = job->next;
    job->next = NULL;
    job->done(job);
  }
  sched_yield(); /* as pool_main does */
}

int job_returns_init(struct job_returns *returns, uv_loop_t *loop, struct error *error) {
  int fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
  if (fd < 0)
    return error_set_errno(error, errno, "cannot make an event descriptor");
  int status = uv_poll_init(loop, &returns->wake, fd);
  if (status) {
    close(fd);
    return error_set(error, ERR_IO, "cannot watch an event descriptor: %s", uv_strerror(status));
  }
  atomic_init(&returns->newest, NULL);
  returns->fd = fd;
  returns->wake.data = returns;
  uv_poll_start(&returns->wake, UV_READABLE, on_wake);
  return 0;
}

void job_return(struct job_returns *returns, struct job *job) {
  struct job *newest = atomic_load(&returns->newest);
  do
    job->next = newest;
  while (!atomic_compare_exchange_weak(&returns->newest, &newest, job));
  eventfd_write(returns->fd, 1);
}

void job_returns_close(struct job_returns *returns) { uv_close((uv_handle_t *)&returns->wake, NULL); }

void job_returns_finish(struct job_returns *returns) {
  if (!returns->wake.data)
    return;
  if (!uv_is_closing((uv_handle_t *)&returns->wake)) {
    job_returns_close(returns);
    uv_run(returns->wake.loop, UV_RUN_DEFAULT);
  }
  close(returns->fd);
}

/* --- pools -------------------------------------------------------------------------------------------------------- */

struct pool_thread {
  struct job_pool *pool;
  void (*begin)(void);
  void *worker;
};

static void *pool_main(void *argument) {
  struct pool_thread thread = *(struct pool_thread *)argument;
  free(argument);
  if (thread.begin)
    thread.begin();
  for (struct job *job; (job = job_queue_take(&thread.pool->queue, thread.worker)) != NULL;) {
    job->run(job, thread.worker);
    job_return(thread.pool->returns, job);
    sched_yield(); /* to a thread that woke up while this one's slice protected it; else it would wait for a tick */
  }
  return NULL;
}

static int start_thread(struct job_pool *pool, void (*begin)(void), void *worker, struct error *error) {
  struct pool_thread *thread = malloc(sizeof *thread);
  if (!thread)
    return error_set(error, ERR_MEMORY, "out of memory for a thread");
  *thread = (struct pool_thread){.pool = pool, .begin = begin, .worker = worker};
  int status = pthread_create(&pool->threads[pool->thread_count], NULL, pool_main, thread);
  if (status) {
    free(thread);
    return error_set_errno(error, status, "cannot start a thread");
  }
  pool->thread_count++;
  return 0;
}

int job_pool_start(struct job_pool *pool, unsigned threads, void (*begin)(void), void **workers,
                   struct job_returns *returns, struct error *error) {
  memset(pool, 0, sizeof *pool);
  pool->returns = returns;
  int result = job_queue_init(&pool->queue, error);
  if (result)
    return result;
  pool->threads = calloc(threads, sizeof *pool->threads);
  if (!pool->threads) {
    job_queue_finish(&pool->queue);
    return error_set(error, ERR_MEMORY, "out of memory for %u threads", threads);
  }
  for (unsigned i = 0; i < threads && !result; i++)
    result = start_thread(pool, begin, workers ? workers[i] : NULL, error);
  if (result)
    job_pool_stop(pool);
  return result;
}

void job_pool_put(struct job_pool *pool, struct job *job) { job_queue_put(&pool->queue, job); }

void job_pool_share(struct job_pool *pool, uint32_t tasks, void (*task)(void *context, uint32_t index, void *worker),
                    void *context, void *worker) {
  struct job_queue *queue = &pool->queue;
  struct job_share share = {.task = task, .context = context, .tasks = tasks};
  if (!tasks)
    return;
  pthread_mutex_lock(&queue->lock);
  queue->shared = tasks;
  share.next = queue->shares;
  queue->shares = &share;
  queue->posted++;
  uint32_t wake = tasks - 1 > queue->spinners ? tasks - 1 - queue->spinners : 0;
  wake = wake < queue->sleepers ? wake : queue->sleepers;
  for (; share.begun < share.tasks; wake = 0) /* task 0 is always this thread's */
    run_task(queue, &share, wake, worker);
  if (share.ended < share.tasks) {
    pthread_mutex_unlock(&queue->lock);
    for (uint32_t i = 0; i < SHARE_SPINS && share.ended < share.tasks; i++)
      job_pause();
    pthread_mutex_lock(&queue->lock);
  }
  while (share.ended < share.tasks)
    pthread_cond_wait(&queue->share_ended, &queue->lock);
  pthread_mutex_unlock(&queue->lock);
}

void job_pool_set_spin(struct job_pool *pool, uint64_t spin_us) {
  pthread_mutex_lock(&pool->queue.lock);
  pool->queue.spin_ns = spin_us * 1000;
  pool->queue.shared = 1;
  pool->queue.spinners_max = pool->thread_count / 2 + 1;
  pthread_mutex_unlock(&pool->queue.lock);
}

void job_pool_stop(struct job_pool *pool) {
  if (!pool->threads)
    return;
  job_queue_stop(&pool->queue);
  for (unsigned i = 0; i < pool->thread_count; i++)
    pthread_join(pool->threads[i], NULL);
  free(pool->threads);
  pool->threads = NULL;
  job_queue_finish(&pool->queue);
}
