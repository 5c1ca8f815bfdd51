// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
#include "client/cuda/plan.h"

#include "proto/crc32c.h"
#include "proto/record.h"

enum {
  TILE_MAX = 4,           /* query heads of a block */
  BLOCKS_PER_PROCESSOR = 2,
  SPLITS_MAX = 48,        /* what a block can add up */
};

void plan_crc_table(uint32_t table[PLAN_CRC_TABLE]) {
  for (uint32_t j = 0; j < 4; j++) {
    uint8_t bytes[4] = {0};
    uint32_t zeros = crc32c(0, bytes, j + 1); /* a CRC is linear but for what it begins and ends with */
    for (uint32_t i = 0; i < 256; i++) {
      bytes[0] = (uint8_t)i;
      table[256 * j + i] = crc32c(0, bytes, j + 1) ^ zeros;
    }
  }
}

void plan_seal_table(uint32_t table[PLAN_SEAL_TABLE]) {
  enum { BYTES = RECORD_BYTES - 4 + 12, WORDS = PLAN_SEAL_TABLE / 32, ROW = 8 /* words that are multiplied at once */ };
  uint8_t bytes[BYTES] = {0};
  uint32_t zeros = crc32c(0, bytes, BYTES), columns[32][WORDS] = {{0}};
  for (uint32_t i = 0; i <= 8 * BYTES; i++) {
    uint32_t crc = zeros;
    if (i < 8 * BYTES) {
      bytes[i / 8] = (uint8_t)(1u << i % 8);
      crc ^= crc32c(0, bytes, BYTES);
      bytes[i / 8] = 0;
    }
    for (uint32_t bit = 0; bit < 32; bit++)
      columns[bit][i / 32] |= (crc >> bit & 1) << i % 32;
  }
  /* Thread 4 n + t has words t and t + 4 of column n of eight. Two of the eight are of one byte, so that four times
   * eight give a thread that multiplies its whole byte of a CRC. */
  for (uint32_t i = 0; i < PLAN_SEAL_TABLE; i++) {
    uint32_t half = i % 2, eight = i / 128 % 2 * 2 + i / 2 % 2, lane = i / 4 % 32, step = i / 256, n = lane / 4;
    table[i] = columns[8 * (n / 2) + 2 * eight + n % 2][ROW * step + lane % 4 + 4 * half];
  }
}

static uint32_t divide_up(uint32_t a, uint32_t b) { return (a + b - 1) / b; }

struct plan_attend plan_attend(uint32_t rows, uint32_t heads, uint32_t group, uint32_t far, uint32_t hot,
                               uint32_t processors) {
  struct plan_attend plan = {.keys = PLAN_KEYS, .tile = group == 1 ? 1 : TILE_MAX};
  plan.tiles = divide_up(group, plan.tile);
  uint64_t rest = (uint64_t)rows * heads * plan.tiles, wanted = BLOCKS_PER_PROCESSOR * (uint64_t)processors / rest;
  uint32_t most = divide_up(far + hot, PLAN_KEYS);
  most = most < SPLITS_MAX ? most : SPLITS_MAX;
  uint32_t splits = wanted < 1 ? 1 : wanted < most ? (uint32_t)wanted : most;
  if (splits && far + hot)
    plan.keys = divide_up(divide_up(far + hot, splits), PLAN_KEYS) * PLAN_KEYS;
  plan.far_splits = divide_up(far, plan.keys);
  plan.hot_splits = divide_up(hot, plan.keys);
  return plan;
}

size_t plan_partial(const struct plan_attend *plan, uint32_t rows, uint32_t heads, uint32_t head_dim) {
  return (size_t)rows * plan->tiles * heads * (plan->far_splits + plan->hot_splits) * plan->tile * (head_dim + 2);
}

size_t plan_partial_max(uint32_t rows, uint32_t heads, uint32_t group, uint32_t far, uint32_t hot, uint32_t head_dim,
                        uint32_t processors) {
  size_t most = 0;
  for (uint32_t n = 1; n <= rows; n++) {
    struct plan_attend plan = plan_attend(n, heads, group, far, hot, processors);
    size_t size = plan_partial(&plan, n, heads, head_dim);
    most = size > most ? size : most;
  }
  return most;
}
