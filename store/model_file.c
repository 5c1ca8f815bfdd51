// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
#include "store/model_file.h"

#include <math.h>
#include <string.h>

static int check_means(const char *name, struct span means, const struct msg_geometry *geometry, struct error *error) {
  uint64_t wanted = geometry_mean_bytes(geometry);
  if (means.size != wanted)
    return error_set(error, ERR_BAD_PARAMS, "model: '%s' has %zu bytes, wanted %llu for this geometry", name,
                     means.size, (unsigned long long)wanted);
  for (size_t at = 0; at < means.size; at += 4)
    if (!isfinite(load_f32(means.data + at)))
      return error_set(error, ERR_BAD_PARAMS, "model: '%s' number %zu is not finite", name, at / 4);
  return 0;
}

int model_check(const struct msg_model *model, struct error *error) {
  int result = geometry_check(&model->geometry, error);
  if (result)
    return result;
  static const char basis[] = "hadamard";
  if (model->basis.size != sizeof basis - 1 || memcmp(model->basis.data, basis, sizeof basis - 1) != 0)
    return error_set(error, ERR_NOT_SUPPORTED, "model: basis '%.*s' is not known to this version, which has '%s'",
                     (int)model->basis.size, (const char *)model->basis.data, basis);
  result = check_means("mean_k", model->mean_k, &model->geometry, error);
  return result ? result : check_means("mean_v", model->mean_v, &model->geometry, error);
}

int model_read(const struct io *io, const char *path, struct model_file *model, struct error *error) {
  *model = (struct model_file){0};
  int result =
      map_file_read(io, path, MODEL_MAGIC, MODEL_BYTES_MAX, &message_model, &model->message, &model->file, error);
  if (result)
    return result;
  struct error reason = {0};
  result = model_check(&model->message, &reason);
  if (result == -ERR_NOT_SUPPORTED)
    error_set(error, ERR_VERSION, "%s: %s", path, reason.text);
  else if (result || model->message.id.size != LIMIT_ID_BYTES)
    error_set(error, ERR_CORRUPT, "%s: %s", path, result ? reason.text : "model without an id");
  else
    return 0;
  model_file_finish(model);
  return result == -ERR_NOT_SUPPORTED ? -ERR_VERSION : -ERR_CORRUPT;
}

void model_file_finish(struct model_file *model) {
  map_file_finish(&model->file);
  *model = (struct model_file){0};
}
