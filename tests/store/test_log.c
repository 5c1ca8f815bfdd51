// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
#include "tests/store/fixture.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "store/log.h"
#include "store/log_write.h"
#include "tests/store/fault.h"

enum { SALT = 5, FRAMES = 4 };

static const uint8_t conversation[LIMIT_ID_BYTES] = {1, 2, 3};

struct world {
  char *dir, *path;
  struct log_writer writer;
  struct test_append appends[FRAMES];
  uint64_t ends[FRAMES]; /* file offsets */
};

static struct log_frame frame_of(const struct msg_append *append) {
  return (struct log_frame){.first = append->first,
                            .count = (uint32_t)(append->ids.size / 4),
                            .ahead = (uint32_t)(append->ahead.size / 4),
                            .layers = TINY_LAYERS,
                            .kv_heads = TINY_HEADS,
                            .ids = append->ids.data,
                            .ahead_ids = append->ahead.data,
                            .records = append->records.data};
}

/* A log of four frames: 3 tokens, none, 1, 2; `synced` tells whether each is synced before the next. */
static struct world *make(bool synced) {
  static const uint32_t counts[FRAMES] = {3, 0, 1, 2}, ahead[FRAMES] = {2, 4, 0, 1};
  struct error error;
  bool sync_failed;
  struct world *w = calloc(1, sizeof *w);
  assert_non_null(w);
  fault_reset();
  w->dir = test_directory_make();
  w->path = strdup(test_path(w->dir, "log"));
  uint64_t first = 4096;
  for (int i = 0; i < FRAMES; i++) {
    test_append_make(&w->appends[i], first, counts[i], ahead[i], SALT);
    struct log_frame frame = frame_of(&w->appends[i].message);
    if (i == 0)
      assert_ok(log_writer_create(&w->writer, &io_system, w->path, conversation, &frame, NULL, &error), &error);
    else
      assert_ok(log_writer_append(&w->writer, &frame, &error), &error);
    if (synced)
      assert_ok(log_writer_sync(&w->writer, &sync_failed, &error), &error);
    w->ends[i] = w->writer.size;
    first += counts[i];
  }
  return w;
}

static void finish(struct world *w) {
  log_writer_close(&w->writer);
  for (int i = 0; i < FRAMES; i++)
    test_append_free(&w->appends[i]);
  test_directory_remove(w->dir);
  free(w->path);
  free(w);
}

/* Reads all frames; *frames is how many were good. Returns how it ended. */
static int read_all(struct world *w, int *frames, uint64_t *offset, struct error *error) {
  struct log_reader *reader;
  struct log_frame frame;
  bool torn;
  *frames = 0;
  int result = log_reader_open(&io_system, w->path, &reader, &torn, error);
  if (result)
    return torn ? 100 : result;
  while ((result = log_reader_next(reader, &frame, error)) == LOG_FRAME) {
    const struct msg_append *append = &w->appends[*frames].message;
    assert_int_equal(frame.first, append->first);
    assert_int_equal(frame.count * 4, append->ids.size);
    assert_int_equal(frame.ahead * 4, append->ahead.size);
    assert_memory_equal(frame.ids, append->ids.data, append->ids.size);
    assert_memory_equal(frame.ahead_ids, append->ahead.data, append->ahead.size);
    assert_memory_equal(frame.records, append->records.data, append->records.size);
    ++*frames;
  }
  *offset = log_reader_offset(reader);
  log_reader_close(reader);
  return result;
}

static void what_is_written_is_read(void **state) {
  (void)state;
  struct world *w = make(true);
  struct error error;
  struct log_reader *reader;
  struct log_frame frame;
  int frames;
  uint64_t offset;
  assert_int_equal(read_all(w, &frames, &offset, &error), LOG_END);
  assert_int_equal(frames, FRAMES);
  assert_int_equal(offset, test_file_size(w->path));
  assert_ok(log_reader_open(&io_system, w->path, &reader, NULL, &error), &error);
  assert_int_equal(log_reader_header(reader)->first, 4096);
  assert_memory_equal(log_reader_header(reader)->conversation, conversation, sizeof conversation);
  for (int i = 0; i < FRAMES; i++) {
    assert_int_equal(log_reader_skip(reader, &frame, &error), LOG_FRAME);
    assert_int_equal(frame.offset + frame.size, w->ends[i]);
    assert_int_equal(frame.synced, i ? w->ends[i - 1] : 0);
    assert_null(frame.records);
  }
  assert_int_equal(log_reader_skip(reader, &frame, &error), LOG_END);
  log_reader_close(reader);
  finish(w);
}

