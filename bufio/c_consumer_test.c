// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// A C program that includes the public headers only.

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bufio/async_writer.h"
#include "bufio/bufio_replace.h"
#include "bufio/format.h"
#include "bufio/group_commit.h"
#include "bufio/journal.h"
#include "bufio/locked.h"
#include "bufio/mapped_file.h"
#include "bufio/reader.h"
#include "bufio/ring.h"
#include "bufio/scan.h"
#include "bufio/writer.h"

static char path[4096];

static int fail(const char *what) {
  fprintf(stderr, "c_consumer_test: %s\n", what);
  return 1;
}

static int write_lines(void) {
  bufio_writer_t writer;
  bufio_writer_options_t options = {.durability = BUFIO_DURABILITY_PROCESS};
  if (bufio_writer_open(&writer, path, &options) < 0) {
    return fail("bufio_writer_open");
  }
  for (unsigned i = 0; i < 1000; i++) {
    bufio_writer_puts(&writer, "line ");
    bufio_writer_put_u64(&writer, i);
    bufio_writer_putc(&writer, '\n');
  }
  return bufio_writer_close(&writer) == 0 ? 0 : fail("bufio_writer_close");
}

static int read_lines(void) {
  bufio_reader_t reader;
  if (bufio_reader_open(&reader, path, NULL) < 0) {
    return fail("bufio_reader_open");
  }
  bufio_slice_t line;
  int count = 0;
  while (bufio_reader_next_line(&reader, &line) > 0) {
    char expected[32];
    snprintf(expected, sizeof(expected), "line %d", count);
    if (line.len != strlen(expected) ||
        memcmp(line.data, expected, line.len) != 0) {
      return fail("contents");
    }
    count++;
  }
  bufio_reader_close(&reader);
  return count == 1000 ? 0 : fail("number of lines");
}

static int replace_and_view(void) {
  bufio_replace_t replace;
  if (bufio_replace_open(&replace, path, NULL) < 0) {
    return fail("bufio_replace_open");
  }
  bufio_writer_printf(bufio_replace_writer(&replace), "%s", "replaced");
  if (bufio_replace_commit(&replace) < 0) {
    return fail("bufio_replace_commit");
  }
  bufio_mapped_file_t *file;
  bufio_slice_t view;
  if (bufio_mapped_file_open(path, NULL, &file) < 0 ||
      bufio_mapped_file_view(file, 0, 100, &view) < 0 || view.len != 8 ||
      memcmp(view.data, "replaced", 8) != 0) {
    return fail("bufio_mapped_file_view");
  }
  return bufio_mapped_file_close(file) == 0 ? 0 : fail("bufio_mapped_file");
}

int main(void) {
  const char *folder = getenv("TEST_TMPDIR");
  snprintf(path, sizeof(path), "%s/bufio_c_consumer_test",
           folder != NULL ? folder : "/tmp");
  int status = write_lines();
  status = status != 0 ? status : read_lines();
  status = status != 0 ? status : replace_and_view();
  remove(path);
  return status;
}
