// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// Meta and model files: the envelope, and what their maps must hold.
#include "tests/store/fixture.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "proto/crc32c.h"
#include "store/meta.h"
#include "store/model_file.h"

static const uint8_t id[LIMIT_ID_BYTES] = {9, 8, 7};
static const uint8_t fingerprint[LIMIT_FINGERPRINT_BYTES] = {1, 1, 2, 3, 5};

static int setup(void **state) {
  *state = test_directory_make();
  return 0;
}

static int teardown(void **state) {
  test_directory_remove(*state);
  return 0;
}

static struct msg_meta a_meta(struct msg_extent *extents, uint32_t count) {
  struct msg_meta meta = {.id = span_of(id, sizeof id),
                          .name = span_str("a name"),
                          .uid = 1000,
                          .fingerprint = span_of(fingerprint, sizeof fingerprint),
                          .created_s = 123,
                          .extents = {.count = count, .items = extents}};
  test_geometry(&meta.geometry);
  for (uint32_t i = 0; i < count; i++)
    extents[i] = (struct msg_extent){
        .id = span_of(id, sizeof id), .origin = UINT64_C(4096) * i, .first = UINT64_C(4096) * i, .count = 4096};
  return meta;
}

static void write_meta(const char *path, const struct msg_meta *meta) {
  struct error error;
  uint8_t *data;
  size_t size;
  assert_ok(meta_pack(meta, &data, &size, &error), &error);
  assert_ok(io_replace_file(&io_system, path, data, size, &error), &error);
  free(data);
}

static void a_meta_is_read_as_written(void **state) {
  enum { COUNT = 1000 };
  struct msg_extent *extents = calloc(COUNT, sizeof *extents);
  assert_non_null(extents);
  struct msg_meta wanted = a_meta(extents, COUNT);
  struct error error;
  struct meta meta;
  const char *path = test_path(*state, "meta");
  write_meta(path, &wanted);
  assert_ok(meta_read(&io_system, path, &meta, &error), &error);
  assert_memory_equal(meta.message.id.data, id, sizeof id);
  assert_int_equal(meta.message.name.size, 6);
  assert_int_equal(meta.message.uid, 1000);
  assert_int_equal(meta.message.model.size, 0);
  assert_true(geometry_equal(&meta.message.geometry, &wanted.geometry));
  assert_int_equal(meta.extent_count, COUNT);
  assert_int_equal(meta.extents[COUNT - 1].first, (COUNT - 1) * 4096);
  meta_finish(&meta);
  free(extents);
}

static void extents_must_follow_each_other(void **state) {
  struct msg_extent extents[3];
  struct error error;
  struct meta meta;
  const char *path = test_path(*state, "meta");
  for (int kind = 0; kind < 5; kind++) {
    struct msg_meta wanted = a_meta(extents, 3);
    if (kind == 0)
      extents[1].first++;
    else if (kind == 1)
      extents[0].first = 1;
    else if (kind == 2)
      extents[2].origin++;
    else if (kind == 3)
      extents[1].kind = 1;
    else
      wanted.geometry.rope_dims = 3;
    write_meta(path, &wanted);
    assert_error(meta_read(&io_system, path, &meta, &error), ERR_CORRUPT, &error);
    assert_non_null(strstr(error.text, path));
  }
}

static void no_flipped_bit_or_cut_passes(void **state) {
  struct msg_extent extents[2];
  struct msg_meta wanted = a_meta(extents, 2);
  struct error error;
  struct meta meta;
  const char *path = test_path(*state, "meta");
  write_meta(path, &wanted);
  uint64_t size = test_file_size(path);
  for (uint64_t bit = 0; bit < size * 8; bit++) {
    test_flip_bit(path, bit);
    assert_error(meta_read(&io_system, path, &meta, &error), bit / 32 == 2 ? ERR_VERSION : ERR_CORRUPT, &error);
    test_flip_bit(path, bit);
  }
  for (uint64_t left = size; left-- > 0;) {
    assert_int_equal(truncate(path, (off_t)left), 0);
    assert_error(meta_read(&io_system, path, &meta, &error), ERR_CORRUPT, &error);
  }
}

