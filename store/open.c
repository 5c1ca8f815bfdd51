// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// Opening a conversation by name: finding it, making it, binding it to its model.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "store/internal.h"

static int mismatch(const struct conversation *c, const char *what, struct error *error) {
  return error_set(error, ERR_MODEL_MISMATCH,
                   "conversation '%s' belongs to a model with another %s; open it with that one, or use another name",
                   c->name, what);
}

static int check_wanted(const struct conversation *c, const struct msg_open *wanted, struct error *error) {
  const uint8_t *model = conversation_model(c);
  if (memcmp(c->fingerprint, wanted->fingerprint.data, sizeof c->fingerprint) != 0)
    return mismatch(c, "fingerprint", error);
  if (!geometry_equal(&c->geometry, &wanted->geometry))
    return mismatch(c, "geometry", error);
  if (wanted->model.size && model && memcmp(model, wanted->model.data, LIMIT_ID_BYTES) != 0)
    return mismatch(c, "calibration", error);
  return 0;
}

/* The model that a conversation is to be bound to, checked. *model stays NULL when none is asked for. */
static int find_model(struct archive *archive, uint32_t uid, const struct msg_open *wanted, struct model **model,
                      struct error *error) {
  *model = NULL;
  if (!wanted->model.size)
    return 0;
  int result = model_get(archive, uid, wanted->model.data, model, error);
  if (result)
    return result;
  const struct msg_model *message = model_description(*model);
  if (memcmp(message->fingerprint.data, wanted->fingerprint.data, LIMIT_FINGERPRINT_BYTES) == 0 &&
      geometry_equal(&message->geometry, &wanted->geometry))
    return 0;
  model_release(*model);
  *model = NULL;
  return error_set(error, ERR_MODEL_MISMATCH, "the model asked for has another fingerprint or geometry than said");
}

static void keep_identity(struct conversation *c, struct span name, struct span fingerprint,
                          const struct msg_geometry *geometry) {
  memcpy(c->name, name.data, name.size);
  memcpy(c->fingerprint, fingerprint.data, sizeof c->fingerprint);
  c->geometry = *geometry;
  if (geometry->rope_freqs.size)
    memcpy(c->rope_freqs, geometry->rope_freqs.data, geometry->rope_freqs.size);
  c->geometry.rope_freqs = span_of(c->rope_freqs, geometry->rope_freqs.size);
}

static struct conversation *allocate(struct archive *archive, const uint8_t *id, uint32_t uid, struct error *error) {
  struct conversation *c = calloc(1, sizeof *c);
  if (!c) {
    error_set(error, ERR_MEMORY, "out of memory for a conversation");
    return NULL;
  }
  c->archive = archive;
  c->refs = 1;
  c->uid = uid;
  c->log.fd = -1;
  memcpy(c->id, id, LIMIT_ID_BYTES);
  pthread_mutex_init(&c->lock, NULL);
  pthread_mutex_init(&c->seal_lock, NULL);
  return c;
}

static void hold(struct conversation *c) {
  c->next = c->archive->conversations;
  c->archive->conversations = c;
}

/* Makes the object that a meta file describes, and reads its logs. */
static int make_object(struct archive *archive, const struct meta *meta, struct conversation **out,
                       struct error *error) {
  const struct msg_meta *m = &meta->message;
  struct model *model = NULL;
  struct conversation *c = allocate(archive, m->id.data, (uint32_t)m->uid, error);
  if (!c)
    return -ERR_MEMORY;
  keep_identity(c, m->name, m->fingerprint, &m->geometry);
  c->created_s = m->created_s;
  int result = m->model.size ? model_load(archive, m->model.data, &model, error) : 0;
  atomic_store(&c->model, model);
  if (!result)
    result = conversation_recover(c, meta, error);
  if (result)
    conversation_destroy(c);
  else
    *out = c;
  return result;
}

static void note_bad_meta(struct archive *archive, uint32_t uid, const uint8_t *id, const char *name, const char *path,
                          const struct error *reason) {
  struct damage_place place = {.owned = true, .uid = uid};
  if (reason->code != ERR_CORRUPT && reason->code != ERR_VERSION && io_exists(archive->io, path))
    return; /* a failed call proves nothing */
  memcpy(place.conversation, id, sizeof place.conversation);
  snprintf(place.name, sizeof place.name, "%s", name);
  archive_damaged(archive, path, &place, false, reason->text);
}

/* The object of a conversation that is on disk. */
static int open_stored(struct archive *archive, uint32_t uid, const uint8_t *id, const char *name,
                       struct conversation **out, struct error *error) {
  struct meta meta;
  char path[PATH_BYTES];
  path_meta(path, archive->dir, id);
  struct error reason = {0};
  int result = meta_read(archive->io, path, &meta, &reason);
  if (!result && (memcmp(meta.message.id.data, id, LIMIT_ID_BYTES) != 0 || meta.message.uid != uid)) {
    result = error_set(&reason, ERR_CORRUPT, "%s is the file of another conversation", path);
    meta_finish(&meta);
  }
  if (result) {
    note_bad_meta(archive, uid, id, name, path, &reason);
    if (error)
      *error = reason;
    return result;
  }
  result = make_object(archive, &meta, out, error);
  meta_finish(&meta);
  if (!result)
    hold(*out);
  return result;
}

