// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
#include "tools/demo/question.h"

#include <string.h>

void question_ids(const char *text, uint32_t n, uint32_t *ids) {
  for (uint32_t i = 0; i < n; i++)
    ids[i] = (unsigned char)text[i];
}

int question_ask(const struct fact *fact, question_feed_fn *feed, void *context, float *logits, uint32_t vocab,
                 char answer[DOCUMENT_DIGITS + 1]) {
  uint32_t ids[sizeof fact->question], n = (uint32_t)strlen(fact->question);
  question_ids(fact->question, n, ids);
  memset(answer, 0, DOCUMENT_DIGITS + 1);
  for (uint32_t digit = 0; digit < DOCUMENT_DIGITS; digit++) {
    int result = feed(context, ids, n, logits);
    if (result)
      return result;
    uint32_t best = 0;
    for (uint32_t i = 1; i < vocab; i++)
      if (logits[i] > logits[best])
        best = i;
    answer[digit] = best > ' ' && best < 127 ? (char)best : '?';
    ids[0] = best;
    n = 1;
  }
  return 0;
}
