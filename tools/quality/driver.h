// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// Does with an engine what standard input says, a line each, and answers every line with one line. SLOTS is the number
// of retrieved tokens, 0: none.
//   open NAME ...             a conversation; what follows is the engine's own                -> tokens
//   plain ...                 the engine without coldkv, its cache as large as the window     -> 0
//   feed FILE FROM COUNT SLOTS                                                                -> tokens
//   ask DIGITS FILE FROM COUNT SLOTS    feeds a question, generates greedily, goes back       -> ids, with blanks
//   logits OUT FILE FROM COUNT SLOTS    feeds, and appends each token's logits, f32, to OUT   -> tokens
//   decode COUNT SLOTS        generates greedily, one by one, and goes back                   -> seconds
//   rewind END                                                                                -> tokens
//   sync | close                                                                              -> tokens
//   memory                    resident                                                        -> bytes
//   missed                    lookups that got no answer, and bad records                     -> number
//   about                     the engine                                             -> WINDOW VOCABULARY VERSION
// What fails is answered by "failed: WHY", and ends it.
#ifndef COLDKV_TOOLS_QUALITY_DRIVER_H
#define COLDKV_TOOLS_QUALITY_DRIVER_H

#include <stdbool.h>
#include <stdint.h>

typedef struct coldkv_conv coldkv_conv;

/* What an engine does; it calls driver_fail when it cannot. One conversation or plain cache at a time. */
struct driver_engine {
  uint32_t window, vocabulary;
  const char *version;
  void (*open)(const char *name, const char *arguments);
  void (*plain)(uint32_t cells, const char *arguments);
  void (*close)(void);
  coldkv_conv *(*conversation)(void); /* NULL for a plain cache */
  uint64_t (*tokens)(void);
  /* Feeds n tokens. logits: of the last one, [vocabulary]; of all, [n][vocabulary] with n at most DRIVER_BLOCK. */
  void (*feed)(const uint32_t *ids, uint32_t n, uint32_t slots, float *logits, bool all);
  void (*rewind)(uint64_t end);
};

enum { DRIVER_BLOCK = 64 };

/* Obeys until the end of standard input. */
void driver_run(const struct driver_engine *engine);

_Noreturn void driver_fail(const char *what, const char *why);

#endif
