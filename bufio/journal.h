// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0
//
// journal: the side file of a writer of level `process`, and its replay.
//
// For: readers of files whose writers may have been killed. A writer opened on
// the same file replays by itself. Not for: power cuts.
//
//   int status = bufio_journal_replay("events.log", NULL, &result);
//   // 0: the file ends behind the last record that was accepted.
//
// Threads, processes: replays and writers of one file exclude each other.

#ifndef MY_ALLOC_BUFIO_JOURNAL_H_
#define MY_ALLOC_BUFIO_JOURNAL_H_

#include <stddef.h>
#include <stdint.h>

#include "bufio/bufio.h"

#ifdef __cplusplus
extern "C" {
#endif

#define BUFIO_JOURNAL_SUFFIX ".bufio-journal"

typedef struct bufio_journal_result {
  uint64_t appended_bytes;  // Added to the end of the file.
  uint64_t removed_bytes;   // Of a record larger than the buffer, cut off.
} bufio_journal_result_t;

// Appends to the file what its killed writer had accepted, and removes the side
// file: `journal_path`, or NULL: `path` with the suffix; and the one whose name
// the writer has left on the file, if that is another one. 0 also if there is
// no side file; then the file is not opened. -EBUSY: its writer is alive, or
// somebody else holds the flock(2) of the file, or the side file's name was
// given to another file meanwhile. -EPROTO: a side file does not belong to the
// file as it is, or is damaged, or there are two that contradict each other;
// nothing was changed. -EACCES: as `bufio_writer_open`. Errors of the kernel:
// another replay goes on where this one stopped. `out_result` may be NULL.
//
// No byte that is in the file is changed by a replay, whatever the side file
// says: it appends, or cuts a record that the side file announces as
// unfinished.
BUFIO_API int bufio_journal_replay(const char *path, const char *journal_path,
                                   bufio_journal_result_t *out_result)
    BUFIO_MUST_USE;

#ifdef __cplusplus
}  // extern "C"
#endif

#endif  // MY_ALLOC_BUFIO_JOURNAL_H_
