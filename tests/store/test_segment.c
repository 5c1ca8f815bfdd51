// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
#include "tests/store/fixture.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "proto/crc32c.h"
#include "store/segment_write.h"
#include "store/tail.h"
#include "store/verify.h"
#include "tests/store/fault.h"

enum { FIRST = 8192, SALT = 3 };

struct world {
  char *dir, *path;
  struct tail *tail;
  struct segment_header header;
};

static _Atomic uint64_t tail_bytes;

static void source(const void *context, uint32_t layer, uint32_t head, struct record_columns *columns) {
  tail_columns(context, layer, head, columns);
}

static int write_with(const struct io *io, struct world *w, bool *sync_failed, struct error *error) {
  return segment_write(io, w->path, &w->header, tail_ids(w->tail), source, w->tail, sync_failed, error);
}

/* A segment of `count` tokens. */
static struct world *make(uint32_t count) {
  struct error error;
  bool sync_failed;
  struct world *w = calloc(1, sizeof *w);
  assert_non_null(w);
  fault_reset();
  w->dir = test_directory_make();
  w->path = strdup(test_path(w->dir, "x.seg"));
  assert_ok(tail_create(&io_system, FIRST, TINY_LAYERS, TINY_HEADS, &tail_bytes, &w->tail, &error), &error);
  for (uint32_t at = 0; at < count; at += 256) {
    struct test_append append;
    uint32_t some = count - at < 256 ? count - at : 256;
    test_append_make(&append, FIRST + at, some, 0, SALT);
    tail_append(w->tail, append.message.ids.data, append.message.records.data, some);
    test_append_free(&append);
  }
  w->header = (struct segment_header){.layers = TINY_LAYERS,
                                      .kv_heads = TINY_HEADS,
                                      .head_dim = TINY_HEAD_DIM,
                                      .first = FIRST,
                                      .count = count,
                                      .created_s = 12345};
  memset(w->header.id, 0x11, sizeof w->header.id);
  memset(w->header.model, 0x22, sizeof w->header.model);
  memset(w->header.conversation, 0x33, sizeof w->header.conversation);
  assert_ok(write_with(&io_system, w, &sync_failed, &error), &error);
  return w;
}

static void finish(struct world *w) {
  tail_unref(w->tail);
  assert_int_equal(tail_bytes, 0);
  test_directory_remove(w->dir);
  free(w->path);
  free(w);
}

static void check_round_trip(uint32_t count) {
  struct world *w = make(count);
  struct error error;
  struct segment *segment;
  bool fresh;
  assert_ok(segment_open(&io_system, w->path, &segment, &error), &error);
  const struct segment_header *h = segment_header(segment);
  assert_int_equal(h->first, FIRST);
  assert_int_equal(h->count, count);
  assert_int_equal(h->created_s, 12345);
  assert_int_equal(h->pages, 1 + 1 + 4 + TINY_BLOCKS * 104);
  assert_int_equal(test_file_size(w->path), h->pages * SEGMENT_PAGE_BYTES);
  assert_memory_equal(h->model, w->header.model, LIMIT_ID_BYTES);
  assert_memory_equal(h->conversation, w->header.conversation, LIMIT_ID_BYTES);
  for (uint32_t page = 2; page < h->pages; page++)
    assert_ok(segment_check_page(segment, page, &error), &error);
  assert_error(segment_check_page(segment, 1, &error), ERR_RANGE, &error);
  assert_error(segment_check_page(segment, h->pages, &error), ERR_RANGE, &error);
  assert_ok(segment_check_ids(segment, &fresh, &error), &error);
  for (uint32_t i = 0; i < count; i++)
    assert_int_equal(load_u32(segment_ids(segment) + 4 * (size_t)i), test_token_id(FIRST + i, SALT));
  for (uint32_t layer = 0; layer < TINY_LAYERS; layer++) {
    struct record_columns columns;
    assert_ok(segment_check_layer(segment, layer, &fresh, &error), &error);
    segment_columns(segment, layer, 0, &columns);
    assert_int_equal(columns.first, FIRST);
    assert_int_equal(columns.count, count);
    for (uint32_t i = 0; i < count; i++) {
      uint8_t record[RECORD_BYTES], wanted[RECORD_BYTES];
      record_gather(&columns, i, record);
      test_record(wanted, layer, 0, FIRST + i, SALT);
      assert_memory_equal(record, wanted, RECORD_BYTES);
    }
  }
  segment_unref(segment);
  finish(w);
}

static void what_is_written_is_read(void **state) {
  (void)state;
  static const uint32_t counts[] = {1, 255, 256, 257, 1023, 2048, 2049, 4095, 4096};
  for (size_t i = 0; i < sizeof counts / sizeof counts[0]; i++)
    check_round_trip(counts[i]);
}

