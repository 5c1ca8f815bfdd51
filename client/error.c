// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
#include "client/error.h"

#include <stdio.h>

#include "client/coldkv.h"

_Static_assert(COLDKV_ENOTSUPPORTED == -ERR_NOT_SUPPORTED && COLDKV_EVERSION == -ERR_VERSION &&
                   COLDKV_ENOMODEL == -ERR_NO_MODEL &&
                   COLDKV_ENOCONVERSATION == -ERR_NO_CONVERSATION && COLDKV_EBUSY == -ERR_BUSY &&
                   COLDKV_EMODEL == -ERR_MODEL_MISMATCH && COLDKV_ECONFLICT == -ERR_CONFLICT &&
                   COLDKV_ERANGE == -ERR_RANGE && COLDKV_ELIMIT == -ERR_LIMIT && COLDKV_ECORRUPT == -ERR_CORRUPT &&
                   COLDKV_ENOSPACE == -ERR_NO_SPACE && COLDKV_EIO == -ERR_IO && COLDKV_EREADONLY == -ERR_READ_ONLY &&
                   COLDKV_ENOMEM == -ERR_MEMORY && COLDKV_EDENIED == -ERR_DENIED &&
                   COLDKV_EUNREACHABLE == -ERR_UNREACHABLE && COLDKV_ETIMEOUT == -ERR_TIMEOUT &&
                   COLDKV_EARGUMENT == -ERR_ARGUMENT && COLDKV_ESTATE == -ERR_STATE &&
                   COLDKV_ENOTFINITE == -ERR_NOT_FINITE && COLDKV_EBACKLOG == -ERR_BACKLOG,
               "public codes are the protocol's, negative");

static _Thread_local struct error last;

int api_code(int code) {
  switch (code) {
  case ERR_BAD_MESSAGE:
  case ERR_UNKNOWN_METHOD:
    return COLDKV_EVERSION;
  case ERR_BAD_PARAMS:
    return COLDKV_EARGUMENT;
  case ERR_NOT_OPEN:
  case ERR_SHUTTING_DOWN:
    return COLDKV_EUNREACHABLE;
  case ERR_GAP:
  case ERR_BAD_RECORD:
    return COLDKV_ECONFLICT;
  case ERR_INTERNAL:
    return COLDKV_EIO;
  default:
    return -code;
  }
}

int api_result(int result, const struct error *error) {
  if (result >= 0)
    return result;
  last = *error;
  if (last.code == 0) /* a callee forgot its sentence: still an error with a code */
    error_set(&last, -result, "failed: %s", error_name(-result));
  return api_code(last.code);
}

int api_fail(int code, const char *format, ...) {
  struct error made = {.code = code};
  va_list args;
  va_start(args, format);
  vsnprintf(made.text, sizeof made.text, format, args);
  va_end(args);
  last = made;
  return api_code(code);
}

const char *coldkv_error(void) { return last.text; }

const char *coldkv_version(void) { return COLDKV_VERSION_STRING; }
