// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
#include "proto/text.h"

#include <stdint.h>

size_t text_character(const char *text, size_t left) {
  const uint8_t *p = (const uint8_t *)text;
  uint8_t c = p[0];
  if (c < 0x80)
    return c >= 0x20 && c != 0x7f;
  size_t length = c >= 0xf0 ? 4 : c >= 0xe0 ? 3 : 2;
  if (c < 0xc2 || c > 0xf4 || left < length)
    return 0;
  for (size_t i = 1; i < length; i++)
    if ((p[i] & 0xc0) != 0x80)
      return 0;
  bool overlong = (c == 0xe0 && p[1] < 0xa0) || (c == 0xf0 && p[1] < 0x90);
  bool outside = (c == 0xed && p[1] >= 0xa0) || (c == 0xf4 && p[1] >= 0x90);
  bool control = c == 0xc2 && p[1] < 0xa0;
  return overlong || outside || control ? 0 : length;
}

bool text_valid(const char *text, size_t size) {
  for (size_t at = 0; at < size;) {
    size_t length = text_character(text + at, size - at);
    if (!length)
      return false;
    at += length;
  }
  return true;
}

void text_repair(char *text, size_t size) {
  for (size_t at = 0; at < size;) {
    size_t length = text_character(text + at, size - at);
    if (!length) {
      text[at] = '?';
      length = 1;
    }
    at += length;
  }
}
