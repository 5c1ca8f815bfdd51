/* SPDX-License-Identifier: Apache-2.0
 * SPDX-FileCopyrightText: The coldkv authors
 *
 * coldkv beside an unpatched llama.cpp: a conversation of any length in a context of fixed size.
 *
 *     params = llama_context_default_params();                 // threads, devices, flash attention: yours
 *     coldkv_client_create(&client, NULL, NULL);
 *     coldkv_llama_fingerprint(options.fingerprint, "model.gguf");
 *     coldkv_llama_open(&memory, model, &params, client, "diary", &options);
 *     coldkv_llama_feed(memory, ids, n, COLDKV_LLAMA_RETRIEVE);
 *     logits = llama_get_logits_ith(coldkv_llama_context(memory), -1);
 *     coldkv_sync(coldkv_llama_conversation(memory));
 *
 * How it works: the context's evaluation callback sees each layer's queries, keys and values after RoPE and before
 * attention. There the slots' cells of the KV cache are overwritten, per layer and kv head, with what coldkv retrieved,
 * rotated to their positions. Each token of a block has slots of its own, which it sees by what is added to the
 * attention's mask there. Nothing of llama.cpp is changed or copied.
 *
 * Exact: attention to sinks, hot window and retrieved slots, as llama.cpp computes it with an f16 cache. Approximate:
 * the slots are 64 tokens at 3 bits a coordinate, and keys are shifted in f16 as the hot window moves on.
 *
 * The rules of coldkv.h hold: codes, threads, what a missing daemon means. */
#ifndef COLDKV_LLAMA_H
#define COLDKV_LLAMA_H

#include <stdint.h>

#ifndef COLDKV_API
#if defined(__GNUC__)
#define COLDKV_API __attribute__((visibility("default")))
#else
#define COLDKV_API
#endif
#endif

#ifdef __cplusplus
extern "C" {
#endif

typedef struct coldkv_client coldkv_client; /* of coldkv.h */
typedef struct coldkv_conv coldkv_conv;

struct llama_context;
struct llama_context_params;
struct llama_model;

typedef struct coldkv_llama coldkv_llama;

struct coldkv_llama_options {
  uint8_t fingerprint[32]; /* of the weights and all that changes keys, see coldkv_llama_fingerprint */
  uint32_t k;              /* slots; 0: 64 */
  uint32_t rows;           /* tokens that are fed at a time with retrieval, 1 to 64; 0: 8. Each has k cells of cache */
  uint32_t window;         /* trained window; 0: what the model says */
  int any_version;         /* 1: also with versions of llama.cpp that were not tested */
};

/* Makes a context of the model and opens the conversation in it, rebuilding its hot window if it has a past. Of params
 * (llama_context_default_params and what you set) the sizes, numbers of sequences, cache types and the evaluation
 * callback are set here. The model must outlive `memory`, and so must the client.
 * COLDKV_EVERSION: another llama.cpp than the tested ones. COLDKV_EARGUMENT: a model that this cannot do, with the
 * reason: no rotated keys in some layer, sliding windows, recurrent layers, MLA, a head_dim that coldkv does not take.
 * */
COLDKV_API int coldkv_llama_open(coldkv_llama **memory, struct llama_model *model,
                                 const struct llama_context_params *params, coldkv_client *client,
                                 const char *conversation, const struct coldkv_llama_options *options);

/* Closes without waiting, like coldkv_close. NULL is allowed. */
COLDKV_API void coldkv_llama_close(coldkv_llama *memory);

enum coldkv_llama_flags {
  COLDKV_LLAMA_RETRIEVE = 1,   /* attend to retrieved tokens too, `rows` tokens at a time; without it 64, for reading */
  COLDKV_LLAMA_ALL_LOGITS = 2, /* logits of all tokens rather than the last; n must fit one block */
};

/* Runs n tokens (llama_token) through the model at the end of the conversation. When it fails, the tokens of whole
 * blocks before the failing one have been taken: coldkv_get_status tells how many there are. */
COLDKV_API int coldkv_llama_feed(coldkv_llama *memory, const int32_t *ids, uint32_t n, int flags);

/* Forgets tokens from index `end` on. Possible as long as the hot window has not moved since: COLDKV_ERANGE names the
 * first index that is possible. */
COLDKV_API int coldkv_llama_rewind(coldkv_llama *memory, uint64_t end);

/* The context, for logits, and the conversation, for coldkv_sync and coldkv_get_status. They belong to `memory`;
 * feeding or rewinding them any other way breaks it. */
COLDKV_API struct llama_context *coldkv_llama_context(coldkv_llama *memory);
COLDKV_API coldkv_conv *coldkv_llama_conversation(coldkv_llama *memory);

/* Adds the bytes of a file (the model, an adapter) to a fingerprint that begins as zeros. COLDKV_EIO. */
COLDKV_API int coldkv_llama_fingerprint(uint8_t fingerprint[32], const char *path);

/* The sentence of the last failed coldkv_llama_ call on this thread; "" before any. */
COLDKV_API const char *coldkv_llama_error(void);

/* The versions of llama.cpp that were tested, as llama_version() names them, separated by blanks. */
COLDKV_API const char *coldkv_llama_tested(void);

#ifdef __cplusplus
}
#endif
#endif
