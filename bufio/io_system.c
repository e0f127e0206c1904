// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

#include "bufio/io_system.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/fs.h>
#include <linux/limits.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/vfs.h>
#include <sys/xattr.h>
#include <unistd.h>

// The attribute that says where a file's side file is (journal_note.c).
#define NOTE_NAME "user.bufio.journal"

// Turns libc's convention into the kernel's. `errno` is the caller's: it is
// put back, so that a flush in the middle of somebody's error path is unseen.
#define KERNEL_RESULT(type, call)                  \
  do {                                             \
    int saved_errno = errno;                       \
    type result = (type)(call);                    \
    result = result < 0 ? (type)(-errno) : result; \
    errno = saved_errno;                           \
    return result;                                 \
  } while (0)

static int kernel_open(const char *path, int flags, unsigned int mode) {
  KERNEL_RESULT(int, open(path, flags | O_CLOEXEC, (mode_t)mode));
}

static int kernel_open_at(int folder, const char *name, int flags,
                          unsigned int mode) {
  KERNEL_RESULT(int, openat(folder, name, flags | O_CLOEXEC, (mode_t)mode));
}

static int kernel_close(int descriptor) {
  KERNEL_RESULT(int, close(descriptor));
}

static int64_t kernel_read(int descriptor, void *bytes, size_t len) {
  KERNEL_RESULT(int64_t, read(descriptor, bytes, len));
}

static int64_t kernel_write(int descriptor, const void *bytes, size_t len) {
  KERNEL_RESULT(int64_t, write(descriptor, bytes, len));
}

static int64_t write_now(int descriptor, const void *bytes, size_t len) {
  struct iovec part = {.iov_base = (void *)(uintptr_t)bytes, .iov_len = len};
  int64_t count = pwritev2(descriptor, &part, 1, -1, RWF_NOWAIT);
  if (count < 0 && (errno == EOPNOTSUPP || errno == ENOSYS)) {
    count = send(descriptor, bytes, len, MSG_DONTWAIT);
    if (count < 0 && errno == ENOTSOCK) {
      count = write(descriptor, bytes, len);
    }
  }
  return count;
}

static int64_t kernel_write_now(int descriptor, const void *bytes, size_t len) {
  KERNEL_RESULT(int64_t, write_now(descriptor, bytes, len));
}

static int64_t kernel_write_vector(int descriptor, const struct iovec *parts,
                                   int count) {
  KERNEL_RESULT(int64_t, writev(descriptor, parts, count));
}

static int64_t kernel_read_at(int descriptor, void *bytes, size_t len,
                              uint64_t offset) {
  KERNEL_RESULT(int64_t, pread(descriptor, bytes, len, (off_t)offset));
}

static int64_t kernel_write_at(int descriptor, const void *bytes, size_t len,
                               uint64_t offset) {
  KERNEL_RESULT(int64_t, pwrite(descriptor, bytes, len, (off_t)offset));
}

static int64_t kernel_seek(int descriptor, int64_t offset, int whence) {
  KERNEL_RESULT(int64_t, lseek(descriptor, (off_t)offset, whence));
}

static int kernel_stat(int descriptor, struct stat *out_stat) {
  KERNEL_RESULT(int, fstat(descriptor, out_stat));
}

static int kernel_stat_at(int folder, const char *name, int flags,
                          struct stat *out_stat) {
  KERNEL_RESULT(int, fstatat(folder, name, out_stat, flags));
}

static int path_of(int descriptor, char *path, size_t size_bytes) {
  char link[64];
  (void)snprintf(link, sizeof(link), "/proc/self/fd/%d", descriptor);
  ssize_t len = readlink(link, path, size_bytes);
  if (len >= 0 && (size_t)len == size_bytes) {
    errno = ENAMETOOLONG;
    return -1;
  }
  if (len >= 0) {
    path[len] = '\0';
  }
  return (int)len;
}

static int kernel_path_of(int descriptor, char *path, size_t size_bytes) {
  KERNEL_RESULT(int, path_of(descriptor, path, size_bytes));
}

static int file_system(int descriptor, int64_t *out_magic) {
  struct statfs info;
  int status = fstatfs(descriptor, &info);
  if (status == 0) {
    *out_magic = (int64_t)info.f_type;
  }
  return status;
}

static int kernel_file_system(int descriptor, int64_t *out_magic) {
  KERNEL_RESULT(int, file_system(descriptor, out_magic));
}

static int kernel_wait(int descriptor, short events) {
  struct pollfd request = {.fd = descriptor, .events = events};
  KERNEL_RESULT(int, poll(&request, 1, -1));
}

static int kernel_flags(int descriptor) {
  KERNEL_RESULT(int, fcntl(descriptor, F_GETFL));
}

static int kernel_set_flags(int descriptor, int flags) {
  KERNEL_RESULT(int, fcntl(descriptor, F_SETFL, flags));
}

static int kernel_sync(int descriptor) {
  KERNEL_RESULT(int, fsync(descriptor));
}

static int kernel_sync_data(int descriptor) {
  KERNEL_RESULT(int, fdatasync(descriptor));
}

static int kernel_set_mode(int descriptor, unsigned int mode) {
  KERNEL_RESULT(int, fchmod(descriptor, (mode_t)mode));
}

static int kernel_truncate(int descriptor, uint64_t size_bytes) {
  KERNEL_RESULT(int, ftruncate(descriptor, (off_t)size_bytes));
}

static int kernel_allocate(int descriptor, uint64_t offset, uint64_t len) {
  KERNEL_RESULT(int, fallocate(descriptor, 0, (off_t)offset, (off_t)len));
}

