// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// Entries of the catalog: models, conversations, segments, by their 16-byte ids.
#include <stdlib.h>
#include <string.h>

#include "store/catalog.h"
#include "store/catalog_value.h"
#include "store/map_file.h"

static MDB_val id_key(const uint8_t *id) {
  return (MDB_val){.mv_size = id ? LIMIT_ID_BYTES : 0, .mv_data = (void *)(uintptr_t)id};
}

/* Gets the entry of `id`, or the one after it. */
static int find(MDB_txn *txn, MDB_dbi db, const uint8_t *id, bool next, MDB_val *key, MDB_val *value,
                struct error *error) {
  MDB_val from = id_key(id);
  if (next)
    return catalog_after(txn, db, &from, key, value, error);
  *key = from;
  int result = mdb_get(txn, db, key, value);
  if (result == MDB_NOTFOUND)
    return CATALOG_NONE;
  return result ? catalog_fault(error, result, "cannot read the catalog") : 0;
}

/* Finds an entry and unpacks it as `type`; spans point into the transaction and *zone, which the caller frees. */
static int find_map(MDB_txn *txn, MDB_dbi db, const uint8_t *id, bool next, const struct message *type, void *message,
                    msgpack_zone **zone, struct error *error) {
  MDB_val key, value;
  struct span body;
  *zone = NULL;
  int result = find(txn, db, id, next, &key, &value, error);
  if (!result)
    result = catalog_value_check(&key, &value, type->name, &body, error);
  if (!result && key.mv_size != LIMIT_ID_BYTES)
    result = error_set(error, ERR_CORRUPT, "catalog: a key of %zu bytes among the %s entries", key.mv_size, type->name);
  if (result)
    return result;
  *zone = msgpack_zone_new(MSGPACK_ZONE_CHUNK_SIZE);
  if (!*zone)
    return error_set(error, ERR_MEMORY, "out of memory while reading the catalog");
  return map_unpack(body.data, body.size, type, message, *zone, "catalog", error);
}

static int put_map(MDB_txn *txn, MDB_dbi db, const uint8_t *id, const struct message *type, const void *message,
                   struct error *error) {
  msgpack_sbuffer buffer;
  msgpack_packer packer;
  MDB_val key = id_key(id);
  msgpack_sbuffer_init(&buffer);
  msgpack_packer_init(&packer, &buffer, msgpack_sbuffer_write);
  int result = message_pack(&packer, type, message)
                   ? error_set(error, ERR_MEMORY, "out of memory while writing to the catalog")
                   : catalog_value_put(txn, db, &key, buffer.data, buffer.size, error);
  msgpack_sbuffer_destroy(&buffer);
  return result;
}

/* Moves what a span points to into the entry's own memory. */
static void keep_text(struct span *span, char *text) {
  if (span->size)
    memcpy(text, span->data, span->size);
  text[span->size] = 0;
  *span = span_of(text, span->size);
}

static void keep_bytes(struct span *span, uint8_t *bytes) {
  if (!span->size)
    return;
  memcpy(bytes, span->data, span->size);
  span->data = bytes;
}

/* --- models ----------------------------------------------------------------------------------------------------- */

static int find_model(struct catalog *c, MDB_txn *txn, const uint8_t *id, bool next, struct model_entry *entry,
                      struct error *error) {
  msgpack_zone *zone;
  int result = find_map(txn, c->models, id, next, &message_model, &entry->message, &zone, error);
  if (!result && entry->message.id.size != LIMIT_ID_BYTES)
    result = error_set(error, ERR_CORRUPT, "catalog: a model without an id");
  if (!result) {
    struct msg_model *model = &entry->message;
    keep_bytes(&model->id, entry->id);
    keep_bytes(&model->fingerprint, entry->fingerprint);
    keep_bytes(&model->geometry.rope_freqs, entry->rope_freqs);
    keep_text(&model->name, entry->name);
    keep_text(&model->basis, entry->basis);
    model->mean_k = model->mean_v = span_of(NULL, 0);
  }
  if (zone)
    msgpack_zone_free(zone);
  return result;
}

int catalog_get_model(struct catalog *c, MDB_txn *txn, const uint8_t *id, struct model_entry *entry,
                      struct error *error) {
  return find_model(c, txn, id, false, entry, error);
}

int catalog_next_model(struct catalog *c, MDB_txn *txn, const uint8_t *after, struct model_entry *entry,
                       struct error *error) {
  return find_model(c, txn, after, true, entry, error);
}

