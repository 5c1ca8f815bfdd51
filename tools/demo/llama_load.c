// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
#include <assert.h>
#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tools/demo/json.h"
#include "tools/demo/llama_parts.h"

enum { CONFIG_BYTES_MAX = 1 << 16, PATH_BYTES_MAX = 4096, DIMENSION_MAX = 1 << 16, LAYERS_MAX = 256 };

/* Reads the settings that this forward pass needs, and refuses those that it does not do. */
static int parse_config(struct llama_config *config, struct json *json, const char *path, struct error *error) {
  struct {
    const char *name;
    uint32_t *value;
    uint32_t max;
  } wanted[] = {
      {"num_hidden_layers", &config->layers, LAYERS_MAX},      {"hidden_size", &config->hidden, DIMENSION_MAX},
      {"intermediate_size", &config->ffn, DIMENSION_MAX},      {"num_attention_heads", &config->heads, DIMENSION_MAX},
      {"num_key_value_heads", &config->kv_heads, DIMENSION_MAX}, {"head_dim", &config->head_dim, DIMENSION_MAX},
      {"vocab_size", &config->vocab, 1 << 20},                 {"max_position_embeddings", &config->window, 1 << 24},
  };
  const size_t wanted_count = sizeof wanted / sizeof *wanted;
  char key[64], act[16] = "";
  bool tied = false, biased = false;
  json_open(json, '{');
  while (json_key(json, key, sizeof key)) {
    size_t i = 0;
    while (i < wanted_count && strcmp(key, wanted[i].name) != 0)
      i++;
    if (i < wanted_count) {
      uint64_t value = json_integer(json);
      if (value == 0 || value > wanted[i].max)
        return error_set(error, ERR_CORRUPT, "%s: %s is missing a sensible value", path, key);
      *wanted[i].value = (uint32_t)value;
    } else if (strcmp(key, "rms_norm_eps") == 0) {
      config->norm_eps = (float)json_number(json);
    } else if (strcmp(key, "rope_theta") == 0) {
      config->rope_theta = json_number(json);
    } else if (strcmp(key, "tie_word_embeddings") == 0) {
      tied = json_boolean(json);
    } else if (strcmp(key, "attention_bias") == 0 || strcmp(key, "mlp_bias") == 0) {
      biased |= json_boolean(json);
    } else if (strcmp(key, "hidden_act") == 0) {
      json_string(json, act, sizeof act);
    } else {
      json_skip(json);
    }
  }
  if (!json_finished(json))
    return error_set(error, ERR_CORRUPT, "%s: not a JSON object", path);
  for (size_t i = 0; i < wanted_count; i++)
    if (!*wanted[i].value)
      return error_set(error, ERR_CORRUPT, "%s: %s is missing", path, wanted[i].name);
  if (!tied || biased || strcmp(act, "silu") != 0 || config->norm_eps <= 0 || config->rope_theta <= 1 ||
      config->heads % config->kv_heads || config->head_dim % 2)
    return error_set(error, ERR_NOT_SUPPORTED,
                     "%s: only models with tied embeddings, silu, whole groups and no biases are done here", path);
  return 0;
}

static int read_config(struct llama_config *config, const char *dir, struct error *error) {
  char path[PATH_BYTES_MAX];
  snprintf(path, sizeof path, "%s/config.json", dir);
  FILE *stream = fopen(path, "rb");
  if (!stream)
    return error_set_errno(error, errno, "%s: cannot be opened; --model names the model's folder", path);
  char *text = malloc(CONFIG_BYTES_MAX);
  int result;
  if (!text) {
    result = error_set(error, ERR_MEMORY, "%s: no memory to read it", path);
  } else {
    size_t size = fread(text, 1, CONFIG_BYTES_MAX, stream);
    struct json json = {.at = text, .end = text + size};
    result = size == CONFIG_BYTES_MAX ? error_set(error, ERR_LIMIT, "%s: too long for a config.json", path)
                                      : parse_config(config, &json, path, error);
  }
  free(text);
  fclose(stream);
  return result;
}

