// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// Accepting bytes: the slow halves of the inline functions.
//
//   buffer                 linear: levels `none`, `exit`, `power`
//   |                                                       |
//   |..taken..|written      committed|  room                |
//             ^at(written)           ^cursor                ^room_end
//                                    ^limit (if inline functions may go on)
//
// At level `process` the buffer is a circular one, mapped twice in a row, and
// room_end is at(written) plus its size: the same picture, but the left edge
// moves (writer_drain.c).
//
// A byte's address and its offset in the file differ by `commit_bias`. The
// store to `cursor` accepts; at level `process` the store to the commit word in
// the side file, which one addition makes out of the cursor. Below that level
// there is no such word: another store a byte would make putc half as fast.
//
// Invariants:
// 1. at(written) <= cursor <= room_end; limit is room_end or cursor.
// 2. What lies before the cursor is accepted; *commit_word, if there is one, is
//    the cursor's offset.
// 3. While an error is sticky, limit == cursor: nothing is accepted.
//
// limit == cursor also where every record has to be looked at (line-buffered,
// sync policy), or the first one (in the child of a fork). Each function that
// moves the cursor then ends by `bufio_writer_set_limit`: the inline ones never
// see limit < cursor.

#include "bufio/writer.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bufio/journal_internal.h"
#include "bufio/writer_internal.h"

static bool must_look_at_each(const bufio_writer_t *writer) {
  return writer->error != 0 || writer->line_buffered || writer->opens_anew ||
         writer->sync_records != 0 || writer->sync_bytes != 0 ||
         writer->sync_interval_ms != 0;
}

void bufio_writer_set_limit(bufio_writer_t *writer) {
  writer->limit = must_look_at_each(writer) ? writer->cursor : writer->room_end;
}

int bufio_writer_begin(bufio_writer_t *writer) {
  if (writer->is_foreign) {
    return -ECHILD;
  }
  if (writer->opens_anew) {
    bufio_writer_open_anew(writer);
  }
  return writer->buffer == NULL ? -EBADF : writer->error;
}

static void accept(bufio_writer_t *writer, size_t len) {
  bufio_writer_publish(writer, writer->cursor + len);
  bufio_writer_set_limit(writer);
}

// Room for `len` bytes; -EMSGSIZE if there never is.
static int ensure_room(bufio_writer_t *writer, size_t len) {
  int status = bufio_writer_begin(writer);
  if (status < 0) {
    return status;
  }
  if (len <= (size_t)(writer->room_end - writer->cursor)) {
    return 0;
  }
  if (len > writer->capacity_bytes) {
    return -EMSGSIZE;
  }
  return bufio_writer_make_room(writer, len);
}

int bufio_writer_write_slow(bufio_writer_t *writer, const void *bytes,
                            size_t len) {
  int status = bufio_writer_begin(writer);
  if (status < 0 || len == 0) {
    return status;
  }
  if (len > (size_t)(writer->room_end - writer->cursor) &&
      len >= writer->capacity_bytes) {
    struct iovec part = {.iov_base = (void *)(uintptr_t)bytes, .iov_len = len};
    status = bufio_writer_write_large(writer, &part, 1, len);
  } else {
    status = ensure_room(writer, len);
    if (status == 0) {
      memcpy(writer->cursor, bytes, len);
      accept(writer, len);
    }
  }
  return status < 0 ? status : bufio_writer_after_accept(writer, bytes, len);
}

int bufio_writer_putc_slow(bufio_writer_t *writer, unsigned char byte) {
  return bufio_writer_write_slow(writer, &byte, 1);
}

unsigned char *bufio_writer_reserve_slow(bufio_writer_t *writer, size_t len) {
  return ensure_room(writer, len) < 0 ? NULL : writer->cursor;
}

int bufio_writer_commit_slow(bufio_writer_t *writer, size_t len) {
  int status = bufio_writer_begin(writer);
  if (status < 0) {
    return status;
  }
  if (len > (size_t)(writer->room_end - writer->cursor)) {
    return -EINVAL;  // More than was reserved.
  }
  const unsigned char *bytes = writer->cursor;
  accept(writer, len);
  return len == 0 ? 0 : bufio_writer_after_accept(writer, bytes, len);
}

unsigned char *bufio_putter_limit(bufio_writer_t *writer) {
  return bufio_writer_begin(writer) == 0 ? writer->room_end : writer->cursor;
}

// After an error the putter has neither cursor nor limit, so all bytes come
// here to be ignored.
void bufio_putter_putc_slow(bufio_putter_t *putter, unsigned char byte) {
  bufio_writer_t *writer = putter->writer;
  putter->limit = NULL;
  if (putter->cursor == NULL || bufio_writer_begin(writer) < 0) {
    putter->cursor = NULL;
    return;
  }
  accept(writer, (size_t)(putter->cursor - writer->cursor));
  if (ensure_room(writer, 1) < 0) {
    putter->cursor = NULL;
    return;
  }
  putter->cursor = writer->cursor;
  putter->limit = bufio_putter_limit(writer);
  *putter->cursor++ = byte;
}

