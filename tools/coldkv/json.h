// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// A JSON writer (RFC 8259) that always leaves a valid document: strings are escaped and their bad UTF-8 replaced,
// numbers that JSON cannot hold become null, and what is open gets closed.
#ifndef COLDKV_TOOLS_COLDKV_JSON_H
#define COLDKV_TOOLS_COLDKV_JSON_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

enum { JSON_DEPTH_MAX = 8 };

struct json {
  FILE *out;
  unsigned depth;
  char closing[JSON_DEPTH_MAX]; /* '}' or ']' by level */
  bool filled[JSON_DEPTH_MAX];  /* something stands in that level already */
  bool flat[JSON_DEPTH_MAX];    /* its members stand on one line */
};

void json_begin(struct json *json, FILE *out);

/* Each writes one value; `key` is its name inside an object, NULL inside an array and for the outermost value. */
void json_object(struct json *json, const char *key);
void json_array(struct json *json, const char *key);
void json_flat_array(struct json *json, const char *key); /* on one line: for long lists of numbers */
void json_close(struct json *json); /* the innermost object or array */
void json_text(struct json *json, const char *key, const char *text, size_t size);
void json_u64(struct json *json, const char *key, uint64_t value);
void json_real(struct json *json, const char *key, double value);
void json_bool(struct json *json, const char *key, bool value);
void json_null(struct json *json, const char *key);
void json_hex(struct json *json, const char *key, const uint8_t *data, size_t size);

/* Closes levels until only `depth` are open. */
void json_close_to(struct json *json, unsigned depth);

/* Closes everything and ends the line. */
void json_end(struct json *json);

#endif
