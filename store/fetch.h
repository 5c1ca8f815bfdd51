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

/* Notes that `size` bytes at `address`, inside the columns that view_columns gave for this part, will be read. What
 * is in memory for sure (tails) is passed over. Ask in ascending order of address: pages are told apart by that. The
 * view must stay until fetch_run. */
void fetch_want(struct fetch *fetch, const struct view *view, uint32_t part, const void *address, size_t size);

/* Reads what was noted and is not in memory, and returns when it is there; the list is empty then. A page that cannot
 * be read is left to the page fault. Returns how many pages were read. */
uint32_t fetch_run(struct fetch *fetch);

#endif