int catalog_put_model(struct catalog *c, MDB_txn *txn, const struct msg_model *model, struct error *error) {
  struct msg_model brief = *model;
  brief.mean_k = brief.mean_v = span_of(NULL, 0);
  return put_map(txn, c->models, model->id.data, &message_model, &brief, error);
}

/* --- conversations ---------------------------------------------------------------------------------------------- */

static int find_conversation(struct catalog *c, MDB_txn *txn, const uint8_t *id, bool next,
                             struct conversation_entry *entry, struct error *error) {
  msgpack_zone *zone;
  entry->extents = NULL;
  entry->extent_ids = NULL;
  int result = find_map(txn, c->conversations, id, next, &message_conversation, &entry->message, &zone, error);
  if (!result) {
    struct msg_conversation *m = &entry->message;
    keep_text(&m->name, entry->name);
    keep_text(&m->model_name, entry->model_name);
    keep_bytes(&m->id, entry->id);
    keep_bytes(&m->model, entry->model);
    m->extents = (struct list){0};
  }
  if (zone)
    msgpack_zone_free(zone);
  return result;
}

int catalog_get_conversation(struct catalog *c, MDB_txn *txn, const uint8_t *id, struct conversation_entry *entry,
                             struct error *error) {
  return find_conversation(c, txn, id, false, entry, error);
}

int catalog_next_conversation(struct catalog *c, MDB_txn *txn, const uint8_t *after, struct conversation_entry *entry,
                              struct error *error) {
  return find_conversation(c, txn, after, true, entry, error);
}

int catalog_put_conversation(struct catalog *c, MDB_txn *txn, const struct msg_conversation *conversation,
                             struct error *error) {
  struct msg_conversation brief = *conversation;
  brief.extents = (struct list){0};
  brief.open = 0;
  return put_map(txn, c->conversations, conversation->id.data, &message_conversation, &brief, error);
}

/* --- segments --------------------------------------------------------------------------------------------------- */

enum { SEGMENT_VALUE_BYTES = 2 * LIMIT_ID_BYTES + 8 + 4 + 4 };

static int find_segment(struct catalog *c, MDB_txn *txn, const uint8_t *id, bool next, struct catalog_segment *segment,
                        struct error *error) {
  MDB_val key, value;
  struct span body;
  int result = find(txn, c->segments, id, next, &key, &value, error);
  if (!result)
    result = catalog_value_check(&key, &value, "segments", &body, error);
  if (result)
    return result;
  if (key.mv_size != LIMIT_ID_BYTES || body.size != SEGMENT_VALUE_BYTES)
    return error_set(error, ERR_CORRUPT, "catalog: a segment's entry of %zu bytes", body.size);
  memcpy(segment->id, key.mv_data, LIMIT_ID_BYTES);
  memcpy(segment->model, body.data, LIMIT_ID_BYTES);
  memcpy(segment->conversation, body.data + LIMIT_ID_BYTES, LIMIT_ID_BYTES);
  segment->first = load_u64(body.data + 2 * LIMIT_ID_BYTES);
  segment->count = load_u32(body.data + 2 * LIMIT_ID_BYTES + 8);
  segment->users = load_u32(body.data + 2 * LIMIT_ID_BYTES + 12);
  return 0;
}

int catalog_get_segment(struct catalog *c, MDB_txn *txn, const uint8_t *id, struct catalog_segment *segment,
                        struct error *error) {
  return find_segment(c, txn, id, false, segment, error);
}

int catalog_next_segment(struct catalog *c, MDB_txn *txn, const uint8_t *after, struct catalog_segment *segment,
                         struct error *error) {
  return find_segment(c, txn, after, true, segment, error);
}

int catalog_put_segment(struct catalog *c, MDB_txn *txn, const struct catalog_segment *segment, struct error *error) {
  uint8_t body[SEGMENT_VALUE_BYTES];
  const MDB_val key = {.mv_size = LIMIT_ID_BYTES, .mv_data = (void *)(uintptr_t)segment->id};
  memcpy(body, segment->model, LIMIT_ID_BYTES);
  memcpy(body + LIMIT_ID_BYTES, segment->conversation, LIMIT_ID_BYTES);
  store_u64(body + 2 * LIMIT_ID_BYTES, segment->first);
  store_u32(body + 2 * LIMIT_ID_BYTES + 8, segment->count);
  store_u32(body + 2 * LIMIT_ID_BYTES + 12, segment->users);
  return catalog_value_put(txn, c->segments, &key, body, sizeof body, error);
}
