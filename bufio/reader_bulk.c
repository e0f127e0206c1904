// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// Many bytes at once, and other places than the next one.
//
// `read` copies what is buffered and lets read(2) deliver the rest to the
// caller's memory, once it is as much as a read of our own would be; then the
// buffer is empty but for the last byte, which ungetc may want.
//
// A seek to what is buffered moves the cursor, back too, and makes no call.
// What ungetc has changed is not what the file has there, so after it the
// buffer is left by any seek.

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "bufio/io_system.h"
#include "bufio/reader_internal.h"
#include "bufio/scan.h"
#include "bufio/writer.h"

bool bufio_reader_ungetc(bufio_reader_t *reader, int byte) {
  if (byte < 0 || byte > 255 || reader->memory == NULL ||
      bufio_reader_tell(reader) == 0 || reader->cursor == reader->memory) {
    return false;
  }
  // Never read, or forgotten: the headroom lends a place.
  bool is_lent = reader->cursor == reader->start;
  if (is_lent) {
    reader->start--;
    reader->is_altered = true;
  }
  unsigned char *place =
      reader->memory + (size_t)(reader->cursor - 1 - reader->memory);
  if (reader->count_lines) {
    bufio_reader_count_consumed(reader);
    // What is not in the buffer any more is taken to be what comes back.
    int was = is_lent ? byte : *place;
    reader->lines_counted -=
        was == reader->delimiter && reader->lines_counted != 0;
  }
  if (*place != byte) {
    *place = (unsigned char)byte;
    reader->is_altered = true;
  }
  reader->cursor = place;
  reader->counted = place;
  // Both: a line end may now be where the index knows of none.
  reader->line_next = reader->line_stop;
  reader->indexed = place;
  return true;
}

// Copies what is buffered.
static size_t take_buffered(bufio_reader_t *reader, unsigned char *bytes,
                            size_t len) {
  size_t buffered = (size_t)(reader->end - reader->cursor);
  size_t count = len < buffered ? len : buffered;
  if (count != 0) {
    memcpy(bytes, reader->cursor, count);
    reader->cursor += count;
  }
  return count;
}

// A read past the buffer: it is empty then, but for one byte of history.
static void note_direct(bufio_reader_t *reader, const unsigned char *bytes,
                        size_t count) {
  bufio_reader_count_consumed(reader);
  if (reader->count_lines) {
    reader->lines_counted += bufio_scan_count(bytes, count, reader->delimiter);
  }
  bufio_reader_empty(reader);
  unsigned char *history = bufio_reader_fill_base(reader) - 1;
  *history = bytes[count - 1];
  reader->start = history;
  reader->end_position += count;
}

int bufio_reader_read(bufio_reader_t *reader, void *bytes, size_t len,
                      size_t *out_len) {
  unsigned char *target = bytes;
  size_t done = 0;
  int status = reader->memory == NULL ? -EBADF : 0;
  while (status == 0) {
    done += take_buffered(reader, target + done, len - done);
    size_t left = len - done;
    if (left == 0) {
      break;
    }
    if (left < reader->memory_bytes - reader->headroom_bytes) {
      int filled = bufio_reader_fill(reader);
      if (filled <= 0) {
        status = filled;
        break;
      }
      continue;
    }
    int64_t count = bufio_reader_read_some(reader, target + done, left);
    reader->error = count < 0 ? (int)count : 0;
    if (count <= 0) {
      status = (int)count;
      break;
    }
    note_direct(reader, target + done, (size_t)count);
    done += (size_t)count;
  }
  *out_len = done;
  return status;
}

// How many bytes are left, as far as the kernel says; 0: no idea.
static size_t bytes_left(const bufio_reader_t *reader) {
  struct stat stat;
  if (bufio_system->stat(reader->descriptor, &stat) < 0 ||
      !S_ISREG(stat.st_mode) ||
      (uint64_t)stat.st_size <= reader->end_position) {
    return 0;
  }
  return (size_t)stat.st_size - (size_t)reader->end_position;
}

int bufio_reader_slurp(bufio_reader_t *reader, bufio_slice_t *out_slice) {
  size_t wanted = reader->memory != NULL ? bytes_left(reader) : 0;
  size_t kept = (size_t)(reader->end - reader->cursor);
  // One read for the whole file, and room for one more, which finds the end.
  if (reader->owns_memory &&
      wanted > (size_t)(bufio_reader_memory_end(reader) - reader->end) &&
      !__builtin_add_overflow(wanted, kept, &wanted) &&
      !__builtin_add_overflow(wanted, 2 * BUFIO_READER_HEADROOM_BYTES,
                              &wanted)) {
    (void)bufio_reader_grow(reader, reader->cursor,
                            wanted / 3 * 4 + BUFIO_READER_HEADROOM_BYTES);
  }
  int status = 1;
  while (status > 0) {
    status = bufio_reader_fill(reader);
  }
  if (status < 0) {
    return status;
  }
  *out_slice = bufio_reader_buffered(reader);
  reader->cursor = reader->end;
  return 0;
}

int bufio_reader_copy(bufio_reader_t *reader, struct bufio_writer *writer) {
  for (;;) {
    bufio_slice_t piece = bufio_reader_buffered(reader);
    if (piece.len == 0) {
      int status = bufio_reader_fill(reader);
      if (status <= 0) {
        return status;
      }
      continue;
    }
    uint64_t before = bufio_writer_tell(writer);
    int status = bufio_writer_write(writer, piece.data, piece.len);
    bufio_reader_consume(reader, (size_t)(bufio_writer_tell(writer) - before));
    if (status < 0) {
      return status;
    }
  }
}

// Inside the buffer, in which a seek back or forth is free.
static bool seek_buffered(bufio_reader_t *reader, uint64_t target) {
  uint64_t start =
      reader->end_position - (uint64_t)(reader->end - reader->start);
  if (target < start || target > reader->end_position || reader->is_altered) {
    return false;
  }
  const unsigned char *place = reader->start + (target - start);
  if (place < reader->cursor) {
    reader->line_next = reader->line_stop;
    reader->indexed = place;
  }
  reader->cursor = place;
  return true;
}

int bufio_reader_seek(bufio_reader_t *reader, int64_t offset, int whence) {
  if (reader->memory == NULL) {
    return -EBADF;
  }
  if (whence == SEEK_CUR) {
    if (__builtin_add_overflow((int64_t)bufio_reader_tell(reader), offset,
                               &offset)) {
      return -EINVAL;
    }
    whence = SEEK_SET;
  }
  if (whence == SEEK_SET) {
    if (offset < 0) {
      return -EINVAL;
    }
    if (seek_buffered(reader, (uint64_t)offset)) {
      return 0;
    }
  } else if (whence != SEEK_END) {
    return -EINVAL;
  }
  int64_t position = bufio_system->seek(reader->descriptor, offset, whence);
  if (position < 0) {
    return (int)position;
  }
  bufio_reader_empty(reader);
  reader->end_position = (uint64_t)position;
  reader->lines_counted = 0;
  reader->lines_unknown = position != 0;
  return 0;
}
