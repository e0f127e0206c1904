// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// Whether a file is the side file of another one.
//
// It comes from outside: it is read, not mapped, and nothing in it is believed
// before it was compared with what was measured.
//
// Whose it is: the header names device, inode and birth of the file, for the
// inode of a removed file is given to a new one. A file that does not say so is
// somebody's, and neither replayed nor removed, not even when the file that it
// lies beside is emptied.

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stddef.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "bufio/io_retry.h"
#include "bufio/io_system.h"
#include "bufio/journal_internal.h"

// That it is a side file, and the target's.
static bool is_of(const bufio_journal_header_t *header,
                  const bufio_target_t *target) {
  return header->magic == BUFIO_JOURNAL_MAGIC &&
         header->version == BUFIO_JOURNAL_VERSION &&
         header->header_bytes == BUFIO_JOURNAL_HEADER_BYTES &&
         header->check == bufio_journal_header_check(header) &&
         header->device == target->device && header->inode == target->inode &&
         header->birth == target->birth;
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
                          const bufio_target_t *target) {
  uint64_t offset = header->written >> 16;
  return header->magic == 0 &&
         (header->version == 0 || header->version == BUFIO_JOURNAL_VERSION) &&
         (header->header_bytes == 0 ||
          header->header_bytes == BUFIO_JOURNAL_HEADER_BYTES) &&
         (header->device == 0 || header->device == target->device) &&
         (header->inode == 0 || header->inode == target->inode) &&
         (header->birth == 0 || header->birth == target->birth) &&
         header->direct_end == 0 && header->emptying == 0 &&
         header->finished == 0 &&
         (header->written == 0 || header->committed == 0 ||
          header->committed == offset) &&
         is_zero(header->padding1, sizeof(header->padding1));
}

// A side file whose maker died before the magic: nothing was accepted, and all
// behind the header is zeros. Anything else is somebody's bytes, which are
// not ours to remove.
static int never_began(int journal, uint64_t size_bytes,
                       const bufio_target_t *target, bool *out_never) {
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
                    bufio_target_t *out_identity) {
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

int bufio_side_look(int target, int journal, bufio_target_t *out_target,
                    bool *out_began, bufio_journal_header_t *out_header,
                    uint64_t *out_size_bytes) {
  struct stat file;
  struct stat side;
  int status = identify(target, &file, out_target);
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
  *out_size_bytes = (uint64_t)side.st_size;
  bool never = false;
  status = never_began(journal, *out_size_bytes, out_target, &never);
  *out_began = status == 0 && !never;
  if (status < 0 || never) {
    return status;
  }
  status = bufio_io_read_at(journal, out_header, sizeof(*out_header), 0);
  if (status < 0) {
    return status;
  }
  return is_of(out_header, out_target) ? 0 : -EPROTO;
}

int bufio_journal_is_of(int target, int journal) {
  struct stat file;
  bufio_target_t identity;
  bufio_journal_header_t header;
  int status = identify(target, &file, &identity);
  if (status == 0) {
    status = bufio_io_read_at(journal, &header, sizeof(header), 0);
  }
  if (status < 0) {
    return status == -EPROTO ? 0 : status;  // Shorter than a header.
  }
  return is_of(&header, &identity) &&
         header.finished != bufio_journal_mark(&header);
}

int bufio_journal_exists(const char *journal_path) {
  int descriptor = bufio_io_open(journal_path, O_PATH | O_NOFOLLOW, 0);
  if (descriptor == -ENOENT || descriptor == -ENAMETOOLONG) {
    return 0;
  }
  if (descriptor < 0) {
    return descriptor;
  }
  (void)bufio_system->close(descriptor);
  return 1;
}
