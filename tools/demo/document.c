// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
#include "tools/demo/document.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tools/demo/filler.h"

enum { WORDS = 10, FIRST_FACT = 160 };

/* Each form of a sentence has a question of its own. Names are one word of each list, so one hundred. */
static const struct {
  const char *sentence, *question;
} forms[] = {
    {"The pass key for %s is %s. ", "\nQ: what is the pass key for %s? A: "},
    {"Remember: the code of %s is %s. ", "\nQ: what is the code of %s? A: "},
    {"Note that %s has secret number %s. ", "\nQ: what secret number has %s? A: "},
};
static const char *const colours[WORDS] = {"red", "blue", "iron", "gold", "oak", "fox", "sky", "sea", "elm", "owl"};
static const char *const things[WORDS] = {"gate",  "vault", "door", "safe",  "lamp",
                                          "tower", "ship",  "mill", "field", "stone"};

static void shuffle(uint64_t *random, uint32_t order[WORDS]) {
  for (uint32_t i = 0; i < WORDS; i++) {
    uint32_t j = random_below(random, i + 1);
    order[i] = order[j];
    order[j] = i;
  }
}

/* Makes up the facts: no two share a name, and most share no half of one. */
static void invent(struct fact facts[DOCUMENT_FACTS], uint64_t *random) {
  uint32_t first[WORDS], second[WORDS];
  shuffle(random, first);
  shuffle(random, second);
  for (uint32_t i = 0; i < DOCUMENT_FACTS; i++) {
    struct fact *fact = &facts[i];
    /* The second time round, other pairs. */
    snprintf(fact->name, sizeof fact->name, "%s%s", colours[first[i % WORDS]], things[second[(i + i / WORDS) % WORDS]]);
    for (uint32_t digit = 0; digit < DOCUMENT_DIGITS; digit++)
      fact->digits[digit] = (char)('0' + random_below(random, 10));
    fact->digits[DOCUMENT_DIGITS] = 0;
    uint32_t form = i % (uint32_t)(sizeof forms / sizeof *forms);
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-nonliteral" /* the three forms above */
    snprintf(fact->sentence, sizeof fact->sentence, forms[form].sentence, fact->name, fact->digits);
    snprintf(fact->question, sizeof fact->question, forms[form].question, fact->name);
#pragma GCC diagnostic pop
  }
}

int document_write(struct document *document, uint64_t seed, uint32_t bytes, struct error *error) {
  memset(document, 0, sizeof *document);
  if (bytes < DOCUMENT_BYTES_MIN || bytes > DOCUMENT_BYTES_MAX)
    return error_set(error, ERR_ARGUMENT, "a document has %d to %d bytes", DOCUMENT_BYTES_MIN, DOCUMENT_BYTES_MAX);
  uint64_t random = seed;
  invent(document->facts, &random);
  char *filler = malloc(bytes);
  document->text = malloc(bytes);
  document->bytes = bytes;
  if (!filler || !document->text) {
    free(filler);
    document_finish(document);
    return error_set(error, ERR_MEMORY, "no memory for a document of %u bytes", bytes);
  }
  filler_write(random_next(&random), filler, bytes);
  uint32_t used = 0, read = 0;
  const uint32_t last = bytes - DOCUMENT_LAST - 400; /* room to go on to the end of a line */
  for (uint32_t i = 0; i < DOCUMENT_FACTS; i++) {
    struct fact *fact = &document->facts[i];
    uint32_t goal = FIRST_FACT + (uint32_t)((uint64_t)i * (last - FIRST_FACT) / (DOCUMENT_FACTS - 1));
    while (used < goal || document->text[used - 1] != '\n')
      document->text[used++] = filler[read++];
    fact->at = used;
    used += (uint32_t)sprintf(document->text + used, "%s\n", fact->sentence);
  }
  memcpy(document->text + used, filler + read, bytes - used);
  document->text[bytes - 1] = '\n';
  free(filler);
  return 0;
}

void document_finish(struct document *document) {
  free(document->text);
  memset(document, 0, sizeof *document);
}
