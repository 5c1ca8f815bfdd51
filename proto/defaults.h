// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// Where the archive and the socket are when nobody says otherwise. Daemon, command and library ask here, so that they
// meet. An empty variable counts as unset, and so does a relative $XDG_ one (XDG Base Directory Specification 0.8).
#ifndef COLDKV_PROTO_DEFAULTS_H
#define COLDKV_PROTO_DEFAULTS_H

#include <stddef.h>

/* $COLDKV_DATA, else $XDG_DATA_HOME/coldkv, else ~/.local/share/coldkv. Writes the path into path[size], terminated.
 * Returns 0, or -1 when it does not fit or there is no home directory; path is "" then. */
int default_data_dir(char *path, size_t size);

/* $COLDKV_SOCKET, else $XDG_RUNTIME_DIR/coldkv.sock, else /tmp/coldkv-UID/coldkv.sock, where UID is the effective user
 * id. Whoever makes that last directory must refuse one that another user owns. Returns as above; note that a socket
 * address holds 107 bytes. */
int default_socket_path(char *path, size_t size);

#endif
