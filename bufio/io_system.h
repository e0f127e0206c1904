// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// The one place where bufio asks the kernel for anything: a table of the calls,
// so that tests can make each of them fail or fall short in turn. Internal.
//
// Every entry returns what the kernel returns, -errno included, and leaves
// errno alone. None retries: EINTR and short counts are for the callers.

#ifndef MY_ALLOC_BUFIO_IO_SYSTEM_H_
#define MY_ALLOC_BUFIO_IO_SYSTEM_H_

#include <stddef.h>
#include <stdint.h>
#include <sys/stat.h>
#include <sys/uio.h>

#ifdef __cplusplus
extern "C" {
#endif

// Of the device and inode whose note it is.
#define BUFIO_NOTE_FORMAT "%llx:%llx:"

typedef struct bufio_system {
  // Returns a descriptor, always close-on-exec.
  int (*open)(const char *path, int flags, unsigned int mode);
  // The same of a name in an open folder.
  int (*open_at)(int folder, const char *name, int flags, unsigned int mode);
  int (*close)(int descriptor);
  int64_t (*read)(int descriptor, void *bytes, size_t len);
  int64_t (*write)(int descriptor, const void *bytes, size_t len);
  // As `write`, but -EAGAIN rather than waiting, whether the descriptor has
  // O_NONBLOCK or not. Terminals, and pipes before Linux 6.5, may wait.
  int64_t (*write_now)(int descriptor, const void *bytes, size_t len);
  int64_t (*write_vector)(int descriptor, const struct iovec *parts, int count);
  int64_t (*read_at)(int descriptor, void *bytes, size_t len, uint64_t offset);
  int64_t (*write_at)(int descriptor, const void *bytes, size_t len,
                      uint64_t offset);
  int64_t (*seek)(int descriptor, int64_t offset, int whence);
  int (*stat)(int descriptor, struct stat *out_stat);
  // The same of a name in an open folder, or of AT_FDCWD; `flags` 0 or
  // AT_SYMLINK_NOFOLLOW.
  int (*stat_at)(int folder, const char *name, int flags,
                 struct stat *out_stat);
  // Stores the path that an open file has now, and a NUL: its length. Errors
  // without /proc, -ENAMETOOLONG.
  int (*path_of)(int descriptor, char *path, size_t size_bytes);
  // Stores the magic number of a file's file system.
  int (*file_system)(int descriptor, int64_t *out_magic);
  // Waits until one of `events` is there or the descriptor has failed.
  int (*wait)(int descriptor, short events);
  // The flags of open(2) in force, and those that can be changed.
  int (*flags)(int descriptor);
  int (*set_flags)(int descriptor, int flags);
  int (*sync)(int descriptor);
  int (*sync_data)(int descriptor);
  int (*set_mode)(int descriptor, unsigned int mode);
  int (*truncate)(int descriptor, uint64_t size_bytes);
  int (*allocate)(int descriptor, uint64_t offset, uint64_t len);
  // As flock(2), but -EWOULDBLOCK rather than waiting.
  int (*lock)(int descriptor, int operation);
  // A number that tells a file from a later one of the same inode: of its time
  // of birth and its generation, 0 if the file system keeps neither.
  int (*birth)(int descriptor, uint64_t *out_birth);
  // Leaves BUFIO_NOTE_FORMAT of the open file `target` and the name of the open
  // file `side` on the former; -1 takes it away. -EOPNOTSUPP also without
  // /proc, which knows that name.
  int (*set_note)(int target, int side);
  // Stores what was left on a file, and a NUL: its length, or -ENODATA.
  // -EACCES: something was left on it, and only readers of the file may know
  // what.
  int (*get_note)(const char *path, char *name, size_t size_bytes);
  int (*unlink)(const char *path);
  int (*unlink_at)(int folder, const char *name);
  int (*rename)(const char *from, const char *to);
  // Gives an open file that has no name one.
  int (*link)(int descriptor, const char *path);
  // As mmap; a negative errno in *out_status on failure, else 0.
  void *(*map)(void *address, size_t len, int protection, int flags,
               int descriptor, uint64_t offset, int *out_status);
  int (*unmap)(void *address, size_t len);
  int (*advise)(void *address, size_t len, int advice);
} bufio_system_t;

// The calls as libc makes them.
extern const bufio_system_t bufio_system_kernel;

// What bufio calls. Written by single-threaded tests only.
extern const bufio_system_t *bufio_system;

#ifdef __cplusplus
}  // extern "C"
#endif

#endif  // MY_ALLOC_BUFIO_IO_SYSTEM_H_
