// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
#include "tests/store/sim_disk.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tests/store/fixture.h"

static void *reserve(void *old, size_t count, size_t *room, size_t size) {
  if (count <= *room)
    return old;
  size_t more = 2 * *room > count ? 2 * *room : count;
  uint8_t *grown = realloc(old, more * size);
  if (!grown)
    abort();
  memset(grown + *room * size, 0, (more - *room) * size);
  *room = more;
  return grown;
}

static void *reserve32(void *old, size_t count, uint32_t *room, size_t size) {
  size_t wide = *room;
  void *grown = reserve(old, count, &wide, size);
  *room = (uint32_t)wide;
  return grown;
}

/* --- files ------------------------------------------------------------------------------------------------------ */

size_t sim_node_size(const struct sim_node *node, uint32_t count) {
  size_t size = node->base_size;
  for (uint32_t i = 0; i < count; i++) {
    const struct sim_op *op = node->pending[i];
    if (op->kind == SIM_TRUNCATE)
      size = op->size;
    else if (op->offset + op->size > size)
      size = op->offset + op->size;
  }
  return size;
}

size_t sim_node_size_max(const struct sim_node *node) {
  size_t most = node->base_size;
  for (uint32_t i = 1; i <= node->pending_count; i++) {
    size_t size = sim_node_size(node, i);
    most = size > most ? size : most;
  }
  return most;
}

size_t sim_node_sectors(const struct sim_node *node) {
  return (sim_node_size_max(node) + SIM_SECTOR_BYTES - 1) / SIM_SECTOR_BYTES;
}

void sim_op_range(const struct sim_op *op, size_t size_before, size_t *from, size_t *to) {
  if (op->kind == SIM_WRITE) {
    *from = op->offset;
    *to = op->offset + op->size;
  } else {
    *from = op->size < size_before ? op->size : size_before;
    *to = size_before;
  }
}

/* Does `op` to those bytes of its range whose sectors it reached; reach NULL: everywhere. */
static void apply_bytes(uint8_t *bytes, const struct sim_op *op, uint32_t number, size_t size_before,
                        const uint16_t *reach) {
  size_t from, to;
  sim_op_range(op, size_before, &from, &to);
  while (from < to) {
    size_t sector = from / SIM_SECTOR_BYTES, end = reach ? (sector + 1) * SIM_SECTOR_BYTES : to;
    end = end < to ? end : to;
    if (!reach || reach[sector] > number) {
      if (op->kind == SIM_WRITE)
        memcpy(bytes + from, op->data + (from - op->offset), end - from);
      else
        memset(bytes + from, 0, end - from);
    }
    from = end;
  }
}

static void file_sync(struct sim_node *node) {
  size_t size = node->base_size;
  node->base = reserve(node->base, sim_node_size_max(node), &node->base_room, 1);
  for (uint32_t i = 0; i < node->pending_count; i++) {
    apply_bytes(node->base, node->pending[i], i, size, NULL);
    size = sim_node_size(node, i + 1);
  }
  node->base_size = size;
  node->pending_count = 0;
  node->size_floor = 0;
  free(node->floor);
  node->floor = NULL;
  node->floor_count = 0;
}

/* The newest pending write is certain: its sectors are, with all that was done to them before. */
static void file_write_durable(struct sim_node *node) {
  const struct sim_op *op = node->pending[node->pending_count - 1];
  node->floor = reserve(node->floor, sim_node_sectors(node), &node->floor_count, sizeof node->floor[0]);
  for (size_t s = op->offset / SIM_SECTOR_BYTES; s * SIM_SECTOR_BYTES < op->offset + op->size; s++)
    node->floor[s] = (uint16_t)node->pending_count;
  node->size_floor = node->pending_count;
}

static const uint8_t *file_build(struct sim_node *node, size_t *size) {
  *size = node->base_size;
  if (!node->pending_count)
    return node->base;
  size_t most = sim_node_size_max(node), before = node->base_size;
  node->built = reserve(node->built, most, &node->built_room, 1);
  if (most)
    memset(node->built, 0, most);
  if (node->base_size)
    memcpy(node->built, node->base, node->base_size);
  for (uint32_t i = 0; i < node->pending_count; i++) {
    apply_bytes(node->built, node->pending[i], i, before, node->reach);
    before = sim_node_size(node, i + 1);
  }
  *size = sim_node_size(node, node->size_at);
  return node->built;
}

