// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "store/internal.h"

static struct model *find_held(struct archive *archive, const uint8_t *id) {
  for (struct model *model = archive->models; model; model = model->next)
    if (memcmp(model->file.message.id.data, id, LIMIT_ID_BYTES) == 0) {
      model->refs++;
      return model;
    }
  return NULL;
}

int model_load(struct archive *archive, const uint8_t *id, struct model **out, struct error *error) {
  char path[PATH_BYTES];
  pthread_mutex_lock(&archive->lock);
  *out = find_held(archive, id);
  pthread_mutex_unlock(&archive->lock);
  if (*out)
    return 0;
  struct model *model = calloc(1, sizeof *model);
  if (!model)
    return error_set(error, ERR_MEMORY, "out of memory for a model");
  path_model(path, archive->dir, id);
  int result = model_read(archive->io, path, &model->file, error);
  if (!result && memcmp(model->file.message.id.data, id, LIMIT_ID_BYTES) != 0) {
    result = error_set(error, ERR_CORRUPT, "%s is the file of another model", path);
    model_file_finish(&model->file);
  }
  if (result) {
    free(model);
    if (result == -ERR_CORRUPT || result == -ERR_VERSION || !io_exists(archive->io, path))
      archive_damaged(archive, path, NULL, false, error ? error->text : error_name(-result));
    return result;
  }
  model->archive = archive;
  model->refs = 1;
  pthread_mutex_lock(&archive->lock);
  model->next = archive->models;
  archive->models = model;
  pthread_mutex_unlock(&archive->lock);
  *out = model;
  return 0;
}

struct model *model_ref(struct model *model) {
  pthread_mutex_lock(&model->archive->lock);
  model->refs++;
  pthread_mutex_unlock(&model->archive->lock);
  return model;
}

void model_release(struct model *model) {
  if (!model)
    return;
  struct archive *archive = model->archive;
  pthread_mutex_lock(&archive->lock);
  bool last = --model->refs == 0;
  if (last) {
    struct model **link = &archive->models;
    while (*link != model)
      link = &(*link)->next;
    *link = model->next;
  }
  pthread_mutex_unlock(&archive->lock);
  if (last) {
    model_file_finish(&model->file);
    free(model);
  }
}

const struct msg_model *model_description(const struct model *model) { return &model->file.message; }

int model_get(struct archive *archive, uint32_t uid, const uint8_t *id, struct model **model, struct error *error) {
  struct model_entry entry;
  MDB_txn *txn;
  int result = catalog_begin(&archive->catalog, false, &txn, error);
  if (result)
    return result;
  result = catalog_get_model(&archive->catalog, txn, id, &entry, error);
  catalog_abort(txn);
  if (result < 0)
    return result;
  if (result == CATALOG_NONE || entry.message.uid != uid) {
    char text[PATH_ID_TEXT_BYTES];
    path_id_text(id, text);
    return error_set(error, ERR_NO_MODEL, "no model %s", text);
  }
  return model_load(archive, id, model, error);
}

/* Calls `visit` for each model of any user, each in a transaction of its own. */
static int each_entry(struct archive *archive, const uint8_t *after, int (*visit)(void *, struct model_entry *),
                      void *context, struct error *error) {
  struct model_entry entry;
  uint8_t last[LIMIT_ID_BYTES];
  for (;;) {
    MDB_txn *txn;
    int result = catalog_begin(&archive->catalog, false, &txn, error);
    if (result)
      return result;
    result = catalog_next_model(&archive->catalog, txn, after, &entry, error);
    catalog_abort(txn);
    if (result)
      return result == CATALOG_NONE ? 0 : result;
    memcpy(last, entry.id, sizeof last);
    after = last;
    result = visit(context, &entry);
    if (result)
      return result;
  }
}

struct newest {
  uint32_t uid;
  const uint8_t *fingerprint;
  bool found;
  uint64_t created_s;
  uint8_t id[LIMIT_ID_BYTES];
};

