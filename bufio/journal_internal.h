// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// The side file's layout, and what the writer does with one.

#ifndef MY_ALLOC_BUFIO_JOURNAL_INTERNAL_H_
#define MY_ALLOC_BUFIO_JOURNAL_INTERNAL_H_

#include <assert.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/stat.h>

#include "bufio/journal.h"

#ifdef __cplusplus
extern "C" {
#endif

#define BUFIO_JOURNAL_MAGIC 0x6c6e6a6f69667562u  // "bufiojnl"
#define BUFIO_JOURNAL_VERSION 1u
#define BUFIO_JOURNAL_HEADER_BYTES ((size_t)4096)
#define BUFIO_JOURNAL_RING_BYTES_MAX ((uint64_t)1 << 30)
// Of the file that is written: an offset and its check share 64 bits.
#define BUFIO_JOURNAL_OFFSET_MAX (((uint64_t)1 << 48) - 1)

// Offset 0 of the side file. All numbers in the machine's byte order.
typedef struct bufio_journal_header {
  uint64_t magic;    // Written last when the file is made.
  uint32_t version;  // Immutable, as all up to `check`.
  uint32_t header_bytes;
  uint64_t ring_bytes;  // Behind the header; a multiple of the page size.
  uint64_t device;      // Of the file that is written.
  uint64_t inode;
  uint64_t nonce;  // Any number; makes `check` and words this file's own.
  uint64_t birth;  // Of the file that is written: an inode is used again.
  uint64_t check;  // Of the seven numbers before it and the magic.
  // Offset 64. File offset of the end of what was accepted; one store a record.
  uint64_t committed;
  uint8_t padding1[56];
  // Offset 128: words of an offset and a check. File offset up to which the
  // kernel has the bytes.
  uint64_t written;
  // 0, or where a record that is written past the ring will end.
  uint64_t direct_end;
  // 0, or the word of BUFIO_JOURNAL_OFFSET_MAX from before an open empties the
  // file: once the file is empty, nothing here counts.
  uint64_t emptying;
  // 0, or the same word once the writer has closed and the file has everything:
  // nothing here counts, whatever becomes of the file.
  uint64_t finished;
} bufio_journal_header_t;

static_assert(offsetof(bufio_journal_header_t, committed) == 64,
              "the hot word has a cache line of its own");
static_assert(offsetof(bufio_journal_header_t, written) == 128,
              "layout of version 1");
static_assert(sizeof(bufio_journal_header_t) <= BUFIO_JOURNAL_HEADER_BYTES,
              "the header fits its page");

// The side file of an open writer. The byte at file offset `o` is at
// ring[o % ring_bytes], and ring[ring_bytes, 2 * ring_bytes) is the same memory
// again.
typedef struct bufio_journal {
  bufio_journal_header_t *header;
  unsigned char *ring;
  size_t ring_bytes;
  int descriptor;
  int target;       // The file, until the writer closes. Immutable.
  int target_lock;  // The lock of the file, if it is not the writer's own
                    // descriptor that has it; else -1.
  char *path;
} bufio_journal_t;

// `check` of a header, and the word for an offset.
uint64_t bufio_journal_header_check(const bufio_journal_header_t *header);
uint64_t bufio_journal_word(const bufio_journal_header_t *header,
                            uint64_t offset);

// What `emptying` and `finished` are when they are so.
uint64_t bufio_journal_mark(const bufio_journal_header_t *header);

// Creates, locks and maps the side file for `target`, which ends at `offset`
// and is locked. -EBUSY if there is one already; errors of the kernel. Nothing
// is left behind on failure.
int bufio_journal_create(const char *path, int target, uint64_t offset,
                         size_t ring_bytes,
                         bufio_journal_t **out_journal) BUFIO_MUST_USE;

// Closes it; `keep` leaves the file for a replay. Without it the file has
// everything. NULL is a no-op.
void bufio_journal_destroy(bufio_journal_t *journal, bool keep);

// In the child of a fork: gives back what is the process's own. The side file,
// its memory and its lock stay the parent's.
void bufio_journal_abandon(bufio_journal_t *journal);

// Publish that the kernel has the bytes before `offset`; announce a direct
// record, or with 0 that there is none.
void bufio_journal_set_written(bufio_journal_t *journal, uint64_t offset);
void bufio_journal_set_direct_end(bufio_journal_t *journal, uint64_t offset);
uint64_t bufio_journal_direct_end(const bufio_journal_t *journal);

// ---- names and locks (journal_side.c) ----

// Takes the lock of a file, LOCK_EX or LOCK_SH, and makes sure that `path`
// (NULL: do not look) still names it. -EBUSY: somebody else has the lock, or
// the name.
int bufio_journal_lock(int descriptor, const char *path,
                       int operation) BUFIO_MUST_USE;

// Lets go of a file's lock, if there is one, and closes the file: as close(2).
// A child that another thread has just forked may have a copy of the
// descriptor, so that closing ours alone would not. For all that was locked,
// whether what it was locked for came to be or not.
int bufio_journal_close_locked(int descriptor);

// A side file, opened by its name in a folder that stays open, and locked.
typedef struct bufio_side {
  int descriptor;  // -1: there is none.
  int folder;
  char *path;
} bufio_side_t;

#define BUFIO_SIDE_NONE \
  { -1, -1, NULL }

// Opens and locks one; with O_CREAT | O_EXCL makes it. -ENOENT, -EBUSY, errors
// of open(2).
int bufio_side_open(const char *path, int flags,
                    bufio_side_t *out_side) BUFIO_MUST_USE;

// Removes the name, if it is still that of the file: else -EBUSY.
int bufio_side_remove(const bufio_side_t *side);

// The same of a side file that has been open for long: closes it and removes
// the name that it had now. A folder may have been renamed, or the process have
// moved to another. Needs no descriptor but the one that it closes.
int bufio_side_close_moved(int descriptor, const char *path);

// BUFIO_SIDE_NONE is a no-op.
void bufio_side_close(bufio_side_t *side);

bool bufio_side_is_same(const struct stat *first, const struct stat *second);

// ---- notes (journal_note.c) ----

// Returns 1 if a file has a note that leads to what may be its side file, 0, or
// an error.
int bufio_note_exists(const char *path) BUFIO_MUST_USE;

// Opens the side file that the note on a file leads to, if it is another one
// than `own`: 1, 0 if there is none, or an error. The file's lock is held;
// `path` is any name of it. -EACCES: it is the file owner's, not ours.
int bufio_note_open(int target, const char *path, const bufio_side_t *own,
                    bufio_side_t *out_side) BUFIO_MUST_USE;

// ---- whose it is (journal_look.c) ----

// Returns 1 if there is something of this name, 0, or an error. A name that is
// too long is nothing's.
int bufio_journal_exists(const char *journal_path) BUFIO_MUST_USE;

// Returns 1 if the open file `journal` begins as a side file of `target` does,
// and counts; 0, or an error.
int bufio_journal_is_of(int target, int journal) BUFIO_MUST_USE;

// A file that is written, as measured.
typedef struct bufio_target {
  uint64_t device;
  uint64_t inode;
  uint64_t birth;
  uint64_t size_bytes;
} bufio_target_t;

// Looks at a locked side file without believing it: 0 if it is the target's,
// with its header and length, or if its maker died before it began; else
// -EPROTO.
int bufio_side_look(int target, int journal, bufio_target_t *out_target,
                    bool *out_began, bufio_journal_header_t *out_header,
                    uint64_t *out_size_bytes) BUFIO_MUST_USE;

// ---- replays (journal_replay.c) ----

// As `bufio_journal_replay`, of a file that is open for reading and writing,
// and whose lock is held. `path` is any name of it.
int bufio_journal_replay_found(
    int target, const char *path, const char *journal_path,
    bufio_journal_result_t *out_result) BUFIO_MUST_USE;

// Empties a file that is open for writing and whose lock is held, then removes
// its side files, if there are any. -EBUSY as above; -EPROTO if what lies at
// `journal_path` is not of this file, which then keeps its bytes.
int bufio_journal_empty(int target, const char *path,
                        const char *journal_path) BUFIO_MUST_USE;

#ifdef __cplusplus
}  // extern "C"
#endif

#endif  // MY_ALLOC_BUFIO_JOURNAL_INTERNAL_H_