/* --- directories ------------------------------------------------------------------------------------------------ */

static void entry_remove(struct sim_node *node, const char *name, uint64_t inode) {
  for (uint32_t i = 0; i < node->entry_count; i++)
    if (strcmp(node->entries[i].name, name) == 0 && node->entries[i].node->inode == inode) {
      node->entries[i] = node->entries[--node->entry_count];
      return;
    }
}

static void entry_set(struct sim_node *node, const char *name, struct sim_node *child) {
  uint32_t i = 0;
  while (i < node->entry_count && strcmp(node->entries[i].name, name) != 0)
    i++;
  if (i == node->entry_count) {
    node->entries = reserve32(node->entries, i + 1, &node->entry_room, sizeof node->entries[0]);
    node->entry_count++;
  }
  memcpy(node->entries[i].name, name, strlen(name) + 1);
  node->entries[i].node = child;
}

/* The newest node of an inode, whose number may be used again. */
static struct sim_node *find(const struct sim_disk *disk, uint64_t inode) {
  for (uint32_t i = disk->count; i-- > 0;)
    if (disk->nodes[i]->inode == inode)
      return disk->nodes[i];
  abort(); /* the trace began after a file was opened, or missed a call */
}

static void entry_apply(const struct sim_disk *disk, struct sim_node *node, const struct sim_op *op) {
  if (op->kind != SIM_CREATE)
    entry_remove(node, op->name, op->child);
  if (op->kind == SIM_CREATE)
    entry_set(node, op->name, find(disk, op->child));
  else if (op->kind == SIM_RENAME)
    entry_set(node, op->to, find(disk, op->child));
}

static void directory_sync(const struct sim_disk *disk, struct sim_node *node) {
  for (uint32_t i = 0; i < node->pending_count; i++)
    entry_apply(disk, node, node->pending[i]);
  node->pending_count = 0;
}

/* --- the disk --------------------------------------------------------------------------------------------------- */

static struct sim_node *node_add(struct sim_disk *disk, uint64_t inode, bool directory) {
  struct sim_node *node = calloc(1, sizeof *node);
  if (!node)
    abort();
  node->inode = inode;
  node->directory = directory;
  disk->nodes = reserve32(disk->nodes, disk->count + 1, &disk->room, sizeof disk->nodes[0]);
  return disk->nodes[disk->count++] = node;
}

static void load_file(struct sim_node *node, const char *path, size_t size) {
  int fd = open(path, O_RDONLY | O_CLOEXEC);
  node->base = reserve(NULL, size, &node->base_room, 1);
  node->base_size = size;
  if (fd < 0 || pread(fd, node->base, size, 0) != (ssize_t)size)
    abort();
  close(fd);
}

static struct sim_node *load(struct sim_disk *disk, const char *path) {
  struct stat status;
  if (stat(path, &status))
    abort();
  struct sim_node *node = node_add(disk, status.st_ino, S_ISDIR(status.st_mode));
  if (!node->directory) {
    load_file(node, path, (size_t)status.st_size);
    return node;
  }
  DIR *dir = opendir(path);
  const struct dirent *entry;
  if (!dir)
    abort();
  while ((entry = readdir(dir))) {
    char child[4096];
    if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0)
      continue;
    snprintf(child, sizeof child, "%s/%s", path, entry->d_name);
    entry_set(node, entry->d_name, load(disk, child));
  }
  closedir(dir);
  return node;
}

void sim_disk_load(struct sim_disk *disk, const char *root) {
  *disk = (struct sim_disk){0};
  load(disk, root);
}