/* Directory, meta, directory entry, index: a crash in between leaves a directory without meta, which the next start
 * removes, or a conversation that nobody was told of. */
static int store_new(struct conversation *c, struct error *error) {
  struct archive *archive = c->archive;
  char path[PATH_BYTES], meta[PATH_BYTES], parent[PATH_BYTES];
  const uint8_t *model = conversation_model(c);
  path_conversation(path, archive->dir, c->id);
  path_meta(meta, archive->dir, c->id);
  path_join(parent, archive->dir, "conversations");
  int result = io_make_directory(archive->io, path, error);
  if (!result)
    result = conversation_write_meta(c, NULL, 0, model, error);
  if (!result)
    result = archive_sync_directory(archive, parent, error);
  if (!result)
    result = conversation_publish(c, error);
  if (!result)
    result = conversation_update_catalog(c, error);
  if (result && !archive_read_only(archive)) {
    archive->io->unlink(meta);
    archive->io->rmdir(path);
  }
  if (result)
    atomic_store(&archive->catalog_stale, true);
  return result;
}

static int create(struct archive *archive, uint32_t uid, const struct msg_open *wanted, struct conversation **out,
                  struct error *error) {
  uint8_t id[LIMIT_ID_BYTES];
  struct model *model = NULL;
  int result = archive_check_writable(archive, error);
  if (!result)
    result = geometry_check(&wanted->geometry, error);
  if (!result)
    result = archive_random_id(id, error);
  if (!result)
    result = find_model(archive, uid, wanted, &model, error);
  if (result)
    return result;
  struct conversation *c = allocate(archive, id, uid, error);
  if (!c) {
    model_release(model);
    return -ERR_MEMORY;
  }
  keep_identity(c, wanted->name, wanted->fingerprint, &wanted->geometry);
  c->created_s = archive_now_s();
  c->recovered = true;
  atomic_store(&c->model, model);
  result = store_new(c, error);
  if (result) {
    conversation_destroy(c);
    return result;
  }
  hold(c);
  *out = c;
  return 0;
}

static int bind_model(struct conversation *c, const struct msg_open *wanted, struct error *error) {
  struct model *model;
  if (conversation_model(c) || conversation_damaged(c, NULL))
    return 0;
  int result = find_model(c->archive, c->uid, wanted, &model, error);
  if (result || !model)
    return result;
  result = archive_check_writable(c->archive, error);
  if (!result) {
    pthread_mutex_lock(&c->seal_lock);
    result = conversation_write_meta(c, c->extents, c->extent_count, model->file.message.id.data, error);
    pthread_mutex_unlock(&c->seal_lock);
  }
  if (result) {
    model_release(model);
    return result;
  }
  atomic_store(&c->model, model);
  return conversation_update_catalog(c, error);
}

static int find_id(struct archive *archive, uint32_t uid, const char *name, uint8_t *id, struct error *error) {
  MDB_txn *txn;
  int result = catalog_begin(&archive->catalog, false, &txn, error);
  if (result)
    return result;
  result = catalog_get_name(&archive->catalog, txn, uid, name, id, error);
  catalog_abort(txn);
  return result;
}

int conversation_open(struct archive *archive, uint32_t uid, const struct msg_open *wanted,
                      struct conversation **conversation, bool *created, struct error *error) {
  uint8_t id[LIMIT_ID_BYTES];
  char name[LIMIT_NAME_BYTES_MAX + 1] = "";
  struct conversation *c = NULL;
  *created = false;
  if (!wanted->name.size || wanted->name.size > LIMIT_NAME_BYTES_MAX)
    return error_set(error, ERR_BAD_PARAMS, "a name has 1 to %u bytes", LIMIT_NAME_BYTES_MAX);
  memcpy(name, wanted->name.data, wanted->name.size);
  int result = find_id(archive, uid, name, id, error);
  if (result < 0)
    return result;
  if (result == CATALOG_NONE && !wanted->create)
    return error_set(error, ERR_NO_CONVERSATION, "no conversation '%s'", name);
  if (result == CATALOG_NONE) {
    result = create(archive, uid, wanted, &c, error);
    *created = result == 0;
  } else if ((c = conversation_find(archive, id))) {
    c->refs++;
    result = 0;
  } else {
    result = open_stored(archive, uid, id, name, &c, error);
  }
  if (!result && !*created) {
    result = check_wanted(c, wanted, error);
    if (!result && wanted->write)
      result = conversation_check_sound(c, error);
    if (!result)
      result = bind_model(c, wanted, error);
    if (result)
      conversation_release(c);
  }
  if (!result)
    *conversation = c;
  return result;
}
