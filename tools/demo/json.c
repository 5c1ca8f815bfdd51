// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
#include "tools/demo/json.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { JSON_DEPTH_MAX = 16, JSON_NUMBER_BYTES_MAX = 48 };

static void fail(struct json *json) {
  json->bad = true;
  json->at = json->end;
}

/* The next character that is no white space, without reading it; 0 at the end. */
static char peek(struct json *json) {
  while (json->at < json->end && strchr(" \t\r\n", *json->at) && *json->at)
    json->at++;
  return json->at < json->end ? *json->at : 0;
}

static bool take(struct json *json, char wanted) {
  if (json->bad || peek(json) != wanted)
    return false;
  json->at++;
  return true;
}

static void need(struct json *json, char wanted) {
  if (!take(json, wanted))
    fail(json);
}

void json_open(struct json *json, char bracket) {
  need(json, bracket);
  json->first = true;
}

/* Before every member: reads the closing bracket, or the comma that has to be there from the second member on. */
static bool another(struct json *json, char closing) {
  if (take(json, closing)) {
    json->first = false; /* the object around has had a member: this one */
    return false;
  }
  if (!json->first)
    need(json, ',');
  json->first = false;
  return !json->bad;
}

bool json_key(struct json *json, char *key, size_t size) {
  if (!another(json, '}'))
    return false;
  json_string(json, key, size);
  need(json, ':');
  return !json->bad;
}

bool json_element(struct json *json) { return another(json, ']'); }

/* Reads the escape after a backslash as one byte; \u escapes stand for ASCII only, which is all that is needed here. */
static char escape(struct json *json) {
  static const char names[] = "\"\\/bfnrt", values[] = "\"\\/\b\f\n\r\t";
  char c = json->at < json->end ? *json->at++ : 0;
  const char *found = c ? strchr(names, c) : NULL;
  if (found)
    return values[found - names];
  if (c != 'u' || json->end - json->at < 4) {
    fail(json);
    return 0;
  }
  char digits[5] = {0}, *rest;
  memcpy(digits, json->at, 4);
  unsigned long code = strtoul(digits, &rest, 16);
  if (*rest || code == 0 || code > 127 || strspn(digits, "0123456789abcdefABCDEF") != 4) {
    fail(json);
    return 0;
  }
  json->at += 4;
  return (char)code;
}

/* Reads a string; keeps it in `out` unless that is NULL. */
static void string(struct json *json, char *out, size_t size) {
  size_t used = 0;
  need(json, '"');
  while (!json->bad) {
    if (json->at == json->end || (unsigned char)*json->at < ' ') {
      fail(json);
      break;
    }
    char c = *json->at++;
    if (c == '"')
      break;
    if (c == '\\')
      c = escape(json);
    if (out && used + 1 >= size)
      fail(json);
    else if (out)
      out[used++] = c;
  }
  if (out)
    out[json->bad ? 0 : used] = 0;
}

void json_string(struct json *json, char *out, size_t size) { string(json, out, size); }

double json_number(struct json *json) {
  char text[JSON_NUMBER_BYTES_MAX + 1];
  size_t size = 0;
  peek(json);
  while (json->at < json->end && *json->at && strchr("+-.0123456789eE", *json->at)) {
    if (size == JSON_NUMBER_BYTES_MAX) {
      fail(json);
      return 0;
    }
    text[size++] = *json->at++;
  }
  text[size] = 0;
  char *rest;
  double value = strtod(text, &rest);
  if (json->bad || size == 0 || *rest || !isfinite(value)) {
    fail(json);
    return 0;
  }
  return value;
}

uint64_t json_integer(struct json *json) {
  peek(json);
  const char *start = json->at;
  double value = json_number(json);
  for (const char *c = start; c < json->at; c++)
    if (*c < '0' || *c > '9')
      fail(json);
  if (json->bad || value > 0x1p53) {
    fail(json);
    return 0;
  }
  return (uint64_t)value;
}

/* Reads `word` if it is there. */
static bool word(struct json *json, const char *wanted) {
  size_t size = strlen(wanted);
  peek(json);
  if (json->bad || (size_t)(json->end - json->at) < size || memcmp(json->at, wanted, size) != 0)
    return false;
  json->at += size;
  return true;
}

bool json_boolean(struct json *json) {
  if (word(json, "true"))
    return true;
  if (!word(json, "false"))
    fail(json);
  return false;
}

void json_skip(struct json *json) {
  char closing[JSON_DEPTH_MAX];
  unsigned depth = 0;
  do {
    char c = peek(json);
    if (c == '{' || c == '[') {
      if (depth == JSON_DEPTH_MAX) {
        fail(json);
        return;
      }
      json_open(json, c);
      closing[depth++] = c == '{' ? '}' : ']';
    } else if (c == '"') {
      string(json, NULL, 0);
    } else if (!word(json, "true") && !word(json, "false") && !word(json, "null")) {
      json_number(json);
    }
    while (depth && !another(json, closing[depth - 1])) /* close whatever ends here */
      if (json->bad)
        return;
      else
        depth--;
    if (depth && closing[depth - 1] == '}') {
      string(json, NULL, 0);
      need(json, ':');
    }
  } while (depth && !json->bad);
}

bool json_finished(struct json *json) { return !json->bad && peek(json) == 0 && json->at == json->end; }
