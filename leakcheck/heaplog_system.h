// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// The system calls that the heaplog writer makes, as a table that tests can
// put a failing one in place of. Internal to the heaplog library.
//
// Every entry returns what the kernel returns, -errno included, leaves errno
// alone and is no cancellation point: a thread must not be cancelled inside
// malloc, which these are called from.

#ifndef MY_ALLOC_LEAKCHECK_HEAPLOG_SYSTEM_H_
#define MY_ALLOC_LEAKCHECK_HEAPLOG_SYSTEM_H_

#include <stddef.h>
#include <stdint.h>
#include <sys/stat.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct heaplog_system {
  // Returns a descriptor. Always close-on-exec.
  int (*open)(const char *path, int flags, unsigned int mode);
  int (*close)(int descriptor);
  int (*unlink)(const char *path);
  int (*stat)(int descriptor, struct stat *out_stat);
  // Returns a duplicate not below `lowest`, close-on-exec.
  int (*duplicate)(int descriptor, int lowest);
  int (*allocate)(int descriptor, uint64_t offset, uint64_t size_bytes);
  // Returns the bytes transferred.
  int64_t (*read)(int descriptor, void *bytes, size_t size_bytes,
                  uint64_t offset);
  int64_t (*write)(int descriptor, const void *bytes, size_t size_bytes,
                   uint64_t offset);
  // Maps shared, read-write. Returns NULL and sets *out_status on failure.
  void *(*map_file)(int descriptor, uint64_t offset, size_t size_bytes,
                    int *out_status);
  // Maps anonymous memory. Returns NULL on failure.
  void *(*map_memory)(size_t size_bytes);
  void (*unmap)(void *memory, size_t size_bytes);
  int (*advise)(void *memory, size_t size_bytes, int advice);
  // Stores the working directory, absolute and NUL-terminated. Returns 0.
  int (*directory)(char *path, size_t capacity_bytes);
  // The RLIMIT_FSIZE in force.
  uint64_t (*file_size_limit)(void);
} heaplog_system_t;

extern const heaplog_system_t heaplog_system_kernel;

#ifdef __cplusplus
}  // extern "C"
#endif

#endif  // MY_ALLOC_LEAKCHECK_HEAPLOG_SYSTEM_H_
