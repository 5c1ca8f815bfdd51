// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// Looks at a catalog in a child process, since LMDB may crash on rotten pages.
#ifndef COLDKV_STORE_CATALOG_CHECK_H
#define COLDKV_STORE_CATALOG_CHECK_H

#include "store/catalog.h"

/* Runs in the child with the catalog open for reading. What it hands to catalog_child_tell reaches the parent. */
struct catalog_child;
typedef int catalog_child_fn(void *context, struct catalog *catalog, struct catalog_child *child,
                             struct error *error);
void catalog_child_tell(struct catalog_child *child, const char *line);

/* In the parent, for each line that the child told, and now and then with NULL while it tells nothing. Nonzero: enough,
 * the child is ended. */
typedef int catalog_line_fn(void *context, const char *line);

/* Forks, opens the catalog in directory `path` for reading in the child and runs `work` there. Returns 0 when it
 * returned 0, its error when it failed, ERR_CORRUPT when it crashed or took too long. A nonzero return of `line` is
 * returned. `line` may be NULL. */
int catalog_in_child(const char *path, uint64_t map_bytes, catalog_child_fn *work, catalog_line_fn *line,
                     void *context, struct error *error);

/* Walks the whole catalog in a child and writes a copy of it to the file `copy`. ERR_CORRUPT: it has to be made
 * again. */
int catalog_check(const char *path, uint64_t map_bytes, const char *copy, struct error *error);

#endif
