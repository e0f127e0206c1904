// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0
//
// bufio_replace: a whole new file in place of an old one, or the old one as it
// was; never something in between, whatever dies.
//
// For: configuration, snapshots, results. Not for: files that several programs
// write, or that must keep their inode, owner or hard links.
//
//   bufio_replace_t replace;
//   int status = bufio_replace_open(&replace, "state.json", NULL);
//   if (status == 0) {
//     bufio_writer_puts(bufio_replace_writer(&replace), "{}");
//     status = bufio_replace_commit(&replace);    // or bufio_replace_abort
//   }
//
// The new bytes go to a file without a name (O_TMPFILE) in the same folder, or
// where that does not exist to ".<name>.<number>.tmp". Commit flushes, fsyncs,
// names it, renames it over the old one and fsyncs the folder. A killed process
// leaves nothing behind with O_TMPFILE but between two calls in commit, and the
// temporary file otherwise. The permissions are those of the old file, if there
// is one. A symbolic link is replaced itself, not what it points to.
//
// Threads: one at a time. fork: the child may only abort, which in it removes
// nothing.

#ifndef MY_ALLOC_BUFIO_BUFIO_REPLACE_H_
#define MY_ALLOC_BUFIO_BUFIO_REPLACE_H_

#include <stdbool.h>
#include <stddef.h>

#include "bufio/bufio.h"
#include "bufio/writer.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct bufio_replace_options {
  unsigned int mode;    // Of a file that did not exist. 0: 0666; umask applies.
  size_t buffer_bytes;  // As of a writer.
} bufio_replace_options_t;

// Placed by the caller, not to be moved while open.
typedef struct bufio_replace {
  bufio_writer_t writer;
  bufio_fork_node_t fork_node;
  char *path;
  char *folder;
  char *temp_path;  // The name that the file has, or will have before its own.
  int descriptor;
  bool has_name;  // There is a file called temp_path, and it is ours.
  bool is_foreign;
} bufio_replace_t;

// Begins. Errors of open(2), -ENOMEM, -EINVAL; nothing is left behind then.
BUFIO_API int bufio_replace_open(bufio_replace_t *replace, const char *path,
                                 const bufio_replace_options_t *options)
    BUFIO_MUST_USE;

// Returns the writer of the new file; it is not the caller's to close.
BUFIO_API bufio_writer_t *bufio_replace_writer(bufio_replace_t *replace);

// Puts the new file in place and ends: 0, and it is on the disk under its name.
// Any error, one of a write before included: the old file is untouched, and the
// new one is gone. Only if the sync of the folder fails the new one is in
// place, but a power cut may still bring the old one back; the error is
// returned.
BUFIO_API int bufio_replace_commit(bufio_replace_t *replace) BUFIO_MUST_USE;

// Ends; the old file is untouched. No-op on what was committed, aborted, zeroed
// or NULL.
BUFIO_API void bufio_replace_abort(bufio_replace_t *replace);

#ifdef __cplusplus
}  // extern "C"
#endif

#endif  // MY_ALLOC_BUFIO_BUFIO_REPLACE_H_
