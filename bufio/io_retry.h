// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// The calls of io_system.h until they say something final. Internal.
//
// Each goes on after EINTR and returns 0, a descriptor, or -errno.

#ifndef MY_ALLOC_BUFIO_IO_RETRY_H_
#define MY_ALLOC_BUFIO_IO_RETRY_H_

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

int bufio_io_open(const char *path, int flags, unsigned int mode);
int bufio_io_open_at(int folder, const char *name, int flags,
                     unsigned int mode);
int bufio_io_sync(int descriptor);
int bufio_io_sync_data(int descriptor);
int bufio_io_truncate(int descriptor, uint64_t size_bytes);

// Transfers all of it. A file that ends before is -EPROTO; a write that takes
// nothing is -EIO.
int bufio_io_read_at(int descriptor, void *bytes, size_t len, uint64_t offset);
int bufio_io_write_at(int descriptor, const void *bytes, size_t len,
                      uint64_t offset);

// Makes the file reach from `offset` to `offset + len`, with zeros that are
// allocated: by writing them, where the file system cannot otherwise. On
// failure the file may have become longer.
int bufio_io_allocate(int descriptor, uint64_t offset, uint64_t len);

// Syncs a folder, so that the names in it are on the disk.
int bufio_io_sync_folder(const char *folder);

// Returns the folder that a path is in, for free(3). NULL: no memory.
char *bufio_io_folder_of(const char *path);

#ifdef __cplusplus
}  // extern "C"
#endif

#endif  // MY_ALLOC_BUFIO_IO_RETRY_H_
