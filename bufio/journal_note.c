// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// Where the side file of a file is: a note on the file says so.
//
// A side file lies beside one name of its file, but a file may have several,
// hard and symbolic links, or get another while its writer is dead. So a writer
// of level `process` leaves the side file's name on the file itself, in an
// extended attribute, before its side file begins; whoever removes the side
// file takes the note away.
//
//   name A -----> inode <----- name B
//     |             | note: "device:inode:/folder/A.bufio-journal"
//     v             v
//   A.bufio-journal
//
// A note is a hint, and may be a lie. It may be copied with the file by a
// program that copies attributes: so it says which file it is of, and in a copy
// is not followed. It may be stale (killed between the removal of the side file
// and its own) or somebody's invention, for whoever may write to the file can
// write a note. So what it leads to counts only if it is a regular file whose
// header names this very file, and whose it is decides what happens:
//
//   ours (the effective user's)  it is replayed, or removed with the bytes of a
//                                file that is emptied
//   the file owner's             -EACCES: its tail must not be lost, and a
//                                privileged process has no business in the
//                                folders of users
//   anybody else's               as if there were no note
//
// A file system without such attributes has no notes: there the tail is found
// beside the name that the writer used. Where the file may not be read, the
// note may not be either, but that there is one is no secret: -EACCES.

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "bufio/io_retry.h"
#include "bufio/io_system.h"
#include "bufio/journal_internal.h"
#include "bufio/lock_guard.h"

#define NOTE_BYTES (PATH_MAX + 64)

static bool is_nothing(int status) {
  return status == -ENOENT || status == -ENAMETOOLONG || status == -ENOTDIR ||
         status == -ELOOP;
}

static bool is_no_note(int status) {
  return status == -ENODATA || status == -EOPNOTSUPP || status == -ENOSYS ||
         status == -ERANGE || is_nothing(status);
}

// Stores the text of the note: 1, 0 if there is none.
static int read_note(const char *path, char *text, size_t size_bytes) {
  int len = bufio_system->get_note(path, text, size_bytes);
  if (len < 0) {
    return is_no_note(len) ? 0 : len;
  }
  return strlen(text) == (size_t)len;
}

// The name in the text of a note, NULL if it is not the note of this file:
// "device:inode:/name", the numbers hexadecimal.
static const char *name_in(const char *text, const struct stat *file) {
  char expected[64];
  int len = snprintf(expected, sizeof(expected), BUFIO_NOTE_FORMAT,
                     (unsigned long long)file->st_dev,
                     (unsigned long long)file->st_ino);
  bool is_ours = strncmp(text, expected, (size_t)len) == 0 && text[len] == '/';
  return is_ours ? text + len : NULL;
}

// Whether a regular file of somebody whose side file may count; nothing else is
// opened, for that could do something.
static bool may_count(const struct stat *side, const struct stat *file) {
  return S_ISREG(side->st_mode) &&
         (side->st_uid == geteuid() || side->st_uid == file->st_uid);
}

int bufio_note_exists(const char *path) {
  char text[NOTE_BYTES];
  int status = read_note(path, text, sizeof(text));
  if (status <= 0) {
    return status;
  }
  struct stat file;
  status = bufio_system->stat_at(AT_FDCWD, path, 0, &file);
  if (status < 0) {
    return status;
  }
  const char *name = name_in(text, &file);
  struct stat side;
  status = name != NULL ? bufio_system->stat_at(AT_FDCWD, name,
                                                AT_SYMLINK_NOFOLLOW, &side)
                        : -ENOENT;
  if (status < 0) {
    return is_nothing(status) ? 0 : status;
  }
  return may_count(&side, &file);
}

// Whether what was looked at without being opened says that it is the file's:
// 1, 0, or an error.
static int is_side_file(int target, const char *name, const struct stat *seen) {
  int journal = bufio_io_open(name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK, 0);
  if (journal < 0) {
    return journal;
  }
  struct stat opened;
  int status = bufio_system->stat(journal, &opened);
  if (status == 0) {
    status = bufio_side_is_same(&opened, seen)
                 ? bufio_journal_is_of(target, journal)
                 : -EBUSY;
  }
  (void)bufio_system->close(journal);
  return status;
}

static int open_noted(int target, const char *name, const struct stat *file,
                      const bufio_side_t *own, bufio_side_t *out_side) {
  struct stat seen;
  struct stat other;
  int status =
      bufio_system->stat_at(AT_FDCWD, name, AT_SYMLINK_NOFOLLOW, &seen);
  if (status < 0 || !may_count(&seen, file)) {
    return status;
  }
  if (own->descriptor >= 0) {
    status = bufio_system->stat(own->descriptor, &other);
    if (status < 0 || bufio_side_is_same(&seen, &other)) {
      return status;
    }
  }
  status = is_side_file(target, name, &seen);
  if (status <= 0) {
    return status;
  }
  if (seen.st_uid != geteuid()) {
    return -EACCES;
  }
  status = bufio_side_open(name, 0, out_side);
  if (status < 0) {
    return status;
  }
  status = bufio_system->stat(out_side->descriptor, &other);
  if (status == 0 && bufio_side_is_same(&seen, &other)) {
    return 1;
  }
  bufio_side_close(out_side);
  return status < 0 ? status : -EBUSY;
}

int bufio_note_open(int target, const char *path, const bufio_side_t *own,
                    bufio_side_t *out_side) {
  char text[NOTE_BYTES];
  int status = read_note(path, text, sizeof(text));
  if (status <= 0) {
    return status;
  }
  struct stat file;
  status = bufio_system->stat(target, &file);
  if (status < 0) {
    return status;
  }
  const char *name = name_in(text, &file);
  if (name == NULL) {
    return 0;
  }
  status = open_noted(target, name, &file, own, out_side);
  return is_nothing(status) ? 0 : status;
}

// The same of a file's name. Not cancelled: nobody would unlock the file.
static int replay_named(const char *path, const char *journal_path,
                        bufio_journal_result_t *out_result) {
  // Without a side file the file need not even be readable.
  int exists = bufio_journal_exists(journal_path);
  if (exists == 0) {
    exists = bufio_note_exists(path);
  }
  if (exists < 0) {
    return exists;
  }
  int target = bufio_io_open(path, exists != 0 ? O_RDWR : O_PATH, 0);
  if (target < 0) {
    return target;
  }
  int status = 0;
  int cancel_state = bufio_hold_begin();
  if (exists != 0) {
    status = bufio_journal_lock(target, path, LOCK_EX);
  }
  if (exists != 0 && status == 0) {
    status = bufio_journal_replay_found(target, path, journal_path, out_result);
  } else if (status == 0 && out_result != NULL) {
    *out_result = (bufio_journal_result_t){0, 0};
  }
  (void)bufio_journal_close_locked(target);
  bufio_hold_end(cancel_state);
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
  int status = replay_named(path, journal_path, out_result);
  free(own_path);
  return status;
}
