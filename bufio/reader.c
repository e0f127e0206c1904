// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// The buffer, and how bytes get into it.
//
//   memory      memory + headroom                        memory + memory_bytes
//   |           |                                        |
//   |     |left |bytes of the last read(2)      |        |
//   |     |over |                               |        |
//         ^start    ^cursor                     ^end
//
// Invariants:
// 1. memory <= start <= cursor <= end <= memory + memory_bytes.
// 2. [start, end) are the bytes of the input before `end_position`, but for
//    what ungetc changed (`is_altered`).
// 3. Entries of the line index lie in [line_base, indexed), ascend, and every
//    line end in [cursor, indexed) has one.
// 4. `lines_counted` is the number of line ends before `counted`.
//
// The hard part is a line that crosses two reads. Its beginning is moved to
// just *before* the place where the next read goes, into the headroom, so every
// read has the same length and the same alignment whatever the lines are, and
// what is moved is half a line. Only what exceeds the headroom is treated as
// other buffers do: moved to the front, then doubled, so that a line of n bytes
// costs O(n) moves.
//
// One byte before the cursor is kept whenever bytes are moved: for ungetc.
//
// Deliberately not done: reading ahead in another thread (the kernel does), and
// mapping the file (slower than read(2) for streams, and SIGBUS).

#include "bufio/reader.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <string.h>
#include <sys/mman.h>

#include "bufio/io_retry.h"
#include "bufio/io_system.h"
#include "bufio/reader_internal.h"
#include "bufio/scan.h"
#include "bufio/writer.h"

static_assert(BUFIO_READER_INDEX_COUNT >= BUFIO_SCAN_CAPACITY_MIN,
              "the index must have room for a block");
static_assert(BUFIO_READER_MEMORY_MIN / 4 >= 1,
              "headroom for the byte that ungetc needs");

static unsigned char *allocate(size_t size_bytes, int *out_status) {
  return bufio_system->map(NULL, size_bytes, PROT_READ | PROT_WRITE,
                           MAP_PRIVATE | MAP_ANONYMOUS, -1, 0, out_status);
}

// Lines in what is about to be forgotten count now or never.
void bufio_reader_count_consumed(bufio_reader_t *reader) {
  if (!reader->count_lines) {
    return;
  }
  if (reader->counted <= reader->cursor) {
    reader->lines_counted += bufio_scan_count(
        reader->counted, (size_t)(reader->cursor - reader->counted),
        reader->delimiter);
  } else {
    reader->lines_counted -= bufio_scan_count(
        reader->cursor, (size_t)(reader->counted - reader->cursor),
        reader->delimiter);
  }
  reader->counted = reader->cursor;
}

// Forgets the index; `indexed` remains true as far as there are no line ends
// between the cursor and it.
static void drop_index(bufio_reader_t *reader) {
  if (reader->line_next != reader->line_stop ||
      reader->indexed < reader->cursor) {
    reader->indexed = reader->cursor;
  }
  reader->line_next = reader->line_stop;
}

// Moves [from, end) to `target`, in the same or in new memory.
static void relocate(bufio_reader_t *reader, const unsigned char *from,
                     unsigned char *target) {
  bufio_reader_count_consumed(reader);
  drop_index(reader);
  size_t kept = (size_t)(reader->end - from);
  size_t cursor = (size_t)(reader->cursor - from);
  size_t indexed = (size_t)(reader->indexed - from);
  memmove(target, from, kept);
  reader->start = target;
  reader->cursor = target + cursor;
  reader->indexed = target + indexed;
  reader->counted = reader->cursor;
  reader->end = target + kept;
}

void bufio_reader_empty(bufio_reader_t *reader) {
  unsigned char *base = bufio_reader_fill_base(reader);
  reader->start = base;
  reader->cursor = base;
  reader->end = base;
  reader->indexed = base;
  reader->counted = base;
  reader->line_next = reader->line_stop;
  reader->is_altered = false;
}

