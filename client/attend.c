// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// Attention over sinks, slots and the hot window. Only relative positions matter, so the hot window's keys stay rotated
// to their own index; where positions are packed, sinks and slots get a query of their own, rotated to the packed
// position.
#include "client/attend.h"

#include <float.h>
#include <stdlib.h>

#include "client/conversation.h"
#include "client/kernels/attend.h"

_Static_assert((int)ATTEND_TILE == (int)HOT_TILE, "kernels work on the tiles of the hot window");

/* Keys that one row sees in the hot window, whole tiles: 256 to 319 before the block, and the block. */
enum { SPAN_MAX = (COLDKV_HOT + HOT_TILE - 1 + COLDKV_BLOCK_MAX + HOT_TILE - 1) / HOT_TILE * HOT_TILE };

/* One layer of a block. */
struct attention {
  struct coldkv_conv *conv;
  const struct attend_kernels *kernels;
  uint32_t layer, rows, heads, group, d;
  uint32_t sinks; /* that are not part of the hot window */
  uint64_t first, hot_start, tile_start;
  float *queries;                 /* [rows * group][d] of one head: rotated to their own index and scaled */
  float *scores[ATTEND_ROWS];     /* [SPAN_MAX] over the hot window, from tile_start on */
  float *far[ATTEND_ROWS];        /* [sinks + k] over sinks and slots */
  float *unused[ATTEND_ROWS];     /* [d]: outputs of rows that do not exist */
  float *far_query;               /* [d] */
  float *slot_keys;               /* [k][d], rotated, of row slot_row of one head */
  uint32_t slot_row, slot_count;
  const uint32_t *slot_places;
};

int attend_reserve(struct coldkv_conv *conv, size_t count, struct error *error) {
  if (count <= conv->scratch_count)
    return 0;
  free(conv->scratch);
  conv->scratch_count = 0;
  conv->scratch = calloc(count, sizeof(float));
  if (!conv->scratch)
    return error_set(error, ERR_MEMORY, "out of memory for attention");
  conv->scratch_count = count;
  return 0;
}

static int prepare(struct attention *a, struct coldkv_conv *conv, uint32_t layer, struct error *error) {
  const struct coldkv_model *model = conv->model;
  const struct block *block = &conv->block;
  size_t k = conv->retrieved.k, d = model->head_dim;
  *a = (struct attention){.conv = conv, .kernels = attend_kernels(), .layer = layer, .rows = block->count,
                          .heads = model->kv_heads, .group = model->group, .d = model->head_dim,
                          .sinks = block->hot_start ? COLDKV_SINKS : 0, .first = block->first,
                          .hot_start = block->hot_start,
                          .tile_start = block->hot_start / HOT_TILE * HOT_TILE};
  size_t queries = (size_t)a->rows * a->group * d, far = COLDKV_SINKS + k;
  int result =
      attend_reserve(conv, queries + d + k * d + ATTEND_ROWS * (SPAN_MAX + far + d), error);
  if (result)
    return result;
  float *at = conv->scratch;
  a->queries = at, at += queries;
  a->far_query = at, at += d;
  a->slot_keys = at, at += k * d;
  for (uint32_t r = 0; r < ATTEND_ROWS; r++) {
    a->scores[r] = at, at += SPAN_MAX;
    a->far[r] = at, at += far;
    a->unused[r] = at, at += d;
  }
  return 0;
}

/* Finds and rotates the slots of one row and head. */
static void take_slots(struct attention *a, uint32_t head, uint32_t row) {
  if (a->slot_row == row)
    return;
  const struct retrieved *retrieved = &a->conv->retrieved;
  struct rope *rope = &a->conv->model->rope;
  a->slot_row = row;
  a->slot_count = retrieved_row(retrieved, row, head, &a->slot_places);
  for (uint32_t s = 0; s < a->slot_count; s++) {
    float scratch[ROPE_ROW_MAX];
    uint32_t place = a->slot_places[s];
    uint64_t position = a->conv->block.packed ? COLDKV_SINKS + s : retrieved->tokens[head][place];
    rope_apply(rope, rope_row(rope, position, scratch), 1, 1, retrieved->keys[head] + (size_t)place * a->d,
               a->slot_keys + (size_t)s * a->d);
  }
}

/* Scores of sinks and slots for one query; q is before RoPE, `rotated` at its own index. Returns how many. */
static uint32_t score_far(struct attention *a, uint32_t head, uint32_t row, const float *q, const float *rotated,
                          float *scores) {
  if (!a->sinks)
    return 0;
  struct coldkv_model *model = a->conv->model;
  take_slots(a, head, row);
  const float *query = rotated;
  if (a->conv->block.packed) {
    float scratch[ROPE_ROW_MAX];
    uint64_t position = COLDKV_SINKS + a->slot_count + a->first + row - a->hot_start;
    rope_apply(&model->rope, rope_row(&model->rope, position, scratch), 1, model->softmax_scale, q, a->far_query);
    query = a->far_query;
  }
  a->kernels->dots(query, hot_sink_keys(&a->conv->hot, a->layer, head), COLDKV_SINKS, a->d, scores);
  a->kernels->dots(query, a->slot_keys, a->slot_count, a->d, scores + COLDKV_SINKS);
  return COLDKV_SINKS + a->slot_count;
}

