// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// The file of a writer: found or made, locked, and freed of what a killed
// writer left beside it.
//
// Level `process` holds the lock of the file itself, from before anything is
// measured or emptied until close; other levels take it, shared, while they
// empty the file. So a living writer of level `process` is never cut off its
// file, and no size is stale when the side file begins with it. O_TRUNC would
// come before the lock, so ftruncate does it.
//
// What a side file says is put into a file that was there before, never into
// one that this open has made: that one's inode may be its predecessor's.

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "bufio/io_retry.h"
#include "bufio/io_system.h"
#include "bufio/journal_internal.h"
#include "bufio/lock_guard.h"
#include "bufio/writer_internal.h"

// Opens the file as it is, or makes it. A file that is gone while its side file
// is there is not made anew: -EPROTO.
static int open_or_create(const char *path, const char *journal_path, int flags,
                          const bufio_writer_options_t *options,
                          bool *out_is_new) {
  unsigned int mode = options->mode != 0 ? options->mode : 0666;
  bool is_missed = false;
  // Somebody else may make it between two calls, and remove it again.
  for (int attempt = 0; attempt < 8; attempt++) {
    int descriptor =
        bufio_io_open(path, options->exclusive ? O_PATH : flags, 0);
    if (descriptor >= 0 && options->exclusive) {
      (void)bufio_system->close(descriptor);
      return -EEXIST;
    }
    if (descriptor != -ENOENT) {
      *out_is_new = false;
      return descriptor;
    }
    int exists = bufio_journal_exists(journal_path);
    if (exists < 0 || (exists > 0 && is_missed)) {
      return exists < 0 ? exists : -EPROTO;
    }
    if (exists > 0) {
      // Unless somebody makes the two right now: then the file is there.
      is_missed = true;
      continue;
    }
    descriptor = bufio_io_open(path, flags | O_CREAT | O_EXCL, mode);
    if (descriptor != -EEXIST || options->exclusive) {
      *out_is_new = true;
      return descriptor;
    }
  }
  // A symbolic link to nothing.
  *out_is_new = true;
  return bufio_io_open(path, flags | O_CREAT, mode);
}

// Under the lock: puts in place or removes what a killed writer left.
static int settle(int descriptor, const char *path, const char *journal_path,
                  const bufio_writer_options_t *options, bool is_new) {
  if (is_new) {
    int exists = bufio_journal_exists(journal_path);
    return exists > 0 ? -EPROTO : exists;
  }
  return options->append
             ? bufio_journal_replay_found(descriptor, path, journal_path, NULL)
             : bufio_journal_empty(descriptor, path, journal_path);
}

static int lock_and_settle(int descriptor, const char *path,
                           const char *journal_path,
                           const bufio_writer_options_t *options, bool is_new) {
  bool is_process = options->durability == BUFIO_DURABILITY_PROCESS;
  struct stat stat;
  int status = bufio_system->stat(descriptor, &stat);
  if (status < 0) {
    return status;
  }
  if (!S_ISREG(stat.st_mode)) {
    return is_process ? -EINVAL : 0;
  }
  status = bufio_journal_lock(descriptor, path, is_process ? LOCK_EX : LOCK_SH);
  // Not every file system has locks; level `process` cannot do without.
  if (status == -EBUSY || (status < 0 && is_process)) {
    return status;
  }
  status = settle(descriptor, path, journal_path, options, is_new);
  if (!is_process) {
    (void)bufio_system->lock(descriptor, LOCK_UN);
  }
  return status;
}

// Before the file is opened for appending at a level that needs no lock.
static int replay_if_killed(const char *path, const char *journal_path) {
  int status = bufio_journal_exists(journal_path);
  if (status == 0) {
    status = bufio_note_exists(path);
  }
  if (status > 0) {
    status = bufio_journal_replay(path, journal_path, NULL);
  }
  return status == -ENOENT ? 0 : status;
}

int bufio_writer_open_file(const char *path, const char *journal_path,
                           const bufio_writer_options_t *options) {
  bool is_process = options->durability == BUFIO_DURABILITY_PROCESS;
  bool is_plain_append = options->append && !is_process;
  int status = is_plain_append && !options->exclusive
                   ? replay_if_killed(path, journal_path)
                   : 0;
  if (status < 0) {
    return status;
  }
  int flags = (is_process ? O_RDWR : O_WRONLY);
  flags |= is_plain_append ? O_APPEND : 0;
  bool is_new = false;
  int descriptor = open_or_create(path, journal_path, flags, options, &is_new);
  if (descriptor < 0 || is_plain_append || (is_new && !is_process)) {
    return descriptor;
  }
  // Cancelled in between, nobody would unlock the file.
  int cancel_state = bufio_hold_begin();
  status = lock_and_settle(descriptor, path, journal_path, options, is_new);
  if (status < 0) {
    (void)bufio_journal_close_locked(descriptor);
  }
  bufio_hold_end(cancel_state);
  return status < 0 ? status : descriptor;
}

// That level `process` can do with a descriptor: it stands at the end, and
// writes where it is told.
static int check_attachable(int descriptor) {
  int flags = bufio_system->flags(descriptor);
  if (flags < 0) {
    return flags;
  }
  struct stat stat;
  int status = bufio_system->stat(descriptor, &stat);
  if (status < 0) {
    return status;
  }
  if ((flags & O_APPEND) != 0 || (flags & O_ACCMODE) != O_RDWR ||
      !S_ISREG(stat.st_mode)) {
    return -EINVAL;
  }
  int64_t position = bufio_system->seek(descriptor, 0, SEEK_CUR);
  if (position < 0) {
    return (int)position;
  }
  return position == stat.st_size ? 0 : -EINVAL;
}

// Locks the caller's file. The lock belongs to an open file, and a descriptor
// of the caller's may be inherited by a child that outlives us; so the file is
// opened again. Returns the descriptor that has the lock.
static int lock_attached(const char *name) {
  int locked = bufio_io_open(name, O_RDWR, 0);
  if (locked < 0) {
    return locked;
  }
  int status = bufio_journal_lock(locked, NULL, LOCK_EX);
  if (status < 0) {
    (void)bufio_journal_close_locked(locked);
    return status;
  }
  return locked;
}

int bufio_writer_settle_attached(int descriptor, const char *journal_path) {
  char name[64];
  (void)snprintf(name, sizeof(name), "/proc/self/fd/%d", descriptor);
  int locked = lock_attached(name);
  if (locked < 0) {
    return locked;
  }
  int status = check_attachable(descriptor);
  if (status == 0) {
    status = bufio_journal_replay_found(descriptor, name, journal_path, NULL);
  }
  if (status < 0) {
    (void)bufio_journal_close_locked(locked);
    return status;
  }
  return locked;
}
