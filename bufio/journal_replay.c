// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// Putting in place what a killed writer had accepted.
//
// The side file comes from outside: a dying process, another version, a hostile
// user. It is read, not mapped, so nobody can cut it under us; every number is
// compared with what was measured; and the plan below changes no byte that the
// file has, so even a side file that passes every check cannot destroy anything
// but the tail of a record that it announces.
//
//   end  = max(committed, written)
//   size = of the file
//
//   size < written            bytes that the kernel had are gone     -EPROTO
//   size in [written, end]    bytes up to size must equal the ring's (a pwrite
//                             that was cut short), else -EPROTO;
//                             append the ring's bytes [size, end)
//   size > end                cut to end, if the ring is empty and direct_end
//                             reaches that far; else somebody else has
//                             appended                                -EPROTO
//
// Killed anywhere in this, the next replay finds one of the same cases. The
// side file is removed last.
//
// Whose it is: the header names device, inode and birth of the file, for the
// inode of a removed file is given to a new one. A file that does not say so is
// somebody's, and neither replayed nor removed, not even when the file that it
// lies beside is emptied.

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "bufio/io_retry.h"
#include "bufio/io_system.h"
#include "bufio/journal_internal.h"

#define PIECE_BYTES ((size_t)65536)

// What the side file says, checked.
typedef struct replay_plan {
  uint64_t written;
  uint64_t committed;
  uint64_t direct_end;
  uint64_t ring_bytes;
} replay_plan_t;

// The file that is written, as measured.
typedef struct target_identity {
  uint64_t device;
  uint64_t inode;
  uint64_t birth;
  uint64_t size_bytes;
} target_identity_t;

// What a side file turned out to be.
typedef enum side_kind {
  SIDE_NEVER_BEGAN,  // Its maker died before the magic: nothing was accepted.
  SIDE_OF_TARGET,
} side_kind_t;

// The ring's bytes from a file offset on; `len` may cross its end.
static int read_ring(int journal, const replay_plan_t *plan,
                     unsigned char *bytes, size_t len, uint64_t offset) {
  uint64_t place = offset % plan->ring_bytes;
  size_t first =
      plan->ring_bytes - place < len ? (size_t)(plan->ring_bytes - place) : len;
  int status = bufio_io_read_at(journal, bytes, first,
                                BUFIO_JOURNAL_HEADER_BYTES + place);
  if (status < 0 || first == len) {
    return status;
  }
  return bufio_io_read_at(journal, bytes + first, len - first,
                          BUFIO_JOURNAL_HEADER_BYTES);
}

// A word of an offset and its check.
static int decode_word(const bufio_journal_header_t *header, uint64_t word,
                       uint64_t *out_offset) {
  uint64_t offset = word >> 16;
  if (word != bufio_journal_word(header, offset)) {
    return -EPROTO;
  }
  *out_offset = offset;
  return 0;
}

// That it is a side file, and the target's.
static bool is_of(const bufio_journal_header_t *header,
                  const target_identity_t *target) {
  return header->magic == BUFIO_JOURNAL_MAGIC &&
         header->version == BUFIO_JOURNAL_VERSION &&
         header->header_bytes == BUFIO_JOURNAL_HEADER_BYTES &&
         header->check == bufio_journal_header_check(header) &&
         header->device == target->device && header->inode == target->inode &&
         header->birth == target->birth;
}

static int make_plan(const bufio_journal_header_t *header, uint64_t size_bytes,
                     replay_plan_t *out_plan) {
  if (header->ring_bytes == 0 ||
      header->ring_bytes > BUFIO_JOURNAL_RING_BYTES_MAX ||
      size_bytes != BUFIO_JOURNAL_HEADER_BYTES + header->ring_bytes) {
    return -EPROTO;
  }
  uint64_t written = 0;
  uint64_t direct_end = 0;
  if (decode_word(header, header->written, &written) < 0 ||
      (header->direct_end != 0 &&
       decode_word(header, header->direct_end, &direct_end) < 0)) {
    return -EPROTO;
  }
  uint64_t committed =
      header->committed < written ? written : header->committed;
  if (committed - written > header->ring_bytes ||
      committed > BUFIO_JOURNAL_OFFSET_MAX) {
    return -EPROTO;
  }
  out_plan->written = written;
  out_plan->committed = committed;
  out_plan->direct_end = direct_end;
  out_plan->ring_bytes = header->ring_bytes;
  return 0;
}

// The file's bytes [written, size) must be the ring's.
static int compare_overlap(int target, int journal, const replay_plan_t *plan,
                           uint64_t size, unsigned char *piece) {
  for (uint64_t offset = plan->written; offset < size;) {
    size_t len =
        size - offset < PIECE_BYTES ? (size_t)(size - offset) : PIECE_BYTES;
    int status = read_ring(journal, plan, piece, len, offset);
    if (status == 0) {
      status = bufio_io_read_at(target, piece + PIECE_BYTES, len, offset);
    }
    if (status < 0) {
      return status;
    }
    if (memcmp(piece, piece + PIECE_BYTES, len) != 0) {
      return -EPROTO;
    }
    offset += len;
  }
  return 0;
}