/* A CRC that fits does not make any bytes a map. */
static void hostile_maps_are_refused(void **state) {
  static const uint8_t bodies[][12] = {
      {0xdf, 0xff, 0xff, 0xff, 0xff},             /* four thousand million pairs */
      {0xc6, 0xff, 0xff, 0xff, 0xff},             /* as many bytes */
      {0x91, 0x91, 0x91, 0x91, 0x91, 0x91, 0x91, 0x91, 0x91, 0x91, 0x91, 0xc0},
      {0xc1},
      {0x80},
      {0xc0},
      {0x80, 0x80},
      {0},
  };
  static const uint8_t sizes[] = {5, 5, 12, 1, 1, 1, 2, 0};
  const char *path = test_path(*state, "meta");
  for (size_t i = 0; i < sizeof sizes; i++) {
    uint8_t file[64];
    struct error error;
    struct meta meta;
    memcpy(file, META_MAGIC, 8);
    store_u32(file + 8, MAP_FILE_VERSION);
    store_u32(file + 12, sizes[i]);
    memcpy(file + 16, bodies[i], sizes[i]);
    store_u32(file + 16 + sizes[i], crc32c(0, file, 16 + (size_t)sizes[i]));
    assert_ok(io_replace_file(&io_system, path, file, 20 + (size_t)sizes[i], &error), &error);
    assert_error(meta_read(&io_system, path, &meta, &error), ERR_CORRUPT, &error);
  }
}

static float means[TINY_BLOCKS * TINY_HEAD_DIM];

static struct msg_model a_model(void) {
  struct msg_model model = {.id = span_of(id, sizeof id),
                            .uid = 5,
                            .name = span_str("m"),
                            .fingerprint = span_of(fingerprint, sizeof fingerprint),
                            .basis = span_str("hadamard"),
                            .codec = 1,
                            .seed = UINT64_MAX,
                            .mean_k = span_of(means, sizeof means),
                            .mean_v = span_of(means, sizeof means)};
  test_geometry(&model.geometry);
  return model;
}

static int write_and_read(const char *path, const struct msg_model *message, struct model_file *model,
                          struct error *error) {
  uint8_t *data;
  size_t size;
  assert_ok(map_file_pack(MODEL_MAGIC, &message_model, message, &data, &size, error), error);
  assert_ok(io_replace_file(&io_system, path, data, size, error), error);
  free(data);
  return model_read(&io_system, path, model, error);
}

static void a_model_is_read_as_written(void **state) {
  struct msg_model wanted = a_model();
  struct model_file model;
  struct error error;
  means[3] = -2.5f;
  assert_ok(write_and_read(test_path(*state, "model"), &wanted, &model, &error), &error);
  assert_int_equal(model.message.seed, UINT64_MAX);
  assert_memory_equal(model.message.mean_v.data, means, sizeof means);
  model_file_finish(&model);
}

static void bad_models_are_refused(void **state) {
  static float bad[TINY_BLOCKS * TINY_HEAD_DIM];
  const char *path = test_path(*state, "model");
  struct model_file model;
  struct error error;
  struct msg_model wanted = a_model();
  wanted.mean_k.size -= 4;
  assert_error(model_check(&wanted, &error), ERR_BAD_PARAMS, &error);
  assert_error(write_and_read(path, &wanted, &model, &error), ERR_CORRUPT, &error);
  wanted = a_model();
  wanted.basis = span_str("stored");
  assert_error(model_check(&wanted, &error), ERR_NOT_SUPPORTED, &error);
  assert_error(write_and_read(path, &wanted, &model, &error), ERR_VERSION, &error);
  wanted = a_model();
  wanted.id.size = 0;
  assert_error(write_and_read(path, &wanted, &model, &error), ERR_CORRUPT, &error);
  wanted = a_model();
  bad[7] = __builtin_inff();
  wanted.mean_v = span_of(bad, sizeof bad);
  assert_error(model_check(&wanted, &error), ERR_BAD_PARAMS, &error);
  assert_non_null(strstr(error.text, "mean_v"));
}

