// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
#include "tests/store/sim_cut.h"

#include <stdlib.h>
#include <string.h>

static uint32_t below(uint64_t *random, uint32_t bound) {
  return bound ? (uint32_t)(sim_random_next(random) % bound) : 0;
}

/* Makes room for the choices of a node and returns the sectors of a file. */
static size_t prepare(struct sim_node *node) {
  if (node->directory) {
    if (node->kept_room < node->pending_count) {
      node->kept_room = 2 * node->pending_count;
      node->kept = realloc(node->kept, node->kept_room);
    }
    return 0;
  }
  size_t sectors = sim_node_sectors(node);
  if (node->reach_room < sectors) {
    node->reach_room = 2 * sectors;
    node->reach = realloc(node->reach, node->reach_room * sizeof node->reach[0]);
  }
  if ((node->directory && !node->kept) || (sectors && !node->reach))
    abort();
  return sectors;
}

static uint16_t floor_of(const struct sim_node *node, size_t sector) {
  return sector < node->floor_count ? node->floor[sector] : 0;
}

/* Lets a sector reach `count` operations, or as many as are certain. */
static void set_sector(struct sim_node *node, size_t sector, uint32_t count) {
  uint16_t floor = floor_of(node, sector);
  node->reach[sector] = count > floor ? (uint16_t)count : floor;
}

static void set_size(struct sim_node *node, uint32_t count) {
  node->size_at = count > node->size_floor ? count : node->size_floor;
}

static void set_node(struct sim_node *node, uint32_t count) {
  size_t sectors = prepare(node);
  for (size_t s = 0; s < sectors; s++)
    set_sector(node, s, count);
  for (uint32_t i = 0; node->directory && i < node->pending_count; i++)
    node->kept[i] = i < count;
  set_size(node, count);
}

void sim_cut_all(struct sim_disk *disk) {
  for (uint32_t i = 0; i < disk->count; i++)
    set_node(disk->nodes[i], disk->nodes[i]->pending_count);
}

void sim_cut_none(struct sim_disk *disk) {
  for (uint32_t i = 0; i < disk->count; i++)
    set_node(disk->nodes[i], 0);
}

/* --- all states -------------------------------------------------------------------------------------------------- */

/* Counts states, or decodes the number of one. */
struct odometer {
  uint64_t states, most;
  uint64_t left; /* of the number */
  bool decode;
};

/* One more choice among `options`; returns the one that the number says. */
static uint32_t turn(struct odometer *o, uint32_t options) {
  uint32_t choice = (uint32_t)(o->left % options);
  o->left /= options;
  if (o->states != UINT64_MAX)
    o->states *= options;
  if (!o->decode && o->states > o->most)
    o->states = UINT64_MAX;
  return choice;
}

static void turn_sector(struct sim_node *node, size_t sector, struct odometer *o) {
  uint32_t options[64] = {floor_of(node, sector)}, count = 1;
  size_t from, to, at = sector * SIM_SECTOR_BYTES;
  for (uint32_t i = floor_of(node, sector); i < node->pending_count && count < 64; i++) {
    sim_op_range(node->pending[i], sim_node_size(node, i), &from, &to);
    if (from < to && from < at + SIM_SECTOR_BYTES && to > at)
      options[count++] = i + 1;
  }
  uint32_t choice = options[turn(o, count)];
  if (o->decode)
    set_sector(node, sector, choice);
}

static void turn_node(struct sim_node *node, struct odometer *o) {
  size_t sectors = node->pending_count || o->decode ? prepare(node) : 0;
  for (uint32_t i = 0; node->directory && i < node->pending_count && o->states != UINT64_MAX; i++) {
    uint8_t keep = (uint8_t)turn(o, 2);
    if (o->decode)
      node->kept[i] = keep;
  }
  if (node->directory)
    return;
  uint32_t sizes[64] = {node->size_floor}, count = 1;
  for (uint32_t i = node->size_floor + 1; i <= node->pending_count && count < 64; i++)
    if (sim_node_size(node, i) != sim_node_size(node, sizes[count - 1]))
      sizes[count++] = i;
  node->size_at = sizes[turn(o, count)];
  for (size_t s = 0; s < sectors && o->states != UINT64_MAX; s++)
    turn_sector(node, s, o);
}