static void a_frame_is_one_write(void **state) {
  (void)state;
  struct world *w = make(true);
  struct error error;
  bool sync_failed;
  struct log_writer writer;
  struct log_frame frame = frame_of(&w->appends[0].message);
  const char *path = test_path(w->dir, "other");
  fault_reset();
  assert_ok(log_writer_create(&writer, &io_fault, path, conversation, &frame, NULL, &error), &error);
  assert_ok(log_writer_sync(&writer, &sync_failed, &error), &error);
  frame = frame_of(&w->appends[2].message);
  assert_ok(log_writer_append(&writer, &frame, &error), &error);
  assert_ok(log_writer_sync(&writer, &sync_failed, &error), &error);
  assert_ok(log_writer_sync(&writer, &sync_failed, &error), &error); /* nothing new */
  assert_string_equal(fault.order, "owdfwd");
  log_writer_close(&writer);
  finish(w);
}

static void a_log_cut_anywhere_is_torn_there(void **state) {
  (void)state;
  struct world *w = make(true);
  for (uint64_t size = w->ends[FRAMES - 1]; size-- > 0;) {
    struct error error;
    int frames, wanted = 0;
    uint64_t offset;
    assert_int_equal(truncate(w->path, (off_t)size), 0);
    int result = read_all(w, &frames, &offset, &error);
    if (size < LOG_HEADER_BYTES) {
      assert_int_equal(result, 100);
      continue;
    }
    while (wanted < FRAMES && w->ends[wanted] <= size)
      wanted++;
    uint64_t good = wanted ? w->ends[wanted - 1] : LOG_HEADER_BYTES;
    assert_int_equal(result, good == size ? LOG_END : LOG_TORN);
    assert_int_equal(frames, wanted);
    assert_int_equal(offset, good);
  }
  finish(w);
}

/* Every bit of the file. In the last frame a flip looks like a torn end; anywhere else a later frame tells that the
 * place had been synced. */
static void a_flipped_bit_is_damage_unless_it_is_in_the_last_frame(void **state) {
  (void)state;
  struct world *w = make(true);
  uint64_t size = test_file_size(w->path);
  for (uint64_t bit = 0; bit < size * 8; bit += bit % 64 == 9 ? 55 : 1) {
    struct error error;
    int frames, before = 0;
    uint64_t offset;
    test_flip_bit(w->path, bit);
    int result = read_all(w, &frames, &offset, &error);
    while (w->ends[before] <= bit / 8)
      before++;
    if (bit / 8 < LOG_HEADER_BYTES) {
      bool version = bit / 8 >= 8 && bit / 8 < 16;
      assert_true(result == -ERR_CORRUPT || (version && result == -ERR_VERSION));
    } else {
      assert_int_equal(result, before == FRAMES - 1 ? LOG_TORN : -ERR_CORRUPT);
      assert_int_equal(frames, before); /* what precedes it can be read */
    }
    test_flip_bit(w->path, bit);
  }
  finish(w);
}

/* Without syncs in between, a machine may write the frames in any order before it stops. */
static void an_unsynced_hole_is_torn(void **state) {
  (void)state;
  struct world *w = make(false);
  for (int i = 0; i < FRAMES; i++) {
    struct error error;
    int frames;
    uint64_t offset, bit = 8 * (w->ends[i] - 6);
    test_flip_bit(w->path, bit);
    assert_int_equal(read_all(w, &frames, &offset, &error), LOG_TORN);
    assert_int_equal(frames, i);
    test_flip_bit(w->path, bit);
  }
  finish(w);
}

static void zero_bytes(const char *path, uint64_t from, uint64_t to) {
  int fd = open(path, O_WRONLY | O_CLOEXEC);
  assert_true(fd >= 0);
  for (; from < to; from++)
    assert_int_equal(pwrite(fd, "", 1, (off_t)from), 1);
  close(fd);
}

static void zeros_in_place_of_the_header(void **state) {
  (void)state;
  struct error error;
  int frames;
  uint64_t offset;
  struct world *w = make(false);
  zero_bytes(w->path, 0, LOG_HEADER_BYTES);
  assert_int_equal(read_all(w, &frames, &offset, &error), 100); /* never synced: torn */
  finish(w);
  w = make(true);
  zero_bytes(w->path, 0, LOG_HEADER_BYTES);
  assert_error(read_all(w, &frames, &offset, &error), ERR_CORRUPT, &error);
  finish(w);
}

