// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

#include "bufio/io_retry.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>

#include "bufio/io_system.h"

int bufio_io_open(const char *path, int flags, unsigned int mode) {
  int descriptor = -EINTR;
  while (descriptor == -EINTR) {
    descriptor = bufio_system->open(path, flags, mode);
  }
  return descriptor;
}

int bufio_io_open_at(int folder, const char *name, int flags,
                     unsigned int mode) {
  int descriptor = -EINTR;
  while (descriptor == -EINTR) {
    descriptor = bufio_system->open_at(folder, name, flags, mode);
  }
  return descriptor;
}

// EINTR is not one of the failures that are final. It says that the wait was
// given up for a signal, not that pages were dropped: local file systems never
// do, FUSE and network file systems may, and they look for errors of pages that
// were written back first and return those rather than EINTR. So what this call
// has not told the next one does.
int bufio_io_sync(int descriptor) {
  int status = -EINTR;
  while (status == -EINTR) {
    status = bufio_system->sync(descriptor);
  }
  return status;
}

int bufio_io_sync_data(int descriptor) {
  int status = -EINTR;
  while (status == -EINTR) {
    status = bufio_system->sync_data(descriptor);
  }
  return status;
}

int bufio_io_truncate(int descriptor, uint64_t size_bytes) {
  int status = -EINTR;
  while (status == -EINTR) {
    status = bufio_system->truncate(descriptor, size_bytes);
  }
  return status;
}

int bufio_io_read_at(int descriptor, void *bytes, size_t len, uint64_t offset) {
  unsigned char *target = bytes;
  while (len != 0) {
    int64_t count = bufio_system->read_at(descriptor, target, len, offset);
    if (count == -EINTR) {
      continue;
    }
    if (count <= 0 || count > (int64_t)len) {
      return count < 0 ? (int)count : -EPROTO;
    }
    target += count;
    offset += (uint64_t)count;
    len -= (size_t)count;
  }
  return 0;
}

int bufio_io_write_at(int descriptor, const void *bytes, size_t len,
                      uint64_t offset) {
  const unsigned char *source = bytes;
  while (len != 0) {
    int64_t count = bufio_system->write_at(descriptor, source, len, offset);
    if (count == -EINTR) {
      continue;
    }
    if (count <= 0 || count > (int64_t)len) {
      return count < 0 ? (int)count : -EIO;
    }
    source += count;
    offset += (uint64_t)count;
    len -= (size_t)count;
  }
  return 0;
}

static int write_zeros(int descriptor, uint64_t offset, uint64_t len) {
  static const unsigned char zeros[4096];
  int status = 0;
  while (len != 0 && status == 0) {
    size_t piece = len < sizeof(zeros) ? (size_t)len : sizeof(zeros);
    status = bufio_io_write_at(descriptor, zeros, piece, offset);
    offset += piece;
    len -= piece;
  }
  return status;
}

int bufio_io_allocate(int descriptor, uint64_t offset, uint64_t len) {
  int status = -EINTR;
  while (status == -EINTR) {
    status = bufio_system->allocate(descriptor, offset, len);
  }
  return status == -EOPNOTSUPP ? write_zeros(descriptor, offset, len) : status;
}

int bufio_io_sync_folder(const char *folder) {
  int descriptor = bufio_io_open(folder, O_RDONLY | O_DIRECTORY, 0);
  if (descriptor < 0) {
    return descriptor;
  }
  int status = bufio_io_sync(descriptor);
  (void)bufio_system->close(descriptor);
  return status;
}

char *bufio_io_folder_of(const char *path) {
  const char *slash = strrchr(path, '/');
  if (slash == NULL) {
    return strdup(".");
  }
  return strndup(path, slash == path ? 1 : (size_t)(slash - path));
}
