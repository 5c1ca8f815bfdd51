// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
#include "retrieval/winners.h"

static size_t word_count(uint32_t tokens) { return (size_t)tokens / 64 + 1; }

static size_t touched_count(uint32_t tokens) { return word_count(tokens) / 64 + 1; }

size_t winners_bytes(uint32_t tokens) {
  return word_count(tokens) * sizeof(struct winners_word) + touched_count(tokens) * sizeof(uint64_t);
}

void winners_init(struct winners *winners, void *memory, const struct range *range, uint32_t layer, uint32_t head) {
  *winners = (struct winners){.range = range, .layer = layer, .head = head, .words = memory};
  winners->touched = (uint64_t *)(winners->words + word_count(range->tokens));
}

/* The first word from `from` on that is touched, or `end`. */
static size_t next_word(const struct winners *winners, size_t from, size_t end) {
  while (from < end) {
    uint64_t bits = winners->touched[from / 64] >> from % 64;
    if (bits)
      return from + (size_t)__builtin_ctzll(bits);
    from = (from / 64 + 1) * 64;
  }
  return end;
}

bool winners_take(struct winners *winners, uint32_t ordinal) {
  struct winners_word *word = &winners->words[ordinal / 64];
  uint64_t bit = UINT64_C(1) << ordinal % 64;
  if ((word->good | word->bad) & bit)
    return word->good & bit;
  struct place place = range_at(winners->range, ordinal);
  uint8_t record[RECORD_BYTES];
  record_gather(place.columns, place.entry, record);
  bool good = record_check(record, winners->layer, winners->head, place_token(place));
  *(good ? &word->good : &word->bad) |= bit;
  winners->bad_count += !good;
  winners->touched[ordinal / 4096] |= UINT64_C(1) << ordinal / 64 % 64;
  return good;
}

void winners_collect(struct winners *winners, struct lookup_answer *answer) {
  uint32_t count = 0;
  size_t end = word_count(winners->range->tokens);
  for (size_t w = next_word(winners, 0, end); w < end; w = next_word(winners, w + 1, end)) {
    winners->words[w].before = count;
    for (uint64_t bits = winners->words[w].good; bits; bits &= bits - 1) {
      struct place place = range_at(winners->range, (uint32_t)(64 * w) + (uint32_t)__builtin_ctzll(bits));
      answer->tokens[count] = place_token(place);
      record_gather(place.columns, place.entry, answer->records + (size_t)count * RECORD_BYTES);
      count++;
    }
  }
  answer->count = count;
}

uint32_t winners_index(const struct winners *winners, uint32_t ordinal) {
  const struct winners_word *word = &winners->words[ordinal / 64];
  uint64_t lower = (UINT64_C(1) << ordinal % 64) - 1;
  return word->before + (uint32_t)__builtin_popcountll(word->good & lower);
}

void winners_clear(struct winners *winners) {
  size_t end = word_count(winners->range->tokens);
  for (size_t w = next_word(winners, 0, end); w < end; w = next_word(winners, w + 1, end))
    winners->words[w] = (struct winners_word){0};
  memset(winners->touched, 0, touched_count(winners->range->tokens) * sizeof *winners->touched);
}
