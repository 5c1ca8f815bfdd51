// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// Flips bits and swaps pieces of an archive, and expects verify to find it, and every answer to be right or an error.
// No byte is left out: those that hold no data (zeros of headers, the ends of columns and of the table of CRCs) are
// covered by a CRC as well. The catalog alone has none for its pages: there, what verify does not find must change no
// answer. With COLDKV_TORTURE_SECONDS=N it goes on for that long, and ends with one line of figures.
#include "tests/store/rot.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "store/log.h"
#include "store/segment.h"
#include "store/verify.h"
#include "tests/proto/random.h"

enum { PAGE = SEGMENT_PAGE_BYTES };

static struct rot rot;
static struct random rng = {2024};

/* Of the campaign. */
static unsigned tried, found, wrong_answers, harmless;

static int setup(void **state) {
  (void)state;
  rot_make(&rot);
  return 0;
}

static int teardown(void **state) {
  (void)state;
  rot_finish(&rot);
  return 0;
}

struct told {
  unsigned problems;
  const char *wanted; /* file that must be named, relative to the archive; NULL: any */
  bool named;
  char first[1024];
};

static int take(void *context, const char *path, const char *what, const struct verify_report *report) {
  struct told *told = context;
  (void)report;
  if (!what)
    return 0;
  if (told->problems++ == 0)
    snprintf(told->first, sizeof told->first, "%.300s: %.700s", path, what);
  /* a bad meta makes its conversation unreadable, and that is named by its directory */
  told->named |= told->wanted && (strcmp(path, told->wanted) == 0 || strstr(what, told->wanted) != NULL ||
                                  (strstr(path, "conversations/") && strncmp(path, told->wanted, strlen(path)) == 0));
  return 0;
}

static const char *relative(const char *path) { return path + strlen(rot.dir) + 1; }

static bool verify_finds(const char *path) {
  struct told told = {.wanted = path ? relative(path) : NULL};
  struct verify_report report;
  struct error error;
  assert_ok(verify_archive(NULL, rot.dir, &report, take, &told, &error), &error);
  if (told.problems && path && !told.named)
    fail_msg("%s is not named, but %s", told.wanted, told.first);
  return told.problems > 0;
}

static void count_attack(const char *what, bool was_found, bool ask) {
  struct rot_answers answers = {0};
  tried++;
  found += was_found;
  if (ask) {
    rot_ask(&rot, &answers);
    wrong_answers += answers.wrong;
    if (answers.wrong)
      fail_msg("%s: %u wrong answers, the first: %s", what, answers.wrong, answers.first);
    rot_restore(&rot);
  }
  if (!was_found)
    fail_msg("%s is not found", what);
}

static void flip(const struct rot_file *file, uint64_t bit, bool ask) {
  char what[512];
  snprintf(what, sizeof what, "bit %llu of byte %llu of %s", (unsigned long long)(bit % 8),
           (unsigned long long)(bit / 8), file->path);
  test_flip_bit(file->path, bit);
  bool was_found = verify_finds(file->path);
  count_attack(what, was_found, ask);
  if (!ask)
    test_flip_bit(file->path, bit);
}

/* Every bit of a small file or of a header, by the check of that file alone, and some by that of the archive. */
static void flip_each(const struct rot_file *file, uint64_t from, uint64_t to) {
  for (uint64_t bit = from * 8; bit < to * 8; bit++) {
    struct told told = {0};
    struct verify_report report;
    struct error error;
    if (bit % 401 == 0) {
      flip(file, bit, bit % 1203 == 0);
      continue;
    }
    test_flip_bit(file->path, bit);
    assert_ok(verify_file(NULL, file->path, &report, take, &told, &error), &error);
    if (!told.problems)
      fail_msg("bit %llu of byte %llu of %s is not found", (unsigned long long)(bit % 8),
               (unsigned long long)(bit / 8), file->path);
    tried++;
    found++;
    test_flip_bit(file->path, bit);
  }
}

