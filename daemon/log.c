// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
#include "daemon/log.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

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
