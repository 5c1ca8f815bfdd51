// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
#include "store/fetch.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#ifdef COLDKV_IO_URING
#include <liburing.h>
#endif

#include "store/internal.h"

enum {
  PAGES_MAX = 4096, /* noted at a time; when they are more, what is there goes out first */
  RING_ENTRIES = 256,
  RUN_MAX = 256, /* pages that the kernel is asked about at a time */
  PAGE_BYTES = SEGMENT_PAGE_BYTES,
};

struct page {
  const struct segment *segment;
  const uint8_t *address;
};

struct fetch {
  enum fetch_method method;
  uint32_t count;
  uint32_t read; /* by runs that a full list forced */
  struct page pages[PAGES_MAX];
#ifdef COLDKV_IO_URING
  bool ring_made;
  struct io_uring ring;
  uint8_t sink[PAGE_BYTES]; /* reads are for the page cache; nobody looks at what lands here */
#endif
};

enum fetch_method fetch_best(void) {
#ifdef COLDKV_IO_URING
  struct io_uring ring;
  if (io_uring_queue_init(1, &ring, 0) == 0) {
    io_uring_queue_exit(&ring);
    return FETCH_IO_URING;
  }
#endif
  return FETCH_ADVISE;
}

const char *fetch_method_name(enum fetch_method method) {
  return method == FETCH_IO_URING ? "io_uring" : method == FETCH_ADVISE ? "madvise" : "page faults";
}

int fetch_create(struct fetch **out, enum fetch_method method, struct error *error) {
  struct fetch *fetch = calloc(1, sizeof *fetch);
  if (!fetch)
    return error_set(error, ERR_MEMORY, "out of memory for reads of cold pages");
  fetch->method = method;
#ifdef COLDKV_IO_URING
  fetch->ring_made = method == FETCH_IO_URING && io_uring_queue_init(RING_ENTRIES, &fetch->ring, 0) == 0;
  if (method == FETCH_IO_URING && !fetch->ring_made)
    fetch->method = FETCH_ADVISE;
#else
  if (method == FETCH_IO_URING)
    fetch->method = FETCH_ADVISE;
#endif
  *out = fetch;
  return 0;
}

void fetch_destroy(struct fetch *fetch) {
  if (!fetch)
    return;
#ifdef COLDKV_IO_URING
  if (fetch->ring_made)
    io_uring_queue_exit(&fetch->ring);
#endif
  free(fetch);
}

void fetch_want(struct fetch *fetch, const struct view *view, uint32_t part, const void *address, size_t size) {
  const struct segment *segment = view_segment(view, part);
  if (!segment || fetch->method == FETCH_NONE)
    return;
  const uint8_t *end = (const uint8_t *)address + size;
  const uint8_t *page = (const uint8_t *)((uintptr_t)address & ~(uintptr_t)(PAGE_BYTES - 1));
  for (; page < end; page += PAGE_BYTES) {
    if (fetch->count && fetch->pages[fetch->count - 1].address == page)
      continue;
    if (fetch->count == PAGES_MAX)
      fetch->read += fetch_run(fetch);
    fetch->pages[fetch->count++] = (struct page){segment, page};
  }
}

/* Keeps the pages that are not in memory; those that mincore cannot tell of count as missing. It is asked once for
 * pages that lie one behind the other. */
static uint32_t keep_missing(struct page *pages, uint32_t count) {
  unsigned char resident[RUN_MAX];
  uint32_t missing = 0;
  for (uint32_t first = 0, run; first < count; first += run) {
    const uint8_t *begin = pages[first].address;
    for (run = 1; run < RUN_MAX && first + run < count; run++)
      if (pages[first + run].address != begin + (size_t)run * PAGE_BYTES)
        break;
    bool known = mincore((void *)(uintptr_t)begin, (size_t)run * PAGE_BYTES, resident) == 0;
    for (uint32_t i = 0; i < run; i++)
      if (!known || !(resident[i] & 1))
        pages[missing++] = pages[first + i];
  }
  return missing;
}

static void advise(const struct page *pages, uint32_t count) {
  for (uint32_t i = 0; i < count; i++)
    madvise((void *)(uintptr_t)pages[i].address, PAGE_BYTES, MADV_WILLNEED);
}

#ifdef COLDKV_IO_URING
static void reap(struct io_uring *ring, uint32_t *pending) {
  struct io_uring_cqe *done;
  unsigned head, seen = 0;
  io_uring_for_each_cqe(ring, head, done) seen++;
  io_uring_cq_advance(ring, seen);
  *pending -= seen;
}

/* Keeps the ring full until every page was asked for and answered. A ring that fails is not used again, and what it did
 * not read is left to page faults. */
static void read_through_ring(struct fetch *fetch, uint32_t count) {
  uint32_t next = 0, pending = 0;
  while (next < count || pending) {
    while (next < count && pending < RING_ENTRIES) {
      struct io_uring_sqe *entry = io_uring_get_sqe(&fetch->ring);
      if (!entry)
        break;
      const struct page *page = &fetch->pages[next++];
      int fd = segment_fd(page->segment);
      if (fd >= 0)
        io_uring_prep_read(entry, fd, fetch->sink, PAGE_BYTES, segment_offset(page->segment, page->address));
      else
        io_uring_prep_madvise(entry, (void *)(uintptr_t)page->address, PAGE_BYTES, MADV_WILLNEED);
      pending++;
    }
    int submitted = io_uring_submit_and_wait(&fetch->ring, 1);
    if (submitted < 0 && submitted != -EINTR && submitted != -EAGAIN && submitted != -EBUSY) {
      fetch->method = FETCH_ADVISE;
      break;
    }
    reap(&fetch->ring, &pending);
  }
}
#endif

uint32_t fetch_run(struct fetch *fetch) {
  uint32_t missing = keep_missing(fetch->pages, fetch->count), earlier = fetch->read;
  fetch->count = 0;
  fetch->read = 0;
  if (!missing)
    return earlier;
#ifdef COLDKV_IO_URING
  if (fetch->method == FETCH_IO_URING) {
    read_through_ring(fetch, missing);
    return earlier + missing;
  }
#endif
  advise(fetch->pages, missing);
  return earlier + missing;
}