static void a_zeroed_frame_in_the_middle_is_damage(void **state) {
  (void)state;
  struct error error;
  int frames;
  uint64_t offset;
  struct world *w = make(true);
  zero_bytes(w->path, w->ends[0], w->ends[2]);
  assert_error(read_all(w, &frames, &offset, &error), ERR_CORRUPT, &error);
  assert_int_equal(frames, 1);
  finish(w);
}

static void frames_of_another_log_are_not_taken(void **state) {
  (void)state;
  struct error error;
  int frames;
  uint64_t offset;
  struct world *w = make(true), *other = make(true);
  FILE *from = fopen(other->path, "rb"), *to = fopen(w->path, "r+b");
  static uint8_t bytes[1 << 16];
  assert_true(from && to);
  size_t size = fread(bytes, 1, sizeof bytes, from);
  assert_int_equal(size, w->ends[FRAMES - 1]);
  assert_int_equal(fseek(to, (long)w->ends[0], SEEK_SET), 0);
  assert_int_equal(fwrite(bytes + w->ends[0], 1, size - w->ends[0], to), size - w->ends[0]);
  fclose(from);
  fclose(to);
  assert_error(read_all(w, &frames, &offset, &error), ERR_CORRUPT, &error); /* another salt: no torn write looks so */
  assert_int_equal(frames, 1);
  finish(other);
  finish(w);
}

static void a_failed_write_is_taken_back(void **state) {
  (void)state;
  struct world *w = make(true);
  struct error error;
  int frames;
  uint64_t offset;
  struct log_writer writer;
  struct log_frame frame = frame_of(&w->appends[0].message);
  free(w->path);
  w->path = strdup(test_path(w->dir, "full"));
  assert_ok(log_writer_create(&writer, &io_fault, w->path, conversation, &frame, NULL, &error), &error);
  for (int i = 0; i < 2; i++) {
    fault_reset();
    fault.mode = i ? FAULT_FAIL : FAULT_FAIL_ONCE; /* the second time the truncation fails, too */
    fault.at = 1;
    fault.error = ENOSPC;
    frame = frame_of(&w->appends[1].message);
    assert_error(log_writer_append(&writer, &frame, &error), ERR_NO_SPACE, &error);
    fault_reset();
    assert_int_equal(read_all(w, &frames, &offset, &error), i ? LOG_TORN : LOG_END);
    assert_int_equal(frames, 1);
  }
  for (int i = 1; i < FRAMES; i++) {
    frame = frame_of(&w->appends[i].message);
    assert_ok(log_writer_append(&writer, &frame, &error), &error);
  }
  assert_int_equal(read_all(w, &frames, &offset, &error), LOG_END);
  assert_int_equal(frames, FRAMES);
  log_writer_close(&writer);
  finish(w);
}

static void a_log_goes_on_after_its_torn_end(void **state) {
  (void)state;
  struct world *w = make(true);
  struct error error;
  struct log_reader *reader;
  int frames;
  uint64_t offset;
  assert_ok(log_reader_open(&io_system, w->path, &reader, NULL, &error), &error);
  struct log_header header = *log_reader_header(reader);
  log_reader_close(reader);
  assert_int_equal(truncate(w->path, (off_t)w->ends[3] - 1), 0);
  log_writer_close(&w->writer);
  assert_ok(log_writer_open(&w->writer, &io_system, w->path, &header, w->ends[2], &error), &error);
  assert_int_equal(test_file_size(w->path), w->ends[2]);
  struct log_frame frame = frame_of(&w->appends[3].message);
  assert_ok(log_writer_append(&w->writer, &frame, &error), &error);
  assert_int_equal(read_all(w, &frames, &offset, &error), LOG_END);
  assert_int_equal(frames, FRAMES);
  finish(w);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(what_is_written_is_read),
      cmocka_unit_test(a_frame_is_one_write),
      cmocka_unit_test(a_log_cut_anywhere_is_torn_there),
      cmocka_unit_test(a_flipped_bit_is_damage_unless_it_is_in_the_last_frame),
      cmocka_unit_test(an_unsynced_hole_is_torn),
      cmocka_unit_test(zeros_in_place_of_the_header),
      cmocka_unit_test(a_zeroed_frame_in_the_middle_is_damage),
      cmocka_unit_test(frames_of_another_log_are_not_taken),
      cmocka_unit_test(a_failed_write_is_taken_back),
      cmocka_unit_test(a_log_goes_on_after_its_torn_end),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