static void pages_without_tokens_are_holes(void **state) {
  (void)state;
  struct world *w = make(1);
  struct stat status;
  assert_int_equal(stat(w->path, &status), 0);
  /* header, table, ids, and one page of each of 6 columns of 2 blocks */
  assert_true((uint64_t)status.st_blocks * 512 <= (2 + 1 + 6 * TINY_BLOCKS + 4) * SEGMENT_PAGE_BYTES);
  finish(w);
}

static void everything_lies_where_the_format_says(void **state) {
  (void)state;
  static const uint32_t table_pages[] = {1, 1, 27}; /* 1 x 1, 2 x 1, 32 x 8 */
  static const uint32_t geometry[][2] = {{1, 1}, {2, 1}, {32, 8}};
  for (int i = 0; i < 3; i++) {
    uint32_t layers = geometry[i][0], heads = geometry[i][1], blocks = layers * heads, base = 1 + table_pages[i] + 4;
    assert_int_equal(segment_table_pages(layers, heads), table_pages[i]);
    assert_int_equal(segment_place(layers, heads, SEGMENT_SCAN, 0, 0), base);
    assert_int_equal(segment_place(layers, heads, SEGMENT_SCAN, layers - 1, heads - 1), base + (blocks - 1) * 18);
    assert_int_equal(segment_place(layers, heads, SEGMENT_RESCORE, 0, 0), base + blocks * 18);
    assert_int_equal(segment_place(layers, heads, SEGMENT_VALUE, 0, 0), base + blocks * 50);
    assert_int_equal(segment_total_pages(layers, heads), base + blocks * 104);
  }
  struct world *w = make(300);
  struct error error;
  struct segment *segment;
  assert_ok(segment_open(&io_system, w->path, &segment, &error), &error);
  assert_int_equal(segment_page_region(segment, 0), SEGMENT_HEADER);
  assert_int_equal(segment_page_region(segment, 1), SEGMENT_TABLE);
  assert_int_equal(segment_page_region(segment, 5), SEGMENT_IDS);
  assert_int_equal(segment_page_region(segment, 6), SEGMENT_SCAN);
  assert_int_equal(segment_page_region(segment, 6 + 35), SEGMENT_SCAN);
  assert_int_equal(segment_page_region(segment, 6 + 36), SEGMENT_RESCORE);
  assert_int_equal(segment_page_region(segment, 6 + 100), SEGMENT_VALUE);
  segment_unref(segment);
  finish(w);
}

struct tally {
  unsigned problems;
};

static int tally_problem(void *context, const char *path, const char *what, const struct verify_report *report) {
  (void)path;
  (void)report;
  ((struct tally *)context)->problems += what != NULL;
  return 0;
}

/* Every bit of the header page, and bits spread over all other pages: each is found by opening or by page CRC. */
static void no_flipped_bit_passes(void **state) {
  (void)state;
  struct world *w = make(700);
  uint64_t bits = test_file_size(w->path) * 8, page_bits = SEGMENT_PAGE_BYTES * 8;
  for (uint64_t bit = 0; bit < bits; bit += bit < page_bits ? 61 : 7919) {
    struct verify_report report;
    struct tally tally = {0};
    struct error error;
    test_flip_bit(w->path, bit);
    assert_ok(verify_file(&io_system, w->path, &report, tally_problem, &tally, &error), &error);
    if (!tally.problems || report.bad != tally.problems)
      fail_msg("bit %llu flipped: %u problems", (unsigned long long)bit, tally.problems);
    test_flip_bit(w->path, bit);
  }
  struct verify_report report;
  struct error error;
  assert_ok(verify_file(&io_system, w->path, &report, NULL, NULL, &error), &error);
  assert_int_equal(report.bad, 0);
  assert_int_equal(report.records, 700 * TINY_BLOCKS);
  assert_int_equal(report.bytes_done, test_file_size(w->path));
  finish(w);
}

static void a_bad_scan_page_stops_its_layer_only(void **state) {
  (void)state;
  struct world *w = make(4096);
  struct error error;
  struct segment *segment;
  bool fresh;
  test_flip_bit(w->path, ((uint64_t)(6 + 18 + 17) * SEGMENT_PAGE_BYTES + 77) * 8); /* k_scale of layer 1 */
  test_flip_bit(w->path, ((uint64_t)4 * SEGMENT_PAGE_BYTES + 5) * 8);              /* an id */
  assert_ok(segment_open(&io_system, w->path, &segment, &error), &error);
  assert_ok(segment_check_layer(segment, 0, &fresh, &error), &error);
  assert_error(segment_check_layer(segment, 1, &fresh, &error), ERR_CORRUPT, &error);
  assert_non_null(strstr(error.text, "page 41 (scan)"));
  assert_true(fresh);
  assert_error(segment_check_layer(segment, 1, &fresh, &error), ERR_CORRUPT, &error);
  assert_false(fresh);
  assert_error(segment_check_ids(segment, &fresh, &error), ERR_CORRUPT, &error);
  assert_false(fresh); /* the segment has been counted */
  segment_unref(segment);
  finish(w);
}