// Moves to memory of at least `size_bytes`; at most `max_bytes`.
int bufio_reader_grow(bufio_reader_t *reader, const unsigned char *from,
                      size_t size_bytes) {
  if (!reader->owns_memory) {
    return -ENOBUFS;
  }
  if (size_bytes > reader->max_bytes) {
    size_bytes = reader->max_bytes;
  }
  if (size_bytes <= reader->memory_bytes) {
    return -ENOBUFS;
  }
  int status = 0;
  unsigned char *grown = allocate(size_bytes, &status);
  if (grown == NULL) {
    return status;
  }
  unsigned char *old = reader->memory;
  size_t old_bytes = reader->memory_bytes;
  relocate(reader, from, grown);
  reader->memory = grown;
  reader->memory_bytes = size_bytes;
  (void)bufio_system->unmap(old, old_bytes);
  return 0;
}

// Sees to it that there is room behind `end`, by moving what is kept where it
// is in the way.
static int make_room(bufio_reader_t *reader) {
  const unsigned char *from = reader->cursor;
  if (from != reader->start) {
    from--;
  }
  size_t kept = (size_t)(reader->end - from);
  if (kept <= reader->headroom_bytes) {
    unsigned char *target = bufio_reader_fill_base(reader) - kept;
    if (target != from) {
      relocate(reader, from, target);
    }
    return 0;
  }
  size_t room = (size_t)(bufio_reader_memory_end(reader) - reader->end);
  if (room >= reader->memory_bytes / 4) {
    return 0;
  }
  size_t doubled = 0;
  int status = -ENOBUFS;
  if (kept > reader->memory_bytes / 2 &&
      !__builtin_mul_overflow(reader->memory_bytes, 2, &doubled)) {
    status = bufio_reader_grow(reader, from, doubled);
  }
  if (status == 0) {
    return 0;
  }
  if (from != reader->memory) {
    relocate(reader, from, reader->memory);
  }
  return reader->end != bufio_reader_memory_end(reader) ? 0 : status;
}

// read(2) until it says something final.
int64_t bufio_reader_read_some(bufio_reader_t *reader, unsigned char *bytes,
                               size_t len) {
  if (reader->paired != NULL) {
    (void)bufio_writer_flush(reader->paired);
  }
  for (;;) {
    int64_t count = bufio_system->read(reader->descriptor, bytes, len);
    if (count == -EINTR) {
      continue;
    }
    if (count == -EAGAIN && !reader->return_would_block) {
      int status = bufio_system->wait(reader->descriptor, POLLIN);
      if (status < 0 && status != -EINTR) {
        return status;
      }
      continue;
    }
    // More than was asked for would be a lie.
    return count > (int64_t)len ? -EIO : count;
  }
}

// Makes at least one more byte available: 1, 0 at the end, or -errno.
int bufio_reader_fill(bufio_reader_t *reader) {
  if (reader->memory == NULL) {
    return reader->error = -EBADF;
  }
  int status = make_room(reader);
  if (status < 0) {
    return reader->error = status;
  }
  size_t room = (size_t)(bufio_reader_memory_end(reader) - reader->end);
  unsigned char *target =
      reader->memory + (size_t)(reader->end - reader->memory);
  int64_t count = bufio_reader_read_some(reader, target, room);
  reader->error = count < 0 ? (int)count : 0;
  if (count <= 0) {
    return (int)count;
  }
  reader->end += count;
  reader->end_position += (uint64_t)count;
  return 1;
}

static int init(bufio_reader_t *reader, const bufio_reader_options_t *options) {
  static const bufio_reader_options_t defaults;
  options = options != NULL ? options : &defaults;
  memset(reader, 0, offsetof(bufio_reader_t, index));
  reader->line_next = reader->index;
  reader->line_stop = reader->index;
  reader->descriptor = -1;
  reader->delimiter = options->use_delimiter ? options->delimiter : '\n';
  reader->strip_cr = options->strip_cr;
  reader->count_lines = options->count_lines;
  reader->return_would_block = options->return_would_block;
  reader->max_bytes = options->max_bytes != 0 ? options->max_bytes : SIZE_MAX;
  if (options->memory != NULL) {
    if (options->memory_bytes < BUFIO_READER_MEMORY_MIN) {
      return -EINVAL;
    }
    reader->memory = options->memory;
    reader->memory_bytes = options->memory_bytes;
    reader->headroom_bytes =
        options->memory_bytes / 4 < BUFIO_READER_HEADROOM_BYTES
            ? options->memory_bytes / 4
            : BUFIO_READER_HEADROOM_BYTES;
  } else {
    size_t bytes =
        options->buffer_bytes != 0 ? options->buffer_bytes : BUFIO_READER_BYTES;
    if (__builtin_add_overflow(bytes, BUFIO_READER_HEADROOM_BYTES, &bytes)) {
      return -EINVAL;
    }
    int status = 0;
    reader->memory = allocate(bytes, &status);
    if (reader->memory == NULL) {
      return status;
    }
    reader->owns_memory = true;
    reader->memory_bytes = bytes;
    reader->headroom_bytes = BUFIO_READER_HEADROOM_BYTES;
  }
  bufio_reader_empty(reader);
  return 0;
}

