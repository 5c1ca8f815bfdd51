// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// The method `status`: what was found damaged, and how far the scrub is.
#include <stdlib.h>

#include "daemon/request.h"

/* What a user may see: pieces of conversations of their own; the operator sees all. */
struct listing {
  uint32_t uid;
  bool all;
  struct damage *found; /* copies: the list itself changes */
  uint32_t count;
};

static int add_damage(void *context, const struct damage *damage) {
  struct listing *listing = context;
  if (!listing->all && !(damage->place.owned && damage->place.uid == listing->uid))
    return 0;
  listing->found[listing->count++] = *damage;
  return listing->count == DAMAGE_MAX;
}

static void pack(struct request *request, const struct listing *listing, struct msg_damage *items) {
  struct server *server = request->server;
  struct msg_status answer = {.read_only = archive_read_only(server->archive)};
  for (uint32_t i = 0; i < listing->count; i++) {
    const struct damage *d = &listing->found[i];
    items[i] = (struct msg_damage){.path = span_str(d->path),
                                   .what = span_str(d->what),
                                   .conversation = span_str(d->place.name),
                                   .page = d->place.page,
                                   .first = d->place.first,
                                   .count = d->place.count,
                                   .found_s = d->found_s};
  }
  if (listing->all)
    scrubber_status(&server->scrubber, &answer);
  answer.damage = (struct list){.count = listing->count, .items = items};
  request_answer(request, &answer);
}

void method_status(struct request *request) {
  struct listing listing = {.uid = request->connection->user->uid};
  listing.all = access_operator(listing.uid);
  listing.found = malloc(DAMAGE_MAX * sizeof *listing.found);
  struct msg_damage *items = malloc(DAMAGE_MAX * sizeof *items);
  if (listing.found && items) {
    damage_list_each(archive_damage(request->server->archive), add_damage, &listing);
    pack(request, &listing, items);
  } else {
    error_set(&request->error, ERR_MEMORY, "status: out of memory for the answer");
  }
  free(listing.found);
  free(items);
  request_finish(request);
}