static void flip_some(const struct rot_file *file, unsigned count, unsigned asked, uint64_t from, uint64_t to) {
  for (unsigned i = 0; i < count; i++)
    flip(file, from * 8 + random_below(&rng, (uint32_t)(to - from) * 8), i < asked);
}

/* --- flipped bits ------------------------------------------------------------------------------------------------- */

static void nothing_is_found_in_a_whole_archive(void **state) {
  struct rot_answers answers;
  (void)state;
  assert_false(verify_finds(NULL));
  rot_ask(&rot, &answers);
  assert_int_equal(answers.wrong, 0);
  assert_int_equal(answers.refused, 0);
  assert_int_equal(answers.errors, 0);
  assert_true(answers.reads > 50);
  rot_restore(&rot);
  assert_false(verify_finds(NULL));
}

static void flips_in_small_files_and_headers(void **state) {
  (void)state;
  struct rot_file *segment = rot_file(&rot, ROT_SEGMENT, 0), *log = rot_file(&rot, ROT_CLOSED, 0);
  struct rot_file *meta = rot_file(&rot, ROT_META, 1), *model = rot_file(&rot, ROT_MODEL, 2);
  flip_each(meta, 0, meta->size);
  flip_each(model, 0, 400);
  flip_some(model, 20, 4, 400, model->size);
  flip_each(segment, 0, 128);
  flip_each(segment, PAGE - 4, PAGE);
  flip_each(log, 0, LOG_HEADER_BYTES + LOG_FRAME_HEADER_BYTES);
}

static void flips_in_segments(void **state) {
  (void)state;
  struct rot_file *segment = rot_file(&rot, ROT_SEGMENT, 1);
  uint32_t table = segment_table_pages(TINY_LAYERS, TINY_HEADS);
  uint64_t pages = segment->size / PAGE;
  flip_some(segment, 10, 2, 128, PAGE - 4);
  flip_some(segment, 20, 4, PAGE, PAGE * (1 + (uint64_t)table));
  for (uint64_t page = 1 + table; page < pages; page++)
    flip_some(segment, 1, page % 4 == 0, page * PAGE, (page + 1) * PAGE);
}

/* The end of the last log too: the archive was closed in good order, so the catalog knows where it was. */
static void flips_in_logs(void **state) {
  (void)state;
  for (int i = 0; i < ROT_CONVERSATIONS; i++) {
    struct rot_file *open_log = rot_file(&rot, ROT_OPEN, i);
    flip_some(open_log, 25, 8, 0, open_log->size);
    /* the newest frame holds ids ahead alone */
    flip_some(open_log, 12, 6, open_log->size - LOG_FRAME_HEADER_BYTES - 4 * ROT_AHEAD - 4, open_log->size);
    if (i < 2)
      flip_some(rot_file(&rot, ROT_CLOSED, i), 40, 8, 0, rot_file(&rot, ROT_CLOSED, i)->size);
  }
}

/* What verify does not find in the catalog's pages changes nothing: the next start copies or makes it again. */
static void flip_catalog(void) {
  struct rot_file *catalog = rot_file(&rot, ROT_CATALOG, 0);
  struct rot_answers answers;
  uint64_t bit;
  do
    bit = random_below(&rng, (uint32_t)catalog->size * 8);
  while (catalog->bytes[bit / 8] == 0 && random_below(&rng, 8)); /* most of it is empty */
  test_flip_bit(catalog->path, bit);
  bool was_found = verify_finds(NULL);
  tried++;
  found += was_found;
  harmless += !was_found;
  rot_ask(&rot, &answers);
  wrong_answers += answers.wrong;
  if (answers.wrong || answers.refused || answers.errors)
    fail_msg("bit %llu of the catalog: %u wrong, %u refused: %s%s", (unsigned long long)bit, answers.wrong,
             answers.refused, answers.first, answers.reason);
  rot_restore(&rot);
}

static void flips_in_the_catalog(void **state) {
  (void)state;
  for (int i = 0; i < 40; i++)
    flip_catalog();
}

