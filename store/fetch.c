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
  WINDOWS = 4096,    /* remembered at a time, a power of two */
  WINDOW_PAGES = 64, /* that the kernel is asked about at a time: one for each bit of a map */
  PAGE_BYTES = SEGMENT_PAGE_BYTES,
};

struct page {
  const struct segment *segment;
  const uint8_t *address;
};

/* Pages of a segment that lie side by side. The kernel is asked about all of them with the first one, which takes about
 * as long as asking about that one. */
struct window {
  const uint8_t *address; /* of its first page */
  uint64_t generation;    /* of the fetch, when the kernel was asked */
  uint64_t missing;       /* bit i: page i was not in memory, and is not noted yet */
};

struct fetch {
  enum fetch_method method;
  uint64_t generation;
  uint32_t count;
  uint32_t read; /* by runs that a full list forced */
  struct page pages[PAGES_MAX];
  struct window windows[WINDOWS]; /* each in the one place that its address leads to */
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

void fetch_begin(struct fetch *fetch) {
  fetch->generation++;
  fetch->count = 0;
  fetch->read = 0;
}

/* Which of a window's pages are not in memory; those that mincore cannot tell of count as missing. */
static uint64_t ask(const struct window *window, const struct segment *segment) {
  unsigned char resident[WINDOW_PAGES];
  size_t left = segment_size(segment) - segment_offset(segment, window->address);
  size_t size = left < sizeof resident * PAGE_BYTES ? left : sizeof resident * PAGE_BYTES;
  uint64_t missing = 0;
  if (mincore((void *)(uintptr_t)window->address, size, resident))
    return UINT64_MAX;
  for (size_t i = 0; i < size / PAGE_BYTES; i++)
    missing |= (uint64_t)!(resident[i] & 1) << i;
  return missing;
}

/* The window with a page of that offset. Windows begin at multiples of their size from where the segment does, so that
 * none has pages of two segments. Two that share a place drive each other out, and are asked about again. */
static struct window *window_at(struct fetch *fetch, const struct segment *segment, uint64_t offset) {
  enum { BYTES = WINDOW_PAGES * PAGE_BYTES };
  const uint8_t *address = (const uint8_t *)segment_address(segment) + offset / BYTES * BYTES;
  uint64_t mixed = (uint64_t)(uintptr_t)address / PAGE_BYTES * UINT64_C(0x9e3779b97f4a7c15);
  struct window *window = &fetch->windows[(mixed >> 32) % WINDOWS];
  if (window->address != address || window->generation != fetch->generation) {
    *window = (struct window){.address = address, .generation = fetch->generation};
    window->missing = ask(window, segment);
  }
  return window;
}

void fetch_want(struct fetch *fetch, const struct view *view, uint32_t part, const void *address, size_t size) {
  const struct segment *segment = view_segment(view, part);
  if (!segment || fetch->method == FETCH_NONE)
    return;
  uint64_t offset = segment_offset(segment, address), end = offset + size;
  for (offset -= offset % PAGE_BYTES; offset < end; offset += PAGE_BYTES) {
    struct window *window = window_at(fetch, segment, offset);
    uint64_t bit = UINT64_C(1) << offset / PAGE_BYTES % WINDOW_PAGES;
    if (!(window->missing & bit))
      continue;
    window->missing &= ~bit;
    if (fetch->count == PAGES_MAX) {
      uint32_t read = fetch_run(fetch);
      fetch->read = read;
    }
    fetch->pages[fetch->count++] = (struct page){segment, (const uint8_t *)segment_address(segment) + offset};
  }
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
  uint32_t count = fetch->count, earlier = fetch->read;
  fetch->count = 0;
  fetch->read = 0;
  if (!count)
    return earlier;
#ifdef COLDKV_IO_URING
  if (fetch->method == FETCH_IO_URING) {
    read_through_ring(fetch, count);
    return earlier + count;
  }
#endif
  advise(fetch->pages, count);
  return earlier + count;
}
