// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// What the files of the writer share.

#ifndef MY_ALLOC_BUFIO_WRITER_INTERNAL_H_
#define MY_ALLOC_BUFIO_WRITER_INTERNAL_H_

#include "bufio/writer.h"

#ifdef __cplusplus
extern "C" {
#endif

// Room beyond `capacity_bytes`, so that what is handed over can end at a page
// of the file although records do not.
#define BUFIO_WRITER_SLACK_BYTES ((size_t)4096)

// The byte at a file offset that is in the buffer.
static inline unsigned char *bufio_writer_at(const bufio_writer_t *writer,
                                             uint64_t offset) {
  return (unsigned char *)(uintptr_t)(offset - writer->commit_bias);
}

// Opens the file; what a killed writer left is in it, or gone if the file was
// to be emptied. At level `process` it is locked. Returns the descriptor.
int bufio_writer_open_file(const char *path, const char *journal_path,
                           const bufio_writer_options_t *options);

// The same of a caller's descriptor, for level `process`. Returns another
// descriptor, which has the lock.
int bufio_writer_settle_attached(int descriptor, const char *journal_path);

// Makes the inline functions come to us or not, as the state asks for.
void bufio_writer_set_limit(bufio_writer_t *writer);

// Every call that accepts bytes or hands them over begins so. Returns why that
// cannot be: 0, -EBADF, -ECHILD, or the sticky error.
int bufio_writer_begin(bufio_writer_t *writer);

// In the child of a fork that is about to write what was attached: opens it
// anew, as `attach` did.
void bufio_writer_open_anew(bufio_writer_t *writer);

// Hands over [written, until). On an error it is noted (sticky, unless -EAGAIN)
// and exactly what was not taken stays.
int bufio_writer_drain(bufio_writer_t *writer, uint64_t until);

// Drains up to the last page boundary of the file, or everything if that is
// not enough for `len` more bytes, which are at most `capacity_bytes`.
int bufio_writer_make_room(bufio_writer_t *writer, size_t len);

// Hands over buffered bytes and then the parts, `total` bytes together, without
// copying them. See "Acceptance" in writer.h.
int bufio_writer_write_large(bufio_writer_t *writer, const struct iovec *parts,
                             int count, size_t total);

// After something was accepted: flush of lines, sync policy.
int bufio_writer_after_accept(bufio_writer_t *writer,
                              const unsigned char *bytes, size_t len);

// Notes an error as sticky and returns it.
int bufio_writer_fail(bufio_writer_t *writer, int error, bool is_final);

#ifdef __cplusplus
}  // extern "C"
#endif

#endif  // MY_ALLOC_BUFIO_WRITER_INTERNAL_H_
