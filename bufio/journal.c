// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// The side file of a writer of level `process`, as the writer sees it.
//
//   0           64           128        136          4096         + ring_bytes
//   | identity  | committed  | written  | direct_end | ring                |
//
//   file:   ...... kernel has it | in the ring           |
//                        written ^             committed ^
//
// The ring is mapped twice in a row, so every record is contiguous. The byte at
// offset o of the file is at ring[o mod ring_bytes]: nothing says where the
// ring begins, so nothing has to be changed together with `written`, and each
// of the words is a state of its own:
//
//   store            before it                       after it
//   committed        the record was not accepted     it was
//   written          bytes are in file and ring      bytes are in the file
//   direct_end       nothing unfinished              the file may end
//                                                    unfinished
//   finished         the file has everything         the same, and nothing here
//                                                    counts any more
//
// The kernel keeps the pages of a shared mapping when the process dies, so a
// store that was made is a store that a replay sees; on one processor in the
// order of the program, between processors by release.
//
// Invariants, at every instruction (journal_replay.c relies on them, and
// checks):
// 1. written <= size of the file.
// 2. written <= committed <= written + ring_bytes, or the record before
//    `written` was a direct one and committed is at most that one behind.
// 3. The file has no byte beyond committed, or direct_end says how far they may
//    go and the ring is empty.
//
// Space is allocated when the file is made, so no store can meet a full disk.
// One file has one writer: whoever has its flock(2), which dies with the
// process. It is the file that is locked, not its name or that of the side
// file: a file may have several names, each with a side file of its own, and
// what is measured before a lock is held may be wrong after. The side file has
// a lock too, for the case that two files are told to use the same one. Lock
// order: the file, then the side file. Neither waits: -EBUSY.

#include "bufio/journal.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>

#include "bufio/io_retry.h"
#include "bufio/io_system.h"
#include "bufio/journal_internal.h"

// A bijection of 64 bits in which each bit of the input moves each of the
// output.
static uint64_t mix(uint64_t value) {
  value ^= value >> 32;
  value *= 0xd6e8feb86659fd93u;
  value ^= value >> 32;
  value *= 0xd6e8feb86659fd93u;
  return value ^ value >> 32;
}

uint64_t bufio_journal_header_check(const bufio_journal_header_t *header) {
  uint64_t check = mix(BUFIO_JOURNAL_MAGIC);
  check = mix(check ^ header->version);
  check = mix(check ^ header->header_bytes);
  check = mix(check ^ header->ring_bytes);
  check = mix(check ^ header->device);
  check = mix(check ^ header->inode);
  check = mix(check ^ header->nonce);
  return mix(check ^ header->birth);
}

uint64_t bufio_journal_word(const bufio_journal_header_t *header,
                            uint64_t offset) {
  return offset << 16 | (mix(offset ^ header->nonce) & 0xffff);
}

uint64_t bufio_journal_mark(const bufio_journal_header_t *header) {
  return bufio_journal_word(header, BUFIO_JOURNAL_OFFSET_MAX);
}

void bufio_journal_set_written(bufio_journal_t *journal, uint64_t offset) {
  assert(offset <= BUFIO_JOURNAL_OFFSET_MAX);
  // Release: the replay must not see it before the kernel had the bytes.
  __atomic_store_n(&journal->header->written,
                   bufio_journal_word(journal->header, offset),
                   __ATOMIC_RELEASE);
}

void bufio_journal_set_direct_end(bufio_journal_t *journal, uint64_t offset) {
  assert(offset <= BUFIO_JOURNAL_OFFSET_MAX);
  uint64_t word = offset == 0 ? 0 : bufio_journal_word(journal->header, offset);
  // Sequentially consistent: the announcement comes before the write that it
  // announces, and its end after the store that accepts.
  __atomic_store_n(&journal->header->direct_end, word, __ATOMIC_SEQ_CST);
}

uint64_t bufio_journal_direct_end(const bufio_journal_t *journal) {
  return journal->header->direct_end >> 16;
}

static void *map_shared(void *address, size_t len, int descriptor,
                        uint64_t offset, int *out_status) {
  return bufio_system->map(
      address, len, PROT_READ | PROT_WRITE,
      MAP_SHARED | MAP_POPULATE | (address != NULL ? MAP_FIXED : 0), descriptor,
      offset, out_status);
}

// One reservation for header, ring and ring again.
static int map_all(bufio_journal_t *journal) {
  size_t header = BUFIO_JOURNAL_HEADER_BYTES;
  size_t ring = journal->ring_bytes;
  size_t total = header + 2 * ring;
  int status = 0;
  unsigned char *base = bufio_system->map(
      NULL, total, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1,
      0, &status);
  if (base == NULL) {
    return status;
  }
  if (map_shared(base, header + ring, journal->descriptor, 0, &status) ==
          NULL ||
      map_shared(base + header + ring, ring, journal->descriptor, header,
                 &status) == NULL) {
    (void)bufio_system->unmap(base, total);
    return status;
  }
  // A child must not write its parent's records. (`is_foreign` keeps it from
  // touching what is not there.)
  status = bufio_system->advise(base, total, MADV_DONTFORK);
  if (status < 0) {
    (void)bufio_system->unmap(base, total);
    return status;
  }
  journal->header = (bufio_journal_header_t *)base;
  journal->ring = base + header;
  return 0;
}

