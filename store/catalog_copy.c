// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
#include "store/catalog.h"
#include "store/catalog_value.h"

/* Copies the entries of one database, which must come in order and be as many as it says. */
static int copy_entries(MDB_cursor *from, MDB_txn *txn, MDB_dbi to, size_t wanted, struct error *error) {
  MDB_val key, value;
  struct span body;
  size_t copied = 0;
  int found = mdb_cursor_get(from, &key, &value, MDB_FIRST);
  while (!found) {
    int result = catalog_value_check(&key, &value, "a database", &body, error);
    if (!result && (result = mdb_put(txn, to, &key, &value, MDB_APPEND)) != 0)
      result = catalog_fault(error, result, "cannot copy the catalog");
    if (result)
      return result;
    copied++;
    found = mdb_cursor_get(from, &key, &value, MDB_NEXT);
  }
  if (found != MDB_NOTFOUND)
    return catalog_fault(error, found, "cannot read the catalog");
  if (copied != wanted)
    return error_set(error, ERR_CORRUPT, "the catalog has lost entries: %zu of %zu are there", copied, wanted);
  return 0;
}

static int copy_database(MDB_txn *from, MDB_dbi from_db, MDB_txn *to, MDB_dbi to_db, struct error *error) {
  MDB_cursor *cursor;
  MDB_stat stat;
  int result = mdb_stat(from, from_db, &stat);
  if (!result)
    result = mdb_cursor_open(from, from_db, &cursor);
  if (result)
    return catalog_fault(error, result, "cannot read the catalog");
  result = copy_entries(cursor, to, to_db, stat.ms_entries, error);
  mdb_cursor_close(cursor);
  return result;
}

static int copy_all(struct catalog *c, struct catalog *copy, struct error *error) {
  const MDB_dbi from_dbs[] = {c->models, c->names, c->conversations, c->segments, c->state};
  const MDB_dbi to_dbs[] = {copy->models, copy->names, copy->conversations, copy->segments, copy->state};
  MDB_txn *from, *to;
  int result = catalog_begin(c, false, &from, error);
  if (result)
    return result;
  result = catalog_begin(copy, true, &to, error);
  if (result) {
    catalog_abort(from);
    return result;
  }
  for (size_t i = 0; i < sizeof from_dbs / sizeof from_dbs[0] && !result; i++)
    result = copy_database(from, from_dbs[i], to, to_dbs[i], error);
  catalog_abort(from);
  if (!result)
    return catalog_commit(to, error);
  catalog_abort(to);
  return result;
}

int catalog_copy(struct catalog *c, const char *path, uint64_t map_bytes, struct error *error) {
  struct catalog copy;
  MDB_envinfo info;
  if (mdb_env_info(c->env, &info) == 0 && 2 * info.me_mapsize > map_bytes)
    map_bytes = 2 * info.me_mapsize; /* all of it is one transaction */
  int result = catalog_open(&copy, path, map_bytes, CATALOG_NEW_FILE, error);
  if (result)
    return result;
  result = copy_all(c, &copy, error);
  catalog_close(&copy);
  return result;
}
