// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// What is where, after each step of a commit:
//
//   step            path   temp_path   a power cut leaves
//   write, fsync    old    -           old
//   link            old    new         old, and perhaps a temporary file
//   rename          new    -           old or new, whole
//   fsync(folder)   new    -           new
//
// linkat(2) cannot replace a name, rename(2) can: hence the name in between.

#include "bufio/bufio_replace.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "bufio/fork_guard.h"
#include "bufio/io_retry.h"
#include "bufio/io_system.h"

#define NAME_ATTEMPTS 100

static const bufio_replace_options_t default_options;

static void replace_in_child(bufio_fork_node_t *node) {
  ((bufio_replace_t *)((unsigned char *)node -
                       offsetof(bufio_replace_t, fork_node)))
      ->is_foreign = true;
}

// "folder/.name.number.tmp", another number each time.
static char *make_temp_path(const char *folder, const char *name) {
  static uint64_t serial;  // By atomic addition.
  struct timespec now;
  clock_gettime(CLOCK_REALTIME, &now);
  uint64_t number =
      ((uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec) ^
      (uint64_t)getpid() << 40;
  // Relaxed: any other number does.
  number += __atomic_fetch_add(&serial, 1, __ATOMIC_RELAXED);
  size_t size = strlen(folder) + strlen(name) + 64;
  char *path = malloc(size);
  if (path != NULL) {
    snprintf(path, size, "%s/.%s.%016llx.tmp", folder, name,
             (unsigned long long)number);
  }
  return path;
}

static const char *name_of(const char *path) {
  const char *slash = strrchr(path, '/');
  return slash != NULL ? slash + 1 : path;
}

static int renew_temp_path(bufio_replace_t *replace) {
  free(replace->temp_path);
  replace->temp_path = make_temp_path(replace->folder, name_of(replace->path));
  return replace->temp_path != NULL ? 0 : -ENOMEM;
}

static int open_named(bufio_replace_t *replace, unsigned int mode) {
  int status = -EEXIST;
  for (int i = 0; i < NAME_ATTEMPTS && status == -EEXIST; i++) {
    status = renew_temp_path(replace);
    if (status == 0) {
      status =
          bufio_io_open(replace->temp_path, O_WRONLY | O_CREAT | O_EXCL, mode);
    }
  }
  replace->has_name = status >= 0;
  return status;
}

static int open_new_file(bufio_replace_t *replace, unsigned int mode) {
  int status = bufio_io_open(replace->folder, O_TMPFILE | O_WRONLY, mode);
  // File systems and kernels without it have different ways to say so.
  bool is_unknown =
      status == -EOPNOTSUPP || status == -EISDIR || status == -EINVAL;
  return is_unknown ? open_named(replace, mode) : status;
}

// The old file's permissions, if there is one.
static int copy_mode(bufio_replace_t *replace) {
  int old = bufio_io_open(replace->path, O_PATH | O_NOFOLLOW, 0);
  if (old < 0) {
    return old == -ENOENT ? 0 : old;
  }
  struct stat stat;
  int status = bufio_system->stat(old, &stat);
  (void)bufio_system->close(old);
  if (status < 0 || !S_ISREG(stat.st_mode)) {
    return status;
  }
  return bufio_system->set_mode(replace->descriptor, stat.st_mode & 07777);
}

static void deinit(bufio_replace_t *replace) {
  free(replace->path);
  free(replace->folder);
  free(replace->temp_path);
  memset(replace, 0, sizeof(*replace));
}

int bufio_replace_open(bufio_replace_t *replace, const char *path,
                       const bufio_replace_options_t *options) {
  options = options != NULL ? options : &default_options;
  memset(replace, 0, sizeof(*replace));
  if (*name_of(path) == '\0') {
    return -EINVAL;
  }
  int status = -ENOMEM;
  replace->path = strdup(path);
  replace->folder = bufio_io_folder_of(path);
  if (replace->path == NULL || replace->folder == NULL) {
    goto fail_memory;
  }
  status = open_new_file(replace, options->mode != 0 ? options->mode : 0666);
  if (status < 0) {
    goto fail_memory;
  }
  replace->descriptor = status;
  status = copy_mode(replace);
  if (status < 0) {
    goto fail_writer;
  }
  bufio_writer_options_t writer_options = {.buffer_bytes =
                                               options->buffer_bytes};
  status = bufio_writer_attach(&replace->writer, replace->descriptor,
                               &writer_options);
  if (status < 0) {
    goto fail_writer;
  }
  status = bufio_fork_guard_add(&replace->fork_node, replace_in_child);
  if (status < 0) {
    goto fail_fork;
  }
  return 0;

fail_fork:
  bufio_writer_close(&replace->writer);
fail_writer:
  if (replace->has_name) {
    (void)bufio_system->unlink(replace->temp_path);
  }
  (void)bufio_system->close(replace->descriptor);
fail_memory:
  deinit(replace);
  return status;
}

bufio_writer_t *bufio_replace_writer(bufio_replace_t *replace) {
  return &replace->writer;
}

static int give_name(bufio_replace_t *replace) {
  int status = replace->has_name ? 0 : -EEXIST;
  for (int i = 0; i < NAME_ATTEMPTS && status == -EEXIST; i++) {
    status = renew_temp_path(replace);
    if (status == 0) {
      status = bufio_system->link(replace->descriptor, replace->temp_path);
    }
  }
  replace->has_name = status == 0;
  return status;
}

int bufio_replace_commit(bufio_replace_t *replace) {
  if (replace->path == NULL) {
    return -EBADF;
  }
  if (replace->is_foreign) {
    return -ECHILD;
  }
  int status = bufio_writer_flush(&replace->writer);
  if (status == 0) {
    status = bufio_io_sync(replace->descriptor);
  }
  if (status == 0) {
    status = give_name(replace);
  }
  if (status == 0) {
    status = bufio_system->rename(replace->temp_path, replace->path);
  }
  if (status == 0) {
    replace->has_name = false;
    status = bufio_io_sync_folder(replace->folder);
  }
  bufio_replace_abort(replace);
  return status;
}

void bufio_replace_abort(bufio_replace_t *replace) {
  if (replace == NULL || replace->path == NULL) {
    return;
  }
  // Nobody will see these bytes, or they were flushed: no error to report.
  (void)bufio_writer_close(&replace->writer);
  if (replace->has_name && !replace->is_foreign) {
    (void)bufio_system->unlink(replace->temp_path);
  }
  bufio_fork_guard_remove(&replace->fork_node);
  (void)bufio_system->close(replace->descriptor);
  deinit(replace);
}
