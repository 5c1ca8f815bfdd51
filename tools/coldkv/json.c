// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
#include "tools/coldkv/json.h"

#include <assert.h>
#include <inttypes.h>
#include <math.h>
#include <string.h>

#include "proto/text.h"

/* Objects and arrays of the outer levels get a line for each member, inner ones stay on one line. */
enum { BROKEN_LEVELS = 2 };

void json_begin(struct json *json, FILE *out) { *json = (struct json){.out = out}; }

static void write_string(struct json *json, const char *text, size_t size) {
  fputc('"', json->out);
  for (size_t at = 0; at < size;) {
    unsigned char c = (unsigned char)text[at];
    size_t length = text_character(text + at, size - at);
    if (c == '"' || c == '\\')
      fprintf(json->out, "\\%c", c);
    else if (length)
      fwrite(text + at, 1, length, json->out);
    else if (c < 0x20 || c == 0x7f)
      fprintf(json->out, "\\u%04x", c);
    else
      fputs("\\ufffd", json->out);
    at += length ? length : 1;
  }
  fputc('"', json->out);
}

static bool on_one_line(const struct json *json) {
  return json->depth > BROKEN_LEVELS || json->flat[json->depth - 1];
}

/* What stands before a value: comma, line, key. */
static void before_value(struct json *json, const char *key) {
  if (json->depth) {
    bool *filled = &json->filled[json->depth - 1];
    if (*filled)
      fputs(on_one_line(json) ? ", " : ",", json->out);
    *filled = true;
    if (!on_one_line(json))
      fprintf(json->out, "\n%*s", (int)(2 * json->depth), "");
  }
  if (key) {
    write_string(json, key, strlen(key));
    fputs(": ", json->out);
  }
}

static void json_open(struct json *json, const char *key, const char *brackets, bool flat) {
  assert(json->depth < JSON_DEPTH_MAX);
  before_value(json, key);
  fputc(brackets[0], json->out);
  json->closing[json->depth] = brackets[1];
  json->flat[json->depth] = flat;
  json->filled[json->depth++] = false;
}

void json_object(struct json *json, const char *key) { json_open(json, key, "{}", false); }
void json_array(struct json *json, const char *key) { json_open(json, key, "[]", false); }
void json_flat_array(struct json *json, const char *key) { json_open(json, key, "[]", true); }

void json_close(struct json *json) {
  assert(json->depth > 0);
  char closing = json->closing[json->depth - 1];
  if (json->filled[json->depth - 1] && !on_one_line(json))
    fprintf(json->out, "\n%*s", (int)(2 * (json->depth - 1)), "");
  json->depth--;
  fputc(closing, json->out);
}

void json_text(struct json *json, const char *key, const char *text, size_t size) {
  before_value(json, key);
  write_string(json, text, size);
}

void json_u64(struct json *json, const char *key, uint64_t value) {
  before_value(json, key);
  fprintf(json->out, "%" PRIu64, value);
}

void json_real(struct json *json, const char *key, double value) {
  before_value(json, key);
  if (isfinite(value))
    fprintf(json->out, "%.9g", value);
  else
    fputs("null", json->out);
}

void json_bool(struct json *json, const char *key, bool value) {
  before_value(json, key);
  fputs(value ? "true" : "false", json->out);
}

void json_null(struct json *json, const char *key) {
  before_value(json, key);
  fputs("null", json->out);
}

void json_hex(struct json *json, const char *key, const uint8_t *data, size_t size) {
  before_value(json, key);
  fputc('"', json->out);
  for (size_t i = 0; i < size; i++)
    fprintf(json->out, "%02x", data[i]);
  fputc('"', json->out);
}

void json_close_to(struct json *json, unsigned depth) {
  while (json->depth > depth)
    json_close(json);
}

void json_end(struct json *json) {
  json_close_to(json, 0);
  fputc('\n', json->out);
}
