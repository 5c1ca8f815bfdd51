// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// One error value for every part: a code that programs test and a sentence that people read.
//
// Rule for all functions that take a `struct error *`: they return 0 when done, or -code after filling in the
// sentence (what failed, on which file or conversation, what to do). A caller forwards a negative return unchanged.
// After a return of 0 the error may hold what a step on the way met and dealt with: only the return value tells.
// Positive returns are conditions of that one function, named in its comment.
#ifndef COLDKV_PROTO_ERROR_H
#define COLDKV_PROTO_ERROR_H

#include <stdarg.h>
#include <stddef.h>

#define ERROR_TEXT_BYTES 320

/* name on the wire, and in PROTOCOL.md, beside each code */
#define ERROR_CODES(X)                                                                                                 \
  X(BAD_MESSAGE, 1, "bad_message")             /* bytes that are no MessagePack-RPC message within the limits */       \
  X(BAD_PARAMS, 2, "bad_params")               /* a parameter is missing, of the wrong type or out of its range */     \
  X(UNKNOWN_METHOD, 3, "unknown_method")       /* no such method */                                                    \
  X(NOT_SUPPORTED, 4, "not_supported")         /* known, but this version does not do it */                            \
  X(VERSION, 5, "version")                     /* protocol or format version not understood */                         \
  X(NO_MODEL, 6, "no_model")                   /* no such model, or the conversation has none yet */                   \
  X(NO_CONVERSATION, 7, "no_conversation")     /* no conversation of that name */                                      \
  X(NOT_OPEN, 8, "not_open")                   /* handle not opened on this connection, or opened for reading */       \
  X(BUSY, 9, "busy")                           /* another connection holds the writer's lease, or work is under way */ \
  X(MODEL_MISMATCH, 10, "model_mismatch")      /* fingerprint or geometry differs from what is stored */               \
  X(GAP, 11, "gap")                            /* append starts after the next expected token */                       \
  X(CONFLICT, 12, "conflict")                  /* append repeats stored tokens with other bytes */                     \
  X(BAD_RECORD, 13, "bad_record")              /* a record's CRC or scale is wrong for its place */                    \
  X(RANGE, 14, "range")                        /* tokens, layer or head that are not there */                          \
  X(LIMIT, 15, "limit")                        /* a stated limit would be exceeded */                                  \
  X(CORRUPT, 16, "corrupt")                    /* stored bytes fail their CRC or make no sense */                      \
  X(NO_SPACE, 17, "no_space")                  /* disk full; nothing stored is harmed */                               \
  X(IO, 18, "io")                              /* a system call on a file or socket failed */                          \
  X(READ_ONLY, 19, "read_only")                /* the daemon stopped taking writes after a failed sync */              \
  X(MEMORY, 20, "memory")                      /* out of memory */                                                     \
  X(SHUTTING_DOWN, 21, "shutting_down")        /* the daemon is stopping */                                            \
  X(INTERNAL, 22, "internal")                  /* a bug: please report it */                                           \
  X(DENIED, 23, "denied")                      /* this user may not */                                                 \
  X(UNREACHABLE, 24, "unreachable")            /* client only: no daemon answers */                                    \
  X(TIMEOUT, 25, "timeout")                    /* client only: no answer in time */                                    \
  X(ARGUMENT, 26, "argument")                  /* client only: an argument makes no sense */                           \
  X(STATE, 27, "state")                        /* client only: call out of order */                                    \
  X(NOT_FINITE, 28, "not_finite")              /* client only: NaN or infinity in keys, values or queries */           \
  X(BACKLOG, 29, "backlog")                    /* client only: too much is unacknowledged; nothing was dropped */

enum error_code {
#define ERROR_ENUM(id, value, name) ERR_##id = value,
  ERROR_CODES(ERROR_ENUM)
#undef ERROR_ENUM
};

struct error {
  int code; /* enum error_code, 0 while nothing failed */
  char text[ERROR_TEXT_BYTES];
};

/* Fills in `error` (NULL allowed) and returns -code. The text is cut at ERROR_TEXT_BYTES. */
int error_set(struct error *error, int code, const char *format, ...) __attribute__((format(printf, 3, 4)));

/* The same, with ": <strerror(errno)>" added; the code is NO_SPACE for ENOSPC and EDQUOT, MEMORY for ENOMEM, else IO.
 * */
int error_set_errno(struct error *error, int errno_value, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* Puts "<prefix>: " before the sentence of an error that is passed on; returns -error->code. */
int error_prefix(struct error *error, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* The wire name of a code, "internal" for one that is not known. */
const char *error_name(int code);

/* The code of a wire name given by pointer and length, ERR_INTERNAL for one that is not known. */
int error_code_from_name(const char *name, size_t size);

#endif
