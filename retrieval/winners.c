// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
#include "retrieval/winners.h"

static size_t word_count(uint32_t tokens) { return (size_t)tokens / 64 + 1; }

size_t winners_bytes(uint32_t tokens) { return word_count(tokens) * (2 * sizeof(uint64_t) + sizeof(uint32_t)); }

void winners_init(struct winners *winners, void *memory, const struct range *range, uint32_t layer, uint32_t head) {
  size_t words = word_count(range->tokens);
  *winners = (struct winners){.range = range, .layer = layer, .head = head, .good = memory};
  winners->bad = winners->good + words;
  winners->before = (uint32_t *)(winners->bad + words);
  memset(memory, 0, 2 * words * sizeof(uint64_t));
}

bool winners_take(struct winners *winners, uint32_t ordinal) {
  uint64_t bit = UINT64_C(1) << ordinal % 64;
  if (winners->good[ordinal / 64] & bit)
    return true;
  if (winners->bad[ordinal / 64] & bit)
    return false;
  struct place place = range_find(winners->range, ordinal);
  uint8_t record[RECORD_BYTES];
  record_gather(place.columns, place.entry, record);
  bool good = record_check(record, winners->layer, winners->head, place_token(place));
  *(good ? &winners->good[ordinal / 64] : &winners->bad[ordinal / 64]) |= bit;
  winners->bad_count += !good;
  return good;
}

void winners_collect(struct winners *winners, struct lookup_answer *answer) {
  uint32_t count = 0;
  size_t words = word_count(winners->range->tokens);
  for (size_t w = 0; w < words; w++) {
    winners->before[w] = count;
    for (uint64_t bits = winners->good[w]; bits; bits &= bits - 1) {
      struct place place = range_find(winners->range, (uint32_t)(64 * w) + (uint32_t)__builtin_ctzll(bits));
      answer->tokens[count] = place_token(place);
      record_gather(place.columns, place.entry, answer->records + (size_t)count * RECORD_BYTES);
      count++;
    }
  }
  answer->count = count;
}

uint32_t winners_index(const struct winners *winners, uint32_t ordinal) {
  uint64_t lower = (UINT64_C(1) << ordinal % 64) - 1;
  return winners->before[ordinal / 64] + (uint32_t)__builtin_popcountll(winners->good[ordinal / 64] & lower);
}
