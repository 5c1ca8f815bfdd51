// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
#include "tests/store/rot.h"

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "retrieval/lookup.h"

enum { PIECE = 64, LOOKUP_K = 16, READ_TOKENS = 1024 };

const char *rot_name(int conversation) {
  static const char *const names[] = {"a", "b", "c"};
  return names[conversation];
}

uint64_t rot_tokens(int conversation) { return conversation == 2 ? ROT_SHORT_TOKENS : ROT_TOKENS; }
uint64_t rot_salt(int conversation) { return 31 + (uint64_t)conversation; }

/* --- making ------------------------------------------------------------------------------------------------------- */

static void grow(struct archive *archive, int conversation, uint64_t end, bool seal) {
  struct error error;
  struct conversation *c;
  struct model *model = test_model(archive, conversation == 2 ? 2 : 1);
  bool wrote;
  assert_ok(test_open(archive, rot_name(conversation), model, true, &c, &error), &error);
  while (conversation_count(c) < end) {
    uint64_t at = conversation_count(c), left = end - at;
    uint32_t piece = at < 8192 && left > 256 ? 256 : left < PIECE ? (uint32_t)left : PIECE;
    assert_ok(test_append(c, at, piece, 3, rot_salt(conversation), &wrote, &error), &error);
    assert_ok(conversation_sync(c, &error), &error);
  }
  assert_ok(test_append(c, end, 0, ROT_AHEAD, rot_salt(conversation), &wrote, &error), &error);
  assert_ok(conversation_sync(c, &error), &error);
  if (seal)
    assert_ok(conversation_seal(c, &error), &error);
  conversation_release(c);
  model_release(model);
}

static enum rot_kind kind_of(const char *path) {
  const char *name = strrchr(path, '/') + 1;
  if (strstr(path, "/segments/"))
    return ROT_SEGMENT;
  if (strstr(path, "/models/"))
    return ROT_MODEL;
  if (strcmp(name, "data.mdb") == 0)
    return ROT_CATALOG;
  if (strcmp(name, "meta") == 0)
    return ROT_META;
  if (strncmp(name, "log-", 4) != 0)
    return ROT_OTHER;
  return strcmp(name, "log-00000000000000004096") == 0 ? ROT_CLOSED : ROT_OPEN;
}

static void keep_file(const char *path, struct rot_file *files, unsigned *count) {
  FILE *file = fopen(path, "rb");
  size_t size = (size_t)test_file_size(path);
  struct rot_file *kept = &files[(*count)++];
  assert_true(*count <= ROT_FILES_MAX);
  *kept = (struct rot_file){.kind = kind_of(path), .path = strdup(path), .bytes = malloc(size + 1), .size = size};
  assert_true(file && kept->path && kept->bytes);
  assert_int_equal(fread(kept->bytes, 1, size, file), size);
  fclose(file);
}

static void keep_tree(const char *path, struct rot_file *files, unsigned *count) {
  DIR *dir = opendir(path);
  assert_non_null(dir);
  const struct dirent *entry;
  while ((entry = readdir(dir))) {
    struct stat status;
    char child[4096];
    snprintf(child, sizeof child, "%s/%s", path, entry->d_name);
    if (entry->d_name[0] == '.' || strcmp(entry->d_name, "lock.mdb") == 0)
      continue;
    assert_int_equal(stat(child, &status), 0);
    if (S_ISDIR(status.st_mode))
      keep_tree(child, files, count);
    else
      keep_file(child, files, count);
  }
  closedir(dir);
}

/* Whose file? By the ids that stand in it. */
static void name_owners(struct rot_file *files, unsigned count, uint8_t ids[ROT_CONVERSATIONS][LIMIT_ID_BYTES],
                        uint8_t models[ROT_CONVERSATIONS][LIMIT_ID_BYTES]) {
  for (unsigned i = 0; i < count; i++)
    for (int c = ROT_CONVERSATIONS - 1; c >= 0; c--) {
      const uint8_t *id = files[i].kind == ROT_MODEL ? models[c] : ids[c];
      if (files[i].kind != ROT_CATALOG && memmem(files[i].bytes, files[i].size, id, LIMIT_ID_BYTES))
        files[i].conversation = c;
    }
}

