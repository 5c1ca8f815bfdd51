// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
#include "tests/fuzz/fuzz_store.h"

#include <stdio.h>
#include <stdlib.h>

#include "tests/fuzz/fuzz.h"

void fuzz_geometry(struct msg_geometry *geometry) {
  static double frequencies[FUZZ_HEAD_DIM / 2];
  for (unsigned i = 0; i < FUZZ_HEAD_DIM / 2; i++)
    frequencies[i] = 1.0 / (1 + i);
  *geometry = (struct msg_geometry){.layers = FUZZ_LAYERS, .kv_heads = FUZZ_HEADS, .group = 2,
                                    .head_dim = FUZZ_HEAD_DIM, .window = 2048, .rope_layout = ROPE_HALF,
                                    .rope_dims = FUZZ_HEAD_DIM,
                                    .rope_freqs = span_of(frequencies, sizeof frequencies)};
}

void fuzz_model_message(struct msg_model *model, uint8_t mark) {
  static uint8_t fingerprints[256][LIMIT_FINGERPRINT_BYTES];
  static float means[FUZZ_BLOCKS * FUZZ_HEAD_DIM];
  memset(fingerprints[mark], mark, LIMIT_FINGERPRINT_BYTES);
  *model = (struct msg_model){.name = span_str("tiny"),
                              .fingerprint = span_of(fingerprints[mark], LIMIT_FINGERPRINT_BYTES),
                              .basis = span_str("hadamard"), .codec = 1, .seed = 42, .tokens = 192,
                              .mean_k = span_of(means, sizeof means), .mean_v = span_of(means, sizeof means)};
  fuzz_geometry(&model->geometry);
}

