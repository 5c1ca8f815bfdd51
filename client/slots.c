// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
#include "client/slots.h"

#include <stdlib.h>

#define NONE UINT32_MAX

int retrieved_init(struct retrieved *r, uint32_t heads, struct error *error) {
  *r = (struct retrieved){.heads = heads};
  r->unions = calloc(heads, sizeof *r->unions);
  r->counts = calloc(heads, sizeof *r->counts);
  r->tokens = calloc(heads, sizeof *r->tokens);
  r->keys = calloc(heads, sizeof *r->keys);
  r->values = calloc(heads, sizeof *r->values);
  if (r->unions && r->counts && r->tokens && r->keys && r->values)
    return 0;
  retrieved_finish(r);
  return error_set(error, ERR_MEMORY, "out of memory for the slots of %u kv heads", heads);
}

void retrieved_finish(struct retrieved *r) {
  for (uint32_t head = 0; r->unions && head < r->heads; head++) {
    struct slot_union *u = &r->unions[head];
    free(u->tokens);
    free(u->records);
    free(u->keys);
    free(u->values);
    free(u->chosen);
    free(u->order);
  }
  free(r->unions);
  free(r->index);
  free(r->counts);
  free(r->tokens);
  free(r->keys);
  free(r->values);
  *r = (struct retrieved){0};
}

int slots_clear(struct retrieved *r, uint32_t rows, uint32_t k, struct error *error) {
  size_t wanted = (size_t)rows * r->heads * k;
  r->rows = rows;
  r->k = k;
  for (uint32_t head = 0; head < r->heads; head++)
    r->unions[head].count = r->counts[head] = 0;
  if (wanted > r->index_capacity) {
    uint32_t *index = realloc(r->index, wanted * sizeof *index);
    if (!index) {
      r->k = 0;
      return error_set(error, ERR_MEMORY, "out of memory for %u slots of %u rows", k, rows);
    }
    r->index = index;
    r->index_capacity = wanted;
  }
  if (wanted)
    memset(r->index, 0xff, wanted * sizeof *r->index);
  return 0;
}

static uint32_t *row_index(const struct retrieved *r, uint32_t row, uint32_t head) {
  return r->index + ((size_t)row * r->heads + head) * r->k;
}

uint32_t retrieved_row(const struct retrieved *r, uint32_t row, uint32_t head, const uint32_t **places) {
  *places = row_index(r, row, head);
  uint32_t count = 0;
  while (count < r->k && (*places)[count] != NONE)
    count++;
  return count;
}

/* --- taking answers ----------------------------------------------------------------------------------------------- */

static bool grow(void **array, size_t count, size_t size) {
  void *grown = realloc(*array, count * size);
  if (grown)
    *array = grown;
  return grown;
}

/* Room for `count` entries before they are decoded. */
static int union_reserve(struct slot_union *u, uint32_t count, struct error *error) {
  if (count <= u->capacity)
    return 0;
  uint32_t capacity = count > 2 * u->capacity ? count : 2 * u->capacity;
  void *tokens = u->tokens, *records = u->records, *order = u->order;
  bool grown = grow(&tokens, capacity, sizeof *u->tokens);
  u->tokens = tokens;
  grown = grown && grow(&records, capacity, RECORD_BYTES);
  u->records = records;
  grown = grown && grow(&order, capacity, sizeof *u->order);
  u->order = order;
  if (!grown)
    return error_set(error, ERR_MEMORY, "out of memory for %u slots", count);
  u->capacity = capacity;
  /* keys and values are made when the final count is known */
  free(u->keys);
  free(u->values);
  free(u->chosen);
  u->keys = u->values = NULL;
  u->chosen = NULL;
  return 0;
}