/* The bytes of one file under the name of another. */
static void put(const struct rot_file *at, const struct rot_file *from) {
  rot_write(at->path, from->bytes, from->size);
}

/* However it was lost, everything is there again after a start, and verify then agrees. */
static void a_catalog_lost_in_every_way(void **state) {
  (void)state;
  struct rot_file *catalog = rot_file(&rot, ROT_CATALOG, 0);
  struct rot other;
  uint8_t *garbage = malloc(catalog->size);
  assert_non_null(garbage);
  random_fill(&rng, garbage, catalog->size);
  rot_make(&other);
  for (int way = 0; way < 6; way++) {
    struct rot_answers answers;
    if (way == 0)
      assert_int_equal(unlink(catalog->path), 0);
    else if (way == 1)
      assert_int_equal(truncate(catalog->path, 0), 0);
    else if (way == 2)
      assert_int_equal(truncate(catalog->path, (off_t)catalog->size / 2), 0);
    else if (way == 3)
      assert_int_equal(truncate(catalog->path, PAGE + 100), 0);
    else if (way == 4)
      rot_write(catalog->path, garbage, catalog->size);
    else
      put(catalog, rot_file(&other, ROT_CATALOG, 0));
    if (way > 0 && !verify_finds(NULL))
      fail_msg("way %d is not found", way);
    rot_ask(&rot, &answers);
    if (answers.wrong || answers.refused || answers.errors)
      fail_msg("way %d: %u wrong, %u refused: %s%s", way, answers.wrong, answers.refused, answers.first,
               answers.reason);
    assert_false(verify_finds(NULL));
    rot_restore(&rot);
  }
  rot_finish(&other);
  free(garbage);
}

/* --- swaps -------------------------------------------------------------------------------------------------------- */

static void swap_bytes(const struct rot_file *a, uint64_t at_a, const struct rot_file *b, uint64_t at_b, size_t size) {
  FILE *file = fopen(a->path, "r+b");
  assert_non_null(file);
  assert_int_equal(fseek(file, (long)at_a, SEEK_SET), 0);
  assert_int_equal(fwrite(b->bytes + at_b, 1, size, file), size);
  assert_int_equal(fclose(file), 0);
  file = fopen(b->path, "r+b");
  assert_non_null(file);
  assert_int_equal(fseek(file, (long)at_b, SEEK_SET), 0);
  assert_int_equal(fwrite(a->bytes + at_a, 1, size, file), size);
  assert_int_equal(fclose(file), 0);
}

static void swapped(const char *what, const struct rot_file *file) {
  count_attack(what, verify_finds(file ? file->path : NULL), true);
}

/* One record in all its columns, at entry i of (layer 1, head 0). */
static void swap_record(const struct rot_file *a, uint32_t i, const struct rot_file *b, uint32_t j) {
  uint32_t scan = segment_place(TINY_LAYERS, TINY_HEADS, SEGMENT_SCAN, 1, 0);
  uint32_t value = segment_place(TINY_LAYERS, TINY_HEADS, SEGMENT_VALUE, 1, 0);
  const struct {
    uint32_t page, width;
  } columns[] = {{scan, RECORD_SIGNATURE_BYTES},
                 {scan + RECORD_SIGNATURE_BYTES, RECORD_K_SCALE_BYTES},
                 {segment_place(TINY_LAYERS, TINY_HEADS, SEGMENT_RESCORE, 1, 0), RECORD_K_MAG_BYTES},
                 {value, RECORD_V_CODE_BYTES},
                 {value + RECORD_V_CODE_BYTES, RECORD_V_SCALE_BYTES},
                 {value + RECORD_V_CODE_BYTES + RECORD_V_SCALE_BYTES, RECORD_CRC_BYTES}};
  for (size_t c = 0; c < sizeof columns / sizeof columns[0]; c++) {
    uint64_t start = (uint64_t)columns[c].page * PAGE;
    swap_bytes(a, start + (uint64_t)i * columns[c].width, b, start + (uint64_t)j * columns[c].width,
               columns[c].width);
  }
}

