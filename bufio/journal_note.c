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
// A note is a hint. It may be copied with the file by a program that copies
// attributes: so it says which file it is of, and in a copy is not followed. It
// may be stale (killed between the removal of the side file and its own) or
// somebody's invention: so what it leads to counts only if it is a regular file
// whose header names this very file. Otherwise it is as if there were no note.
// A file system without such attributes has no notes: there the tail is found
// beside the name that the writer used.

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "bufio/io_retry.h"
#include "bufio/io_system.h"
#include "bufio/journal_internal.h"

#define NOTE_BYTES (PATH_MAX + 64)

static bool is_nothing(int status) {
  return status == -ENOENT || status == -ENAMETOOLONG || status == -ENOTDIR ||
         status == -ELOOP;
}

// No note, or none that we may know of.
static bool is_no_note(int status) {
  return status == -ENODATA || status == -EOPNOTSUPP || status == -ENOSYS ||
         status == -EACCES || status == -ERANGE || is_nothing(status);
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

// 1 if there is a regular file of the name, 0, or an error. Nothing else is to
// be opened: that could do something.
static int is_regular(const char *name) {
  int descriptor = bufio_io_open(name, O_PATH | O_NOFOLLOW, 0);
  if (descriptor < 0) {
    return is_nothing(descriptor) ? 0 : descriptor;
  }
  struct stat stat;
  int status = bufio_system->stat(descriptor, &stat);
  (void)bufio_system->close(descriptor);
  return status < 0 ? status : S_ISREG(stat.st_mode);
}

// What a name stands for.
static int stat_path(const char *path, struct stat *out_stat) {
  int descriptor = bufio_io_open(path, O_PATH, 0);
  if (descriptor < 0) {
    return descriptor;
  }
  int status = bufio_system->stat(descriptor, out_stat);
  (void)bufio_system->close(descriptor);
  return status;
}

int bufio_journal_is_noted(const char *path) {
  char text[NOTE_BYTES];
  int status = read_note(path, text, sizeof(text));
  if (status <= 0) {
    return status;
  }
  struct stat file;
  status = stat_path(path, &file);
  if (status < 0) {
    return status;
  }
  const char *name = name_in(text, &file);
  return name != NULL ? is_regular(name) : 0;
}

int bufio_journal_find(int target, const char *path, char **out_noted) {
  char text[NOTE_BYTES];
  *out_noted = NULL;
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
  status = name != NULL ? is_regular(name) : 0;
  if (status <= 0) {
    return status;
  }
  int journal = bufio_io_open(name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK, 0);
  if (journal < 0) {
    return is_nothing(journal) ? 0 : journal;
  }
  status = bufio_journal_is_of(target, journal);
  (void)bufio_system->close(journal);
  if (status > 0) {
    *out_noted = strdup(name);
    return *out_noted != NULL ? 0 : -ENOMEM;
  }
  return status;
}

int bufio_journal_replay_found(int target, const char *path,
                               const char *journal_path,
                               bufio_journal_result_t *out_result) {
  bufio_journal_result_t noted_result = {0, 0};
  bufio_journal_result_t result = {0, 0};
  char *noted = NULL;
  int status = bufio_journal_find(target, path, &noted);
  if (status == 0 && noted != NULL) {
    status = bufio_journal_replay_open(target, noted, &noted_result);
  }
  free(noted);
  // Often the same one, which is gone then.
  if (status == 0) {
    status = bufio_journal_replay_open(target, journal_path, &result);
  }
  if (status == 0 && out_result != NULL) {
    out_result->appended_bytes =
        noted_result.appended_bytes + result.appended_bytes;
    out_result->removed_bytes =
        noted_result.removed_bytes + result.removed_bytes;
  }
  return status;
}

int bufio_journal_empty(int target, const char *path,
                        const char *journal_path) {
  char *noted = NULL;
  int status = bufio_journal_find(target, path, &noted);
  if (status == 0 && noted != NULL) {
    status = bufio_journal_empty_beside(target, noted);
  }
  free(noted);
  return status == 0 ? bufio_journal_empty_beside(target, journal_path)
                     : status;
}

// The same of a file's name.
static int replay_named(const char *path, const char *journal_path,
                        bufio_journal_result_t *out_result) {
  // Without a side file the file need not even be readable.
  int exists = bufio_journal_exists(journal_path);
  if (exists == 0) {
    exists = bufio_journal_is_noted(path);
  }
  if (exists < 0) {
    return exists;
  }
  int target = bufio_io_open(path, exists != 0 ? O_RDWR : O_PATH, 0);
  if (target < 0) {
    return target;
  }
  int status = 0;
  if (exists != 0) {
    status = bufio_journal_lock(target, path, LOCK_EX);
  }
  if (exists != 0 && status == 0) {
    status = bufio_journal_replay_found(target, path, journal_path, out_result);
  } else if (status == 0 && out_result != NULL) {
    *out_result = (bufio_journal_result_t){0, 0};
  }
  (void)bufio_system->close(target);
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