static void remember(struct archive *archive, uint8_t ids[ROT_CONVERSATIONS][LIMIT_ID_BYTES],
                     uint8_t models[ROT_CONVERSATIONS][LIMIT_ID_BYTES]) {
  for (int i = 0; i < ROT_CONVERSATIONS; i++) {
    struct conversation_entry entry;
    struct error error;
    assert_ok(conversation_describe(archive, TEST_UID, rot_name(i), &entry, &error), &error);
    memcpy(ids[i], entry.id, LIMIT_ID_BYTES);
    memcpy(models[i], entry.model, LIMIT_ID_BYTES);
    conversation_entry_finish(&entry);
  }
}

void rot_make(struct rot *rot) {
  uint8_t ids[ROT_CONVERSATIONS][LIMIT_ID_BYTES], models[ROT_CONVERSATIONS][LIMIT_ID_BYTES];
  *rot = (struct rot){.dir = test_directory_make()};
  for (int round = 0; round < 2; round++) {
    struct archive *archive = test_archive(rot->dir, NULL);
    for (int i = 0; i < ROT_CONVERSATIONS; i++)
      grow(archive, i, rot_tokens(i) - (round ? 0 : 100), round);
    remember(archive, ids, models);
    archive_close(archive);
    keep_tree(rot->dir, round ? rot->files : rot->old, round ? &rot->count : &rot->old_count);
  }
  name_owners(rot->files, rot->count, ids, models);
  name_owners(rot->old, rot->old_count, ids, models);
}

static void forget(struct rot_file *files, unsigned count) {
  for (unsigned i = 0; i < count; i++) {
    free(files[i].path);
    free(files[i].bytes);
  }
}

void rot_finish(struct rot *rot) {
  forget(rot->files, rot->count);
  forget(rot->old, rot->old_count);
  test_directory_remove(rot->dir);
}

void rot_write(const char *path, const uint8_t *bytes, size_t size) {
  FILE *file = fopen(path, "wb");
  assert_non_null(file);
  assert_int_equal(fwrite(bytes, 1, size, file), size);
  assert_int_equal(fclose(file), 0);
}

static void make_parents(const char *path) {
  char parent[4096];
  snprintf(parent, sizeof parent, "%s", path);
  for (char *slash = strchr(parent + 1, '/'); slash; slash = strchr(slash + 1, '/')) {
    *slash = 0;
    mkdir(parent, 0700);
    *slash = '/';
  }
}

void rot_restore(struct rot *rot) {
  test_tree_remove(rot->dir);
  for (unsigned i = 0; i < rot->count; i++) {
    make_parents(rot->files[i].path);
    rot_write(rot->files[i].path, rot->files[i].bytes, rot->files[i].size);
  }
}

static struct rot_file *find(struct rot_file *files, unsigned count, enum rot_kind kind, int conversation) {
  for (unsigned i = 0; i < count; i++)
    if (files[i].kind == kind && files[i].conversation == conversation)
      return &files[i];
  return NULL;
}

struct rot_file *rot_file(struct rot *rot, enum rot_kind kind, int conversation) {
  struct rot_file *file = find(rot->files, rot->count, kind, conversation);
  assert_non_null(file);
  return file;
}

struct rot_file *rot_old(struct rot *rot, enum rot_kind kind, int conversation) {
  return find(rot->old, rot->old_count, kind, conversation);
}

/* --- asking ------------------------------------------------------------------------------------------------------- */

struct asking {
  struct rot_answers *answers;
  int conversation;
  struct view *view;
};