int bufio_putter_finish(bufio_writer_t *writer, unsigned char *cursor) {
  int status = bufio_writer_begin(writer);
  if (status < 0) {
    return status;
  }
  if (cursor == NULL) {
    return -EAGAIN;  // The only error that is not sticky.
  }
  size_t len = (size_t)(cursor - writer->cursor);
  return len == 0 ? 0 : bufio_writer_commit_slow(writer, len);
}

// Gathers parts into the buffer, which has the room.
static void copy_parts(bufio_writer_t *writer, const struct iovec *parts,
                       int count) {
  unsigned char *target = writer->cursor;
  for (int i = 0; i < count; i++) {
    if (parts[i].iov_len != 0) {
      memcpy(target, parts[i].iov_base, parts[i].iov_len);
      target += parts[i].iov_len;
    }
  }
}

int bufio_writer_write_vector(bufio_writer_t *writer, const struct iovec *parts,
                              int count) {
  size_t total = 0;
  for (int i = 0; i < count; i++) {
    if (__builtin_add_overflow(total, parts[i].iov_len, &total)) {
      return -EINVAL;
    }
  }
  int status = bufio_writer_begin(writer);
  if (status < 0 || total == 0) {
    return status;
  }
  if (total <= writer->capacity_bytes) {
    status = ensure_room(writer, total);
    if (status < 0) {
      return status;
    }
    copy_parts(writer, parts, count);
    return bufio_writer_commit_slow(writer, total);
  }
  status = bufio_writer_write_large(writer, parts, count, total);
  // Flushed already, so it does not matter where line feeds are.
  return status < 0 ? status : bufio_writer_after_accept(writer, NULL, total);
}

// A text that exceeds the buffer: formatted in memory of its own.
__attribute__((format(printf, 3, 0))) static int print_large(
    bufio_writer_t *writer, size_t len, const char *format, va_list arguments) {
  char *text = malloc(len + 1);
  if (text == NULL) {
    return -ENOMEM;
  }
  vsnprintf(text, len + 1, format, arguments);
  int status = bufio_writer_write_slow(writer, text, len);
  free(text);
  return status;
}

__attribute__((format(printf, 2, 0))) static int print(bufio_writer_t *writer,
                                                       const char *format,
                                                       va_list first,
                                                       va_list again) {
  int status = ensure_room(writer, 1);
  if (status < 0) {
    return status;
  }
  size_t room = (size_t)(writer->room_end - writer->cursor);
  int len = vsnprintf((char *)writer->cursor, room, format, first);
  if (len < 0) {
    return errno == EOVERFLOW || errno == ENOMEM ? -errno : -EINVAL;
  }
  if ((size_t)len >= room) {
    // A NUL needs room too.
    if ((size_t)len >= writer->capacity_bytes) {
      return print_large(writer, (size_t)len, format, again);
    }
    status = ensure_room(writer, (size_t)len + 1);
    if (status < 0) {
      return status;
    }
    vsnprintf((char *)writer->cursor, (size_t)len + 1, format, again);
  }
  return bufio_writer_commit_slow(writer, (size_t)len);
}

int bufio_writer_vprintf(bufio_writer_t *writer, const char *format,
                         va_list arguments) {
  int saved_errno = errno;
  va_list again;
  va_copy(again, arguments);
  int status = print(writer, format, arguments, again);
  va_end(again);
  errno = saved_errno;
  return status;
}

int bufio_writer_printf(bufio_writer_t *writer, const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  int status = bufio_writer_vprintf(writer, format, arguments);
  va_end(arguments);
  return status;
}

bufio_slice_t bufio_writer_unwritten(const bufio_writer_t *writer) {
  bufio_slice_t slice = {NULL, 0};
  if (writer->buffer != NULL && !writer->is_foreign) {
    slice.data = bufio_writer_at(writer, writer->written);
    slice.len = (size_t)(writer->cursor - slice.data);
  }
  return slice;
}

const char *bufio_writer_check(const bufio_writer_t *writer) {
  if (writer->buffer == NULL || writer->is_foreign) {
    return writer->cursor == writer->limit ? NULL : "a closed writer has room";
  }
  const unsigned char *first = bufio_writer_at(writer, writer->written);
  if (first < writer->buffer || writer->cursor < first ||
      writer->room_end < writer->cursor) {
    return "buffer <= at(written) <= cursor <= room_end";
  }
  if (writer->commit_word != NULL &&
      *writer->commit_word != bufio_writer_tell(writer)) {
    return "the commit word is the cursor's offset";
  }
  if (writer->limit != writer->cursor && writer->limit != writer->room_end) {
    return "limit is room_end or cursor";
  }
  if (writer->journal != NULL &&
      bufio_writer_tell(writer) % writer->journal->ring_bytes !=
          (uint64_t)(writer->cursor - writer->buffer) %
              writer->journal->ring_bytes) {
    return "offset o is at ring[o mod ring_bytes]";
  }
  if (must_look_at_each(writer) && writer->limit != writer->cursor) {
    return "inline functions keep away while each record is looked at";
  }
  return NULL;
}
