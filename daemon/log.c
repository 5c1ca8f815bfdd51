// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
#include "daemon/log.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define RATE_WINDOW_MS 10000u
#define RATE_LINES_MAX 10u

void log_line(const char *format, ...) {
  char line[1024] = "coldkvd: ";
  size_t start = strlen(line);
  va_list args;
  va_start(args, format);
  int length = vsnprintf(line + start, sizeof line - start - 1, format, args);
  va_end(args);
  if (length < 0)
    return;
  size_t end = start + (size_t)length;
  if (end > sizeof line - 2)
    end = sizeof line - 2;
  for (size_t i = start; i < end; i++)
    if ((unsigned char)line[i] < 0x20 || line[i] == 0x7f)
      line[i] = '?';
  line[end++] = '\n';
  ssize_t written = write(STDERR_FILENO, line, end);
  (void)written; /* nobody is left to tell */
}

bool log_may(struct log_rate *rate, uint64_t now_ms) {
  if (now_ms - rate->window_ms >= RATE_WINDOW_MS) {
    if (rate->left_out)
      log_line("%u more such lines in %llu s were left out", rate->left_out,
               (unsigned long long)(now_ms - rate->window_ms) / 1000);
    *rate = (struct log_rate){.window_ms = now_ms};
  }
  if (rate->lines == RATE_LINES_MAX) {
    rate->left_out++;
    return false;
  }
  rate->lines++;
  return true;
}