static uint64_t mix(uint64_t z) { /* splitmix64 */
  z += UINT64_C(0x9e3779b97f4a7c15);
  z = (z ^ z >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
  z = (z ^ z >> 27) * UINT64_C(0x94d049bb133111eb);
  return z ^ z >> 31;
}

uint32_t fuzz_token_id(uint64_t token) { return (uint32_t)mix(token); }

void fuzz_record(uint8_t *record, uint32_t layer, uint32_t head, uint64_t token) {
  uint64_t state = mix(mix(token << 20 | (uint64_t)layer << 10 | head));
  for (int i = 0; i < RECORD_CRC; i += 4) {
    state = mix(state);
    store_u32(record + i, (uint32_t)state);
  }
  store_u16(record + RECORD_K_SCALE, load_u16(record + RECORD_K_SCALE) % 0x7c00);
  store_u16(record + RECORD_V_SCALE, load_u16(record + RECORD_V_SCALE) % 0x7c00);
  record_seal(record, layer, head, token);
}

struct archive *fuzz_archive(const char *name, struct model **model) {
  static const struct archive_options options = {.catalog_map_bytes = 64 << 20};
  char path[512];
  struct archive *archive = NULL;
  struct error error = {0};
  struct msg_model wanted;
  snprintf(path, sizeof path, "%s/%s", fuzz_directory(), name);
  FUZZ_REQUIRE(archive_open(&archive, path, &options, &error) == 0);
  fuzz_model_message(&wanted, 1);
  FUZZ_REQUIRE(model_freeze(archive, FUZZ_UID, &wanted, model, &error) == 0);
  return archive;
}

int fuzz_open(struct archive *archive, struct model *model, const char *name, struct conversation **conversation,
              struct error *error) {
  struct msg_open wanted = {.name = span_str(name), .create = 1};
  bool created;
  fuzz_geometry(&wanted.geometry);
  wanted.fingerprint = model_description(model)->fingerprint;
  wanted.model = model_description(model)->id;
  return conversation_open(archive, FUZZ_UID, &wanted, conversation, &created, error);
}

void fuzz_fill(struct conversation *conversation, uint64_t end, uint32_t step, uint32_t ahead) {
  static uint32_t ids[LIMIT_APPEND_TOKENS_MAX], ahead_ids[LIMIT_AHEAD_MAX];
  static uint8_t records[LIMIT_APPEND_TOKENS_MAX][FUZZ_BLOCKS][RECORD_BYTES];
  for (uint64_t at = conversation_count(conversation); at < end; at = conversation_count(conversation)) {
    uint32_t count = end - at < step ? (uint32_t)(end - at) : step;
    for (uint32_t i = 0; i < count; i++) {
      ids[i] = fuzz_token_id(at + i);
      for (uint32_t b = 0; b < FUZZ_BLOCKS; b++)
        fuzz_record(records[i][b], b / FUZZ_HEADS, b % FUZZ_HEADS, at + i);
    }
    for (uint32_t i = 0; i < ahead; i++)
      ahead_ids[i] = fuzz_token_id(at + count + i);
    struct msg_append append = {.first = at, .ids = span_of(ids, 4 * (size_t)count),
                                .ahead = span_of(ahead_ids, at + count == end ? 4 * (size_t)ahead : 0),
                                .records = span_of(records, (size_t)count * sizeof records[0])};
    struct error error = {0};
    bool wrote = false;
    int result = conversation_append(conversation, &append, &wrote, &error);
    if (result)
      fuzz_fail(__FILE__, __LINE__, error.text);
    FUZZ_REQUIRE(wrote);
  }
}

static uint64_t read_records(struct view *view, uint32_t layer, uint32_t head, uint64_t first, uint64_t count) {
  struct error error = {0};
  uint8_t *records = malloc((size_t)count * RECORD_BYTES + 1);
  FUZZ_REQUIRE(records);
  int result = view_records(view, layer, head, first, count, records, &error);
  FUZZ_REQUIRE(result <= 0 && (!result || error.text[0]));
  for (uint64_t i = 0; !result && i < count; i++)
    FUZZ_REQUIRE(record_check(records + i * RECORD_BYTES, layer, head, first + i));
  free(records);
  return result ? 0 : count;
}

static void read_columns(struct view *view, uint32_t layer, uint32_t head) {
  uint64_t next = 0;
  for (uint32_t part = 0; part < view_parts(view); part++) {
    struct record_columns columns;
    struct error error = {0};
    int result = view_columns(view, part, layer, head, &columns, &error);
    FUZZ_REQUIRE(result <= 0 && (!result || error.text[0]));
    if (result) {
      next = UINT64_MAX; /* how many tokens it had is not known here */
      continue;
    }
    FUZZ_REQUIRE(next == UINT64_MAX || columns.first == next);
    next = columns.first + columns.count;
    uint8_t record[RECORD_BYTES];
    for (uint32_t i = 0; i < columns.count; i += 1 + i / 8)
      record_gather(&columns, i, record);
    if (columns.count)
      record_gather(&columns, columns.count - 1, record);
  }
  FUZZ_REQUIRE(next == UINT64_MAX || next == view_count(view));
}

uint64_t fuzz_read_all(struct conversation *conversation) {
  struct error error = {0};
  struct view *view;
  uint64_t good = 0;
  FUZZ_REQUIRE(conversation_load(conversation, &error) == 0 && view_acquire(conversation, &view, &error) == 0);
  uint64_t count = view_count(view), half = count / 2;
  FUZZ_REQUIRE(count == conversation_count(conversation));
  for (uint32_t block = 0; block < FUZZ_BLOCKS; block++) {
    read_columns(view, block / FUZZ_HEADS, block % FUZZ_HEADS);
    good += read_records(view, block / FUZZ_HEADS, block % FUZZ_HEADS, 0, half);
    good += read_records(view, block / FUZZ_HEADS, block % FUZZ_HEADS, half, count - half);
  }
  uint32_t *ids = malloc((size_t)count * 4 + 4);
  FUZZ_REQUIRE(ids);
  int result = view_tokens(view, 0, count, ids, &error);
  FUZZ_REQUIRE(result <= 0 && (!result || error.text[0]));
  free(ids);
  view_release(view);
  return good;
}
