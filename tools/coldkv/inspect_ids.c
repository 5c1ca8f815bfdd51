// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// Token ids of a range, and the bytes they stand for in a byte-level model.
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "proto/text.h"
#include "store/log.h"
#include "store/segment.h"
#include "tools/coldkv/inspect.h"

enum { IDS_PER_LINE = 16, BYTE_IDS = 256 };

void id_range_begin(struct id_range *range, const struct options *options) {
  uint64_t first = options->ids_first, count = options->ids_count;
  uint64_t end = count < UINT64_MAX - first ? first + count : UINT64_MAX;
  *range = (struct id_range){.wanted = first, .wanted_end = end, .begin = UINT64_MAX};
}

void id_range_finish(struct id_range *range) {
  free(range->ids);
  *range = (struct id_range){0};
}

int id_range_add(struct id_range *range, uint64_t first, const uint8_t *ids, uint32_t count, struct error *error) {
  if (!count)
    return 0;
  range->begin = first < range->begin ? first : range->begin;
  range->end = first + count > range->end ? first + count : range->end;
  for (uint32_t i = 0; i < count; i++) {
    uint64_t token = first + i;
    if (token < range->wanted || token >= range->wanted_end)
      continue;
    /* what an earlier part gave already (a log that is sealed too) is passed over */
    if (range->size && token < range->first + range->size)
      continue;
    if (!range->size)
      range->first = token;
    if (token != range->first + range->size)
      return error_set(error, ERR_CORRUPT, "token %" PRIu64 " is missing", range->first + range->size);
    if (range->size == range->room) {
      uint64_t room = range->room ? 2 * range->room : 4096;
      uint32_t *grown = realloc(range->ids, room * sizeof *grown);
      if (!grown)
        return error_set(error, ERR_MEMORY, "out of memory for token ids");
      range->ids = grown;
      range->room = room;
    }
    range->ids[range->size++] = load_u32(ids + 4 * (size_t)i);
  }
  return 0;
}

int ids_of_segment(const char *path, struct id_range *range, struct error *error) {
  struct segment *segment;
  int result = segment_open(&io_system, path, &segment, error);
  if (result)
    return result;
  result = segment_check_ids(segment, NULL, error);
  if (!result)
    result = id_range_add(range, segment_header(segment)->first, segment_ids(segment), segment_header(segment)->count,
                          error);
  if (!result)
    result = segment_check_readable(segment, NULL, error);
  segment_unref(segment);
  return result;
}

int ids_of_log(const char *path, struct id_range *range, struct error *error) {
  struct log_reader *reader;
  struct log_frame frame;
  int result = log_reader_open(&io_system, path, &reader, NULL, error);
  if (result)
    return result;
  while ((result = log_reader_next(reader, &frame, error)) == LOG_FRAME) {
    result = id_range_add(range, frame.first, frame.ids, frame.count, error);
    if (result)
      break;
  }
  log_reader_close(reader);
  return result < 0 ? result : 0;
}

/* The ids as text: bytes where they are below 256, <id> where not. malloc'd. */
static char *text_of(const struct id_range *range, size_t *size) {
  char *text = malloc(range->size * 12 + 1); /* "<4294967295>" */
  size_t at = 0;
  for (uint64_t i = 0; text && i < range->size; i++) {
    if (range->ids[i] < BYTE_IDS)
      text[at++] = (char)range->ids[i];
    else
      at += (size_t)sprintf(text + at, "<%" PRIu32 ">", range->ids[i]);
  }
  *size = at;
  return text;
}

/* Lines and tabs stay; other control characters, which a terminal might obey, and bad UTF-8 become '?'. */
static void print_text(char *text, size_t size) {
  for (size_t at = 0; at < size;) {
    size_t length = text_character(text + at, size - at);
    if (!length && text[at] != '\n' && text[at] != '\t')
      text[at] = '?';
    at += length ? length : 1;
  }
  fwrite(text, 1, size, stdout);
  if (size && text[size - 1] != '\n')
    putchar('\n');
}

static void print_ids(const struct id_range *range) {
  for (uint64_t i = 0; i < range->size; i++) {
    if (i % IDS_PER_LINE == 0)
      printf("%s%" PRIu64 ":", i ? "\n" : "", range->first + i);
    printf(" %" PRIu32, range->ids[i]);
  }
  putchar('\n');
}

int report_ids(struct report *report, const struct options *options, const struct id_range *range,
               struct error *error) {
  if (!range->size && range->begin >= range->end)
    return error_set(error, ERR_RANGE, "there are no tokens");
  if (!range->size)
    return error_set(error, ERR_RANGE, "no tokens there: they go from %" PRIu64 " to %" PRIu64, range->begin,
                     range->end - 1);
  size_t size = 0;
  char *text = options->text ? text_of(range, &size) : NULL;
  if (options->text && !text)
    return error_set(error, ERR_MEMORY, "out of memory for the text");
  if (report->as_json) {
    report_u64(report, "first", range->first);
    json_flat_array(&report->json, "ids");
    for (uint64_t i = 0; i < range->size; i++)
      json_u64(&report->json, NULL, range->ids[i]);
    json_close(&report->json);
    if (text)
      json_text(&report->json, "text", text, size);
  } else if (text) {
    print_text(text, size);
  } else {
    print_ids(range);
  }
  free(text);
  return 0;
}
