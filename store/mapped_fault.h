// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// What happens when the disk cannot give a page of a mapped file (a read error, or a file that was cut short under its
// mapping): the kernel sends SIGBUS to the thread that touched it. Guarded code lives on: the handler marks the file as
// failed, puts zeros in the place of its whole mapping and lets the thread go on; the guarded code then looks at the
// mark before it believes what it read. The mark stays for as long as the file is mapped, and it is set before the
// first zero can be seen, so that whoever reads later, on whatever thread, finds it too.
//
// Covered, on whatever thread they run: the checks of a segment's header, page CRCs and ids (lookup threads, committer,
// background); lookups, each thread of a team for itself; reads of records and ids; the committer's comparison of
// repeated tokens; verify, in the daemon and in the coldkv command. All of them read segments, the only files that are
// mapped. A SIGBUS anywhere else ends the process as if there were no handler, or reaches the handler that was there
// before. Above all that is LMDB's own mapping of the catalog, in which zeros could do harm: at the next start a child
// process checks the catalog, and one that cannot be read is made again from the files.
#ifndef COLDKV_STORE_MAPPED_FAULT_H
#define COLDKV_STORE_MAPPED_FAULT_H

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

/* One mapping of a file, read-only. */
struct mapped_file {
  struct mapped_file *next;
  const uint8_t *bytes;
  size_t size;
  _Atomic uint64_t failed; /* 1 + offset of the first byte that could not be read; 0: none */
};

/* Installs the handler for the whole process; what is there is called for faults that are not ours. May be called
 * again, when another handler was installed over it. Without it a guard does nothing. */
void mapped_fault_install(void);

/* The handler knows the mapping from now on, until it is forgotten. `file` stays the caller's. */
void mapped_file_register(struct mapped_file *file, const uint8_t *bytes, size_t size);
void mapped_file_forget(struct mapped_file *file);

/* Between these two the calling thread may touch registered mappings that have failed or will. They may be nested. */
void mapped_guard_begin(void);
void mapped_guard_end(void);

/* To be asked after reading and before what was read is used: 0, or 1 + the offset of the first byte that could not be
 * read. Any thread. */
uint64_t mapped_file_failed(const struct mapped_file *file);

#endif