static int append_ring(int target, int journal, const replay_plan_t *plan,
                       uint64_t size, unsigned char *piece) {
  for (uint64_t offset = size; offset < plan->committed;) {
    uint64_t left = plan->committed - offset;
    size_t len = left < PIECE_BYTES ? (size_t)left : PIECE_BYTES;
    int status = read_ring(journal, plan, piece, len, offset);
    if (status == 0) {
      status = bufio_io_write_at(target, piece, len, offset);
    }
    if (status < 0) {
      return status;
    }
    offset += len;
  }
  return 0;
}

static int carry_out(int target, int journal, const replay_plan_t *plan,
                     uint64_t size, bufio_journal_result_t *result) {
  if (size < plan->written) {
    return -EPROTO;
  }
  if (size > plan->committed) {
    bool is_announced =
        plan->committed == plan->written && size <= plan->direct_end;
    if (!is_announced) {
      return -EPROTO;
    }
    int status = bufio_io_truncate(target, plan->committed);
    result->removed_bytes = status == 0 ? size - plan->committed : 0;
    return status;
  }
  unsigned char *piece = malloc(2 * PIECE_BYTES);
  if (piece == NULL) {
    return -ENOMEM;
  }
  int status = compare_overlap(target, journal, plan, size, piece);
  if (status == 0) {
    status = append_ring(target, journal, plan, size, piece);
  }
  free(piece);
  result->appended_bytes = status == 0 ? plan->committed - size : 0;
  return status;
}

static bool is_zero(const unsigned char *bytes, size_t len) {
  size_t i = 0;
  while (i < len && bytes[i] == 0) {
    i++;
  }
  return i == len;
}

// A header that write_header was about to fill in: stores come in any order,
// the magic last, so each number is what it will be, or 0 yet.
static bool is_unfinished(const bufio_journal_header_t *header,
                          const target_identity_t *target) {
  uint64_t offset = header->written >> 16;
  return header->magic == 0 &&
         (header->version == 0 || header->version == BUFIO_JOURNAL_VERSION) &&
         (header->header_bytes == 0 ||
          header->header_bytes == BUFIO_JOURNAL_HEADER_BYTES) &&
         (header->device == 0 || header->device == target->device) &&
         (header->inode == 0 || header->inode == target->inode) &&
         (header->birth == 0 || header->birth == target->birth) &&
         header->direct_end == 0 && header->emptying == 0 &&
         (header->written == 0 || header->committed == 0 ||
          header->committed == offset) &&
         is_zero(header->padding1, sizeof(header->padding1));
}

// A side file whose maker died before the magic: nothing was accepted, and all
// behind the header is zeros. Anything else is somebody's bytes, which are
// not ours to remove.
static int never_began(int journal, uint64_t size_bytes,
                       const target_identity_t *target, bool *out_never) {
  *out_never = false;
  if (size_bytes > BUFIO_JOURNAL_HEADER_BYTES + BUFIO_JOURNAL_RING_BYTES_MAX) {
    return 0;
  }
  unsigned char page[BUFIO_JOURNAL_HEADER_BYTES];
  for (uint64_t offset = 0; offset < size_bytes; offset += sizeof(page)) {
    uint64_t left = size_bytes - offset;
    size_t len = left < sizeof(page) ? (size_t)left : sizeof(page);
    memset(page, 0, sizeof(page));
    int status = bufio_io_read_at(journal, page, len, offset);
    if (status < 0) {
      return status;
    }
    size_t skip = 0;
    if (offset == 0) {
      bufio_journal_header_t header;
      memcpy(&header, page, sizeof(header));
      if (!is_unfinished(&header, target)) {
        return 0;
      }
      skip = sizeof(header);
    }
    if (!is_zero(page + skip, sizeof(page) - skip)) {
      return 0;
    }
  }
  *out_never = true;
  return 0;
}

static int identify(int target, struct stat *out_file,
                    target_identity_t *out_identity) {
  int status = bufio_system->stat(target, out_file);
  if (status == 0) {
    status = bufio_system->birth(target, &out_identity->birth);
  }
  if (status == 0) {
    out_identity->device = out_file->st_dev;
    out_identity->inode = out_file->st_ino;
    out_identity->size_bytes = (uint64_t)out_file->st_size;
  }
  return status;
}