static int check_head(const struct msg_lookup_head *head, const struct slots_wanted *wanted, uint64_t k,
                      struct error *error) {
  uint64_t count = head->tokens.size / sizeof(uint64_t), cells = wanted->rows * k;
  if (head->records.size != count * RECORD_BYTES || count > cells || head->index.size != cells * sizeof(uint32_t) ||
      head->scores.size != cells * sizeof(float))
    return error_set(error, ERR_BAD_MESSAGE, "a lookup of %u rows is answered by arrays of other sizes",
                     wanted->rows);
  uint64_t least = wanted->from;
  for (uint64_t i = 0; i < count; i++) {
    uint64_t token = load_u64(head->tokens.data + i * sizeof(uint64_t));
    if (token < least || token >= wanted->before)
      return error_set(error, ERR_BAD_MESSAGE, "a lookup is answered by tokens out of range or order");
    least = token + 1;
  }
  for (uint64_t i = 0; i < cells; i++) {
    uint32_t place = load_u32(head->index.data + i * sizeof(uint32_t));
    if (place != NONE && place >= count)
      return error_set(error, ERR_BAD_MESSAGE, "a lookup is answered by an index outside its union");
  }
  return 0;
}

static int take_head(struct retrieved *r, uint32_t at, const struct msg_lookup_head *head,
                     const struct slots_wanted *wanted, uint64_t k, struct error *error) {
  int result = check_head(head, wanted, k, error);
  if (result)
    return result;
  struct slot_union *u = &r->unions[at];
  uint32_t count = (uint32_t)(head->tokens.size / sizeof(uint64_t)), before = u->count;
  result = union_reserve(u, before + count, error);
  if (result || !count)
    return result;
  memcpy(u->tokens + before, head->tokens.data, head->tokens.size);
  memcpy(u->records + (size_t)before * RECORD_BYTES, head->records.data, head->records.size);
  u->count += count;
  for (uint32_t row = 0; row < wanted->rows; row++) {
    uint32_t *index = row_index(r, wanted->row + row, at);
    for (uint64_t j = 0; j < k; j++) {
      uint32_t place = load_u32(head->index.data + (row * k + j) * sizeof(uint32_t));
      if (place != NONE)
        index[j] = before + place;
    }
  }
  return 0;
}

int slots_take(struct retrieved *r, const struct slots_wanted *wanted, const msgpack_object *result,
               struct error *error) {
  struct msg_lookup_ok answer;
  int failed = message_unpack(&message_lookup_ok, result, &answer, error);
  if (failed)
    return failed;
  if (answer.heads.count != r->heads || answer.k > wanted->k)
    return error_set(error, ERR_BAD_MESSAGE, "a lookup of %u kv heads and %u slots is answered by %u and %llu",
                     r->heads, wanted->k, answer.heads.count, (unsigned long long)answer.k);
  for (uint32_t at = 0; at < r->heads && !failed; at++) {
    struct msg_lookup_head head;
    failed = message_unpack(&message_lookup_head, &answer.heads.objects[at], &head, error);
    if (!failed)
      failed = take_head(r, at, &head, wanted, answer.k, error);
  }
  return failed;
}

/* --- finishing ---------------------------------------------------------------------------------------------------- */

struct entry {
  uint64_t token;
  uint32_t came; /* place in the order of arrival */
};

static int by_token(const void *a, const void *b) {
  const struct entry *x = a, *y = b;
  if (x->token != y->token)
    return x->token < y->token ? -1 : 1;
  return x->came < y->came ? -1 : x->came > y->came;
}

static bool reserve_decoded(struct slot_union *u, const struct slots_place *place) {
  uint32_t head_dim = place->head_dim;
  if (!u->capacity)
    return true;
  if (place->keep_records)
    return u->chosen || (u->chosen = malloc((size_t)u->capacity * RECORD_BYTES));
  if (u->keys)
    return true;
  u->keys = malloc((size_t)u->capacity * head_dim * sizeof(float));
  u->values = malloc((size_t)u->capacity * head_dim * sizeof(float));
  if (u->keys && u->values)
    return true;
  free(u->keys);
  free(u->values);
  u->keys = u->values = NULL;
  return false;
}

