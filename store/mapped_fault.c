// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
#include "store/mapped_fault.h"

#include <errno.h>
#include <signal.h>
#include <stdbool.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

/* A list under a spinlock of its own, since the handler may not wait for a mutex. Whoever holds it touches nothing that
 * could fault, so that the handler never finds it held by its own thread. */
static struct mapped_file *files;
static atomic_flag files_lock = ATOMIC_FLAG_INIT;
static _Thread_local volatile sig_atomic_t guards;
static struct sigaction before;

static void lock_files(void) {
  while (atomic_flag_test_and_set_explicit(&files_lock, memory_order_acquire))
    ;
}

static void unlock_files(void) { atomic_flag_clear_explicit(&files_lock, memory_order_release); }

void mapped_file_register(struct mapped_file *file, const uint8_t *bytes, size_t size) {
  file->bytes = bytes;
  file->size = size;
  atomic_store(&file->failed, 0);
  lock_files();
  file->next = files;
  files = file;
  unlock_files();
}

void mapped_file_forget(struct mapped_file *file) {
  lock_files();
  struct mapped_file **link = &files;
  while (*link && *link != file)
    link = &(*link)->next;
  if (*link)
    *link = file->next;
  unlock_files();
}

void mapped_guard_begin(void) {
  guards++;
  atomic_signal_fence(memory_order_seq_cst); /* no read of a mapping moves out of the guard */
}

void mapped_guard_end(void) {
  atomic_signal_fence(memory_order_seq_cst);
  guards--;
}

uint64_t mapped_file_failed(const struct mapped_file *file) {
  atomic_thread_fence(memory_order_acquire); /* after the reads that it vouches for */
  return atomic_load(&file->failed);
}

/* Marks the file that `address` lies in and puts zeros in its place; false when it is none of ours. */
static bool mend(const uint8_t *address) {
  bool mended = false;
  lock_files();
  struct mapped_file *file = files;
  while (file && (address < file->bytes || address >= file->bytes + file->size))
    file = file->next;
  if (file) {
    uint64_t none = 0;
    atomic_compare_exchange_strong(&file->failed, &none, (uint64_t)(address - file->bytes) + 1);
    /* the call itself: a sanitizer's wrapper of mmap is not made for signal handlers */
    long at = syscall(SYS_mmap, file->bytes, file->size, PROT_READ,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1, 0);
    mended = at == (long)(uintptr_t)file->bytes;
  }
  unlock_files();
  return mended;
}

/* As if this handler were not there. */
static void pass_on(int number, siginfo_t *info, void *context) {
  if (before.sa_flags & SA_SIGINFO) {
    before.sa_sigaction(number, info, context);
  } else if (before.sa_handler != SIG_DFL && before.sa_handler != SIG_IGN) {
    before.sa_handler(number);
  } else {
    signal(number, SIG_DFL);
    if (info->si_code <= 0) /* sent by a process, so that nothing is going to raise it again */
      raise(number);
  }
}

static void on_fault(int number, siginfo_t *info, void *context) {
  int reason = errno;
  if (info->si_code <= 0 || !guards || !mend(info->si_addr))
    pass_on(number, info, context);
  errno = reason;
}

void mapped_fault_install(void) {
  struct sigaction ours = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO}, current;
  sigemptyset(&ours.sa_mask);
  if (sigaction(SIGBUS, NULL, &current) || (current.sa_flags & SA_SIGINFO && current.sa_sigaction == on_fault))
    return;
  before = current;
  sigaction(SIGBUS, &ours, NULL);
}
