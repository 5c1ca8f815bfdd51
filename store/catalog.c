// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
#include "store/catalog.h"

#include <string.h>

#include "store/catalog_value.h"
#include "store/path.h"

static const char clean_key[] = "clean";

static int open_databases(struct catalog *c, MDB_txn *txn, unsigned flags) {
  const struct {
    const char *name;
    MDB_dbi *db;
  } all[] = {{"models", &c->models},
             {"names", &c->names},
             {"conversations", &c->conversations},
             {"segments", &c->segments},
             {"state", &c->state}};
  int result = 0;
  for (size_t i = 0; i < sizeof all / sizeof all[0] && !result; i++)
    result = mdb_dbi_open(txn, all[i].name, flags, all[i].db);
  return result;
}

static int open_environment(struct catalog *c, const char *path, uint64_t map_bytes, enum catalog_mode mode) {
  static const unsigned flags[] = {
      [CATALOG_READ] = MDB_RDONLY, [CATALOG_WRITE] = 0, [CATALOG_NEW_FILE] = MDB_NOSUBDIR | MDB_NOLOCK};
  bool create = mode != CATALOG_READ;
  int result = mdb_env_set_mapsize(c->env, (size_t)map_bytes);
  if (!result)
    result = mdb_env_set_maxdbs(c->env, 8);
  if (!result)
    result = mdb_env_open(c->env, path, MDB_NOTLS | flags[mode], 0600);
  MDB_txn *txn = NULL;
  if (!result)
    result = mdb_txn_begin(c->env, NULL, create ? 0 : MDB_RDONLY, &txn);
  if (result)
    return result;
  result = open_databases(c, txn, create ? MDB_CREATE : 0);
  if (!result)
    return mdb_txn_commit(txn);
  mdb_txn_abort(txn);
  return result;
}

int catalog_open(struct catalog *c, const char *path, uint64_t map_bytes, enum catalog_mode mode,
                 struct error *error) {
  *c = (struct catalog){.map_bytes_max = CATALOG_MAP_BYTES_MAX};
  int result = mdb_env_create(&c->env);
  if (!result)
    pthread_rwlock_init(&c->in_use, NULL);
  if (!result)
    mdb_env_set_userctx(c->env, c); /* from a transaction back to its catalog */
  if (!result)
    result = open_environment(c, path, map_bytes ? map_bytes : CATALOG_MAP_BYTES_DEFAULT, mode);
  if (!result)
    return 0;
  catalog_close(c);
  return catalog_fault(error, result, "cannot open the catalog");
}

void catalog_close(struct catalog *c) {
  if (c->env) {
    mdb_env_close(c->env);
    pthread_rwlock_destroy(&c->in_use);
  }
  c->env = NULL;
}

/* Pages of the file, those that are free inside of it included, take more than half of the map: far more is left than
 * any one transaction needs, but for the one that makes a whole catalog. */
static bool nearly_full(struct catalog *c, uint64_t *map_bytes) {
  MDB_envinfo info;
  MDB_stat stat;
  *map_bytes = 0;
  if (mdb_env_info(c->env, &info) || mdb_env_stat(c->env, &stat))
    return false;
  *map_bytes = info.me_mapsize;
  return (uint64_t)info.me_last_pgno * stat.ms_psize > info.me_mapsize / 2;
}

bool catalog_grow(struct catalog *c) {
  uint64_t map_bytes;
  pthread_rwlock_wrlock(&c->in_use);
  (void)nearly_full(c, &map_bytes);
  bool grown = map_bytes && 2 * map_bytes <= c->map_bytes_max && mdb_env_set_mapsize(c->env, 2 * map_bytes) == 0;
  pthread_rwlock_unlock(&c->in_use);
  return grown;
}

int catalog_begin(struct catalog *c, bool write, MDB_txn **txn, struct error *error) {
  uint64_t map_bytes;
  if (write && nearly_full(c, &map_bytes))
    (void)catalog_grow(c); /* else what does not fit will be refused */
  pthread_rwlock_rdlock(&c->in_use);
  int result = mdb_txn_begin(c->env, NULL, write ? 0 : MDB_RDONLY, txn);
  if (!result)
    return 0;
  pthread_rwlock_unlock(&c->in_use);
  return catalog_fault(error, result, "cannot begin a transaction of the catalog");
}