static int read_layer(struct llama *llama, const struct safetensors *file, uint32_t index, struct error *error) {
  const struct llama_config *c = &llama->config;
  struct llama_layer *layer = &llama->layers[index];
  uint32_t q_size = c->heads * c->head_dim, kv_size = c->kv_heads * c->head_dim;
  struct {
    const char *name;
    uint32_t rows, columns;
    float **data;
  } parts[] = {
      {"input_layernorm", c->hidden, 0, &layer->attention_norm},
      {"self_attn.q_proj", q_size, c->hidden, &layer->q},
      {"self_attn.k_proj", kv_size, c->hidden, &layer->k},
      {"self_attn.v_proj", kv_size, c->hidden, &layer->v},
      {"self_attn.o_proj", c->hidden, q_size, &layer->o},
      {"post_attention_layernorm", c->hidden, 0, &layer->ffn_norm},
      {"mlp.gate_proj", c->ffn, c->hidden, &layer->gate},
      {"mlp.up_proj", c->ffn, c->hidden, &layer->up},
      {"mlp.down_proj", c->hidden, c->ffn, &layer->down},
  };
  for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
    char name[128];
    snprintf(name, sizeof name, "model.layers.%u.%s.weight", index, parts[i].name);
    int result = safetensors_read(file, name, parts[i].rows, parts[i].columns, parts[i].data, error);
    if (result)
      return result;
  }
  return 0;
}

static int read_weights(struct llama *llama, const char *dir, struct error *error) {
  const struct llama_config *c = &llama->config;
  char path[PATH_BYTES_MAX];
  snprintf(path, sizeof path, "%s/model.safetensors", dir);
  int result = safetensors_open(&llama->file, path, error);
  const struct safetensors *file = llama->file;
  if (!result)
    result = safetensors_read(file, "model.embed_tokens.weight", c->vocab, c->hidden, &llama->embedding, error);
  if (!result)
    result = safetensors_read(file, "model.norm.weight", c->hidden, 0, &llama->norm, error);
  for (uint32_t i = 0; i < c->layers && !result; i++)
    result = read_layer(llama, file, i, error);
  return result;
}

/* Makes room for the layers' pointers and for the rows of a block. */
static int allocate(struct llama *l, const char *dir, struct error *error) {
  const struct llama_config *c = &l->config;
  size_t q_size = (size_t)c->heads * c->head_dim, kv_size = (size_t)c->kv_heads * c->head_dim;
  size_t floats[] = {c->hidden, c->hidden, q_size, kv_size, kv_size, q_size, c->ffn, c->ffn};
  float **rows[] = {&l->x, &l->h, &l->rows_q, &l->rows_k, &l->rows_v, &l->rows_out, &l->rows_gate, &l->rows_up};
  assert(c->layers && c->hidden && c->ffn && q_size && kv_size); /* parse_config has seen to it */
  l->layers = calloc(c->layers, sizeof *l->layers);
  bool all = l->layers != NULL;
  for (size_t i = 0; i < sizeof rows / sizeof *rows && all; i++)
    all = (*rows[i] = malloc(floats[i] * LLAMA_BLOCK_MAX * sizeof(float))) != NULL;
  return all ? 0 : error_set(error, ERR_MEMORY, "%s: no memory to run the model", dir);
}

int llama_load(struct llama **llama, const char *dir, struct error *error) {
  *llama = NULL;
  struct llama *l = calloc(1, sizeof *l);
  if (!l)
    return error_set(error, ERR_MEMORY, "%s: no memory to load the model", dir);
  int result = read_config(&l->config, dir, error);
  if (!result)
    result = allocate(l, dir, error);
  if (!result)
    result = read_weights(l, dir, error);
  if (result) {
    llama_free(l);
    return result;
  }
  *llama = l;
  return 0;
}

void llama_free(struct llama *llama) {
  if (!llama)
    return;
  for (uint32_t i = 0; llama->layers && i < llama->config.layers; i++) {
    struct llama_layer *l = &llama->layers[i];
    float *parts[] = {l->attention_norm, l->q, l->k, l->v, l->o, l->ffn_norm, l->gate, l->up, l->down};
    for (size_t p = 0; p < sizeof parts / sizeof *parts; p++)
      free(parts[p]);
  }
  float *rows[] = {llama->x,        llama->h,         llama->rows_q,  llama->rows_k,    llama->rows_v,
                   llama->rows_out, llama->rows_gate, llama->rows_up, llama->embedding, llama->norm};
  for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
    free(rows[i]);
  free(llama->layers);
  safetensors_close(llama->file);
  free(llama);
}

const struct llama_config *llama_config(const struct llama *llama) { return &llama->config; }

const uint8_t *llama_weights(const struct llama *llama, uint64_t *size) {
  return safetensors_bytes(llama->file, size);
}