// Looks at a locked side file without believing it: -EPROTO if it is not one
// of the target's.
static int look(int target, int journal, target_identity_t *out_identity,
                side_kind_t *out_kind, bufio_journal_header_t *out_header,
                uint64_t *out_side_bytes) {
  struct stat file;
  struct stat side;
  int status = identify(target, &file, out_identity);
  if (status == 0) {
    status = bufio_system->stat(journal, &side);
  }
  if (status < 0) {
    return status;
  }
  if (!S_ISREG(side.st_mode) || !S_ISREG(file.st_mode) ||
      (side.st_uid != file.st_uid && side.st_uid != geteuid())) {
    return -EPROTO;
  }
  *out_side_bytes = (uint64_t)side.st_size;
  bool never = false;
  status = never_began(journal, *out_side_bytes, out_identity, &never);
  if (status < 0) {
    return status;
  }
  *out_kind = never ? SIDE_NEVER_BEGAN : SIDE_OF_TARGET;
  if (never) {
    return 0;
  }
  status = bufio_io_read_at(journal, out_header, sizeof(*out_header), 0);
  if (status < 0) {
    return status;
  }
  return is_of(out_header, out_identity) ? 0 : -EPROTO;
}

int bufio_journal_is_of(int target, int journal) {
  struct stat file;
  target_identity_t identity;
  bufio_journal_header_t header;
  int status = identify(target, &file, &identity);
  if (status == 0) {
    status = bufio_io_read_at(journal, &header, sizeof(header), 0);
  }
  if (status < 0) {
    return status == -EPROTO ? 0 : status;  // Shorter than a header.
  }
  return is_of(&header, &identity);
}

// The side file goes, and then the note that leads to it.
static int remove_side_file(int target, const char *journal_path) {
  int status = bufio_system->unlink(journal_path);
  if (status == 0) {
    (void)bufio_system->set_note(target, -1);
  }
  return status;
}

static uint64_t emptying_word(const bufio_journal_header_t *header) {
  return bufio_journal_word(header, BUFIO_JOURNAL_OFFSET_MAX);
}

static int set_emptying(int journal, uint64_t word) {
  return bufio_io_write_at(journal, &word, sizeof(word),
                           offsetof(bufio_journal_header_t, emptying));
}

// A truncation that fails must not cost the tail, so the side file is removed
// after it; dying in between must not leave a side file that speaks of bytes
// which are gone, so it says before that they are about to go.
static int truncate_for_good(int target, int journal, side_kind_t kind,
                             const bufio_journal_header_t *header) {
  int status = 0;
  if (kind == SIDE_OF_TARGET) {
    status = set_emptying(journal, emptying_word(header));
  }
  if (status == 0) {
    status = bufio_io_truncate(target, 0);
  }
  if (status < 0 && kind == SIDE_OF_TARGET) {
    (void)set_emptying(journal, 0);
  }
  return status;
}

static int replay_locked(int target, int journal,
                         bufio_journal_result_t *result) {
  target_identity_t identity;
  side_kind_t kind;
  bufio_journal_header_t header;
  uint64_t side_bytes;
  int status = look(target, journal, &identity, &kind, &header, &side_bytes);
  if (status < 0 || kind == SIDE_NEVER_BEGAN) {
    return status;
  }
  if (header.emptying == emptying_word(&header) && identity.size_bytes == 0) {
    return 0;
  }
  replay_plan_t plan;
  status = make_plan(&header, side_bytes, &plan);
  if (status == 0) {
    status = carry_out(target, journal, &plan, identity.size_bytes, result);
  }
  return status;
}

static bool is_nothing(int status) {
  return status == -ENOENT || status == -ENAMETOOLONG;
}

int bufio_journal_exists(const char *journal_path) {
  int descriptor = bufio_io_open(journal_path, O_PATH | O_NOFOLLOW, 0);
  if (descriptor < 0) {
    return is_nothing(descriptor) ? 0 : descriptor;
  }
  (void)bufio_system->close(descriptor);
  return 1;
}

int bufio_journal_replay_open(int target, const char *journal_path,
                              bufio_journal_result_t *out_result) {
  bufio_journal_result_t result = {0, 0};
  int journal = bufio_journal_open_locked(journal_path, 0);
  int status = is_nothing(journal) ? 0 : journal;
  if (journal >= 0) {
    status = replay_locked(target, journal, &result);
    if (status == 0) {
      status = remove_side_file(target, journal_path);
    }
    (void)bufio_system->close(journal);
  }
  if (status == 0 && out_result != NULL) {
    *out_result = result;
  }
  return status;
}

int bufio_journal_empty_beside(int target, const char *journal_path) {
  int journal = bufio_journal_open_locked(journal_path, 0);
  if (is_nothing(journal)) {
    return bufio_io_truncate(target, 0);
  }
  if (journal < 0) {
    return journal;
  }
  target_identity_t identity;
  side_kind_t kind;
  bufio_journal_header_t header;
  uint64_t side_bytes;
  int status = look(target, journal, &identity, &kind, &header, &side_bytes);
  if (status == 0) {
    status = truncate_for_good(target, journal, kind, &header);
  }
  if (status == 0) {
    status = remove_side_file(target, journal_path);
  }
  (void)bufio_system->close(journal);
  return status;
}