static void a_model_is_frozen_once(void **state) {
  struct error error;
  struct archive *archive = test_archive(*state, NULL);
  struct model *one = test_model(archive, 1), *again = test_model(archive, 1), *other = test_model(archive, 2), *found;
  assert_memory_equal(model_description(one)->id.data, model_description(again)->id.data, LIMIT_ID_BYTES);
  assert_memory_not_equal(model_description(one)->id.data, model_description(other)->id.data, LIMIT_ID_BYTES);
  assert_int_equal(model_description(one)->uid, TEST_UID);
  model_release(again);

  struct msg_model wanted = *model_description(one);
  struct msg_geometry geometry = wanted.geometry;
  wanted.geometry.window++;
  assert_error(model_freeze(archive, TEST_UID, &wanted, &found, &error), ERR_MODEL_MISMATCH, &error);
  wanted.geometry = geometry;
  assert_ok(model_freeze(archive, TEST_UID + 1, &wanted, &found, &error), &error); /* another user's is another */
  assert_memory_not_equal(model_description(one)->id.data, model_description(found)->id.data, LIMIT_ID_BYTES);
  struct model *stolen;
  assert_error(model_get(archive, TEST_UID, model_description(found)->id.data, &stolen, &error), ERR_NO_MODEL, &error);
  assert_error(model_find(archive, TEST_UID, fingerprint, &stolen, &error), ERR_NO_MODEL, &error);
  model_release(found);
  uint8_t kept[LIMIT_ID_BYTES];
  memcpy(kept, model_description(one)->id.data, sizeof kept);
  model_release(one);
  model_release(other);
  archive_close(archive);
  archive = test_archive(*state, NULL);
  assert_ok(model_get(archive, TEST_UID, kept, &found, &error), &error);
  assert_int_equal(model_description(found)->mean_k.size, sizeof means);
  model_release(found);
  model_release(NULL);
  archive_close(archive);
}

struct seen {
  unsigned count;
  char last[33];
};

static int see(void *context, const struct msg_model *model) {
  struct seen *seen = context;
  char text[33];
  for (int i = 0; i < 16; i++)
    snprintf(text + 2 * (size_t)i, 3, "%02x", model->id.data[i]);
  assert_true(strcmp(text, seen->last) > 0);
  memcpy(seen->last, text, sizeof text);
  assert_int_equal(model->mean_k.size, 0);
  assert_int_equal(model->name.size, 4);
  return ++seen->count == 3 ? 7 : 0;
}

static void models_are_listed_in_order(void **state) {
  struct error error;
  struct archive *archive = test_archive(*state, NULL);
  for (uint8_t i = 1; i <= 4; i++)
    model_release(test_model(archive, i));
  struct seen seen = {0};
  assert_int_equal(model_each(archive, TEST_UID, NULL, see, &seen, &error), 7);
  char third[33];
  memcpy(third, seen.last, sizeof third);
  assert_ok(model_each(archive, TEST_UID, third, see, &seen, &error), &error);
  assert_int_equal(seen.count, 4);
  assert_ok(model_each(archive, TEST_UID + 1, "", see, &seen, &error), &error);
  assert_int_equal(seen.count, 4);
  archive_close(archive);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test_setup_teardown(a_meta_is_read_as_written, setup, teardown),
      cmocka_unit_test_setup_teardown(extents_must_follow_each_other, setup, teardown),
      cmocka_unit_test_setup_teardown(no_flipped_bit_or_cut_passes, setup, teardown),
      cmocka_unit_test_setup_teardown(hostile_maps_are_refused, setup, teardown),
      cmocka_unit_test_setup_teardown(a_model_is_read_as_written, setup, teardown),
      cmocka_unit_test_setup_teardown(bad_models_are_refused, setup, teardown),
      cmocka_unit_test_setup_teardown(a_model_is_frozen_once, setup, teardown),
      cmocka_unit_test_setup_teardown(models_are_listed_in_order, setup, teardown),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
