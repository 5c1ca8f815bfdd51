// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// Memory of the event loop. libuv ends the process when the table of its descriptors cannot grow; a reserve that is
// given back then lets it grow, and the request or connection that comes next is refused instead.
#ifndef COLDKV_DAEMON_LOOP_MEMORY_H
#define COLDKV_DAEMON_LOOP_MEMORY_H

#include "proto/error.h"

/* Call before any other function of libuv. ERR_MEMORY. */
int loop_memory_init(struct error *error);
void loop_memory_finish(void); /* after the loop is closed */

#endif