static void wrong(struct asking *asking, const char *what, uint64_t token) {
  if (asking->answers->wrong++ == 0)
    snprintf(asking->answers->first, sizeof asking->answers->first, "'%s': %s, token %llu",
             rot_name(asking->conversation), what, (unsigned long long)token);
}

static bool true_record(struct asking *asking, const uint8_t *record, uint32_t layer, uint32_t head, uint64_t token) {
  uint8_t truth[RECORD_BYTES];
  test_record(truth, layer, head, token, rot_salt(asking->conversation));
  return memcmp(record, truth, sizeof truth) == 0;
}

static void ask_records(struct asking *asking, uint32_t layer, uint32_t head, uint64_t first, uint64_t count) {
  static uint8_t records[READ_TOKENS * RECORD_BYTES];
  struct error error;
  asking->answers->reads++;
  if (view_records(asking->view, layer, head, first, count, records, &error)) {
    asking->answers->errors++;
    if (!error.text[0])
      wrong(asking, "an error without a sentence", first);
    return;
  }
  for (uint64_t i = 0; i < count; i++)
    if (!true_record(asking, records + i * RECORD_BYTES, layer, head, first + i))
      wrong(asking, "record", first + i);
}

static void ask_ids(struct asking *asking, uint64_t first, uint64_t count) {
  static uint32_t ids[READ_TOKENS];
  struct error error;
  asking->answers->reads++;
  if (view_tokens(asking->view, first, count, ids, &error)) {
    asking->answers->errors++;
    return;
  }
  for (uint64_t i = 0; i < count; i++)
    if (ids[i] != test_token_id(first + i, rot_salt(asking->conversation)))
      wrong(asking, "token id", first + i);
}

/* As the daemon does it: parts that fail their check are left out. */
static void ask_lookup(struct asking *asking, uint32_t layer, enum lookup_mode mode) {
  struct record_columns parts[8];
  uint64_t tokens[LOOKUP_K];
  uint8_t records[LOOKUP_K * RECORD_BYTES];
  uint32_t index[LOOKUP_K], count = 0;
  float scores[LOOKUP_K], query[RECORD_SIGNATURE_BITS];
  struct lookup_scratch *scratch;
  struct error error;
  struct lookup_answer answer = {.tokens = tokens, .records = records, .index = index, .scores = scores};
  for (int i = 0; i < RECORD_SIGNATURE_BITS; i++)
    query[i] = (float)((i * 37 + (int)layer) % 41 - 20);
  for (uint32_t part = 0; part < view_parts(asking->view) && count < 8; part++) {
    if (view_columns(asking->view, part, layer, 0, &parts[count], &error))
      asking->answers->errors++;
    else
      count++;
  }
  const struct lookup_request request = {.mode = mode, .head_dim = TINY_HEAD_DIM, .layer = layer, .rows = 1,
                                         .k = LOOKUP_K, .candidates = 64, .before = UINT64_MAX,
                                         .queries = (const uint8_t *)query, .row_stride = sizeof query};
  assert_ok(lookup_scratch_create(&scratch, &error), &error);
  assert_ok(lookup_run(scratch, &request, parts, count, &answer, &error), &error);
  asking->answers->reads++;
  asking->answers->errors += answer.bad_records > 0;
  for (uint32_t i = 0; i < answer.count; i++)
    if (!true_record(asking, records + (size_t)i * RECORD_BYTES, layer, 0, tokens[i]))
      wrong(asking, "looked-up record", tokens[i]);
  lookup_scratch_destroy(scratch);
}

static void ask_view(struct asking *asking) {
  uint64_t count = view_count(asking->view);
  for (uint64_t first = 0; first < count; first += READ_TOKENS) {
    uint64_t some = count - first < READ_TOKENS ? count - first : READ_TOKENS;
    ask_ids(asking, first, some);
    for (uint32_t layer = 0; layer < TINY_LAYERS; layer++)
      ask_records(asking, layer, 0, first, some);
  }
  for (uint32_t layer = 0; layer < TINY_LAYERS; layer++) {
    ask_lookup(asking, layer, LOOKUP_WEIGHTED);
    ask_lookup(asking, layer, LOOKUP_HAMMING);
  }
}

