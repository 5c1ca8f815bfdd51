// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
#include "store/damage.h"

#include <stdlib.h>
#include <string.h>

void damage_list_init(struct damage_list *list) {
  *list = (struct damage_list){.count = 0};
  pthread_mutex_init(&list->lock, NULL);
}

void damage_list_finish(struct damage_list *list) {
  pthread_mutex_destroy(&list->lock);
  free(list->entries);
}

static bool same(const struct damage *a, const struct damage *b) {
  return a->place.page == b->place.page && a->place.first == b->place.first && strcmp(a->path, b->path) == 0;
}

static bool reserve(struct damage_list *list) {
  if (list->count < list->room)
    return true;
  if (list->room == DAMAGE_MAX)
    return false;
  uint32_t room = list->room ? 2 * list->room : 16;
  room = room < DAMAGE_MAX ? room : DAMAGE_MAX;
  struct damage *grown = realloc(list->entries, room * sizeof *grown);
  if (!grown)
    return false;
  list->entries = grown;
  list->room = room;
  return true;
}

bool damage_list_add(struct damage_list *list, const struct damage *damage) {
  bool added = false;
  uint32_t i = 0;
  pthread_mutex_lock(&list->lock);
  while (i < list->count && !same(&list->entries[i], damage))
    i++;
  if (i < list->count) {
    list->entries[i].seen_s = damage->seen_s;
    list->entries[i].by_open |= damage->by_open;
  } else if (reserve(list)) {
    list->entries[list->count++] = *damage;
    added = true;
  } else {
    list->left_out++;
  }
  pthread_mutex_unlock(&list->lock);
  return added;
}

static void drop(struct damage_list *list, uint32_t i) {
  memmove(&list->entries[i], &list->entries[i + 1], (list->count - i - 1) * sizeof list->entries[0]);
  list->count--;
}

void damage_list_clear(struct damage_list *list, const uint8_t conversation[LIMIT_ID_BYTES]) {
  pthread_mutex_lock(&list->lock);
  for (uint32_t i = list->count; i-- > 0;) {
    const struct damage *d = &list->entries[i];
    if (d->by_open && d->place.owned && memcmp(d->place.conversation, conversation, LIMIT_ID_BYTES) == 0)
      drop(list, i);
  }
  pthread_mutex_unlock(&list->lock);
}

void damage_list_expire(struct damage_list *list, uint64_t since_s) {
  pthread_mutex_lock(&list->lock);
  for (uint32_t i = list->count; i-- > 0;)
    if (!list->entries[i].by_open && list->entries[i].seen_s < since_s)
      drop(list, i);
  list->left_out = 0;
  pthread_mutex_unlock(&list->lock);
}

int damage_list_each(struct damage_list *list, damage_visit_fn *visit, void *context) {
  int result = 0;
  pthread_mutex_lock(&list->lock);
  for (uint32_t i = 0; i < list->count && !result; i++)
    result = visit(context, &list->entries[i]);
  pthread_mutex_unlock(&list->lock);
  return result;
}
