// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0
//
// mapped_file: windows into a file of any size, for reading and writing.
//
// For: random access, and writing over what is there. Not for: streams
// (reader.h and writer.h are faster), pipes, or files that must be whole after
// SIGKILL (writer.h, level `process`).
//
//   bufio_mapped_file_t *file;
//   int status = bufio_mapped_file_open("table.bin", NULL, &file);
//   bufio_slice_t view;
//   status = bufio_mapped_file_view(file, offset, 4096, &view);
//   ...
//   use(view);
//   status = bufio_mapped_file_status(file);  // -EIO: they were not there.
//   bufio_mapped_file_close(file);
//
// Somebody else's truncation. Touching a page of a mapping that the file no
// longer has raises SIGBUS, which kills. Here a handler of the process, which
// is installed when the first file opens, puts a page of zeros where the fault
// was if the address belongs to a window of ours, and the file is marked: from
// then on status, view, sync and close return -EIO. Within the page that the
// cut file ends in there is no fault but zeros; so status, read, sync and close
// ask for the length too, and a file that is shorter than we made it is marked
// as well. It is never made longer again. Faults elsewhere go to the handler
// that was there before, or kill as ever. So after using a view, ask for the
// status before believing what was read. (A thread that has SIGBUS blocked dies
// of one: the kernel does not deliver it.) A program that installs a SIGBUS
// handler of its own later has to pass ours what it does not know.
//
// Writing. The file grows by `fallocate`, so a full disk is -ENOSPC from
// `reserve` and not a SIGBUS; it is longer than what is in use while it is
// open, and cut to the exact size by close. A process that is killed leaves
// zeros at the end, at most `growth_bytes`.
//
// Threads: one at a time. fork: the child may go on reading and writing its
// views; it cannot grow the file (-ECHILD), and its close does not cut it. Nor
// does it sync (-ECHILD).

#ifndef MY_ALLOC_BUFIO_MAPPED_FILE_H_
#define MY_ALLOC_BUFIO_MAPPED_FILE_H_

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "bufio/bufio.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct bufio_mapped_file bufio_mapped_file_t;

// How a range will be used.
typedef enum bufio_mapped_advice {
  BUFIO_MAPPED_NORMAL,
  BUFIO_MAPPED_SEQUENTIAL,
  BUFIO_MAPPED_RANDOM,
  BUFIO_MAPPED_WILL_NEED,
  BUFIO_MAPPED_DONT_NEED,
} bufio_mapped_advice_t;

// All zero is the default; a NULL pointer is all zero.
typedef struct bufio_mapped_file_options {
  bool writable;
  bool create;    // With `writable`: make the file if there is none.
  bool truncate;  // With `writable`: empty it.
  unsigned int mode;
  // Bytes mapped at a time, where a view does not need more. 0: the whole file.
  size_t window_bytes;
  // What the file grows by at least. 0: 1 MiB.
  size_t growth_bytes;
  bufio_mapped_advice_t advice;  // For every window.
} bufio_mapped_file_options_t;

// Opens a regular file. Errors of open(2), -ENOMEM, -EINVAL (not a regular
// file, options).
BUFIO_API int bufio_mapped_file_open(
    const char *path, const bufio_mapped_file_options_t *options,
    bufio_mapped_file_t **out_file) BUFIO_MUST_USE;

// Cuts a written file to its size and gives everything back. Returns the first
// error of the file's life, or of cutting and closing it. NULL is 0.
BUFIO_API int bufio_mapped_file_close(bufio_mapped_file_t *file);

// Returns the bytes in use.
BUFIO_API uint64_t bufio_mapped_file_size(const bufio_mapped_file_t *file);

// Returns 0, or -EIO once bytes of a view were not there or the file was
// shorter than we made it; asks the kernel for its length.
BUFIO_API int bufio_mapped_file_status(bufio_mapped_file_t *file);

// Stores a view of bytes [offset, offset + len), cut at the end of the file;
// empty behind it. Good until the next call of view, reserve, append, set_size
// or close. -EIO, -ENOMEM (no address space); earlier views are then gone too.
BUFIO_API int bufio_mapped_file_view(bufio_mapped_file_t *file, uint64_t offset,
                                     size_t len,
                                     bufio_slice_t *out_slice) BUFIO_MUST_USE;

// Stores a pointer to `len` writable bytes at `offset`, growing the file so
// that they exist; new bytes are zero. Good as above. -EROFS, -ENOSPC, -EDQUOT,
// -EFBIG, -EIO, -ENOMEM, -ECHILD; the size is then unchanged.
BUFIO_API int bufio_mapped_file_reserve(
    bufio_mapped_file_t *file, uint64_t offset, size_t len,
    unsigned char **out_bytes) BUFIO_MUST_USE;

// Copies bytes to the end: as reserve.
BUFIO_API int bufio_mapped_file_append(bufio_mapped_file_t *file,
                                       const void *bytes,
                                       size_t len) BUFIO_MUST_USE;

// Copies up to `len` bytes at `offset` out and makes sure that they were there:
// 0 with *out_len, or -EIO and the like.
BUFIO_API int bufio_mapped_file_read(bufio_mapped_file_t *file, uint64_t offset,
                                     void *bytes, size_t len,
                                     size_t *out_len) BUFIO_MUST_USE;

// Makes the file end at `size_bytes`: cuts it, or grows it by zeros.
BUFIO_API int bufio_mapped_file_set_size(bufio_mapped_file_t *file,
                                         uint64_t size_bytes) BUFIO_MUST_USE;

// Tells the kernel of a range of the current window; what lies outside is
// ignored. Errors of madvise(2).
BUFIO_API int bufio_mapped_file_advise(bufio_mapped_file_t *file,
                                       uint64_t offset, size_t len,
                                       bufio_mapped_advice_t advice);

// Waits until the disk has everything. An error is final: it comes out of every
// later sync and of close.
BUFIO_API int bufio_mapped_file_sync(bufio_mapped_file_t *file) BUFIO_MUST_USE;

#ifdef __cplusplus
}  // extern "C"
#endif

#endif  // MY_ALLOC_BUFIO_MAPPED_FILE_H_