static int keep_newest(void *context, struct model_entry *entry) {
  struct newest *newest = context;
  const struct msg_model *model = &entry->message;
  if (model->uid != newest->uid || memcmp(entry->fingerprint, newest->fingerprint, LIMIT_FINGERPRINT_BYTES) != 0 ||
      (newest->found && model->created_s < newest->created_s))
    return 0;
  newest->found = true;
  newest->created_s = model->created_s;
  memcpy(newest->id, entry->id, sizeof newest->id);
  return 0;
}

int model_find(struct archive *archive, uint32_t uid, const uint8_t *fingerprint, struct model **model,
               struct error *error) {
  struct newest newest = {.uid = uid, .fingerprint = fingerprint};
  int result = each_entry(archive, NULL, keep_newest, &newest, error);
  if (result)
    return result;
  if (!newest.found)
    return error_set(error, ERR_NO_MODEL, "no model of that fingerprint has been calibrated yet");
  return model_load(archive, newest.id, model, error);
}

struct each {
  uint32_t uid;
  const char *after;
  model_visit_fn *visit;
  void *context;
};

static int visit_one(void *context, struct model_entry *entry) {
  const struct each *each = context;
  char text[PATH_ID_TEXT_BYTES];
  path_id_text(entry->id, text);
  if (entry->message.uid != each->uid || strcmp(text, each->after) <= 0)
    return 0;
  return each->visit(each->context, &entry->message);
}

int model_each(struct archive *archive, uint32_t uid, const char *after, model_visit_fn *visit, void *context,
               struct error *error) {
  struct each each = {.uid = uid, .after = after ? after : "", .visit = visit, .context = context};
  uint8_t id[LIMIT_ID_BYTES];
  return each_entry(archive, path_id_parse(each.after, id) ? id : NULL, visit_one, &each, error);
}

/* Writes the file, then the index. A file without its entry is found at the next start. */
static int model_store(struct archive *archive, const struct msg_model *message, struct error *error) {
  uint8_t *data;
  size_t size;
  char path[PATH_BYTES];
  int result = map_file_pack(MODEL_MAGIC, &message_model, message, &data, &size, error);
  if (result)
    return result;
  path_model(path, archive->dir, message->id.data);
  result = archive_replace_file(archive, path, data, size, error);
  free(data);
  if (result)
    return result;
  MDB_txn *txn;
  result = catalog_begin(&archive->catalog, true, &txn, error);
  if (!result) {
    result = catalog_put_model(&archive->catalog, txn, message, error);
    if (result)
      catalog_abort(txn);
    else
      result = catalog_commit(txn, error);
  }
  if (result) {
    atomic_store(&archive->catalog_stale, true);
    archive->io->unlink(path);
  }
  return result;
}

int model_freeze(struct archive *archive, uint32_t uid, const struct msg_model *wanted, struct model **model,
                 struct error *error) {
  struct msg_model message = *wanted;
  uint8_t id[LIMIT_ID_BYTES];
  int result = model_check(wanted, error);
  if (result)
    return result;
  result = model_find(archive, uid, wanted->fingerprint.data, model, error);
  if (!result && !geometry_equal(&(*model)->file.message.geometry, &wanted->geometry)) {
    model_release(*model);
    *model = NULL;
    return error_set(error, ERR_MODEL_MISMATCH,
                     "a model of this fingerprint is frozen with another geometry; give other weights or settings "
                     "another fingerprint");
  }
  if (result != -ERR_NO_MODEL)
    return result;
  result = archive_check_writable(archive, error);
  if (!result)
    result = archive_random_id(id, error);
  if (result)
    return result;
  message.id = span_of(id, sizeof id);
  message.uid = uid;
  message.created_s = archive_now_s();
  result = model_store(archive, &message, error);
  return result ? result : model_load(archive, id, model, error);
}