/* Adds the values of sinks and slots; slots of `row` are those taken last or are taken again. */
static void add_far(struct attention *a, uint32_t head, uint32_t row, const float *p, float *out) {
  if (!a->sinks)
    return;
  const struct retrieved *retrieved = &a->conv->retrieved;
  const float *sinks = hot_sink_values(&a->conv->hot, a->layer, head);
  for (uint32_t i = 0; i < COLDKV_SINKS; i++)
    a->kernels->add(p[i], sinks + (size_t)i * a->d, a->d, out);
  const uint32_t *places;
  uint32_t count = retrieved_row(retrieved, row, head, &places);
  for (uint32_t s = 0; s < count; s++)
    a->kernels->add(p[COLDKV_SINKS + s], retrieved->values[head] + (size_t)places[s] * a->d, a->d, out);
}

/* Softmax of one row over both ranges of scores, without the division: returns 1 / sum. Outside what the row sees, the
 * weights of the hot window become 0. */
static float softmax(const struct attention *a, uint32_t row, float *scores, uint32_t span, float *far,
                     uint32_t far_count) {
  uint32_t low = (uint32_t)(a->hot_start - a->tile_start), high = (uint32_t)(a->first + row + 1 - a->tile_start);
  float top = a->kernels->largest(far, far_count, a->kernels->largest(scores + low, high - low, -FLT_MAX));
  float sum = a->kernels->exponentials(scores + low, high - low, top);
  sum += a->kernels->exponentials(far, far_count, top);
  memset(scores, 0, low * sizeof(float));
  memset(scores + high, 0, (span - high) * sizeof(float));
  return 1 / sum;
}

/* Rows base .. base + count - 1 of one head's [rows * group] queries, count <= ATTEND_ROWS. */
static void attend_some(struct attention *a, uint32_t head, uint32_t base, uint32_t count, const float *q, float *out) {
  const struct hot *hot = &a->conv->hot;
  const float *queries[ATTEND_ROWS];
  float *scores[ATTEND_ROWS], *outs[ATTEND_ROWS], share[ATTEND_ROWS];
  size_t places[ATTEND_ROWS];
  uint64_t end = a->first + (base + count - 1) / a->group + 1;
  uint32_t span = (uint32_t)(end - a->tile_start + HOT_TILE - 1) / HOT_TILE * HOT_TILE;
  for (uint32_t r = 0; r < ATTEND_ROWS; r++) {
    uint32_t m = base + (r < count ? r : 0), row = m / a->group;
    queries[r] = a->queries + (size_t)m * a->d;
    places[r] = (((size_t)row * a->heads + head) * a->group + m % a->group) * a->d;
    outs[r] = r < count ? out + places[r] : a->unused[r];
    memset(outs[r], 0, a->d * sizeof(float));
  }
  for (uint64_t t = a->tile_start; t < end; t += HOT_TILE) {
    for (uint32_t r = 0; r < ATTEND_ROWS; r++)
      scores[r] = a->scores[r] + (t - a->tile_start);
    a->kernels->scores(queries, hot_tile_keys(hot, a->layer, head, t), a->d, scores);
  }
  for (uint32_t r = 0; r < count; r++) {
    uint32_t row = (base + r) / a->group;
    uint32_t far_count = score_far(a, head, row, q + places[r], queries[r], a->far[r]);
    share[r] = softmax(a, row, a->scores[r], span, a->far[r], far_count);
  }
  for (uint64_t t = a->tile_start; t < end; t += HOT_TILE) {
    const float *weights[ATTEND_ROWS];
    for (uint32_t r = 0; r < ATTEND_ROWS; r++)
      weights[r] = a->scores[r] + (t - a->tile_start);
    uint32_t keys = end - t < HOT_TILE ? (uint32_t)(end - t) : HOT_TILE;
    a->kernels->accumulate(weights, hot_tile_values(hot, a->layer, head, t), keys, a->d, outs);
  }
  for (uint32_t r = 0; r < count; r++) {
    add_far(a, head, (base + r) / a->group, a->far[r], outs[r]);
    for (uint32_t c = 0; c < a->d; c++)
      outs[r][c] *= share[r];
  }
}

int attend_run(struct coldkv_conv *conv, uint32_t layer, const float *q, float *out, struct error *error) {
  struct attention a;
  const struct coldkv_model *model = conv->model;
  int result = prepare(&a, conv, layer, error);
  if (result)
    return result;
  uint32_t all = a.rows * a.group;
  for (uint32_t head = 0; head < a.heads; head++) {
    a.slot_row = UINT32_MAX;
    for (uint32_t m = 0; m < all; m++) {
      uint32_t row = m / a.group;
      const float *from = q + (((size_t)row * a.heads + head) * a.group + m % a.group) * a.d;
      rope_apply(&model->rope, conv->block.rows[row], 1, model->softmax_scale, from, a.queries + (size_t)m * a.d);
    }
    for (uint32_t base = 0; base < all; base += ATTEND_ROWS)
      attend_some(&a, head, base, all - base < ATTEND_ROWS ? all - base : ATTEND_ROWS, q, out);
  }
  return 0;
}
