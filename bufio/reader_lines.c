// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// Lines: `bufio_reader_next_line` (inline) pops positions off an index; here
// the index is made.
//
// A window of the buffer is searched at a time (scan.h), small enough that what
// was searched is still in the first-level cache when the caller looks at the
// line. Positions are offsets from `line_base`; those that getc, consume or
// seek have passed are skipped when they come up. `indexed` says how far the
// search has come, so bytes of a long line are searched once however often the
// buffer is refilled.

#include <assert.h>
#include <errno.h>
#include <string.h>

#include "bufio/reader.h"
#include "bufio/scan.h"

// Half of the smallest first-level cache.
#define WINDOW_BYTES ((size_t)16384)

// Searches the next window. There is something to search.
static void index_window(bufio_reader_t *reader) {
  const unsigned char *from =
      reader->indexed > reader->cursor ? reader->indexed : reader->cursor;
  assert(from < reader->end);
  size_t len = (size_t)(reader->end - from);
  size_t scanned = 0;
  size_t count = bufio_scan_index(from, len < WINDOW_BYTES ? len : WINDOW_BYTES,
                                  reader->delimiter, reader->index,
                                  BUFIO_READER_INDEX_COUNT, &scanned);
  reader->line_base = from;
  reader->line_next = reader->index;
  reader->line_stop = reader->index + count;
  reader->indexed = from + scanned;
}

// Drops entries that the cursor has passed; true if one is left.
static bool skip_passed(bufio_reader_t *reader) {
  while (reader->line_next != reader->line_stop &&
         reader->line_base + *reader->line_next < reader->cursor) {
    reader->line_next++;
  }
  return reader->line_next != reader->line_stop;
}

// Delivers [cursor, cursor + len) and moves `skip` bytes further.
static int deliver(bufio_reader_t *reader, size_t len, size_t skip) {
  reader->slow.data = reader->cursor;
  reader->slow.len = len;
  reader->cursor += len + skip;
  reader->is_unterminated = skip == 0;
  return 1;
}

static int deliver_nothing(bufio_reader_t *reader, int status) {
  reader->slow.data = NULL;
  reader->slow.len = 0;
  return status;
}

// The rest of the input, if there is any.
static int deliver_rest(bufio_reader_t *reader) {
  size_t len = (size_t)(reader->end - reader->cursor);
  return len == 0 ? deliver_nothing(reader, 0) : deliver(reader, len, 0);
}

int bufio_reader_next_line_slow(bufio_reader_t *reader) {
  while (!skip_passed(reader)) {
    if (reader->indexed < reader->end && reader->cursor < reader->end) {
      index_window(reader);
      continue;
    }
    int status = bufio_reader_fill(reader);
    if (status <= 0) {
      return status < 0 ? deliver_nothing(reader, status)
                        : deliver_rest(reader);
    }
  }
  const unsigned char *stop = reader->line_base + *reader->line_next++;
  size_t len = (size_t)(stop - reader->cursor);
  size_t skip = 1;
  if (reader->strip_cr != 0 && len != 0 && stop[-1] == '\r') {
    len--;
    skip++;
  }
  return deliver(reader, len, skip);
}

bool bufio_reader_is_unterminated(const bufio_reader_t *reader) {
  return reader->is_unterminated;
}

int bufio_reader_next_until(bufio_reader_t *reader, unsigned char delimiter,
                            bufio_slice_t *out_slice) {
  size_t searched = 0;
  for (;;) {
    size_t len = (size_t)(reader->end - reader->cursor);
    const unsigned char *stop =
        len == searched
            ? NULL
            : memchr(reader->cursor + searched, delimiter, len - searched);
    int status = 1;
    if (stop != NULL) {
      status = deliver(reader, (size_t)(stop - reader->cursor), 1);
    } else {
      searched = len;
      status = bufio_reader_fill(reader);
      if (status > 0) {
        continue;
      }
      status =
          status < 0 ? deliver_nothing(reader, status) : deliver_rest(reader);
    }
    *out_slice = reader->slow;
    return status;
  }
}

int bufio_reader_next_record(bufio_reader_t *reader, size_t len,
                             bufio_slice_t *out_slice) {
  if (len == 0) {
    *out_slice = (bufio_slice_t){NULL, 0};
    return -EINVAL;
  }
  bufio_slice_t view;
  int status = bufio_reader_peek(reader, len, &view);
  if (status < 0) {
    *out_slice = (bufio_slice_t){NULL, 0};
    return status;
  }
  if (status > 0) {
    out_slice->data = view.data;
    out_slice->len = len;
    reader->cursor += len;
    reader->is_unterminated = false;
    return 1;
  }
  status = deliver_rest(reader);
  *out_slice = reader->slow;
  return status;
}

uint64_t bufio_reader_line_number(bufio_reader_t *reader) {
  if (!reader->count_lines || reader->lines_unknown) {
    return 0;
  }
  const unsigned char *from = reader->counted;
  const unsigned char *to = reader->cursor;
  if (from <= to) {
    reader->lines_counted +=
        bufio_scan_count(from, (size_t)(to - from), reader->delimiter);
  } else {
    reader->lines_counted -=
        bufio_scan_count(to, (size_t)(from - to), reader->delimiter);
  }
  reader->counted = to;
  return reader->lines_counted + 1;
}
