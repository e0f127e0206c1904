// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// What the files of the reader share.

#ifndef MY_ALLOC_BUFIO_READER_INTERNAL_H_
#define MY_ALLOC_BUFIO_READER_INTERNAL_H_

#include "bufio/reader.h"

#ifdef __cplusplus
extern "C" {
#endif

// In front of where a read(2) goes; less of a caller's small memory.
#define BUFIO_READER_HEADROOM_BYTES ((size_t)4096)

static inline unsigned char *bufio_reader_memory_end(
    const bufio_reader_t *reader) {
  return reader->memory + reader->memory_bytes;
}

static inline unsigned char *bufio_reader_fill_base(
    const bufio_reader_t *reader) {
  return reader->memory + reader->headroom_bytes;
}

// Counts the lines before the cursor: what is about to be forgotten counts now
// or never.
void bufio_reader_count_consumed(bufio_reader_t *reader);

// Forgets everything that is buffered.
void bufio_reader_empty(bufio_reader_t *reader);

// Moves [from, end) to memory of at least `size_bytes`, at most `max_bytes`.
// -ENOBUFS: it may not grow so far.
int bufio_reader_grow(bufio_reader_t *reader, const unsigned char *from,
                      size_t size_bytes);

// read(2) until it says something final: the count, 0 at the end, -errno.
int64_t bufio_reader_read_some(bufio_reader_t *reader, unsigned char *bytes,
                               size_t len);

#ifdef __cplusplus
}  // extern "C"
#endif

#endif  // MY_ALLOC_BUFIO_READER_INTERNAL_H_