static void answers_refused(struct asking *asking, const char *reason) {
  asking->answers->refused++;
  snprintf(asking->answers->reason, sizeof asking->answers->reason, "%s", reason);
}

/* An open conversation has all its tokens, unless it was opened in spite of damage and takes no appends. */
static void ask_facts(struct asking *asking, struct conversation *c) {
  uint32_t ahead[LIMIT_AHEAD_MAX], count;
  uint64_t tokens = rot_tokens(asking->conversation);
  if (conversation_damaged(c, NULL)) {
    struct test_append append;
    struct error error;
    bool wrote;
    test_append_make(&append, conversation_count(c), 1, 0, rot_salt(asking->conversation));
    if (conversation_append(c, &append.message, &wrote, &error) != -ERR_CORRUPT)
      wrong(asking, "takes an append", conversation_count(c));
    test_append_free(&append);
    answers_refused(asking, error.text);
    return;
  }
  if (conversation_count(c) != tokens)
    wrong(asking, "count", conversation_count(c));
  count = conversation_ahead(c, ahead);
  if (count != ROT_AHEAD)
    wrong(asking, "number of ids ahead", count);
  for (uint32_t i = 0; i < count; i++)
    if (ahead[i] != test_token_id(tokens + i, rot_salt(asking->conversation)))
      wrong(asking, "id ahead", tokens + i);
}

static void ask_model(struct asking *asking, struct archive *archive, struct conversation *c) {
  struct model *model;
  struct error error;
  const uint8_t *id = conversation_model(c);
  if (!id || model_get(archive, TEST_UID, id, &model, &error)) {
    wrong(asking, "no model", 0);
    return;
  }
  const struct msg_model *m = model_description(model);
  for (unsigned i = 0; i < TINY_BLOCKS * TINY_HEAD_DIM; i++)
    if (load_f32(m->mean_k.data + 4 * (size_t)i) != (float)i / 8 ||
        load_f32(m->mean_v.data + 4 * (size_t)i) != (float)i / 8)
      wrong(asking, "means", i);
  if (m->seed != 42 || m->fingerprint.data[0] != (asking->conversation == 2 ? 2 : 1))
    wrong(asking, "model", 0);
  model_release(model);
}

void rot_ask(struct rot *rot, struct rot_answers *answers) {
  struct archive *archive = test_archive(rot->dir, NULL);
  *answers = (struct rot_answers){0};
  for (int i = 0; i < ROT_CONVERSATIONS; i++) {
    struct asking asking = {.answers = answers, .conversation = i};
    struct conversation *c;
    struct error error;
    uint8_t fingerprint[LIMIT_FINGERPRINT_BYTES];
    bool created;
    memset(fingerprint, i == 2 ? 2 : 1, sizeof fingerprint);
    struct msg_open wanted = {.name = span_str(rot_name(i)), .fingerprint = span_of(fingerprint, sizeof fingerprint)};
    test_geometry(&wanted.geometry);
    if (conversation_open(archive, TEST_UID, &wanted, &c, &created, &error)) {
      answers->refused++;
      snprintf(answers->reason, sizeof answers->reason, "%s", error.text);
      if (error.code == ERR_NO_CONVERSATION)
        wrong(&asking, "is gone", 0);
      continue;
    }
    if (conversation_load(c, &error) || view_acquire(c, &asking.view, &error)) {
      answers->refused++;
    } else {
      ask_facts(&asking, c);
      ask_model(&asking, archive, c);
      ask_view(&asking);
      view_release(asking.view);
    }
    conversation_release(c);
  }
  archive_close(archive);
}
