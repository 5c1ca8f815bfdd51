// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
#include "store/path.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

void path_id_text(const uint8_t id[LIMIT_ID_BYTES], char text[PATH_ID_TEXT_BYTES]) {
  static const char digits[] = "0123456789abcdef";
  for (unsigned i = 0; i < LIMIT_ID_BYTES; i++) {
    *text++ = digits[id[i] >> 4];
    *text++ = digits[id[i] & 15];
  }
  *text = 0;
}

static int hex_digit(char c) {
  if (c >= '0' && c <= '9')
    return c - '0';
  return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* Reads 32 digits; what follows them is the caller's. */
static bool id_digits(const char *text, uint8_t id[LIMIT_ID_BYTES]) {
  for (unsigned i = 0; i < LIMIT_ID_BYTES; i++) {
    int high = hex_digit(text[2 * i]);
    int low = high < 0 ? -1 : hex_digit(text[2 * i + 1]);
    if (low < 0)
      return false;
    id[i] = (uint8_t)(high << 4 | low);
  }
  return true;
}

bool path_id_parse(const char *text, uint8_t id[LIMIT_ID_BYTES]) {
  return id_digits(text, id) && text[2 * LIMIT_ID_BYTES] == 0;
}

void path_join(char path[PATH_BYTES], const char *dir, const char *name) {
  snprintf(path, PATH_BYTES, "%s/%s", dir, name);
}

static void join_id(char path[PATH_BYTES], const char *dir, const char *before, const uint8_t *id, const char *after) {
  char text[PATH_ID_TEXT_BYTES];
  path_id_text(id, text);
  snprintf(path, PATH_BYTES, "%s/%s%s%s", dir, before, text, after);
}

void path_model(char path[PATH_BYTES], const char *dir, const uint8_t *id) { join_id(path, dir, "models/", id, ""); }

void path_conversation(char path[PATH_BYTES], const char *dir, const uint8_t *id) {
  join_id(path, dir, "conversations/", id, "");
}

void path_deleted(char path[PATH_BYTES], const char *dir, const uint8_t *id) {
  join_id(path, dir, "conversations/" PATH_DELETED_PREFIX, id, "");
}

void path_meta(char path[PATH_BYTES], const char *dir, const uint8_t *conversation) {
  join_id(path, dir, "conversations/", conversation, "/meta");
}

void path_log(char path[PATH_BYTES], const char *dir, const uint8_t *conversation, uint64_t first) {
  char name[PATH_LOG_NAME_BYTES + 1];
  snprintf(name, sizeof name, "/log-%020" PRIu64, first);
  join_id(path, dir, "conversations/", conversation, name);
}

void path_segment_directory(char path[PATH_BYTES], const char *dir, const uint8_t *id) {
  snprintf(path, PATH_BYTES, "%s/segments/%02x", dir, id[0]);
}

void path_segment(char path[PATH_BYTES], const char *dir, const uint8_t *id) {
  char before[sizeof "segments/ab/"];
  snprintf(before, sizeof before, "segments/%02x/", id[0]);
  join_id(path, dir, before, id, PATH_SEGMENT_SUFFIX);
}

bool path_log_parse(const char *name, uint64_t *first) {
  if (strncmp(name, "log-", 4) != 0 || strlen(name) != PATH_LOG_NAME_BYTES - 1)
    return false;
  uint64_t value = 0;
  for (const char *p = name + 4; *p; p++) {
    if (*p < '0' || *p > '9' || value > LIMIT_TOKEN_INDEX_MAX)
      return false;
    value = value * 10 + (uint64_t)(*p - '0');
  }
  *first = value;
  return value <= LIMIT_TOKEN_INDEX_MAX;
}

bool path_segment_parse(const char *name, uint8_t id[LIMIT_ID_BYTES]) {
  return id_digits(name, id) && strcmp(name + 2 * (size_t)LIMIT_ID_BYTES, PATH_SEGMENT_SUFFIX) == 0;
}

bool path_is_temporary(const char *name) {
  size_t size = strlen(name), suffix = strlen(PATH_TEMPORARY_SUFFIX);
  return size > suffix && strcmp(name + size - suffix, PATH_TEMPORARY_SUFFIX) == 0;
}