static void deinit(bufio_reader_t *reader) {
  if (reader->owns_memory) {
    (void)bufio_system->unmap(reader->memory, reader->memory_bytes);
  }
  memset(reader, 0, offsetof(bufio_reader_t, index));
  reader->descriptor = -1;
}

int bufio_reader_attach(bufio_reader_t *reader, int descriptor,
                        const bufio_reader_options_t *options) {
  if (descriptor < 0) {
    return -EBADF;
  }
  int status = init(reader, options);
  if (status < 0) {
    return status;
  }
  int64_t position = bufio_system->seek(descriptor, 0, SEEK_CUR);
  if (position == -EBADF) {
    deinit(reader);
    return -EBADF;
  }
  // What cannot seek counts from here.
  reader->end_position = position < 0 ? 0 : (uint64_t)position;
  reader->lines_unknown = reader->end_position != 0;
  reader->descriptor = descriptor;
  return 0;
}

int bufio_reader_open(bufio_reader_t *reader, const char *path,
                      const bufio_reader_options_t *options) {
  int status = init(reader, options);
  if (status < 0) {
    return status;
  }
  int descriptor = bufio_io_open(path, O_RDONLY, 0);
  if (descriptor < 0) {
    deinit(reader);
    return descriptor;
  }
  reader->descriptor = descriptor;
  reader->owns_descriptor = true;
  return 0;
}

void bufio_reader_close(bufio_reader_t *reader) {
  if (reader == NULL || reader->memory == NULL) {
    return;
  }
  if (reader->owns_descriptor) {
    (void)bufio_system->close(reader->descriptor);
  } else if (reader->cursor != reader->end) {
    (void)bufio_system->seek(
        reader->descriptor, -(int64_t)(reader->end - reader->cursor), SEEK_CUR);
  }
  deinit(reader);
}

void bufio_reader_pair(bufio_reader_t *reader, struct bufio_writer *writer) {
  reader->paired = writer;
}

int bufio_reader_peek_slow(bufio_reader_t *reader, size_t len) {
  while ((size_t)(reader->end - reader->cursor) < len) {
    int status = bufio_reader_fill(reader);
    if (status <= 0) {
      return status;
    }
  }
  return 1;
}

const char *bufio_reader_check(const bufio_reader_t *reader) {
  if (reader->memory == NULL) {
    return reader->cursor == NULL && reader->end == NULL
               ? NULL
               : "a closed reader has a buffer";
  }
  if (reader->start < reader->memory || reader->cursor < reader->start ||
      reader->end < reader->cursor ||
      reader->end > bufio_reader_memory_end(reader)) {
    return "memory <= start <= cursor <= end <= memory's end";
  }
  if ((uint64_t)(reader->end - reader->cursor) > reader->end_position) {
    return "more is buffered than was read";
  }
  const unsigned char *last = NULL;
  for (const uint32_t *i = reader->line_next; i != reader->line_stop; i++) {
    const unsigned char *place = reader->line_base + *i;
    if ((last != NULL && place <= last) || place >= reader->indexed ||
        *place != reader->delimiter) {
      return "the index is of line ends, in order";
    }
    last = place;
  }
  if (reader->line_next != reader->line_stop &&
      reader->indexed > reader->cursor) {
    size_t real = bufio_scan_count(reader->cursor,
                                   (size_t)(reader->indexed - reader->cursor),
                                   reader->delimiter);
    size_t known = 0;
    for (const uint32_t *i = reader->line_next; i != reader->line_stop; i++) {
      known += reader->line_base + *i >= reader->cursor;
    }
    if (real != known) {
      return "every line end ahead that was looked for is in the index";
    }
  }
  return NULL;
}
