// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// One window at a time.
//
//   file     0 ............. size ........ allocated
//   window       |-----------------------|
//                window_start            + window_bytes   (pages)
//
// `size` is what the user has; `allocated` is the length of the file, as far as
// we made it. A window may reach up to `allocated` rounded up to a page.
//
// Invariants:
// 1. size <= allocated, and bytes [size, allocated) are zero.
// 2. The window is inside [0, allocated rounded up).
// 3. The guard's range is the window.
//
// If somebody cut the file, the guard (fault_guard.c) notices where a page is
// gone, and `look` where the length is less than we made it: bytes of a page
// that the file ends in read as zeros without a fault. What was cut by others
// is never made longer again, but for a cut between `look` and `fallocate`.

#include "bufio/mapped_file.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "bufio/fault_guard.h"
#include "bufio/fork_guard.h"
#include "bufio/io_retry.h"
#include "bufio/io_system.h"

#define GROWTH_BYTES ((size_t)1 << 20)

struct bufio_mapped_file {
  bufio_fork_node_t fork_node;
  bufio_fault_slot_t *guard;
  unsigned char *window;  // NULL: none.
  uint64_t window_start;
  size_t window_bytes;
  uint64_t size;
  uint64_t allocated;
  uint64_t page_bytes;
  size_t wanted_window_bytes;  // SIZE_MAX: the whole file.
  size_t growth_bytes;
  bufio_mapped_advice_t advice;
  int descriptor;
  int error;  // The first one that is for ever, or 0.
  bool writable;
  bool has_padding;  // The file may be longer than `size`, by us.
  bool is_foreign;
};

static const bufio_mapped_file_options_t default_options;

static void mapped_file_in_child(bufio_fork_node_t *node) {
  ((bufio_mapped_file_t *)((unsigned char *)node -
                           offsetof(bufio_mapped_file_t, fork_node)))
      ->is_foreign = true;
}

static int madvise_of(bufio_mapped_advice_t advice) {
  switch (advice) {
    case BUFIO_MAPPED_SEQUENTIAL:
      return MADV_SEQUENTIAL;
    case BUFIO_MAPPED_RANDOM:
      return MADV_RANDOM;
    case BUFIO_MAPPED_WILL_NEED:
      return MADV_WILLNEED;
    case BUFIO_MAPPED_DONT_NEED:
      return MADV_DONTNEED;
    default:
      return MADV_NORMAL;
  }
}

// ---- the window ----

static void drop_window(bufio_mapped_file_t *file) {
  if (file->window == NULL) {
    return;
  }
  bufio_fault_guard_set(file->guard, NULL, 0);
  (void)bufio_system->unmap(file->window, file->window_bytes);
  file->window = NULL;
  file->window_bytes = 0;
}

static uint64_t round_up(uint64_t value, uint64_t step) {
  return (value + step - 1) / step * step;
}

// Maps a window that has [offset, offset + len), which is inside the file.
static int move_window(bufio_mapped_file_t *file, uint64_t offset, size_t len) {
  uint64_t end = round_up(file->allocated, file->page_bytes);
  uint64_t start = 0;
  uint64_t bytes = end;
  if (file->wanted_window_bytes != SIZE_MAX) {
    start = offset / file->page_bytes * file->page_bytes;
    bytes = round_up(offset - start + len, file->page_bytes);
    if (bytes < file->wanted_window_bytes) {
      bytes = round_up(file->wanted_window_bytes, file->page_bytes);
    }
    bytes = bytes < end - start ? bytes : end - start;
  }
  drop_window(file);
  int status = 0;
  int protection = PROT_READ | (file->writable ? PROT_WRITE : 0);
  unsigned char *window =
      bufio_system->map(NULL, (size_t)bytes, protection, MAP_SHARED,
                        file->descriptor, start, &status);
  if (window == NULL) {
    return status;
  }
  file->window = window;
  file->window_start = start;
  file->window_bytes = (size_t)bytes;
  bufio_fault_guard_set(file->guard, window, (size_t)bytes);
  if (file->advice != BUFIO_MAPPED_NORMAL) {
    (void)bufio_system->advise(window, (size_t)bytes, madvise_of(file->advice));
  }
  return 0;
}

static bool is_in_window(const bufio_mapped_file_t *file, uint64_t offset,
                         size_t len) {
  return file->window != NULL && offset >= file->window_start &&
         offset - file->window_start <= file->window_bytes &&
         len <= file->window_bytes - (offset - file->window_start);
}

// A pointer to [offset, offset + len), which is inside the file.
static int locate(bufio_mapped_file_t *file, uint64_t offset, size_t len,
                  unsigned char **out_bytes) {
  if (!is_in_window(file, offset, len)) {
    int status = move_window(file, offset, len);
    if (status < 0) {
      return status;
    }
  }
  *out_bytes = file->window + (offset - file->window_start);
  return 0;
}

