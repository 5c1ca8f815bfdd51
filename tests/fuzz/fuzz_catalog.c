// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// Entries of the catalog, put there byte by byte. What is read without an error must come out the same when it is
// written by the catalog's own functions and read again.
//
// Input: database (1 byte), flags (1 byte), length of the key (1 byte), key, value. Flags: 1 adds the CRC.
#include "tests/fuzz/fuzz.h"

#include <stdlib.h>

#include "proto/crc32c.h"
#include "store/catalog.h"
#include "tests/fuzz/fuzz_store.h"

enum { ADD_CRC = 1, VALUE_BYTES_MAX = 1 << 16 };

static struct catalog catalog;

static void require_error(int result, const struct error *error) {
  FUZZ_REQUIRE(result == 0 || result == CATALOG_NONE || (result == -error->code && error->text[0]));
}

static bool same(struct span a, struct span b) {
  return a.size == b.size && (!a.size || memcmp(a.data, b.data, a.size) == 0);
}

static void check_model(MDB_txn *txn, const uint8_t *id) {
  struct model_entry *entry = malloc(sizeof *entry), *again = malloc(sizeof *again);
  struct error error = {0};
  FUZZ_REQUIRE(entry && again);
  int result = catalog_next_model(&catalog, txn, NULL, entry, &error);
  require_error(result, &error);
  require_error(catalog_get_model(&catalog, txn, id, again, &error), &error);
  if (!result) {
    const struct msg_model *a = &entry->message, *b = &again->message;
    FUZZ_REQUIRE(catalog_put_model(&catalog, txn, a, &error) == 0);
    FUZZ_REQUIRE(catalog_get_model(&catalog, txn, entry->id, again, &error) == 0);
    FUZZ_REQUIRE(same(a->id, b->id) && same(a->name, b->name) && same(a->basis, b->basis) &&
                 same(a->fingerprint, b->fingerprint) && geometry_equal(&a->geometry, &b->geometry));
    FUZZ_REQUIRE(a->uid == b->uid && a->seed == b->seed && a->codec == b->codec && a->tokens == b->tokens &&
                 a->created_s == b->created_s);
  }
  free(entry);
  free(again);
}

static void check_conversation(MDB_txn *txn, const uint8_t *id) {
  struct conversation_entry entry, again;
  struct error error = {0};
  int result = catalog_next_conversation(&catalog, txn, NULL, &entry, &error);
  require_error(result, &error);
  require_error(catalog_get_conversation(&catalog, txn, id, &again, &error), &error);
  if (result)
    return;
  const struct msg_conversation *a = &entry.message, *b = &again.message;
  FUZZ_REQUIRE(!a->extents.count && !entry.extents);
  FUZZ_REQUIRE(catalog_put_conversation(&catalog, txn, a, &error) == 0);
  FUZZ_REQUIRE(catalog_get_conversation(&catalog, txn, a->id.data, &again, &error) == 0);
  FUZZ_REQUIRE(same(a->id, b->id) && same(a->name, b->name) && same(a->model, b->model) &&
               same(a->model_name, b->model_name));
  FUZZ_REQUIRE(a->uid == b->uid && a->tokens == b->tokens && a->durable == b->durable && a->ahead == b->ahead &&
               a->bytes == b->bytes && a->created_s == b->created_s && a->used_s == b->used_s);
}

static void check_segment(MDB_txn *txn, const uint8_t *id) {
  struct catalog_segment entry, again;
  struct error error = {0};
  int result = catalog_next_segment(&catalog, txn, NULL, &entry, &error);
  require_error(result, &error);
  require_error(catalog_get_segment(&catalog, txn, id, &again, &error), &error);
  if (result)
    return;
  FUZZ_REQUIRE(catalog_put_segment(&catalog, txn, &entry, &error) == 0);
  FUZZ_REQUIRE(catalog_get_segment(&catalog, txn, entry.id, &again, &error) == 0);
  FUZZ_REQUIRE(memcmp(entry.id, again.id, LIMIT_ID_BYTES) == 0 &&
               memcmp(entry.model, again.model, LIMIT_ID_BYTES) == 0 &&
               memcmp(entry.conversation, again.conversation, LIMIT_ID_BYTES) == 0);
  FUZZ_REQUIRE(entry.first == again.first && entry.count == again.count && entry.users == again.users);
}

static void check_name(MDB_txn *txn, const uint8_t *key, size_t size) {
  char name[LIMIT_NAME_BYTES_MAX + 1], own[LIMIT_NAME_BYTES_MAX + 1] = "";
  uint8_t id[LIMIT_ID_BYTES], again[LIMIT_ID_BYTES];
  struct error error = {0};
  uint32_t uid = size < 4 ? 0 : (uint32_t)key[0] << 24 | (uint32_t)key[1] << 16 | (uint32_t)key[2] << 8 | key[3];
  if (size > 4 && size - 4 <= LIMIT_NAME_BYTES_MAX)
    memcpy(own, key + 4, size - 4);
  int result = catalog_next_name(&catalog, txn, uid, "", name, id, &error);
  require_error(result, &error);
  require_error(catalog_get_name(&catalog, txn, uid, own, again, &error), &error);
  if (result)
    return;
  FUZZ_REQUIRE(strnlen(name, sizeof name) < sizeof name);
  FUZZ_REQUIRE(catalog_put_name(&catalog, txn, uid, name, id, &error) == 0);
  FUZZ_REQUIRE(catalog_get_name(&catalog, txn, uid, name, again, &error) == 0);
  FUZZ_REQUIRE(memcmp(id, again, sizeof id) == 0);
}

