// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// Locks of files, and the names of side files.
//
// A side file lies in a folder that others may write to, or replace while we
// work: what was looked at by a path need not be what the same path says next.
// So the folder is opened once, and the side file is opened, compared and
// removed by its name in that open folder, whatever happens to the path. Before
// it is removed, the name must still be that of the file that was opened: the
// only one who could put another one there in between is who may write to this
// very folder.

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "bufio/io_retry.h"
#include "bufio/io_system.h"
#include "bufio/journal_internal.h"

bool bufio_side_is_same(const struct stat *first, const struct stat *second) {
  return first->st_ino == second->st_ino && first->st_dev == second->st_dev;
}

// Whether a name in a folder is that of a file. `flags` as for fstatat(2).
static int compare_name(const struct stat *file, int folder, const char *name,
                        int flags) {
  struct stat named;
  int status = bufio_system->stat_at(folder, name, flags, &named);
  if (status < 0) {
    return status == -ENOENT ? -EBUSY : status;
  }
  return bufio_side_is_same(file, &named) ? 0 : -EBUSY;
}

// Somebody may have moved or removed the name before the lock was ours.
static int check_name(int descriptor, int folder, const char *name, int flags) {
  struct stat mine;
  int status = bufio_system->stat(descriptor, &mine);
  return status < 0 ? status : compare_name(&mine, folder, name, flags);
}

int bufio_journal_lock(int descriptor, const char *path, int operation) {
  int status = bufio_system->lock(descriptor, operation);
  if (status < 0) {
    return status == -EWOULDBLOCK ? -EBUSY : status;
  }
  return path != NULL ? check_name(descriptor, AT_FDCWD, path, 0) : 0;
}

// What a path's last part is.
static const char *name_of(const char *path) {
  const char *slash = strrchr(path, '/');
  return slash != NULL ? slash + 1 : path;
}

static int open_folder_of(const char *path) {
  char *name = bufio_io_folder_of(path);
  int folder =
      name != NULL ? bufio_io_open(name, O_PATH | O_DIRECTORY, 0) : -ENOMEM;
  free(name);
  return folder;
}

int bufio_side_open(const char *path, int flags, bufio_side_t *out_side) {
  bufio_side_t side = BUFIO_SIDE_NONE;
  side.path = strdup(path);
  int status = side.path != NULL ? open_folder_of(path) : -ENOMEM;
  if (status < 0) {
    goto fail;
  }
  side.folder = status;
  status = bufio_io_open_at(side.folder, name_of(path),
                            flags | O_RDWR | O_NOFOLLOW | O_NONBLOCK, 0600);
  if (status < 0) {
    goto fail;
  }
  side.descriptor = status;
  status = bufio_journal_lock(side.descriptor, NULL, LOCK_EX);
  if (status == 0) {
    status = check_name(side.descriptor, side.folder, name_of(path),
                        AT_SYMLINK_NOFOLLOW);
  }
  if (status == 0) {
    *out_side = side;
    return 0;
  }
  // What is busy is somebody else's by now, who will remove it.
  if ((flags & O_EXCL) != 0 && status != -EBUSY) {
    (void)bufio_system->unlink_at(side.folder, name_of(path));
  }

fail:
  bufio_side_close(&side);
  return status;
}

int bufio_side_remove(const bufio_side_t *side) {
  const char *name = name_of(side->path);
  int status =
      check_name(side->descriptor, side->folder, name, AT_SYMLINK_NOFOLLOW);
  return status < 0 ? status : bufio_system->unlink_at(side->folder, name);
}

// The file is mapped still, so no other one can have its inode meanwhile.
int bufio_side_close_moved(int descriptor, const char *path) {
  char name[PATH_MAX];
  struct stat mine;
  int status = bufio_system->stat(descriptor, &mine);
  if (bufio_system->path_of(descriptor, name, sizeof(name)) > 0) {
    path = name;
  }
  // Should no other be free, this one is the folder's.
  (void)bufio_journal_close_locked(descriptor);
  int folder = status == 0 ? open_folder_of(path) : status;
  if (folder < 0) {
    return folder;
  }
  status = compare_name(&mine, folder, name_of(path), AT_SYMLINK_NOFOLLOW);
  if (status == 0) {
    status = bufio_system->unlink_at(folder, name_of(path));
  }
  (void)bufio_system->close(folder);
  return status;
}

int bufio_journal_close_locked(int descriptor) {
  (void)bufio_system->lock(descriptor, LOCK_UN);
  return bufio_system->close(descriptor);
}

void bufio_side_close(bufio_side_t *side) {
  if (side->descriptor >= 0) {
    (void)bufio_journal_close_locked(side->descriptor);
  }
  if (side->folder >= 0) {
    (void)bufio_system->close(side->folder);
  }
  free(side->path);
  *side = (bufio_side_t)BUFIO_SIDE_NONE;
}