// What is known without asking the kernel.
static int known_status(const bufio_mapped_file_t *file) {
  if (file->error != 0) {
    return file->error;
  }
  return bufio_fault_guard_count(file->guard) != 0 ? -EIO : 0;
}

// Asks it. A file that became shorter is an error for ever, whatever happens to
// it later. `out_length` may be NULL.
static int look(bufio_mapped_file_t *file, uint64_t *out_length) {
  struct stat stat;
  int status = bufio_system->stat(file->descriptor, &stat);
  if (status < 0) {
    return status;
  }
  uint64_t length = (uint64_t)stat.st_size;
  // The parent of a child may have given back what it had allocated.
  uint64_t least = file->is_foreign ? file->size : file->allocated;
  if (length < least && file->error == 0) {
    file->error = -EIO;
  }
  if (out_length != NULL) {
    *out_length = length;
  }
  return known_status(file);
}

int bufio_mapped_file_status(bufio_mapped_file_t *file) {
  int status = known_status(file);
  return status < 0 ? status : look(file, NULL);
}

int bufio_mapped_file_view(bufio_mapped_file_t *file, uint64_t offset,
                           size_t len, bufio_slice_t *out_slice) {
  out_slice->data = NULL;
  out_slice->len = 0;
  int status = known_status(file);
  if (status < 0 || offset >= file->size) {
    return status;
  }
  len = len < file->size - offset ? len : (size_t)(file->size - offset);
  unsigned char *bytes = NULL;
  status = len == 0 ? 0 : locate(file, offset, len, &bytes);
  if (status == 0) {
    out_slice->data = bytes;
    out_slice->len = len;
  }
  return status;
}

int bufio_mapped_file_read(bufio_mapped_file_t *file, uint64_t offset,
                           void *bytes, size_t len, size_t *out_len) {
  *out_len = 0;
  bufio_slice_t view;
  int status = bufio_mapped_file_view(file, offset, len, &view);
  if (status < 0 || view.len == 0) {
    return status;
  }
  memcpy(bytes, view.data, view.len);
  status = bufio_mapped_file_status(file);
  *out_len = status == 0 ? view.len : 0;
  return status;
}

// ---- growing ----

// Makes the file end at `size_bytes` unless it ends before. Returns what `look`
// does, or the error of the cut.
static int cut_back(bufio_mapped_file_t *file, uint64_t size_bytes) {
  uint64_t length = 0;
  int status = look(file, &length);
  if (length > size_bytes) {
    int cut = bufio_io_truncate(file->descriptor, size_bytes);
    status = status < 0 ? status : cut;
  }
  return status;
}

static int extend(bufio_mapped_file_t *file, uint64_t allocated) {
  uint64_t added = allocated - file->allocated;
  int status = look(file, NULL);
  if (status < 0) {
    return status;
  }
  file->has_padding = true;
  status = bufio_io_allocate(file->descriptor, file->allocated, added);
  if (status < 0) {
    // Part of it may be there.
    (void)cut_back(file, file->allocated);
    return status;
  }
  file->allocated = allocated;
  return 0;
}

// Makes the file at least `end` long. A step less than the growth is tried when
// the disk has no room for it.
static int allocate(bufio_mapped_file_t *file, uint64_t end) {
  if (end <= file->allocated) {
    return 0;
  }
  if (end > INT64_MAX - file->growth_bytes - file->page_bytes) {
    return -EFBIG;
  }
  uint64_t generous = file->allocated + file->growth_bytes;
  if (generous < end) {
    generous = end;
  }
  generous = round_up(generous, file->page_bytes);
  int status = extend(file, generous);
  if ((status == -ENOSPC || status == -EDQUOT || status == -EFBIG) &&
      generous != end) {
    status = extend(file, end);
  }
  return status;
}

static int may_change(const bufio_mapped_file_t *file) {
  if (!file->writable) {
    return -EROFS;
  }
  return file->is_foreign ? -ECHILD : known_status(file);
}

int bufio_mapped_file_reserve(bufio_mapped_file_t *file, uint64_t offset,
                              size_t len, unsigned char **out_bytes) {
  int status = may_change(file);
  uint64_t end = 0;
  if (status == 0 && __builtin_add_overflow(offset, len, &end)) {
    status = -EFBIG;
  }
  if (status == 0) {
    status = allocate(file, end);
  }
  unsigned char *bytes = NULL;
  if (status == 0 && len != 0) {
    status = locate(file, offset, len, &bytes);
  }
  if (status != 0) {
    return status;
  }
  if (end > file->size && len != 0) {
    file->size = end;
  }
  *out_bytes = bytes;
  return 0;
}

int bufio_mapped_file_append(bufio_mapped_file_t *file, const void *bytes,
                             size_t len) {
  unsigned char *target = NULL;
  uint64_t before = file->size;
  int status = bufio_mapped_file_reserve(file, before, len, &target);
  if (status != 0 || len == 0) {
    return status;
  }
  memcpy(target, bytes, len);
  return known_status(file);
}

