// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// A simulated disk: what is on it for certain after some operations of a trace, what is still in a cache, and which
// states a power cut may therefore leave.
//
// The rules, which are stricter than any file system in use:
//   - A file's bytes are certain once it is synced (fdatasync or fsync), or written with O_DSYNC. Until then each of
//     its sectors of 512 bytes shows, by itself, what stood there after any of the operations since (sectors are
//     written whole), and the file has any of the sizes that it had since; bytes of it that never got to disk are
//     zeros.
//   - A name in a directory (made, removed, changed) is certain once that directory is synced. Until then each change
//     is there or not, whatever came of the others. Syncing a file says nothing about its name.
//   - A rename within a directory is never half done.
// So a file that has no name, or whose directory has none, is gone, synced or not.
#ifndef COLDKV_TESTS_STORE_SIM_DISK_H
#define COLDKV_TESTS_STORE_SIM_DISK_H

#include "tests/store/sim_trace.h"

enum { SIM_SECTOR_BYTES = 512, SIM_PAGE_SECTORS = 8 };

struct sim_node;

struct sim_entry {
  char name[SIM_NAME_BYTES];
  struct sim_node *node;
};

/* A file or directory. What is certain of it, and the operations since. */
struct sim_node {
  uint64_t inode;
  bool directory;

  const struct sim_op **pending;
  uint32_t pending_count, pending_room;

  uint8_t *base; /* a file's certain bytes; zeros behind base_size up to base_room */
  size_t base_size, base_room;
  uint16_t *floor; /* per sector, NULL if all 0: this many pending operations are certain there */
  size_t floor_count;
  uint32_t size_floor;

  struct sim_entry *entries; /* a directory's certain names */
  uint32_t entry_count, entry_room;

  /* What a cut leaves: chosen anew for each image. */
  uint16_t *reach;  /* per sector: pending operations that got there */
  size_t reach_room;
  uint32_t size_at; /* the size is that after this many pending operations */
  uint8_t *kept;    /* per pending change of a name */
  uint32_t kept_room;
  uint8_t *built;
  size_t built_room;
};

struct sim_disk {
  struct sim_node **nodes; /* [0]: the root */
  uint32_t count, room;
};

/* Takes over the directory `root` as it is, all of it certain. */
void sim_disk_load(struct sim_disk *disk, const char *root);
/* A copy of a disk on which nothing is pending. */
void sim_disk_copy(struct sim_disk *disk, const struct sim_disk *from);
void sim_disk_finish(struct sim_disk *disk);

/* Carries out the next operation; it has to live as long as the disk. */
void sim_disk_apply(struct sim_disk *disk, const struct sim_op *op);

/* Size of a file after `count` pending operations, the largest it had, and the sectors of that. */
size_t sim_node_size(const struct sim_node *node, uint32_t count);
size_t sim_node_size_max(const struct sim_node *node);
size_t sim_node_sectors(const struct sim_node *node);

/* Bytes [*from, *to) that a pending operation of a file changes, given the size before it; empty for a growing one. */
void sim_op_range(const struct sim_op *op, size_t size_before, size_t *from, size_t *to);

/* The state as chosen: its hash, and a copy of it as directory `root`, which must not exist. */
uint64_t sim_disk_hash(struct sim_disk *disk);
void sim_disk_write(struct sim_disk *disk, const char *root);

#endif
