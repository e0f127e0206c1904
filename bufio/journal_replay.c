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

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
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

static int check_header(const bufio_journal_header_t *header,
                        uint64_t size_bytes, const struct stat *target,
                        replay_plan_t *out_plan) {
  if (header->magic != BUFIO_JOURNAL_MAGIC ||
      header->version != BUFIO_JOURNAL_VERSION ||
      header->header_bytes != BUFIO_JOURNAL_HEADER_BYTES ||
      header->check != bufio_journal_header_check(header)) {
    return -EPROTO;
  }
  if (header->device != target->st_dev || header->inode != target->st_ino) {
    return -EPROTO;  // Another file's.
  }
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

// A side file whose maker died before the magic, which is written last: nothing
// was accepted. (If what is there instead is a damaged magic, `committed` and
// `written` differ.)
static bool never_began(int journal, uint64_t size_bytes) {
  unsigned char page[BUFIO_JOURNAL_HEADER_BYTES] = {0};
  size_t len = size_bytes < sizeof(page) ? (size_t)size_bytes : sizeof(page);
  if (bufio_io_read_at(journal, page, len, 0) < 0) {
    return false;
  }
  bufio_journal_header_t header;
  memcpy(&header, page, sizeof(header));
  return header.magic == 0 && header.direct_end == 0 &&
         (header.written == 0 || header.committed == header.written >> 16);
}

static int replay_locked(int target, int journal,
                         bufio_journal_result_t *result) {
  struct stat file;
  struct stat side;
  int status = bufio_system->stat(target, &file);
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
  if (never_began(journal, (uint64_t)side.st_size)) {
    return 0;
  }
  bufio_journal_header_t header;
  status = bufio_io_read_at(journal, &header, sizeof(header), 0);
  replay_plan_t plan;
  if (status == 0) {
    status = check_header(&header, (uint64_t)side.st_size, &file, &plan);
  }
  if (status == 0) {
    status = carry_out(target, journal, &plan, (uint64_t)file.st_size, result);
  }
  return status;
}

int bufio_journal_replay_open(int target, const char *journal_path,
                              bufio_journal_result_t *out_result) {
  bufio_journal_result_t result = {0, 0};
  int journal = bufio_journal_open_locked(journal_path, 0);
  int status = journal == -ENOENT ? 0 : journal;
  if (journal >= 0) {
    status = replay_locked(target, journal, &result);
    if (status == 0) {
      status = bufio_system->unlink(journal_path);
    }
    (void)bufio_system->close(journal);
  }
  if (status == 0 && out_result != NULL) {
    *out_result = result;
  }
  return status;
}

int bufio_journal_discard(const char *journal_path) {
  int journal = bufio_journal_open_locked(journal_path, 0);
  if (journal < 0) {
    return journal == -ENOENT ? 0 : journal;
  }
  int status = bufio_system->unlink(journal_path);
  (void)bufio_system->close(journal);
  return status;
}

int bufio_journal_replay(const char *path, const char *journal_path,
                         bufio_journal_result_t *out_result) {
  char *own_path = NULL;
  if (journal_path == NULL) {
    size_t len = strlen(path);
    own_path = malloc(len + sizeof(BUFIO_JOURNAL_SUFFIX));
    if (own_path == NULL) {
      return -ENOMEM;
    }
    memcpy(own_path, path, len);
    memcpy(own_path + len, BUFIO_JOURNAL_SUFFIX, sizeof(BUFIO_JOURNAL_SUFFIX));
    journal_path = own_path;
  }
  int status = bufio_io_open(path, O_RDWR, 0);
  if (status >= 0) {
    int target = status;
    status = bufio_journal_replay_open(target, journal_path, out_result);
    (void)bufio_system->close(target);
  }
  free(own_path);
  return status;
}
