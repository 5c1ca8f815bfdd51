// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// Brings scattered pages of mapped segments into memory with reads that go out together, so that a lookup in a cold
// archive waits for the disk once and not for one page fault after another. One per thread.
#ifndef COLDKV_STORE_FETCH_H
#define COLDKV_STORE_FETCH_H

#include "store/archive.h"

struct fetch;

enum fetch_method {
  FETCH_NONE,     /* leave it to page faults: for comparison */
  FETCH_ADVISE,   /* madvise(MADV_WILLNEED) page by page: the kernel starts the reads, a fault waits for its own */
  FETCH_IO_URING, /* buffered reads through one ring */
};

/* The best method that this machine allows: io_uring may be compiled out or forbidden. */
enum fetch_method fetch_best(void);
const char *fetch_method_name(enum fetch_method method);

/* FETCH_IO_URING becomes FETCH_ADVISE when the ring cannot be made. */
int fetch_create(struct fetch **fetch, enum fetch_method method, struct error *error);
void fetch_destroy(struct fetch *fetch); /* NULL is allowed */

/* Forgets what is known of pages, and what was noted. To be called before each lookup, or what else takes moments:
 * whether a page is in memory is asked once from one call to the next. */
void fetch_begin(struct fetch *fetch);

/* Notes that `size` bytes at `address`, inside the columns that view_columns gave for this part, will be read. What
 * is in memory for sure (tails), found there, or noted before is passed over. In any order; bytes that lie near each
 * other cost least. The view must stay until fetch_run. */
void fetch_want(struct fetch *fetch, const struct view *view, uint32_t part, const void *address, size_t size);

/* Reads what was noted, and returns when it is there; the list is empty then, and the pages count as being in memory. A
 * page that cannot be read is left to the page fault. Returns how many pages were read. */
uint32_t fetch_run(struct fetch *fetch);

#endif