/* Rewrites a header field and its CRC. */
static void patch_header(const char *path, unsigned at, uint32_t value) {
  uint8_t page[SEGMENT_PAGE_BYTES];
  FILE *file = fopen(path, "r+b");
  assert_non_null(file);
  assert_int_equal(fread(page, 1, sizeof page, file), sizeof page);
  store_u32(page + at, value);
  store_u32(page + SEGMENT_PAGE_BYTES - 4, crc32c(0, page, SEGMENT_PAGE_BYTES - 4));
  assert_int_equal(fseek(file, 0, SEEK_SET), 0);
  assert_int_equal(fwrite(page, 1, sizeof page, file), sizeof page);
  assert_int_equal(fclose(file), 0);
}

static void what_is_not_understood_is_refused(void **state) {
  (void)state;
  static const struct {
    unsigned at;
    uint32_t value;
    int code; /* 0: accepted */
  } patches[] = {{8, 2, ERR_VERSION},    {12, 1, 0},           {16, 1, ERR_VERSION},  {20, 512, ERR_CORRUPT},
                 {72, 0, ERR_CORRUPT},   {72, 3, ERR_CORRUPT}, {72, 1u << 30, ERR_CORRUPT}, {76, 4096, ERR_CORRUPT},
                 {80, 60, ERR_CORRUPT},  {84, 2, ERR_VERSION}, {96, 0, ERR_CORRUPT},  {96, 4097, ERR_CORRUPT},
                 {92, 1u << 31, ERR_CORRUPT}, {112, 2, ERR_CORRUPT}, {116, 9, ERR_CORRUPT}, {120, 0, ERR_CORRUPT}};
  for (size_t i = 0; i < sizeof patches / sizeof patches[0]; i++) {
    struct world *w = make(5);
    struct error error;
    struct segment *segment;
    patch_header(w->path, patches[i].at, patches[i].value);
    int result = segment_open(&io_system, w->path, &segment, &error);
    if (patches[i].code) {
      assert_error(result, patches[i].code, &error);
    } else {
      assert_ok(result, &error);
      segment_unref(segment);
    }
    finish(w);
  }
}

static void a_truncated_file_is_refused(void **state) {
  (void)state;
  struct world *w = make(5);
  static const off_t less[] = {0, 1, 4095, 4096, 8192, 214 * 4096 - 1};
  for (int i = (int)(sizeof less / sizeof less[0]) - 1; i >= 0; i--) {
    struct error error;
    struct segment *segment;
    assert_int_equal(truncate(w->path, less[i]), 0);
    assert_error(segment_open(&io_system, w->path, &segment, &error), ERR_CORRUPT, &error);
    assert_non_null(strstr(error.text, w->path));
  }
  finish(w);
}

static void a_failed_write_leaves_nothing(void **state) {
  (void)state;
  struct world *w = make(4096);
  bool sync_failed;
  struct error error;
  assert_int_equal(unlink(w->path), 0);
  fault_reset();
  assert_ok(write_with(&io_fault, w, &sync_failed, &error), &error);
  unsigned calls = fault.counted;
  assert_string_equal(fault.order + fault.order_size - 3, "drf"); /* complete on disk before it has its name */
  for (unsigned at = 1; at < calls; at++) {
    assert_int_equal(unlink(w->path), 0);
    fault_reset();
    fault.mode = FAULT_FAIL_ONCE;
    fault.at = at;
    fault.error = ENOSPC;
    assert_error(write_with(&io_fault, w, &sync_failed, &error), ERR_NO_SPACE, &error);
    assert_int_equal(sync_failed, at == calls - 2);
    assert_int_equal(test_count_entries(w->dir, ""), 0);
    fault_reset();
    assert_ok(write_with(&io_fault, w, &sync_failed, &error), &error);
  }
  fault_reset();
  finish(w);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(what_is_written_is_read),
      cmocka_unit_test(pages_without_tokens_are_holes),
      cmocka_unit_test(everything_lies_where_the_format_says),
      cmocka_unit_test(no_flipped_bit_passes),
      cmocka_unit_test(a_bad_scan_page_stops_its_layer_only),
      cmocka_unit_test(what_is_not_understood_is_refused),
      cmocka_unit_test(a_truncated_file_is_refused),
      cmocka_unit_test(a_failed_write_leaves_nothing),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