static int kernel_lock(int descriptor, int operation) {
  KERNEL_RESULT(int, flock(descriptor, operation | LOCK_NB));
}

static int kernel_birth(int descriptor, uint64_t *out_birth) {
  int saved_errno = errno;
  uint64_t birth = 0;
  struct statx info;
  if (statx(descriptor, "", AT_EMPTY_PATH, STATX_BTIME, &info) == 0 &&
      (info.stx_mask & STATX_BTIME) != 0) {
    birth =
        (uint64_t)info.stx_btime.tv_sec * 1000000000u + info.stx_btime.tv_nsec;
  }
  // The clock of a file system may be as coarse as 10 ms; its generations are
  // not, but not all have them.
  long generation = 0;
  if (ioctl(descriptor, FS_IOC_GETVERSION, &generation) == 0) {
    birth ^= (uint64_t)(uint32_t)generation * 0xd6e8feb86659fd93u;
  }
  errno = saved_errno;
  *out_birth = birth;
  return 0;
}

static int set_note(int target, int side) {
  if (side < 0) {
    return fremovexattr(target, NOTE_NAME);
  }
  struct stat file;
  if (fstat(target, &file) < 0) {
    return -1;
  }
  char text[64 + PATH_MAX];
  int start =
      snprintf(text, 64, BUFIO_NOTE_FORMAT, (unsigned long long)file.st_dev,
               (unsigned long long)file.st_ino);
  int len = path_of(side, text + start, PATH_MAX);
  if (len < 0) {
    errno = errno == ENOENT ? EOPNOTSUPP : errno;
    return -1;
  }
  return fsetxattr(target, NOTE_NAME, text, (size_t)(start + len), 0);
}

static int kernel_set_note(int target, int side) {
  KERNEL_RESULT(int, set_note(target, side));
}

// Whether a file has a note, for whoever may not read the file: names of
// attributes are not secret, as their values are. 1, 0, or -1 with errno.
static int is_noted(const char *path) {
  char *names = malloc(XATTR_LIST_MAX);
  if (names == NULL) {
    return -1;
  }
  ssize_t len = listxattr(path, names, XATTR_LIST_MAX);
  int result = len < 0 ? -1 : 0;
  for (ssize_t at = 0; at < len; at += (ssize_t)strlen(names + at) + 1) {
    result |= strcmp(names + at, NOTE_NAME) == 0;
  }
  free(names);
  return result;
}

static int get_note(const char *path, char *name, size_t size_bytes) {
  ssize_t len = getxattr(path, NOTE_NAME, name, size_bytes - 1);
  if (len < 0 && errno == EACCES) {
    int noted = is_noted(path);
    if (noted >= 0) {
      errno = noted > 0 ? EACCES : ENODATA;
    }
  }
  if (len >= 0) {
    name[len] = '\0';
  }
  return (int)len;
}

static int kernel_get_note(const char *path, char *name, size_t size_bytes) {
  KERNEL_RESULT(int, get_note(path, name, size_bytes));
}

static int kernel_unlink(const char *path) {
  KERNEL_RESULT(int, unlink(path));
}

static int kernel_unlink_at(int folder, const char *name) {
  KERNEL_RESULT(int, unlinkat(folder, name, 0));
}

static int kernel_rename(const char *from, const char *to) {
  KERNEL_RESULT(int, rename(from, to));
}

static int kernel_link(int descriptor, const char *path) {
  // AT_EMPTY_PATH would need CAP_DAC_READ_SEARCH; the /proc name needs nothing.
  char name[64];
  snprintf(name, sizeof(name), "/proc/self/fd/%d", descriptor);
  KERNEL_RESULT(int, linkat(AT_FDCWD, name, AT_FDCWD, path, AT_SYMLINK_FOLLOW));
}

static void *kernel_map(void *address, size_t len, int protection, int flags,
                        int descriptor, uint64_t offset, int *out_status) {
  int saved_errno = errno;
  void *memory =
      mmap(address, len, protection, flags, descriptor, (off_t)offset);
  *out_status = memory == MAP_FAILED ? -errno : 0;
  errno = saved_errno;
  return memory == MAP_FAILED ? NULL : memory;
}

static int kernel_unmap(void *address, size_t len) {
  KERNEL_RESULT(int, munmap(address, len));
}

static int kernel_advise(void *address, size_t len, int advice) {
  KERNEL_RESULT(int, madvise(address, len, advice));
}

const bufio_system_t bufio_system_kernel = {
    .open = kernel_open,
    .open_at = kernel_open_at,
    .close = kernel_close,
    .read = kernel_read,
    .write = kernel_write,
    .write_now = kernel_write_now,
    .write_vector = kernel_write_vector,
    .read_at = kernel_read_at,
    .write_at = kernel_write_at,
    .seek = kernel_seek,
    .stat = kernel_stat,
    .stat_at = kernel_stat_at,
    .path_of = kernel_path_of,
    .file_system = kernel_file_system,
    .wait = kernel_wait,
    .flags = kernel_flags,
    .set_flags = kernel_set_flags,
    .sync = kernel_sync,
    .sync_data = kernel_sync_data,
    .set_mode = kernel_set_mode,
    .truncate = kernel_truncate,
    .allocate = kernel_allocate,
    .lock = kernel_lock,
    .birth = kernel_birth,
    .set_note = kernel_set_note,
    .get_note = kernel_get_note,
    .unlink = kernel_unlink,
    .unlink_at = kernel_unlink_at,
    .rename = kernel_rename,
    .link = kernel_link,
    .map = kernel_map,
    .unmap = kernel_unmap,
    .advise = kernel_advise,
};

const bufio_system_t *bufio_system = &bufio_system_kernel;
