// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// Text as the protocol allows it: UTF-8 (RFC 3629) without control characters.
#ifndef COLDKV_PROTO_TEXT_H
#define COLDKV_PROTO_TEXT_H

#include <stdbool.h>
#include <stddef.h>

/* Bytes of the character at `text`, of which `left` > 0 bytes are there; 0 when that is no whole UTF-8 character, or is
 * a control character (U+0000 to U+001F, U+007F to U+009F). */
size_t text_character(const char *text, size_t left);

/* True when all of it is such text; the empty text is. */
bool text_valid(const char *text, size_t size);

/* Replaces every byte that is no part of an allowed character by '?', in place. */
void text_repair(char *text, size_t size);

#endif
