// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
#include "tools/coldkv/human.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <wchar.h>

#include "proto/text.h"

void human_size(uint64_t bytes, char text[HUMAN_BYTES]) {
  static const char *const units[] = {"KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
  if (bytes < 1024) {
    snprintf(text, HUMAN_BYTES, "%" PRIu64 " B", bytes);
    return;
  }
  double value = (double)bytes / 1024;
  size_t unit = 0;
  /* 1023.95 would be printed as 1024.0 */
  while (value >= 1023.95 && unit + 1 < sizeof units / sizeof units[0]) {
    value /= 1024;
    unit++;
  }
  snprintf(text, HUMAN_BYTES, value < 99.95 ? "%.1f %s" : "%.0f %s", value, units[unit]);
}

void human_time(uint64_t time_s, char text[HUMAN_BYTES]) {
  time_t when = (time_t)time_s;
  struct tm parts;
  if (time_s == 0 || time_s > INT64_MAX || !localtime_r(&when, &parts) ||
      strftime(text, HUMAN_BYTES, "%Y-%m-%d %H:%M:%S", &parts) == 0)
    strcpy(text, "-");
}

static void human_date(uint64_t time_s, char text[HUMAN_BYTES]) {
  human_time(time_s, text);
  char *space = strchr(text, ' ');
  if (space)
    *space = '\0';
}

void human_age(uint64_t time_s, uint64_t now_s, char text[HUMAN_BYTES]) {
  enum { MINUTE = 60, HOUR = 60 * MINUTE, DAY = 24 * HOUR };
  uint64_t age = now_s > time_s ? now_s - time_s : 0;
  if (time_s == 0 || age >= 30 * (uint64_t)DAY)
    human_date(time_s, text);
  else if (age < MINUTE)
    strcpy(text, "just now");
  else if (age < HOUR)
    snprintf(text, HUMAN_BYTES, "%" PRIu64 " min ago", age / MINUTE);
  else if (age < DAY)
    snprintf(text, HUMAN_BYTES, "%" PRIu64 " h ago", age / HOUR);
  else
    snprintf(text, HUMAN_BYTES, "%" PRIu64 " day%s ago", age / DAY, age < 2 * DAY ? "" : "s");
}

size_t human_width(const char *text) {
  size_t width = 0, size = strlen(text);
  mbstate_t state = {0};
  for (size_t at = 0; at < size;) {
    size_t length = text_character(text + at, size - at);
    wchar_t character;
    size_t converted = mbrtowc(&character, text + at, size - at, &state);
    int columns = converted < (size_t)-2 ? wcwidth(character) : 1;
    if (converted >= (size_t)-2)
      state = (mbstate_t){0};
    width += columns > 0 ? (size_t)columns : columns == 0 ? 0 : 1;
    at += length ? length : 1;
  }
  return width;
}
