// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// Two heaps in one file would write over each other's blocks. Other processes
// are kept out by a lock of an open file description, which stays when some
// other descriptor of the file is closed, as a lock of the process would not.
// The heap opens the file again: whoever has inherited the caller's descriptor
// would share its description, and so the lock. This process's own heaps are in
// private_heap_list.c's list.

#include "heap/private_file.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "heap/text.h"

static int set_lock(int file, short type) {
  struct flock lock = {.l_type = type, .l_whence = SEEK_SET};
  return fcntl(file, F_OFD_SETLK, &lock);
}

// Returns a descriptor of its own, none of the first three: a program that has
// closed one of those may mean the next that it opens.
static int open_again(int file, heap_file_id_t id) {
  char path[40] = {0};
  heap_text_t text = {path, sizeof(path) - 1, 0};
  struct stat status;
  heap_text_add(&text, "/proc/self/fd/");
  heap_text_add_decimal(&text, (uint64_t)file);
  int again = open(path, O_RDWR | O_CLOEXEC);
  if (again >= 0 &&
      (fstat(again, &status) != 0 || (uint64_t)status.st_dev != id.device ||
       (uint64_t)status.st_ino != id.inode)) {
    close(again);
    again = -1;
  }
  // Without /proc, or without the right: the description is shared then.
  int result = fcntl(again >= 0 ? again : file, F_DUPFD_CLOEXEC, 3);
  if (again >= 0) {
    int error = errno;
    close(again);
    errno = error;
  }
  return result;
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
  return open_again(file, *out_id);
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
