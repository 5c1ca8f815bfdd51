// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// Meta and model files. What is accepted must be within what its reader promises, and the same when it is packed and
// read again.
//
// Input: kind and flags (1 byte), the file. 1: a model, else meta; 2 seals the envelope.
#include "tests/fuzz/fuzz.h"

#include <stdlib.h>

#include "proto/crc32c.h"
#include "store/meta.h"
#include "store/model_file.h"
#include "tests/fuzz/fuzz_store.h"

enum { MODEL = 1, SEAL = 2 };

static void seal(uint8_t *bytes, size_t size, bool model) {
  if (size < MAP_FILE_HEAD_BYTES + MAP_FILE_CRC_BYTES)
    return;
  memcpy(bytes, model ? MODEL_MAGIC : META_MAGIC, 8);
  store_u32(bytes + 8, MAP_FILE_VERSION);
  store_u32(bytes + 12, (uint32_t)(size - MAP_FILE_HEAD_BYTES - MAP_FILE_CRC_BYTES));
  store_u32(bytes + size - 4, crc32c(0, bytes, size - 4));
}

static bool same(struct span a, struct span b) {
  return a.size == b.size && (!a.size || memcmp(a.data, b.data, a.size) == 0);
}

static void check_extents(const struct meta *meta) {
  uint64_t next = 0;
  for (uint32_t i = 0; i < meta->extent_count; i++) {
    const struct msg_extent *extent = &meta->extents[i];
    FUZZ_REQUIRE(extent->first == next && extent->origin <= extent->first && extent->count);
    FUZZ_REQUIRE(extent->id.size == LIMIT_ID_BYTES && extent->count <= LIMIT_SEGMENT_TOKENS);
    next += extent->count;
  }
}

static void check_meta(const uint8_t *bytes, size_t size) {
  struct meta meta, again;
  struct error error = {0};
  int result = meta_read(&io_system, fuzz_file(0, bytes, size), &meta, &error);
  if (result) {
    FUZZ_REQUIRE((result == -ERR_CORRUPT || result == -ERR_VERSION) && error.text[0]);
    return;
  }
  check_extents(&meta);
  uint8_t *packed;
  size_t packed_size;
  struct msg_meta message = meta.message;
  message.extents = (struct list){.count = meta.extent_count, .items = meta.extents};
  FUZZ_REQUIRE(meta_pack(&message, &packed, &packed_size, &error) == 0);
  FUZZ_REQUIRE(meta_read(&io_system, fuzz_file(1, packed, packed_size), &again, &error) == 0);
  const struct msg_meta *a = &meta.message, *b = &again.message;
  FUZZ_REQUIRE(same(a->id, b->id) && same(a->name, b->name) && same(a->model, b->model) &&
               same(a->fingerprint, b->fingerprint) && geometry_equal(&a->geometry, &b->geometry));
  FUZZ_REQUIRE(a->uid == b->uid && a->created_s == b->created_s && meta.extent_count == again.extent_count);
  for (uint32_t i = 0; i < meta.extent_count; i++)
    FUZZ_REQUIRE(same(meta.extents[i].id, again.extents[i].id) && meta.extents[i].first == again.extents[i].first &&
                 meta.extents[i].count == again.extents[i].count && meta.extents[i].origin == again.extents[i].origin);
  free(packed);
  meta_finish(&meta);
  meta_finish(&again);
}

static void check_model(const uint8_t *bytes, size_t size) {
  struct model_file model, again;
  struct error error = {0};
  int result = model_read(&io_system, fuzz_file(0, bytes, size), &model, &error);
  if (result) {
    FUZZ_REQUIRE((result == -ERR_CORRUPT || result == -ERR_VERSION) && error.text[0]);
    return;
  }
  const struct msg_model *a = &model.message;
  FUZZ_REQUIRE(a->mean_k.size == geometry_mean_bytes(&a->geometry) && a->mean_v.size == a->mean_k.size);
  FUZZ_REQUIRE(a->id.size == LIMIT_ID_BYTES && a->fingerprint.size == LIMIT_FINGERPRINT_BYTES);
  uint8_t *packed;
  size_t packed_size;
  FUZZ_REQUIRE(map_file_pack(MODEL_MAGIC, &message_model, a, &packed, &packed_size, &error) == 0);
  FUZZ_REQUIRE(model_read(&io_system, fuzz_file(1, packed, packed_size), &again, &error) == 0);
  const struct msg_model *b = &again.message;
  FUZZ_REQUIRE(same(a->id, b->id) && same(a->name, b->name) && same(a->mean_k, b->mean_k) &&
               same(a->mean_v, b->mean_v) && same(a->fingerprint, b->fingerprint) && same(a->basis, b->basis));
  FUZZ_REQUIRE(geometry_equal(&a->geometry, &b->geometry) && a->uid == b->uid && a->seed == b->seed &&
               a->created_s == b->created_s && a->tokens == b->tokens);
  free(packed);
  model_file_finish(&model);
  model_file_finish(&again);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  struct fuzz_input input = {data, size};
  unsigned flags = (unsigned)fuzz_take(&input, 1);
  uint8_t *bytes = malloc(input.size + 1);
  FUZZ_REQUIRE(bytes);
  memcpy(bytes, input.data, input.size);
  if (flags & SEAL)
    seal(bytes, input.size, flags & MODEL);
  if (flags & MODEL)
    check_model(bytes, input.size);
  else
    check_meta(bytes, input.size);
  free(bytes);
  return 0;
}

/* --- seeds -------------------------------------------------------------------------------------------------------- */

static void seed(const char *name, unsigned flags, const uint8_t *bytes, size_t size) {
  struct fuzz_output output = {0};
  fuzz_put_number(&output, flags, 1);
  fuzz_put(&output, bytes, size);
  fuzz_put_done(&output, name);
}

void fuzz_seeds(void) {
  static const uint8_t id[LIMIT_ID_BYTES] = "0123456789abcdef";
  struct msg_model model;
  struct error error = {0};
  uint8_t *bytes;
  size_t size;
  fuzz_model_message(&model, 3);
  model.id = span_of(id, sizeof id);
  FUZZ_REQUIRE(map_file_pack(MODEL_MAGIC, &message_model, &model, &bytes, &size, &error) == 0);
  seed("model", MODEL | SEAL, bytes, size);
  seed("model-cut", MODEL, bytes, size - 1);
  free(bytes);
  struct msg_extent extents[3];
  for (unsigned i = 0; i < 3; i++)
    extents[i] = (struct msg_extent){.id = span_of(id, sizeof id), .origin = 4096ULL * i, .first = 4096ULL * i,
                                     .count = 4096};
  struct msg_meta meta = {.id = span_of(id, sizeof id), .name = span_str("diary"), .uid = FUZZ_UID,
                          .fingerprint = model.fingerprint, .geometry = model.geometry, .created_s = 1,
                          .extents = {.count = 3, .items = extents}};
  FUZZ_REQUIRE(meta_pack(&meta, &bytes, &size, &error) == 0);
  seed("meta", SEAL, bytes, size);
  seed("meta-plain", 0, bytes, size);
  free(bytes);
  extents[1].first++;
  FUZZ_REQUIRE(meta_pack(&meta, &bytes, &size, &error) == 0);
  seed("meta-gap", SEAL, bytes, size);
  free(bytes);
  meta.model = span_of(id, sizeof id);
  meta.extents.count = 0;
  FUZZ_REQUIRE(meta_pack(&meta, &bytes, &size, &error) == 0);
  seed("meta-empty", SEAL, bytes, size);
  free(bytes);
}