static void swaps_in_segments(void **state) {
  (void)state;
  struct rot_file *a = rot_file(&rot, ROT_SEGMENT, 0), *b = rot_file(&rot, ROT_SEGMENT, 1);
  assert_int_equal(a->size, b->size);
  for (uint64_t page = 1; page < a->size / PAGE; page += 9) {
    swap_bytes(a, page * PAGE, b, page * PAGE, PAGE);
    swapped("a page between conversations", a);
    swap_bytes(a, page * PAGE, a, (page + 1) % (a->size / PAGE) * PAGE, PAGE);
    swapped("a page within a segment", a);
  }
  for (uint32_t i = 0; i < 4; i++) {
    uint32_t entry = random_below(&rng, 4096);
    swap_record(a, entry, b, entry);
    swapped("a record between conversations", a);
    swap_record(a, entry, a, (entry + 1) % 4096);
    swapped("a record within a segment", a);
  }
  const uint64_t regions[][2] = {{segment_place(TINY_LAYERS, TINY_HEADS, SEGMENT_SCAN, 0, 0), SEGMENT_SCAN_PAGES},
                                 {segment_place(TINY_LAYERS, TINY_HEADS, SEGMENT_RESCORE, 0, 0), SEGMENT_RESCORE_PAGES},
                                 {segment_place(TINY_LAYERS, TINY_HEADS, SEGMENT_VALUE, 0, 0), SEGMENT_VALUE_PAGES}};
  for (size_t r = 0; r < 3; r++)
    swap_bytes(a, regions[r][0] * PAGE, b, regions[r][0] * PAGE, regions[r][1] * PAGE);
  swapped("a block between conversations", a);
  swap_bytes(a, 0, b, 0, PAGE);
  swapped("the header between conversations", a);
  swap_bytes(a, 0, b, 0, 2 * PAGE);
  swapped("header and table between conversations", a);
}

static void swaps_in_logs(void **state) {
  (void)state;
  struct rot_file *a = rot_file(&rot, ROT_CLOSED, 0), *b = rot_file(&rot, ROT_CLOSED, 1);
  uint64_t frame = (a->size - LOG_HEADER_BYTES) / (4096 / 256); /* all alike */
  assert_int_equal(a->size, b->size);
  assert_int_equal(LOG_HEADER_BYTES + 16 * frame, a->size);
  swap_bytes(a, 0, b, 0, LOG_HEADER_BYTES);
  swapped("the header of a log between conversations", a);
  for (uint64_t i = 0; i < 16; i += 5) {
    swap_bytes(a, LOG_HEADER_BYTES + i * frame, b, LOG_HEADER_BYTES + i * frame, frame);
    swapped("a frame between conversations", a);
    swap_bytes(a, LOG_HEADER_BYTES + i * frame, a, LOG_HEADER_BYTES + (i + 1) % 16 * frame, frame);
    swapped("a frame within a log", a);
  }
  swap_bytes(a, 0, b, 0, a->size);
  swapped("closed logs between conversations", a);
  a = rot_file(&rot, ROT_OPEN, 0);
  b = rot_file(&rot, ROT_OPEN, 1);
  assert_int_equal(a->size, b->size);
  swap_bytes(a, LOG_HEADER_BYTES + 4096, b, LOG_HEADER_BYTES + 4096, RECORD_BYTES);
  swapped("some bytes of records between conversations", a);
  swap_bytes(a, LOG_HEADER_BYTES, b, LOG_HEADER_BYTES, a->size - LOG_HEADER_BYTES);
  swapped("all frames between conversations", a);
  swap_bytes(a, 0, b, 0, a->size);
  swapped("open logs between conversations", a);
}

static void directory_of(const char *path, char directory[4096]) {
  snprintf(directory, 4096, "%.*s", (int)(strrchr(path, '/') - path), path);
}

