// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// Reads small JSON texts value by value: enough for the header of a safetensors file and a config.json.
//
//     struct json json = {text, text + size};
//     json_open(&json, '{');
//     while (json_key(&json, key, sizeof key))
//       value = json_number(&json);          // or json_string, json_open, json_skip: exactly one value
//     if (!json_finished(&json)) ...         // something on the way was wrong
//
// After the first mistake `bad` stays true, every call returns at once with nothing, and loops end.
#ifndef COLDKV_TOOLS_DEMO_JSON_H
#define COLDKV_TOOLS_DEMO_JSON_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct json {
  const char *at, *end;
  bool bad;
  bool first; /* nothing has been read yet of the array or object opened last */
};

/* Enters an object ('{') or array ('['). */
void json_open(struct json *json, char bracket);

/* In an object: reads the next key, false at its end (which is read too) or after a mistake. A key that does not fit
 * into `size` bytes with its zero is a mistake. */
bool json_key(struct json *json, char *key, size_t size);

/* In an array: true when one more value follows, false at its end (which is read too) or after a mistake. */
bool json_element(struct json *json);

/* One value of that kind. Numbers are finite; integers are 0 to 2^53 without fraction or exponent. */
void json_string(struct json *json, char *out, size_t size);
double json_number(struct json *json);
uint64_t json_integer(struct json *json);
bool json_boolean(struct json *json);

/* Reads over one value of any kind, at most 16 levels deep. */
void json_skip(struct json *json);

/* True when all was well and only white space is left. */
bool json_finished(struct json *json);

#endif
