// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// Values of the catalog with their CRC, and LMDB's errors as ours.
#ifndef COLDKV_STORE_CATALOG_VALUE_H
#define COLDKV_STORE_CATALOG_VALUE_H

#include <lmdb.h>

#include "proto/bytes.h"
#include "proto/error.h"

/* Turns what an mdb_ function returned into an error; "<what>: <reason>". */
int catalog_fault(struct error *error, int mdb_error, const char *what);

/* Checks the CRC at the end of a value; *body is what precedes it and lives as long as the transaction. */
int catalog_value_check(const MDB_val *key, const MDB_val *value, const char *database, struct span *body,
                        struct error *error);

int catalog_value_put(MDB_txn *txn, MDB_dbi db, const MDB_val *key, const void *body, size_t size,
                      struct error *error);

/* Finds the entry with the smallest key after `from` (which may be empty): 0, CATALOG_NONE or negative. */
int catalog_after(MDB_txn *txn, MDB_dbi db, const MDB_val *from, MDB_val *key, MDB_val *value, struct error *error);

#endif