uint64_t sim_cut_states(struct sim_disk *disk, uint64_t most) {
  struct odometer o = {.states = 1, .most = most};
  for (uint32_t i = 0; i < disk->count && o.states != UINT64_MAX; i++)
    turn_node(disk->nodes[i], &o);
  return o.states;
}

void sim_cut_number(struct sim_disk *disk, uint64_t number) {
  struct odometer o = {.states = 1, .most = UINT64_MAX - 1, .left = number, .decode = true};
  for (uint32_t i = 0; i < disk->count; i++)
    turn_node(disk->nodes[i], &o);
}

/* --- some states ------------------------------------------------------------------------------------------------- */

/* A sector that some pending operation of the file changes. */
static size_t some_sector(const struct sim_node *node, uint64_t *random) {
  size_t from, to;
  uint32_t i = below(random, node->pending_count);
  sim_op_range(node->pending[i], sim_node_size(node, i), &from, &to);
  return to > from ? (from + below(random, (uint32_t)(to - from))) / SIM_SECTOR_BYTES : 0;
}

/* Each unit of `step` sectors gets as far as it likes. */
static void tear(struct sim_node *node, size_t sectors, size_t step, uint64_t *random) {
  uint32_t count = 0;
  for (size_t s = 0; s < sectors; s++) {
    if (s % step == 0)
      count = below(random, node->pending_count + 1);
    set_sector(node, s, count);
  }
}

static void file_random(struct sim_node *node, uint64_t *random) {
  uint32_t n = node->pending_count, mode = below(random, 9);
  size_t sectors = prepare(node);
  set_node(node, mode == 0 || mode == 6 || mode == 8 ? 0 : mode == 2 ? below(random, n + 1) : n);
  if (mode == 3 || mode == 4)
    tear(node, sectors, mode == 3 ? 1 : SIM_PAGE_SECTORS, random);
  if (sectors && (mode == 5 || mode == 6))
    set_sector(node, some_sector(node, random), mode == 5 ? below(random, n) : 1 + below(random, n));
  if (mode >= 5) /* the size goes its own way */
    set_size(node, mode == 7 || below(random, 4) == 0 ? below(random, n + 1) : n);
  else if (mode >= 3)
    set_size(node, below(random, n + 1));
}

static void node_random(struct sim_node *node, uint64_t *random) {
  if (!node->directory) {
    file_random(node, random);
    return;
  }
  prepare(node);
  uint32_t mode = below(random, 4), one = below(random, node->pending_count);
  for (uint32_t i = 0; i < node->pending_count; i++)
    node->kept[i] = mode == 0 ? i != one : mode == 1 ? i == one : (uint8_t)below(random, 2);
}

/* The disk wrote everything in order, up to somewhere in the middle of one operation. */
static void ordered(struct sim_disk *disk, const struct sim_op *cut, uint64_t *random) {
  for (uint32_t i = 0; i < disk->count; i++) {
    struct sim_node *node = disk->nodes[i];
    uint32_t before = 0;
    while (before < node->pending_count && node->pending[before] < cut)
      before++;
    set_node(node, before);
    if (node->directory || before == node->pending_count || node->pending[before] != cut)
      continue;
    size_t sectors = sim_node_sectors(node), step = below(random, 2) ? 1 : SIM_PAGE_SECTORS;
    for (size_t s = 0; s < sectors; s++)
      if (below(random, 2))
        for (size_t t = s - s % step; t < s - s % step + step && t < sectors; t++)
          set_sector(node, t, before + 1);
    set_size(node, before + below(random, 2));
  }
}

void sim_cut_random(struct sim_disk *disk, uint64_t *random) {
  struct sim_node *busy[256];
  uint32_t count = 0, mode = below(random, 4);
  for (uint32_t i = 0; i < disk->count && count < 256; i++)
    if (disk->nodes[i]->pending_count)
      busy[count++] = disk->nodes[i];
  if (mode == 2)
    sim_cut_none(disk);
  else
    sim_cut_all(disk);
  if (!count)
    return;
  const struct sim_node *one = busy[below(random, count)];
  if (mode == 0)
    ordered(disk, one->pending[below(random, one->pending_count)], random);
  else if (mode == 3)
    for (uint32_t i = 0; i < count; i++)
      node_random(busy[i], random);
  else
    node_random(busy[below(random, count)], random);
}
