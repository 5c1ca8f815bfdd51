// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
#include "proto/error.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

static const struct {
  int code;
  const char *name;
} error_names[] = {
#define ERROR_ROW(id, value, name) {value, name},
    ERROR_CODES(ERROR_ROW)
#undef ERROR_ROW
};

int error_set(struct error *error, int code, const char *format, ...) {
  if (error) {
    va_list args;
    va_start(args, format);
    vsnprintf(error->text, sizeof error->text, format, args);
    va_end(args);
    error->code = code;
  }
  return -code;
}

int error_set_errno(struct error *error, int errno_value, const char *format, ...) {
  int code = errno_value == ENOSPC || errno_value == EDQUOT ? ERR_NO_SPACE
             : errno_value == ENOMEM                        ? ERR_MEMORY
                                                            : ERR_IO;
  if (error) {
    va_list args;
    va_start(args, format);
    vsnprintf(error->text, sizeof error->text, format, args);
    va_end(args);
    size_t used = strlen(error->text);
    char reason[128];
    snprintf(error->text + used, sizeof error->text - used, ": %s",
             strerror_r(errno_value, reason, sizeof reason));
    error->code = code;
  }
  return -code;
}

int error_prefix(struct error *error, const char *format, ...) {
  if (!error)
    return -ERR_INTERNAL;
  char text[ERROR_TEXT_BYTES];
  va_list args;
  va_start(args, format);
  vsnprintf(text, sizeof text, format, args);
  va_end(args);
  size_t used = strlen(text);
  snprintf(text + used, sizeof text - used, ": %s", error->text);
  memcpy(error->text, text, sizeof text);
  return -error->code;
}

const char *error_name(int code) {
  for (size_t i = 0; i < sizeof error_names / sizeof error_names[0]; i++)
    if (error_names[i].code == code)
      return error_names[i].name;
  return "internal";
}

int error_code_from_name(const char *name, size_t size) {
  for (size_t i = 0; i < sizeof error_names / sizeof error_names[0]; i++)
    if (strlen(error_names[i].name) == size && memcmp(error_names[i].name, name, size) == 0)
      return error_names[i].code;
  return ERR_INTERNAL;
}