static void check_state(MDB_txn *txn) {
  struct error error = {0};
  bool clean = false;
  require_error(catalog_get_clean(&catalog, txn, &clean, &error), &error);
}

static void put(MDB_txn *txn, MDB_dbi db, struct fuzz_input key, struct fuzz_input value, unsigned flags) {
  uint8_t bytes[VALUE_BYTES_MAX + 4];
  size_t size = value.size < VALUE_BYTES_MAX ? value.size : VALUE_BYTES_MAX;
  memcpy(bytes, value.data, size);
  if (flags & ADD_CRC) {
    store_u32(bytes + size, crc32c(crc32c(0, key.data, key.size), bytes, size));
    size += 4;
  }
  MDB_val k = {.mv_size = key.size, .mv_data = (void *)(uintptr_t)key.data}, v = {.mv_size = size, .mv_data = bytes};
  FUZZ_REQUIRE(mdb_put(txn, db, &k, &v, 0) == 0);
}

static void open_catalog(void) {
  struct error error = {0};
  if (!catalog.env &&
      catalog_open(&catalog, fuzz_directory(), 64 << 20, CATALOG_WRITE, &error))
    fuzz_fail(__FILE__, __LINE__, error.text);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  struct fuzz_input input = {data, size};
  unsigned database = (unsigned)fuzz_take(&input, 1) % 5, flags = (unsigned)fuzz_take(&input, 1);
  struct fuzz_input key = fuzz_take_bytes(&input, fuzz_take(&input, 1));
  MDB_txn *txn;
  struct error error = {0};
  open_catalog();
  if (!key.size)
    return 0;
  const MDB_dbi dbs[5] = {catalog.models, catalog.names, catalog.conversations, catalog.segments, catalog.state};
  uint8_t id[LIMIT_ID_BYTES] = {0};
  memcpy(id, key.data, key.size < sizeof id ? key.size : sizeof id);
  FUZZ_REQUIRE(catalog_begin(&catalog, true, &txn, &error) == 0);
  put(txn, dbs[database], key, input, flags);
  if (database == 0)
    check_model(txn, id);
  else if (database == 1)
    check_name(txn, key.data, key.size);
  else if (database == 2)
    check_conversation(txn, id);
  else if (database == 3)
    check_segment(txn, id);
  else
    check_state(txn);
  catalog_abort(txn);
  return 0;
}

/* --- seeds -------------------------------------------------------------------------------------------------------- */

/* What the catalog's own function just put into a database. */
static void seed(MDB_txn *txn, MDB_dbi db, unsigned database, const char *name) {
  MDB_cursor *cursor;
  MDB_val key, value;
  struct fuzz_output output = {0};
  FUZZ_REQUIRE(mdb_cursor_open(txn, db, &cursor) == 0 && mdb_cursor_get(cursor, &key, &value, MDB_FIRST) == 0);
  fuzz_put_number(&output, database, 1);
  fuzz_put_number(&output, ADD_CRC, 1);
  fuzz_put_number(&output, key.mv_size, 1);
  fuzz_put(&output, key.mv_data, key.mv_size);
  fuzz_put(&output, value.mv_data, value.mv_size - 4);
  mdb_cursor_close(cursor);
  fuzz_put_done(&output, name);
}

void fuzz_seeds(void) {
  static const uint8_t id[LIMIT_ID_BYTES] = "0123456789abcdef";
  MDB_txn *txn;
  struct error error = {0};
  struct msg_model model;
  struct msg_conversation conversation = {.name = span_str("diary"), .id = span_of(id, sizeof id),
                                          .model = span_of(id, sizeof id), .model_name = span_str("tiny"),
                                          .uid = FUZZ_UID, .tokens = 9, .durable = 8, .ahead = 2, .bytes = 1000};
  struct catalog_segment segment = {.first = 4096, .count = 4096, .users = 1};
  open_catalog();
  fuzz_model_message(&model, 3);
  model.id = span_of(id, sizeof id);
  FUZZ_REQUIRE(catalog_begin(&catalog, true, &txn, &error) == 0);
  FUZZ_REQUIRE(catalog_put_model(&catalog, txn, &model, &error) == 0);
  FUZZ_REQUIRE(catalog_put_conversation(&catalog, txn, &conversation, &error) == 0);
  FUZZ_REQUIRE(catalog_put_segment(&catalog, txn, &segment, &error) == 0);
  FUZZ_REQUIRE(catalog_put_name(&catalog, txn, FUZZ_UID, "diary", id, &error) == 0);
  FUZZ_REQUIRE(catalog_set_clean(&catalog, txn, true, &error) == 0);
  seed(txn, catalog.models, 0, "model");
  seed(txn, catalog.names, 1, "name");
  seed(txn, catalog.conversations, 2, "conversation");
  seed(txn, catalog.segments, 3, "segment");
  seed(txn, catalog.state, 4, "state");
  catalog_abort(txn);
}