static void unmap_all(const bufio_journal_t *journal) {
  (void)bufio_system->unmap(
      journal->header, BUFIO_JOURNAL_HEADER_BYTES + 2 * journal->ring_bytes);
}

// Whether it says that this file cannot have notes, rather than that something
// went wrong: then the tail would not be found under another name, and nobody
// would know.
static bool has_no_notes(int status) {
  return status == -EOPNOTSUPP || status == -ENOSYS || status == -EPERM;
}

static void write_header(bufio_journal_t *journal, const struct stat *target,
                         uint64_t birth, uint64_t offset) {
  bufio_journal_header_t *header = journal->header;
  assert(header != NULL);
  struct timespec now;
  clock_gettime(CLOCK_REALTIME, &now);
  header->version = BUFIO_JOURNAL_VERSION;
  header->header_bytes = BUFIO_JOURNAL_HEADER_BYTES;
  header->ring_bytes = journal->ring_bytes;
  header->device = target->st_dev;
  header->inode = target->st_ino;
  header->birth = birth;
  header->nonce = mix((uint64_t)now.tv_nsec ^ (uint64_t)now.tv_sec << 30);
  header->check = bufio_journal_header_check(header);
  header->committed = offset;
  header->written = bufio_journal_word(header, offset);
  header->direct_end = 0;
  // Release: whoever sees the magic sees the rest. A replay that finds zeros
  // knows that nothing was accepted yet.
  __atomic_store_n(&header->magic, BUFIO_JOURNAL_MAGIC, __ATOMIC_RELEASE);
}

int bufio_journal_create(const char *path, int target, uint64_t offset,
                         size_t ring_bytes, bufio_journal_t **out_journal) {
  if (offset > BUFIO_JOURNAL_OFFSET_MAX) {
    return -EFBIG;
  }
  struct stat file;
  uint64_t birth;
  int status = bufio_system->stat(target, &file);
  if (status == 0) {
    status = bufio_system->birth(target, &birth);
  }
  if (status < 0) {
    return status;
  }
  bufio_journal_t *journal = calloc(1, sizeof(*journal));
  if (journal == NULL) {
    return -ENOMEM;
  }
  status = -ENOMEM;
  journal->target_lock = -1;
  journal->target = target;
  journal->ring_bytes = ring_bytes;
  journal->path = strdup(path);
  if (journal->path == NULL) {
    goto fail_path;
  }
  bufio_side_t side = BUFIO_SIDE_NONE;
  status = bufio_side_open(path, O_CREAT | O_EXCL, &side);
  if (status < 0) {
    status = status == -EEXIST ? -EBUSY : status;
    goto fail_open;
  }
  journal->descriptor = side.descriptor;
  status = bufio_io_allocate(journal->descriptor, 0,
                             BUFIO_JOURNAL_HEADER_BYTES + ring_bytes);
  if (status < 0) {
    goto fail_map;
  }
  status = map_all(journal);
  if (status < 0) {
    goto fail_map;
  }
  // Before the header, so that no side file counts of which the file does not
  // know.
  status = bufio_system->set_note(target, journal->descriptor);
  if (status < 0 && !has_no_notes(status)) {
    goto fail_note;
  }
  write_header(journal, &file, birth, offset);
  *out_journal = journal;
  side.descriptor = -1;  // The journal's.
  bufio_side_close(&side);
  return 0;

fail_note:
  unmap_all(journal);
fail_map:
  (void)bufio_side_remove(&side);
  bufio_side_close(&side);
fail_open:
  free(journal->path);
fail_path:
  free(journal);
  return status;
}

// The name goes before the file's lock does. What cannot be removed stays, and
// says that it does not count: the file may grow, and another writer come,
// before anybody looks. A note that stays leads to nothing.
static void remove_finished(const bufio_journal_t *journal) {
  // Release: after all that made it true.
  __atomic_store_n(&journal->header->finished,
                   bufio_journal_mark(journal->header), __ATOMIC_RELEASE);
  if (bufio_side_close_moved(journal->descriptor, journal->path) == 0) {
    (void)bufio_system->set_note(journal->target, -1);
  }
}

void bufio_journal_destroy(bufio_journal_t *journal, bool keep) {
  if (journal == NULL) {
    return;
  }
  if (keep) {
    (void)bufio_journal_close_locked(journal->descriptor);
  } else {
    remove_finished(journal);
  }
  unmap_all(journal);
  if (journal->target_lock >= 0) {
    (void)bufio_journal_close_locked(journal->target_lock);
  }
  free(journal->path);
  free(journal);
}

void bufio_journal_abandon(bufio_journal_t *journal) {
  // Not `unmap`: nothing is mapped there, or something else by now. The lock
  // belongs to the open file, so it would outlive the parent with our copy.
  (void)bufio_system->close(journal->descriptor);
  journal->descriptor = -1;
  if (journal->target_lock >= 0) {
    (void)bufio_system->close(journal->target_lock);
    journal->target_lock = -1;
  }
}
