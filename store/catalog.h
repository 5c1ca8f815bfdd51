// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// The catalog: an LMDB environment that indexes an archive. Files are the truth; whatever is in here can be made again
// from them. Every value ends in a CRC-32C of its key and itself, since LMDB has no checksums. FORMAT.md defines keys
// and values.
//
// Transactions are short: they begin and end within one call of the archive's interface.
#ifndef COLDKV_STORE_CATALOG_H
#define COLDKV_STORE_CATALOG_H

#include <lmdb.h>
#include <pthread.h>

#include "store/archive.h"

#define CATALOG_DATA_NAME "data.mdb"
#define CATALOG_MAP_BYTES_DEFAULT (UINT64_C(16) << 30)
#define CATALOG_MAP_BYTES_MAX (UINT64_C(1) << 40)

struct catalog {
  MDB_env *env;
  MDB_dbi models, names, conversations, segments, state;
  uint64_t map_bytes_max;  /* the map grows up to here */
  pthread_rwlock_t in_use; /* read: a transaction lives; written: the map is being changed */
};

/* What the catalog knows of a segment. */
struct catalog_segment {
  uint8_t id[LIMIT_ID_BYTES], model[LIMIT_ID_BYTES], conversation[LIMIT_ID_BYTES];
  uint64_t first;
  uint32_t count;
  uint32_t users; /* conversations that consist of it, in part or whole */
};

/* A model without its means; spans of `message` point into the entry. */
struct model_entry {
  struct msg_model message;
  uint8_t id[LIMIT_ID_BYTES], fingerprint[LIMIT_FINGERPRINT_BYTES];
  char name[LIMIT_NAME_BYTES_MAX + 1], basis[LIMIT_NAME_BYTES_MAX + 1];
  uint8_t rope_freqs[8 * (LIMIT_HEAD_DIM_MAX / 2)];
};

enum catalog_mode {
  CATALOG_READ,     /* the environment in directory `path`, which must exist; changes nothing */
  CATALOG_WRITE,    /* the same, made if need be */
  CATALOG_NEW_FILE, /* a new one in the file `path`, without a lock file */
};
int catalog_open(struct catalog *catalog, const char *path, uint64_t map_bytes, enum catalog_mode mode,
                 struct error *error);
void catalog_close(struct catalog *catalog);

/* A transaction that writes finds room: the map grows before it is full. Any thread; one transaction per thread. */
int catalog_begin(struct catalog *catalog, bool write, MDB_txn **txn, struct error *error);
int catalog_commit(MDB_txn *txn, struct error *error);
void catalog_abort(MDB_txn *txn);

/* Doubles the map after ERR_NO_SPACE, so that the transaction, which must have ended, can be tried again. False when it
 * is as large as it may be. */
bool catalog_grow(struct catalog *catalog);

/* Getters return 0, CATALOG_NONE, or negative (ERR_CORRUPT when the CRC is wrong). The next ones take the smallest key
 * after the one given (NULL, or "" for a name: from the beginning). */
enum { CATALOG_NONE = 1 };
int catalog_get_model(struct catalog *catalog, MDB_txn *txn, const uint8_t *id, struct model_entry *entry,
                      struct error *error);
int catalog_next_model(struct catalog *catalog, MDB_txn *txn, const uint8_t *after, struct model_entry *entry,
                       struct error *error);
int catalog_get_name(struct catalog *catalog, MDB_txn *txn, uint32_t uid, const char *name,
                     uint8_t id[LIMIT_ID_BYTES], struct error *error);
int catalog_next_name(struct catalog *catalog, MDB_txn *txn, uint32_t uid, const char *after,
                      char name[LIMIT_NAME_BYTES_MAX + 1], uint8_t id[LIMIT_ID_BYTES], struct error *error);
int catalog_get_conversation(struct catalog *catalog, MDB_txn *txn, const uint8_t *id,
                             struct conversation_entry *entry, struct error *error);
int catalog_next_conversation(struct catalog *catalog, MDB_txn *txn, const uint8_t *after,
                              struct conversation_entry *entry, struct error *error);
int catalog_get_segment(struct catalog *catalog, MDB_txn *txn, const uint8_t *id, struct catalog_segment *segment,
                        struct error *error);
int catalog_next_segment(struct catalog *catalog, MDB_txn *txn, const uint8_t *after, struct catalog_segment *segment,
                         struct error *error);

int catalog_put_model(struct catalog *catalog, MDB_txn *txn, const struct msg_model *model, struct error *error);
/* Not the name, see catalog_put_name. Extents and `open` are left out. */
int catalog_put_conversation(struct catalog *catalog, MDB_txn *txn, const struct msg_conversation *conversation,
                             struct error *error);
int catalog_put_name(struct catalog *catalog, MDB_txn *txn, uint32_t uid, const char *name, const uint8_t *id,
                     struct error *error);
int catalog_put_segment(struct catalog *catalog, MDB_txn *txn, const struct catalog_segment *segment,
                        struct error *error);
int catalog_delete(struct catalog *catalog, MDB_txn *txn, MDB_dbi db, const uint8_t *id, struct error *error);
int catalog_delete_name(struct catalog *catalog, MDB_txn *txn, uint32_t uid, const char *name, struct error *error);
int catalog_clear(MDB_txn *txn, MDB_dbi db, struct error *error);

/* The mark of a clean shutdown: the catalog agrees with the files. */
int catalog_get_clean(struct catalog *catalog, MDB_txn *txn, bool *clean, struct error *error);
int catalog_set_clean(struct catalog *catalog, MDB_txn *txn, bool clean, struct error *error);

/* Reads every entry and checks that they fit together: names and conversations, conversations and models. May crash
 * when LMDB's pages are rotten: see catalog_check. */
int catalog_walk(struct catalog *catalog, struct error *error);

/* Writes every entry, its CRC checked, to a new environment in the file `path`, complete and synced. Pages of the old
 * one that hold rot where only a writer looks (page headers, the list of free pages) do not get there. */
int catalog_copy(struct catalog *catalog, const char *path, uint64_t map_bytes, struct error *error);

#endif
