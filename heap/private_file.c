// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// Two heaps in one file would write over each other's blocks. Other processes
// are kept out by a lock of the open file description, which stays when some
// other descriptor of the file is closed, as a lock of the process would not.
// It does not keep out heaps that share the description: those of this process
// and of forked children, which private_heap_list.c has a list of.

#include "heap/private_file.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

static int set_lock(int file, short type) {
  struct flock lock = {.l_type = type, .l_whence = SEEK_SET};
  return fcntl(file, F_OFD_SETLK, &lock);
}

int heap_private_file_open(int file, heap_file_id_t *out_id) {
  struct stat status;
  if (fstat(file, &status) != 0) {
    return -1;
  }
  if (!S_ISREG(status.st_mode)) {
    errno = ENODEV;
    return -1;
  }
  *out_id = (heap_file_id_t){.device = (uint64_t)status.st_dev,
                             .inode = (uint64_t)status.st_ino};
  return fcntl(file, F_DUPFD_CLOEXEC, 0);
}

int heap_private_file_lock(int file) {
  if (set_lock(file, F_WRLCK) == 0) {
    return 0;
  }
  // Any other failure: a file system without locks.
  return errno == EAGAIN || errno == EACCES ? EBUSY : 0;
}

void heap_private_file_unlock(int file) {
  set_lock(file, F_UNLCK);
}

bool heap_private_file_grow(int file, size_t from_bytes, size_t to_bytes) {
  struct rlimit limit;
  // The kernel would send SIGXFSZ.
  if (getrlimit(RLIMIT_FSIZE, &limit) == 0 && limit.rlim_cur != RLIM_INFINITY &&
      to_bytes > limit.rlim_cur) {
    return false;
  }
  // A hole in the file would be a SIGBUS when the disk is full.
  int error;
  do {
    error = posix_fallocate(file, (off_t)from_bytes,
                            (off_t)(to_bytes - from_bytes));
  } while (error == EINTR);
  return error == 0;
}
