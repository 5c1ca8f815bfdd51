// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// A Llama with a cold memory: everything in the demo that talks to coldkv. Read this first if you want to give an
// engine of your own a memory; nothing else is needed.
//
// Functions that return int return 0 or a negative COLDKV_E code, and coldkv_error() has the sentence.
#ifndef COLDKV_TOOLS_DEMO_MEMORY_H
#define COLDKV_TOOLS_DEMO_MEMORY_H

#include "client/coldkv.h"
#include "tools/demo/llama.h"

struct memory {
  struct llama *llama; /* borrowed */
  coldkv_client *client;
  coldkv_model *model;
  coldkv_conv *conv;
};

/* The shape of the model as coldkv wants it, with neither a name nor a fingerprint. */
struct coldkv_model_description memory_describe(struct llama *llama);

/* Connects to the daemon at `socket` and opens the conversation `name`, or makes it. One that has a past is ready to
 * go on afterwards: its hot window is computed again. device: as in coldkv_conv_options; the model itself computes on
 * the processor, so that its vectors are copied. `memory` may be closed whatever this returns. */
int memory_open(struct memory *memory, struct llama *llama, const char *socket, const char *name, uint32_t device);
void memory_close(struct memory *memory);

/* Runs the next n tokens through the model, with `slots` old tokens in every attention (0: the hot window alone).
 * `logits`, when given, gets the model's opinion [vocab] on what follows the last of them. */
int memory_feed(struct memory *memory, const uint32_t *ids, uint32_t n, uint32_t slots, float *logits);

#endif