void sim_disk_copy(struct sim_disk *disk, const struct sim_disk *from) {
  *disk = (struct sim_disk){0};
  for (uint32_t i = 0; i < from->count; i++) {
    const struct sim_node *old = from->nodes[i];
    struct sim_node *node = node_add(disk, old->inode, old->directory);
    node->base = reserve(NULL, old->base_size, &node->base_room, 1);
    node->base_size = old->base_size;
    if (old->base_size)
      memcpy(node->base, old->base, old->base_size);
  }
  for (uint32_t i = 0; i < from->count; i++)
    for (uint32_t k = 0; k < from->nodes[i]->entry_count; k++)
      entry_set(disk->nodes[i], from->nodes[i]->entries[k].name, find(disk, from->nodes[i]->entries[k].node->inode));
}

void sim_disk_finish(struct sim_disk *disk) {
  for (uint32_t i = 0; i < disk->count; i++) {
    struct sim_node *node = disk->nodes[i];
    free(node->pending);
    free(node->base);
    free(node->floor);
    free(node->entries);
    free(node->reach);
    free(node->kept);
    free(node->built);
    free(node);
  }
  free(disk->nodes);
  *disk = (struct sim_disk){0};
}

void sim_disk_apply(struct sim_disk *disk, const struct sim_op *op) {
  struct sim_node *node = find(disk, op->inode);
  if (op->kind == SIM_SYNC && node->directory) {
    directory_sync(disk, node);
    return;
  }
  if (op->kind == SIM_SYNC) {
    file_sync(node);
    return;
  }
  if (op->kind == SIM_CREATE)
    node_add(disk, op->child, op->directory);
  node->pending = reserve32(node->pending, node->pending_count + 1, &node->pending_room, sizeof node->pending[0]);
  node->pending[node->pending_count++] = op;
  if (op->durable)
    file_write_durable(node);
}

/* --- images ----------------------------------------------------------------------------------------------------- */

/* A directory as chosen: base entries and the kept changes. */
static struct sim_node directory_build(const struct sim_disk *disk, const struct sim_node *node) {
  struct sim_node shown = {.inode = node->inode, .directory = true};
  for (uint32_t i = 0; i < node->entry_count; i++)
    entry_set(&shown, node->entries[i].name, node->entries[i].node);
  for (uint32_t i = 0; i < node->pending_count; i++)
    if (node->kept[i])
      entry_apply(disk, &shown, node->pending[i]);
  return shown;
}

static uint64_t mix(uint64_t hash, const void *bytes, size_t size) {
  const uint8_t *at = bytes;
  uint64_t word;
  for (; size >= sizeof word; at += sizeof word, size -= sizeof word) {
    memcpy(&word, at, sizeof word);
    hash = (hash ^ word) * UINT64_C(0x9fb21c651e98df25);
    hash ^= hash >> 29;
  }
  word = size;
  if (size)
    memcpy(&word, at, size);
  return (hash ^ word ^ size << 56) * UINT64_C(0x9fb21c651e98df25);
}

/* Visits the tree; the order of names does not matter to the hash. */
static uint64_t visit(struct sim_disk *disk, struct sim_node *node, const char *path, bool write_it) {
  if (!node->directory) {
    size_t size;
    const uint8_t *bytes = file_build(node, &size);
    if (!write_it)
      return mix(size, bytes, size);
    int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (fd < 0 || (size && pwrite(fd, bytes, size, 0) != (ssize_t)size))
      abort();
    close(fd);
    return 0;
  }
  uint64_t hash = 1;
  struct sim_node shown = directory_build(disk, node);
  if (write_it && mkdir(path, 0700))
    abort();
  for (uint32_t i = 0; i < shown.entry_count; i++) {
    char child[4096] = "";
    if (write_it)
      snprintf(child, sizeof child, "%s/%s", path, shown.entries[i].name);
    uint64_t inner = visit(disk, shown.entries[i].node, child, write_it);
    hash += mix(inner * 3 + 1, shown.entries[i].name, strlen(shown.entries[i].name));
  }
  free(shown.entries);
  return mix(1, &hash, sizeof hash);
}

uint64_t sim_disk_hash(struct sim_disk *disk) { return visit(disk, disk->nodes[0], "", false); }
void sim_disk_write(struct sim_disk *disk, const char *root) { visit(disk, disk->nodes[0], root, true); }
