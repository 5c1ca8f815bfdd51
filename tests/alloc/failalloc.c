// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// Preloaded: makes one allocation of a process fail, whoever asks for it. $COLDKV_ALLOC_CONTROL names a file of three
// 64-bit numbers that a test maps too: in how many allocations from now one fails (0: none), allocations so far,
// failures so far. Counts from the beginning of main: what shared libraries and CUDA's runtime do before, and how they
// take its failing, is not ours. Works before the C library's allocator and before AddressSanitizer's.
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define EXPORT __attribute__((visibility("default")))

struct control {
  _Atomic int64_t countdown;
  _Atomic uint64_t count, failed;
};

static struct control *control;
static struct {
  void *(*malloc)(size_t);
  void *(*calloc)(size_t, size_t);
  void *(*realloc)(void *, size_t);
  int (*posix_memalign)(void **, size_t, size_t);
  void *(*aligned_alloc)(size_t, size_t);
  void (*free)(void *);
} next;

/* What is asked for before this library is relocated and its constructor has run: AddressSanitizer's first, dlsym's,
 * other constructors'. There are no threads yet. */
static _Alignas(16) uint8_t first_bytes[1 << 20];
static size_t first_used;

static void *first_alloc(size_t size) {
  size_t at = first_used;
  first_used += (size + 15) & ~(size_t)15;
  if (first_used > sizeof first_bytes)
    abort();
  return first_bytes + at;
}

static int is_first(const void *p) {
  return (uintptr_t)p >= (uintptr_t)first_bytes && (uintptr_t)p < (uintptr_t)first_bytes + sizeof first_bytes;
}

static void *symbol(const char *name) {
  void *found = dlsym(RTLD_NEXT, name);
  if (!found)
    abort();
  return found;
}

static void look_up(void) {
  void *found[6] = {symbol("malloc"), symbol("calloc"), symbol("realloc"), symbol("posix_memalign"),
                    symbol("aligned_alloc"), symbol("free")};
  memcpy(&next, found, sizeof next);
}

static int ready(void) {
  return next.free != NULL;
}

__attribute__((constructor)) static void begin(void) {
  look_up();
  const char *path = getenv("COLDKV_ALLOC_CONTROL");
  int fd = path ? open(path, O_RDWR | O_CLOEXEC) : -1;
  void *bytes = fd >= 0 ? mmap(NULL, sizeof *control, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0) : MAP_FAILED;
  if (fd >= 0)
    close(fd);
  if (bytes != MAP_FAILED)
    control = bytes;
}

/* --- main --------------------------------------------------------------------------------------------------------- */

typedef int main_fn(int argc, char **argv, char **env);

static main_fn *program;
static int in_main;

static int counted_main(int argc, char **argv, char **env) {
  in_main = 1;
  return program(argc, argv, env);
}

typedef int start_fn(main_fn *main, int argc, char **argv, void (*init)(void), void (*fini)(void),
                     void (*rtld_fini)(void), void *stack_end);

EXPORT start_fn __libc_start_main;

/* What starts every program; the C library's is the next one. */
int __libc_start_main(main_fn *main, int argc, char **argv, void (*init)(void), void (*fini)(void),
                      void (*rtld_fini)(void), void *stack_end) {
  start_fn *start;
  void *found = symbol("__libc_start_main");
  memcpy(&start, &found, sizeof start);
  program = main;
  return start(counted_main, argc, argv, init, fini, rtld_fini, stack_end);
}

/* --- allocations -------------------------------------------------------------------------------------------------- */

static _Thread_local int spared;

static int fails(void) {
  if (!control || !in_main || spared)
    return 0;
  atomic_fetch_add(&control->count, 1);
  if (atomic_load(&control->countdown) <= 0 || atomic_fetch_sub(&control->countdown, 1) != 1)
    return 0;
  atomic_fetch_add(&control->failed, 1);
  errno = ENOMEM;
  return 1;
}

/* AddressSanitizer asks where the stack of each new thread is, and ends the process when there is no memory for the
 * answer. coldkv never asks. */
EXPORT int pthread_getattr_np(pthread_t thread, pthread_attr_t *attributes) {
  int (*ask)(pthread_t, pthread_attr_t *);
  void *found = symbol("pthread_getattr_np");
  memcpy(&ask, &found, sizeof ask);
  spared = 1;
  int error = ask(thread, attributes);
  spared = 0;
  return error;
}

EXPORT void *malloc(size_t size) {
  if (!ready())
    return first_alloc(size);
  return fails() ? NULL : next.malloc(size);
}

EXPORT void *calloc(size_t count, size_t size) {
  if (!ready())
    return first_alloc(count * size);
  return fails() ? NULL : next.calloc(count, size);
}

EXPORT void *realloc(void *old, size_t size) {
  if (old && !is_first(old))
    return !ready() || fails() ? NULL : next.realloc(old, size);
  void *made = malloc(size);
  if (made && old) {
    size_t most = (size_t)(first_bytes + sizeof first_bytes - (uint8_t *)old);
    memcpy(made, old, size < most ? size : most);
  }
  return made;
}

EXPORT void *reallocarray(void *old, size_t count, size_t size) {
  if (size && count > SIZE_MAX / size) {
    errno = ENOMEM;
    return NULL;
  }
  return realloc(old, count * size);
}

EXPORT int posix_memalign(void **out, size_t alignment, size_t size) {
  if (!ready() || fails())
    return ENOMEM;
  return next.posix_memalign(out, alignment, size);
}

EXPORT void *aligned_alloc(size_t alignment, size_t size) {
  return !ready() || fails() ? NULL : next.aligned_alloc(alignment, size);
}

EXPORT void free(void *p) {
  if (p && !is_first(p) && ready())
    next.free(p);
}

/* AddressSanitizer's would not ask malloc. */
EXPORT char *strndup(const char *text, size_t most) {
  size_t size = strnlen(text, most);
  char *copy = malloc(size + 1);
  if (copy) {
    memcpy(copy, text, size);
    copy[size] = 0;
  }
  return copy;
}

EXPORT char *strdup(const char *text) { return strndup(text, strlen(text)); }