static void end_use(MDB_env *env) {
  struct catalog *c = mdb_env_get_userctx(env);
  pthread_rwlock_unlock(&c->in_use);
}

int catalog_commit(MDB_txn *txn, struct error *error) {
  MDB_env *env = mdb_txn_env(txn);
  int result = mdb_txn_commit(txn);
  end_use(env);
  return result ? catalog_fault(error, result, "cannot commit to the catalog") : 0;
}

void catalog_abort(MDB_txn *txn) {
  MDB_env *env = mdb_txn_env(txn);
  mdb_txn_abort(txn);
  end_use(env);
}

int catalog_delete(struct catalog *c, MDB_txn *txn, MDB_dbi db, const uint8_t *id, struct error *error) {
  (void)c;
  MDB_val key = {.mv_size = LIMIT_ID_BYTES, .mv_data = (void *)(uintptr_t)id};
  int result = mdb_del(txn, db, &key, NULL);
  return result && result != MDB_NOTFOUND ? catalog_fault(error, result, "cannot delete from the catalog") : 0;
}

int catalog_clear(MDB_txn *txn, MDB_dbi db, struct error *error) {
  int result = mdb_drop(txn, db, 0);
  return result ? catalog_fault(error, result, "cannot clear the catalog") : 0;
}

/* --- names: uid (u32, big endian) and name -> conversation id --------------------------------------------------- */

struct name_key {
  uint8_t bytes[4 + LIMIT_NAME_BYTES_MAX];
  MDB_val key;
};

static void name_key_set(struct name_key *key, uint32_t uid, const char *name) {
  size_t size = strnlen(name, LIMIT_NAME_BYTES_MAX);
  for (int i = 0; i < 4; i++)
    key->bytes[i] = (uint8_t)(uid >> (24 - 8 * i));
  memcpy(key->bytes + 4, name, size);
  key->key = (MDB_val){.mv_size = 4 + size, .mv_data = key->bytes};
}

static int name_value(const MDB_val *key, const MDB_val *value, uint8_t *id, struct error *error) {
  struct span body;
  int result = catalog_value_check(key, value, "names", &body, error);
  if (!result && body.size != LIMIT_ID_BYTES)
    result = error_set(error, ERR_CORRUPT, "catalog: a name without an id; restart the daemon to make the index again");
  if (!result)
    memcpy(id, body.data, LIMIT_ID_BYTES);
  return result;
}

int catalog_get_name(struct catalog *c, MDB_txn *txn, uint32_t uid, const char *name, uint8_t id[LIMIT_ID_BYTES],
                     struct error *error) {
  struct name_key key;
  MDB_val value;
  name_key_set(&key, uid, name);
  int result = mdb_get(txn, c->names, &key.key, &value);
  if (result == MDB_NOTFOUND)
    return CATALOG_NONE;
  return result ? catalog_fault(error, result, "cannot read the catalog") : name_value(&key.key, &value, id, error);
}

int catalog_next_name(struct catalog *c, MDB_txn *txn, uint32_t uid, const char *after,
                      char name[LIMIT_NAME_BYTES_MAX + 1], uint8_t id[LIMIT_ID_BYTES], struct error *error) {
  struct name_key from;
  MDB_val key, value;
  name_key_set(&from, uid, after);
  int result = catalog_after(txn, c->names, &from.key, &key, &value, error);
  if (result)
    return result;
  if (key.mv_size <= 4 || key.mv_size > sizeof from.bytes || memcmp(key.mv_data, from.bytes, 4) != 0)
    return CATALOG_NONE;
  memcpy(name, (const uint8_t *)key.mv_data + 4, key.mv_size - 4);
  name[key.mv_size - 4] = 0;
  return name_value(&key, &value, id, error);
}

int catalog_put_name(struct catalog *c, MDB_txn *txn, uint32_t uid, const char *name, const uint8_t *id,
                     struct error *error) {
  struct name_key key;
  name_key_set(&key, uid, name);
  return catalog_value_put(txn, c->names, &key.key, id, LIMIT_ID_BYTES, error);
}

