// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
#include "store/catalog_value.h"

#include <errno.h>
#include <string.h>

#include "proto/crc32c.h"
#include "store/catalog.h"

enum { VALUE_CRC_BYTES = 4 };

int catalog_fault(struct error *error, int mdb_error, const char *what) {
  if (mdb_error > 0) /* a system call's */
    return error_set_errno(error, mdb_error, "%s", what);
  if (mdb_error == MDB_MAP_FULL)
    return error_set(error, ERR_NO_SPACE, "%s: it is as large as its address space allows; delete conversations", what);
  return error_set(error, ERR_CORRUPT, "%s: %s; restart the daemon to make the index again", what,
                   mdb_strerror(mdb_error));
}

int catalog_value_check(const MDB_val *key, const MDB_val *value, const char *database, struct span *body,
                        struct error *error) {
  const uint8_t *bytes = value->mv_data;
  size_t size = value->mv_size - VALUE_CRC_BYTES;
  if (value->mv_size < VALUE_CRC_BYTES ||
      load_u32(bytes + size) != crc32c(crc32c(0, key->mv_data, key->mv_size), bytes, size))
    return error_set(error, ERR_CORRUPT,
                     "catalog: an entry of '%s' fails its CRC; restart the daemon to make the index again", database);
  *body = (struct span){.data = bytes, .size = size};
  return 0;
}

int catalog_value_put(MDB_txn *txn, MDB_dbi db, const MDB_val *key, const void *body, size_t size,
                      struct error *error) {
  MDB_val k = *key, value = {.mv_size = size + VALUE_CRC_BYTES, .mv_data = NULL};
  uint32_t crc = crc32c(crc32c(0, key->mv_data, key->mv_size), body, size);
  int result = mdb_put(txn, db, &k, &value, MDB_RESERVE);
  if (result)
    return catalog_fault(error, result, "cannot write to the catalog");
  memcpy(value.mv_data, body, size);
  store_u32((uint8_t *)value.mv_data + size, crc);
  return 0;
}

int catalog_after(MDB_txn *txn, MDB_dbi db, const MDB_val *from, MDB_val *key, MDB_val *value, struct error *error) {
  MDB_cursor *cursor;
  int result = mdb_cursor_open(txn, db, &cursor);
  if (result)
    return catalog_fault(error, result, "cannot read the catalog");
  *key = *from;
  result = mdb_cursor_get(cursor, key, value, from->mv_size ? MDB_SET_RANGE : MDB_FIRST);
  if (!result && key->mv_size == from->mv_size && memcmp(key->mv_data, from->mv_data, from->mv_size) == 0)
    result = mdb_cursor_get(cursor, key, value, MDB_NEXT);
  mdb_cursor_close(cursor);
  if (result == MDB_NOTFOUND)
    return CATALOG_NONE;
  return result ? catalog_fault(error, result, "cannot read the catalog") : 0;
}
