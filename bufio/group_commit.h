// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0
//
// group_commit: a file to which threads append records that must be on the
// disk before they go on; one fdatasync(2) serves all who wait.
//
// For: logs of transactions. Not for: records that need not survive a power cut
// (locked.h, async_writer.h).
//
//   bufio_group_t *group;
//   int status = bufio_group_open("wal.log", NULL, &group);
//   status = bufio_group_commit(group, record, len);   // any thread
//   // 0: the record is on the disk.
//   bufio_group_close(group);
//
// The first thread that waits leads: it hands over everything that was appended
// so far and syncs, while the others append for the next round.
//
// Errors are those of writer.h: sticky, curable by `bufio_group_resume`, but
// final if the sync failed.
//
// Threads: any, but open and close. fork: every call in the child returns
// -ECHILD; close gives back memory.

#ifndef MY_ALLOC_BUFIO_GROUP_COMMIT_H_
#define MY_ALLOC_BUFIO_GROUP_COMMIT_H_

#include <stddef.h>
#include <stdint.h>

#include "bufio/bufio.h"
#include "bufio/writer.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct bufio_group bufio_group_t;

// Opens the file as `bufio_writer_open` does, at level `power`; of `options`,
// the buffer, `append`, `exclusive` and `mode` count.
BUFIO_API int bufio_group_open(const char *path,
                               const bufio_writer_options_t *options,
                               bufio_group_t **out_group) BUFIO_MUST_USE;

// Syncs, and closes. Returns the sticky error. NULL is 0.
BUFIO_API int bufio_group_close(bufio_group_t *group);

// Accepts a record, and stores what to wait for; several records may be
// appended before one wait for the last.
BUFIO_API int bufio_group_append(bufio_group_t *group, const void *bytes,
                                 size_t len,
                                 uint64_t *out_ticket) BUFIO_MUST_USE;

// Waits until the record is on the disk: 0. The sticky error if it never will
// be, or is not yet.
BUFIO_API int bufio_group_wait(bufio_group_t *group,
                               uint64_t ticket) BUFIO_MUST_USE;

// Appends and waits.
BUFIO_API int bufio_group_commit(bufio_group_t *group, const void *bytes,
                                 size_t len) BUFIO_MUST_USE;

// As `bufio_writer_resume`.
BUFIO_API int bufio_group_resume(bufio_group_t *group) BUFIO_MUST_USE;

// Returns how many syncs were made.
BUFIO_API uint64_t bufio_group_sync_count(bufio_group_t *group);

#ifdef __cplusplus
}  // extern "C"
#endif

#endif  // MY_ALLOC_BUFIO_GROUP_COMMIT_H_
