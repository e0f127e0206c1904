// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0
//
// reader: buffered reading of a descriptor, without copies.
//
// For: files, pipes, sockets and terminals read as lines, bytes, records or
// pieces. Not for: random access (mapped_file), or text in another encoding
// than bytes.
//
//   bufio_reader_t reader;
//   int status = bufio_reader_open(&reader, "words.txt", NULL);
//   if (status < 0) {
//     return status;
//   }
//   bufio_slice_t line;
//   while ((status = bufio_reader_next_line(&reader, &line)) > 0) {
//     use(line.data, line.len);  // Without its line feed; no NUL behind it.
//   }
//   bufio_reader_close(&reader);
//   return status;  // 0 at the end of the file, else what read(2) said.
//
// A slice points into the buffer and is good until the next call that takes
// the reader, unless that function says that it does no input. Lines may be of
// any length: the buffer grows, unless it is the caller's.
//
// Errors are not sticky: each call that needs input asks the kernel again, and
// what was buffered before is delivered first. So is the end of the input: a
// file that grew is read on.
//
// Threads: one at a time. fork: the child has a copy of the buffer; both go on
// from the same point, and what either reads from the descriptor is missing to
// the other.
//
// Positions are 64-bit; of pipes they count from where the reader began.

#ifndef MY_ALLOC_BUFIO_READER_H_
#define MY_ALLOC_BUFIO_READER_H_

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "bufio/bufio.h"

