// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
#include "tools/bench/direct.h"

#ifdef COLDKV_IO_URING
#include <liburing.h>
#include <stdlib.h>

#include "tools/bench/measure.h"

/* Keeps DIRECT_DEPTH reads under way; each has the buffer of its slot. Returns 0 or a negative errno. */
static int read_all(struct io_uring *ring, uint8_t *buffers, const struct direct_page *pages, uint32_t count) {
  uint32_t next = 0, pending = 0, slots[DIRECT_DEPTH], free_count = DIRECT_DEPTH;
  for (uint32_t i = 0; i < DIRECT_DEPTH; i++)
    slots[i] = i;
  while (next < count || pending) {
    for (; next < count && free_count; next++, pending++) {
      struct io_uring_sqe *entry = io_uring_get_sqe(ring);
      uint32_t slot = slots[--free_count];
      io_uring_prep_read(entry, pages[next].fd, buffers + (size_t)slot * DIRECT_PAGE_BYTES, DIRECT_PAGE_BYTES,
                         (__u64)pages[next].offset);
      io_uring_sqe_set_data64(entry, slot);
    }
    int result = io_uring_submit_and_wait(ring, 1);
    if (result < 0)
      return result;
    struct io_uring_cqe *done;
    while (io_uring_peek_cqe(ring, &done) == 0) {
      if (done->res != DIRECT_PAGE_BYTES)
        return done->res < 0 ? done->res : -EIO;
      slots[free_count++] = (uint32_t)io_uring_cqe_get_data64(done);
      pending--;
      io_uring_cqe_seen(ring, done);
    }
  }
  return 0;
}

int direct_read(const struct direct_page *pages, uint32_t count, double *seconds, struct error *error) {
  struct io_uring ring;
  uint8_t *buffers = aligned_alloc(DIRECT_PAGE_BYTES, (size_t)DIRECT_DEPTH * DIRECT_PAGE_BYTES);
  if (!buffers)
    return error_set(error, ERR_MEMORY, "no memory for direct reads");
  int result = io_uring_queue_init(DIRECT_DEPTH, &ring, 0);
  if (result) {
    free(buffers);
    return error_set(error, ERR_NOT_SUPPORTED, "this machine gives no io_uring");
  }
  double start = now_s();
  result = read_all(&ring, buffers, pages, count);
  *seconds = now_s() - start;
  io_uring_queue_exit(&ring);
  free(buffers);
  return result ? error_set_errno(error, -result, "direct reads failed") : 0;
}
#else
int direct_read(const struct direct_page *pages, uint32_t count, double *seconds, struct error *error) {
  (void)pages, (void)count, (void)seconds;
  return error_set(error, ERR_NOT_SUPPORTED, "built without io_uring");
}
#endif
