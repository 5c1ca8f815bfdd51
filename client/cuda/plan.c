// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
#include "client/cuda/plan.h"

#include <string.h>

#include "proto/bytes.h"
#include "proto/crc32c.h"

enum {
  KEYS_MIN = 32,          /* that a block of 16 half warps takes at once, two each */
  TILE_MAX = 4,           /* query heads of a block */
  BLOCKS_PER_PROCESSOR = 2,
  SPLITS_MAX = 48,        /* what a block can add up */
};

uint32_t plan_crc_table(uint32_t table[PLAN_CRC_TABLE]) {
  uint8_t message[4 * PLAN_CRC_WORDS] = {0};
  uint32_t base = crc32c(0, message, sizeof message);
  memset(table, 0, PLAN_CRC_TABLE * sizeof *table);
  for (uint32_t word = 0; word < PLAN_CRC_WORDS; word++)
    for (uint32_t n = 0; n < 8; n++)
      for (uint32_t bits = 0; bits < 16; bits++) {
        store_u32(message + 4 * (size_t)word, bits << 4 * n);
        table[(n * 16 + bits) * 32 + word] = crc32c(0, message, sizeof message) ^ base;
        store_u32(message + 4 * (size_t)word, 0);
      }
  return base;
}

static uint32_t divide_up(uint32_t a, uint32_t b) { return (a + b - 1) / b; }

struct plan_attend plan_attend(uint32_t rows, uint32_t heads, uint32_t group, uint32_t far, uint32_t hot,
                               uint32_t processors) {
  struct plan_attend plan = {.keys = KEYS_MIN, .tile = group == 1 ? 1 : TILE_MAX};
  plan.tiles = divide_up(group, plan.tile);
  uint64_t rest = (uint64_t)rows * heads * plan.tiles, wanted = BLOCKS_PER_PROCESSOR * (uint64_t)processors / rest;
  uint32_t most = divide_up(far + hot, KEYS_MIN);
  most = most < SPLITS_MAX ? most : SPLITS_MAX;
  uint32_t splits = wanted < 1 ? 1 : wanted < most ? (uint32_t)wanted : most;
  if (splits && far + hot)
    plan.keys = divide_up(divide_up(far + hot, splits), KEYS_MIN) * KEYS_MIN;
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