static void swapped_files(void **state) {
  (void)state;
  static const enum rot_kind kinds[] = {ROT_SEGMENT, ROT_CLOSED, ROT_OPEN, ROT_META, ROT_MODEL};
  static const char *const names[] = {"segment", "closed log", "open log", "meta", "model file"};
  for (size_t i = 0; i < sizeof kinds / sizeof kinds[0]; i++) {
    struct rot_file *a = rot_file(&rot, kinds[i], 0), *b = rot_file(&rot, kinds[i], kinds[i] == ROT_MODEL ? 2 : 1);
    put(a, b);
    swapped(names[i], a);
    put(a, b);
    put(b, a);
    swapped(names[i], b);
    assert_int_equal(unlink(a->path), 0);
    count_attack(names[i], verify_finds(NULL), true);
  }
  char a[4096], b[4096], c[4096];
  directory_of(rot_file(&rot, ROT_META, 0)->path, a);
  directory_of(rot_file(&rot, ROT_META, 1)->path, b);
  snprintf(c, sizeof c, "%.4000s/kept", rot.dir);
  assert_int_equal(rename(a, c), 0);
  assert_int_equal(rename(b, a), 0);
  assert_int_equal(rename(c, b), 0);
  swapped("directories of conversations", NULL);
}

/* An old copy put back: found by what followed it, or by the catalog of an archive that was closed in good order. */
static void old_versions_put_back(void **state) {
  (void)state;
  static const enum rot_kind kinds[] = {ROT_OPEN, ROT_META, ROT_CATALOG};
  static const char *const names[] = {"an old log", "an old meta", "an old catalog"};
  for (int c = 0; c < ROT_CONVERSATIONS; c++)
    for (size_t i = 0; i < sizeof kinds / sizeof kinds[0]; i++) {
      bool catalog = kinds[i] == ROT_CATALOG;
      struct rot_file *file = rot_file(&rot, kinds[i], catalog ? 0 : c);
      struct rot_file *old = rot_old(&rot, kinds[i], catalog ? 0 : c);
      if (!old || (old->size == file->size && memcmp(old->bytes, file->bytes, old->size) == 0))
        continue; /* nothing has changed in it */
      put(file, old);
      swapped(names[i], NULL);
    }
}

/* --- the long form ------------------------------------------------------------------------------------------------ */

static void one_more(void) {
  static const enum rot_kind kinds[] = {ROT_SEGMENT, ROT_CLOSED, ROT_OPEN, ROT_META, ROT_MODEL, ROT_CATALOG};
  enum rot_kind kind = kinds[random_below(&rng, 6)];
  if (kind == ROT_CATALOG) {
    flip_catalog();
    return;
  }
  struct rot_file *file = rot_file(&rot, kind, kind == ROT_MODEL ? 2 : (int)random_below(&rng, 2));
  flip_some(file, 1, 1, 0, file->size);
}

static void long_form(void **state) {
  (void)state;
  const char *seconds = getenv("COLDKV_TORTURE_SECONDS");
  time_t end = time(NULL) + (seconds ? atol(seconds) : 0);
  if (seconds)
    rng.state += (uint64_t)time(NULL);
  while (time(NULL) < end)
    one_more();
  printf("torture: flips tried=%u found=%u wrong=%u harmless=%u\n", tried, found, wrong_answers, harmless);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(nothing_is_found_in_a_whole_archive),
      cmocka_unit_test(flips_in_small_files_and_headers),
      cmocka_unit_test(flips_in_segments),
      cmocka_unit_test(flips_in_logs),
      cmocka_unit_test(flips_in_the_catalog),
      cmocka_unit_test(a_catalog_lost_in_every_way),
      cmocka_unit_test(swaps_in_segments),
      cmocka_unit_test(swaps_in_logs),
      cmocka_unit_test(swapped_files),
      cmocka_unit_test(old_versions_put_back),
      cmocka_unit_test(long_form),
  };
  return cmocka_run_group_tests(tests, setup, teardown);
}