/* Decodes the good records in token order, each token once; order[] tells where an entry that came has gone. mean: of
 * this layer and head in the means. */
static void decode_union(struct slot_union *u, uint32_t head, const struct entry *entries, size_t mean,
                         const struct slots_place *place, uint64_t *bad) {
  const struct frozen *frozen = place->frozen;
  uint32_t d = place->head_dim, count = 0;
  for (uint32_t i = 0; i < u->count; i++) {
    uint32_t came = entries[i].came;
    uint64_t token = entries[i].token;
    const uint8_t *record = u->records + (size_t)came * RECORD_BYTES;
    if (!record_check(record, place->layer, head, token)) {
      u->order[came] = NONE;
      ++*bad;
      continue;
    }
    if (!count || u->tokens[count - 1] != token) {
      if (place->keep_records)
        memcpy(u->chosen + (size_t)count * RECORD_BYTES, record, RECORD_BYTES);
      else
        codec_decode(&frozen->codec, record, frozen->mean_k + mean, frozen->mean_v + mean, u->keys + (size_t)count * d,
                     u->values + (size_t)count * d);
      u->tokens[count++] = token; /* the entries hold those not seen yet */
    }
    u->order[came] = count - 1;
  }
  u->count = count;
}

/* Puts a row's slots in ascending order, each once, NONE behind the last. marks: a bit for each of the union, 0. */
static void sort_row(uint32_t *index, uint32_t k, const uint32_t *order, uint64_t *marks, uint32_t words) {
  uint32_t kept = 0;
  for (uint32_t j = 0; j < k; j++)
    if (index[j] != NONE && order[index[j]] != NONE)
      marks[order[index[j]] / 64] |= UINT64_C(1) << order[index[j]] % 64;
  for (uint32_t word = 0; word < words; word++)
    for (; marks[word]; marks[word] &= marks[word] - 1)
      index[kept++] = word * 64 + (uint32_t)__builtin_ctzll(marks[word]);
  while (kept < k)
    index[kept++] = NONE;
}

static int sort_rows(struct retrieved *r, uint32_t head, struct error *error) {
  const struct slot_union *u = &r->unions[head];
  uint32_t words = u->count / 64 + 1;
  uint64_t *marks = calloc(words, sizeof *marks);
  if (!marks)
    return error_set(error, ERR_MEMORY, "out of memory for %u slots", u->count);
  for (uint32_t row = 0; row < r->rows; row++)
    sort_row(row_index(r, row, head), r->k, u->order, marks, words);
  free(marks);
  return 0;
}

static int finish_head(struct retrieved *r, uint32_t head, const struct slots_place *place, uint64_t *bad,
                       struct error *error) {
  struct slot_union *u = &r->unions[head];
  struct entry *entries = malloc((u->count + 1) * sizeof *entries);
  if (!entries || !reserve_decoded(u, place)) {
    free(entries);
    return error_set(error, ERR_MEMORY, "out of memory for %u slots", u->count);
  }
  bool sorted = true;
  for (uint32_t i = 0; i < u->count; i++) {
    entries[i] = (struct entry){.token = u->tokens[i], .came = i};
    sorted = sorted && (!i || u->tokens[i - 1] < u->tokens[i]);
  }
  if (!sorted)
    qsort(entries, u->count, sizeof *entries, by_token);
  size_t mean = ((size_t)place->layer * r->heads + head) * place->head_dim;
  decode_union(u, head, entries, mean, place, bad);
  free(entries);
  r->counts[head] = u->count;
  r->tokens[head] = u->tokens;
  r->keys[head] = u->keys;
  r->values[head] = u->values;
  return sort_rows(r, head, error);
}

int slots_finish(struct retrieved *r, const struct slots_place *place, uint64_t *bad, struct error *error) {
  for (uint32_t head = 0; head < r->heads; head++) {
    int result = finish_head(r, head, place, bad, error);
    if (result)
      return result;
  }
  return 0;
}