int catalog_delete_name(struct catalog *c, MDB_txn *txn, uint32_t uid, const char *name, struct error *error) {
  struct name_key key;
  name_key_set(&key, uid, name);
  int result = mdb_del(txn, c->names, &key.key, NULL);
  return result && result != MDB_NOTFOUND ? catalog_fault(error, result, "cannot delete from the catalog") : 0;
}

/* --- state ------------------------------------------------------------------------------------------------------ */

int catalog_get_clean(struct catalog *c, MDB_txn *txn, bool *clean, struct error *error) {
  MDB_val key = {.mv_size = sizeof clean_key - 1, .mv_data = (void *)(uintptr_t)clean_key}, value;
  struct span body;
  int result = mdb_get(txn, c->state, &key, &value);
  *clean = result == 0;
  if (result)
    return result == MDB_NOTFOUND ? 0 : catalog_fault(error, result, "cannot read the catalog");
  return catalog_value_check(&key, &value, "state", &body, error);
}

int catalog_set_clean(struct catalog *c, MDB_txn *txn, bool clean, struct error *error) {
  MDB_val key = {.mv_size = sizeof clean_key - 1, .mv_data = (void *)(uintptr_t)clean_key};
  if (clean)
    return catalog_value_put(txn, c->state, &key, "1", 1, error);
  int result = mdb_del(txn, c->state, &key, NULL);
  return result && result != MDB_NOTFOUND ? catalog_fault(error, result, "cannot change the catalog") : 0;
}

/* --- all of it -------------------------------------------------------------------------------------------------- */

static int walk_names(struct catalog *c, MDB_txn *txn, struct error *error) {
  struct name_key first;
  MDB_val key, value, from;
  name_key_set(&first, 0, "");
  from = first.key;
  int result;
  while ((result = catalog_after(txn, c->names, &from, &key, &value, error)) == 0) {
    struct conversation_entry entry;
    uint8_t id[LIMIT_ID_BYTES];
    result = name_value(&key, &value, id, error);
    if (!result)
      result = catalog_get_conversation(c, txn, id, &entry, error);
    if (result == CATALOG_NONE)
      return error_set(error, ERR_CORRUPT, "catalog: a name of a conversation that is not there");
    if (result)
      return result;
    from = key;
  }
  return result < 0 ? result : 0;
}

static int walk_conversations(struct catalog *c, MDB_txn *txn, struct error *error) {
  struct conversation_entry entry;
  uint8_t after[LIMIT_ID_BYTES];
  int result = catalog_next_conversation(c, txn, NULL, &entry, error);
  while (result == 0) {
    memcpy(after, entry.id, sizeof after);
    result = catalog_next_conversation(c, txn, after, &entry, error);
  }
  return result < 0 ? result : 0;
}

static int walk_models(struct catalog *c, MDB_txn *txn, struct error *error) {
  struct model_entry entry;
  uint8_t after[LIMIT_ID_BYTES];
  int result = catalog_next_model(c, txn, NULL, &entry, error);
  while (result == 0) {
    memcpy(after, entry.id, sizeof after);
    result = catalog_next_model(c, txn, after, &entry, error);
  }
  return result < 0 ? result : 0;
}

static int walk_segments(struct catalog *c, MDB_txn *txn, struct error *error) {
  struct catalog_segment segment;
  uint8_t after[LIMIT_ID_BYTES];
  int result = catalog_next_segment(c, txn, NULL, &segment, error);
  while (result == 0) {
    memcpy(after, segment.id, sizeof after);
    result = catalog_next_segment(c, txn, after, &segment, error);
  }
  return result < 0 ? result : 0;
}

int catalog_walk(struct catalog *c, struct error *error) {
  MDB_txn *txn;
  int result = catalog_begin(c, false, &txn, error);
  if (result)
    return result;
  result = walk_models(c, txn, error);
  if (!result)
    result = walk_conversations(c, txn, error);
  if (!result)
    result = walk_segments(c, txn, error);
  if (!result)
    result = walk_names(c, txn, error);
  bool clean;
  if (!result)
    result = catalog_get_clean(c, txn, &clean, error);
  catalog_abort(txn);
  return result;
}