#ifdef __cplusplus
extern "C" {
#endif

struct bufio_writer;

// What one read(2) asks for, unless options say otherwise.
#define BUFIO_READER_BYTES ((size_t)262144)
// Of a caller's memory, at least.
#define BUFIO_READER_MEMORY_MIN ((size_t)64)
#define BUFIO_READER_INDEX_COUNT 512

// All zero is the default; a NULL pointer is all zero.
typedef struct bufio_reader_options {
  // The caller's buffer, used until close; never grown: a line, record or peek
  // that does not fit is -ENOBUFS. NULL: memory of our own.
  void *memory;
  size_t memory_bytes;
  // Bytes a read(2), of own memory. 0: BUFIO_READER_BYTES.
  size_t buffer_bytes;
  // Own memory does not grow beyond this: -ENOBUFS. 0: no limit.
  size_t max_bytes;
  // Lines end in `delimiter` instead of '\n'.
  bool use_delimiter;
  unsigned char delimiter;
  // A '\r' before the line's end is not part of the line.
  bool strip_cr;
  // Keeps `bufio_reader_line_number` up to date, by another look at each byte.
  bool count_lines;
  // A descriptor with O_NONBLOCK: return -EAGAIN rather than wait in poll(2).
  bool return_would_block;
} bufio_reader_options_t;

// Placed by the caller, not to be moved while open. The fields are for the
// inline functions below.
typedef struct bufio_reader {
  const unsigned char *cursor;     // The next byte to deliver.
  const unsigned char *end;        // Behind the last byte in the buffer.
  const uint32_t *line_next;       // Offsets from `line_base` of line ends that
  const uint32_t *line_stop;       // were found ahead; those before `cursor`
  const unsigned char *line_base;  // do not count.
  size_t strip_cr;                 // 1 or 0. Immutable.
  const unsigned char *indexed;    // Line ends before it are in the index.
  const unsigned char *start;      // The oldest byte still in the buffer.
  const unsigned char *counted;    // `lines_counted` counts up to here.
  unsigned char *memory;           // The buffer: headroom for what is left over
  size_t memory_bytes;             // of the last read, then room for a read.
  size_t headroom_bytes;
  size_t max_bytes;
  uint64_t end_position;  // File position of `end`.
  uint64_t lines_counted;
  struct bufio_writer *paired;  // Flushed before a read, or NULL.
  int descriptor;
  int error;  // What the last input call returned, <= 0.
  unsigned char delimiter;
  bool owns_memory;
  bool owns_descriptor;
  bool count_lines;
  bool return_would_block;
  bool is_altered;       // ungetc put other bytes into the buffer.
  bool is_unterminated;  // See the function.
  bool lines_unknown;    // A seek left the part that was counted.
  bufio_slice_t slow;    // Result of the functions ending in _slow.
  uint32_t index[BUFIO_READER_INDEX_COUNT];
} bufio_reader_t;

// Opens the file for reading from its start. Any error of open(2), -ENOMEM,
// -EINVAL (options); nothing is left behind then.
BUFIO_API int bufio_reader_open(bufio_reader_t *reader, const char *path,
                                const bufio_reader_options_t *options)
    BUFIO_MUST_USE;

// Reads `descriptor` from where it stands. It stays the caller's, who does not
// read from it meanwhile. -EBADF, -ENOMEM, -EINVAL.
BUFIO_API int bufio_reader_attach(bufio_reader_t *reader, int descriptor,
                                  const bufio_reader_options_t *options)
    BUFIO_MUST_USE;

// Gives back what `open` or `attach` took; slices become invalid. Of an
// attached descriptor that can seek, the position is put to where the reader
// is, so that somebody else can read on. NULL, and a zeroed or closed reader,
// are no-ops.
BUFIO_API void bufio_reader_close(bufio_reader_t *reader);

// Has `writer` flushed before each read(2), so that a prompt is seen before its
// answer is waited for. NULL: none. A failed flush is the writer's sticky error
// and does not keep the reader from reading. Unpair before the writer closes.
BUFIO_API void bufio_reader_pair(bufio_reader_t *reader,
                                 struct bufio_writer *writer);

// Returns what the last input said: 0, or a negative errno. To tell an error
// from the end after getc or peekc.
BUFIO_INLINE int bufio_reader_error(const bufio_reader_t *reader) {
  return reader->error;
}

// For the inline functions.
BUFIO_API int bufio_reader_fill(bufio_reader_t *reader);
BUFIO_API int bufio_reader_next_line_slow(bufio_reader_t *reader);
BUFIO_API int bufio_reader_peek_slow(bufio_reader_t *reader, size_t len);

// ---- views ----

// Returns what is buffered, possibly nothing. Does no input.
BUFIO_INLINE bufio_slice_t bufio_reader_buffered(const bufio_reader_t *reader) {
  bufio_slice_t slice = {reader->cursor,
                         (size_t)(reader->end - reader->cursor)};
  return slice;
}

// Stores a view of all that is buffered: 1 if it has at least `len` bytes, 0 if
// fewer are left before the end of the input. Errors of read(2), -ENOBUFS,
// -ENOMEM: nothing is lost, and the view is of what there is. Consumes nothing.
BUFIO_INLINE int bufio_reader_peek(bufio_reader_t *reader, size_t len,
                                   bufio_slice_t *out_slice) {
  int status = 1;
  if (BUFIO_UNLIKELY((size_t)(reader->end - reader->cursor) < len)) {
    status = bufio_reader_peek_slow(reader, len);
  }
  *out_slice = bufio_reader_buffered(reader);
  return status;
}

// Moves on by `len` bytes, at most to the end of what is buffered. Does no
// input: slices stay good.
BUFIO_INLINE void bufio_reader_consume(bufio_reader_t *reader, size_t len) {
  size_t buffered = (size_t)(reader->end - reader->cursor);
  reader->cursor += len < buffered ? len : buffered;
}

// ---- bytes ----

// Returns the next byte and moves on; -1 at the end or on an error.
BUFIO_INLINE int bufio_reader_getc(bufio_reader_t *reader) {
  if (BUFIO_UNLIKELY(reader->cursor == reader->end) &&
      bufio_reader_fill(reader) <= 0) {
    return -1;
  }
  return *reader->cursor++;
}

// Returns the next byte and stays; -1 at the end or on an error.
BUFIO_INLINE int bufio_reader_peekc(bufio_reader_t *reader) {
  if (BUFIO_UNLIKELY(reader->cursor == reader->end) &&
      bufio_reader_fill(reader) <= 0) {
    return -1;
  }
  return *reader->cursor;
}

// Makes `byte` the next one again and moves back by one. True for the byte
// read last, always; for more, or before the first, false if there is no room.
// A later seek forgets bytes that differ from those of the file.
BUFIO_API bool bufio_reader_ungetc(bufio_reader_t *reader, int byte);

// A reader's cursor, for loops that take byte after byte: in a local variable
// it stays in a register.
//
//   bufio_getter_t getter = bufio_getter_begin(&reader);
//   while ((byte = bufio_getter_getc(&getter)) >= 0) {
//     ...
//   }
//   bufio_getter_end(&getter);
//
// Between begin and end the reader itself is not to be used.
typedef struct bufio_getter {
  const unsigned char *cursor;
  const unsigned char *end;
  bufio_reader_t *reader;
} bufio_getter_t;

BUFIO_INLINE bufio_getter_t bufio_getter_begin(bufio_reader_t *reader) {
  bufio_getter_t getter = {reader->cursor, reader->end, reader};
  return getter;
}

// As `bufio_reader_getc`.
BUFIO_INLINE int bufio_getter_getc(bufio_getter_t *getter) {
  if (BUFIO_UNLIKELY(getter->cursor == getter->end)) {
    getter->reader->cursor = getter->cursor;
    int status = bufio_reader_fill(getter->reader);
    getter->cursor = getter->reader->cursor;
    getter->end = getter->reader->end;
    if (status <= 0) {
      return -1;
    }
  }
  return *getter->cursor++;
}

BUFIO_INLINE void bufio_getter_end(bufio_getter_t *getter) {
  getter->reader->cursor = getter->cursor;
}

// ---- lines, delimiters, records ----

// Stores the next line without its end, and moves behind it: 1. The last line
// need not have an end; `bufio_reader_is_unterminated` tells. 0 at the end of
// the input. Errors of read(2), -ENOBUFS, -ENOMEM: what came of the line stays
// buffered, and another call goes on with it. The slice is empty unless 1.
BUFIO_INLINE int bufio_reader_next_line(bufio_reader_t *reader,
                                        bufio_slice_t *out_line) {
  if (BUFIO_LIKELY(reader->line_next != reader->line_stop)) {
    const unsigned char *start = reader->cursor;
    const unsigned char *stop = reader->line_base + *reader->line_next;
    if (BUFIO_LIKELY(stop >= start)) {
      size_t len = (size_t)(stop - start);
      reader->line_next++;
      reader->cursor = stop + 1;
      if (BUFIO_UNLIKELY(reader->strip_cr != 0) && len != 0 &&
          stop[-1] == '\r') {
        len--;
      }
      out_line->data = start;
      out_line->len = len;
      return 1;
    }
  }
  int status = bufio_reader_next_line_slow(reader);
  *out_line = reader->slow;
  return status;
}

// Of the line, piece or record returned last: the input ended before its end
// did.
BUFIO_API bool bufio_reader_is_unterminated(const bufio_reader_t *reader);

// As `bufio_reader_next_line`, up to `delimiter` instead. A '\r' is a byte.
BUFIO_API int bufio_reader_next_until(bufio_reader_t *reader,
                                      unsigned char delimiter,
                                      bufio_slice_t *out_slice) BUFIO_MUST_USE;

// As `bufio_reader_next_line`, but each piece has `len` bytes; the last one may
// be shorter, and is unterminated then. -EINVAL for `len` 0.
BUFIO_API int bufio_reader_next_record(bufio_reader_t *reader, size_t len,
                                       bufio_slice_t *out_slice) BUFIO_MUST_USE;

// Returns the number, from 1 on, of the line in which the next byte is; 0
// where that is not known: without the option, or after a seek out of the
// buffer to anywhere but the start.
BUFIO_API uint64_t bufio_reader_line_number(bufio_reader_t *reader);

// ---- bulk ----

// Copies bytes until there are `len` or the input ends: 0, and *out_len says
// how many. On an error of read(2) it is returned, *out_len too. Bytes beyond
// what is buffered go to `bytes` directly.
BUFIO_API int bufio_reader_read(bufio_reader_t *reader, void *bytes, size_t len,
                                size_t *out_len) BUFIO_MUST_USE;

// Stores a view of everything up to the end of the input and consumes it: 0.
// On an error nothing is consumed, and all that came stays buffered.
BUFIO_API int bufio_reader_slurp(bufio_reader_t *reader,
                                 bufio_slice_t *out_slice) BUFIO_MUST_USE;

// Copies everything up to the end of the input into `writer`, in pieces as
// large as the buffer: 0. Errors of the reader, with what was read written;
// errors of the writer, with what it did not accept still in the reader.
BUFIO_API int bufio_reader_copy(bufio_reader_t *reader,
                                struct bufio_writer *writer) BUFIO_MUST_USE;

// ---- position ----

// Returns the position of the next byte.
BUFIO_INLINE uint64_t bufio_reader_tell(const bufio_reader_t *reader) {
  return reader->end_position - (uint64_t)(reader->end - reader->cursor);
}

// Moves to `offset`, counted as lseek(2) does with `whence` SEEK_SET, SEEK_CUR
// or SEEK_END. Inside the buffer no system call is made. Errors of lseek(2),
// -ESPIPE for a pipe outside of its buffer, -EINVAL; the reader is where it was
// then.
BUFIO_API int bufio_reader_seek(bufio_reader_t *reader, int64_t offset,
                                int whence) BUFIO_MUST_USE;

// Returns NULL, or a text naming the first broken invariant. For tests.
BUFIO_API const char *bufio_reader_check(const bufio_reader_t *reader);

#ifdef __cplusplus
}  // extern "C"
#endif

#endif  // MY_ALLOC_BUFIO_READER_H_
