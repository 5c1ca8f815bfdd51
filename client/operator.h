// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// What the calls inside a block share, with host arrays (operator.c) and with GPU memory (operator_device.c).
#ifndef COLDKV_CLIENT_OPERATOR_H
#define COLDKV_CLIENT_OPERATOR_H

#include "client/conversation.h"

/* -ERR_STATE outside a block, -ERR_RANGE for a layer that the model does not have. */
int operator_check_layer(const coldkv_conv *conv, uint32_t layer, const char *call, struct error *error);

/* The same, and -ERR_STATE when the layer has its keys already. */
int operator_check_keys(const coldkv_conv *conv, uint32_t layer, const char *call, struct error *error);

/* -ERR_NOT_FINITE for vectors [rows][per_row][d] that are not finite, or longer than norm_max. */
int operator_check_vectors(const coldkv_conv *conv, const float *x, uint32_t rows, uint32_t per_row, float norm_max,
                           const char *what, struct error *error);

/* The slots of the last lookup as coldkv.h has them. */
void operator_slots(const coldkv_conv *conv, struct coldkv_slots *slots);

/* Attend and push of a conversation on a device, with host arrays. plain_q: q before RoPE. */
int operator_attend_copies(coldkv_conv *conv, uint32_t layer, const float *plain_q, const float *q, const float *k,
                           const float *v, float *out, struct error *error);
int operator_push_copies(coldkv_conv *conv, uint32_t layer, const float *k, const float *v, struct error *error);

#endif