int bufio_mapped_file_set_size(bufio_mapped_file_t *file, uint64_t size_bytes) {
  int status = may_change(file);
  status = status < 0 ? status : look(file, NULL);
  if (status < 0) {
    return status;
  }
  if (size_bytes < file->size) {
    // What is cut off must read as zero if the file grows again.
    drop_window(file);
    status = bufio_io_truncate(file->descriptor, size_bytes);
    if (status < 0) {
      return status;
    }
    file->allocated = size_bytes;
  } else {
    status = allocate(file, size_bytes);
  }
  if (status == 0) {
    file->size = size_bytes;
  }
  return status;
}

int bufio_mapped_file_advise(bufio_mapped_file_t *file, uint64_t offset,
                             size_t len, bufio_mapped_advice_t advice) {
  if (file->window == NULL || offset < file->window_start ||
      offset - file->window_start >= file->window_bytes) {
    return 0;
  }
  size_t start = (size_t)(offset - file->window_start);
  size_t skew = start % (size_t)file->page_bytes;
  start -= skew;
  size_t room = file->window_bytes - start;
  len = len < room - skew ? len + skew : room;
  return bufio_system->advise(file->window + start, len, madvise_of(advice));
}

int bufio_mapped_file_sync(bufio_mapped_file_t *file) {
  if (file->is_foreign) {
    // It would take an error of the disk from the parent, which shares the open
    // file.
    return -ECHILD;
  }
  int status = bufio_mapped_file_status(file);
  if (status < 0) {
    return status;
  }
  // Shared pages are the file's pages: fsync writes them too.
  status = bufio_io_sync(file->descriptor);
  if (status < 0) {
    file->error = status;
  }
  return status;
}

uint64_t bufio_mapped_file_size(const bufio_mapped_file_t *file) {
  return file->size;
}

// ---- lifecycle ----

static int open_descriptor(const char *path,
                           const bufio_mapped_file_options_t *options) {
  int flags = options->writable ? O_RDWR : O_RDONLY;
  flags |= options->create ? O_CREAT : 0;
  flags |= options->truncate ? O_TRUNC : 0;
  return bufio_io_open(path, flags | O_NONBLOCK,
                       options->mode != 0 ? options->mode : 0666);
}

static int measure(bufio_mapped_file_t *file) {
  struct stat stat;
  int status = bufio_system->stat(file->descriptor, &stat);
  if (status < 0) {
    return status;
  }
  if (!S_ISREG(stat.st_mode)) {
    return -EINVAL;
  }
  file->size = (uint64_t)stat.st_size;
  file->allocated = file->size;
  return 0;
}

static void configure(bufio_mapped_file_t *file,
                      const bufio_mapped_file_options_t *options) {
  file->writable = options->writable;
  file->advice = options->advice;
  file->page_bytes = (uint64_t)sysconf(_SC_PAGESIZE);
  file->wanted_window_bytes =
      options->window_bytes != 0 ? options->window_bytes : SIZE_MAX;
  file->growth_bytes =
      options->growth_bytes != 0 ? options->growth_bytes : GROWTH_BYTES;
}

int bufio_mapped_file_open(const char *path,
                           const bufio_mapped_file_options_t *options,
                           bufio_mapped_file_t **out_file) {
  options = options != NULL ? options : &default_options;
  if ((options->create || options->truncate) && !options->writable) {
    return -EINVAL;
  }
  bufio_mapped_file_t *file = calloc(1, sizeof(*file));
  if (file == NULL) {
    return -ENOMEM;
  }
  configure(file, options);
  int status = open_descriptor(path, options);
  if (status < 0) {
    goto fail_open;
  }
  file->descriptor = status;
  status = measure(file);
  if (status < 0) {
    goto fail_measure;
  }
  status = -ENOMEM;
  file->guard = bufio_fault_guard_add();
  if (file->guard == NULL) {
    goto fail_measure;
  }
  status = bufio_fork_guard_add(&file->fork_node, mapped_file_in_child);
  if (status < 0) {
    goto fail_fork;
  }
  *out_file = file;
  return 0;

fail_fork:
  bufio_fault_guard_remove(file->guard);
fail_measure:
  (void)bufio_system->close(file->descriptor);
fail_open:
  free(file);
  return status;
}

int bufio_mapped_file_close(bufio_mapped_file_t *file) {
  if (file == NULL) {
    return 0;
  }
  int status = bufio_mapped_file_status(file);
  drop_window(file);
  // Whatever went wrong before, the padding goes.
  if (file->has_padding && !file->is_foreign) {
    int cut = cut_back(file, file->size);
    status = status < 0 ? status : cut;
  }
  bufio_fork_guard_remove(&file->fork_node);
  bufio_fault_guard_remove(file->guard);
  int closed = bufio_system->close(file->descriptor);
  free(file);
  return status < 0 || closed == -EINTR ? status : closed;
}
