// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// One line is built in a buffer on the stack and written by one write(2), so
// that lines of several threads or processes do not mix.

#include "heap/fatal.h"

#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

enum {
  LINE_CAPACITY = 256
};

typedef struct line {
  size_t length;
  char text[LINE_CAPACITY];
} line_t;

static uint64_t misuse_count;  // Atomic, relaxed: a counter only.

static void line_add(line_t *line, const char *text) {
  while (*text != '\0' && line->length < LINE_CAPACITY - 1) {
    line->text[line->length++] = *text++;
  }
}

static void line_add_number(line_t *line, uint64_t value, unsigned base) {
  char digits[24];
  size_t at = sizeof(digits) - 1;
  digits[at] = '\0';
  do {
    digits[--at] = "0123456789abcdef"[value % base];
    value /= base;
  } while (value != 0);
  line_add(line, base == 16 ? "0x" : "");
  line_add(line, digits + at);
}

static void write_all(const char *text, size_t length) {
  while (length > 0) {
    ssize_t written = write(STDERR_FILENO, text, length);
    if (written < 0 && errno == EINTR) {
      continue;
    }
    if (written <= 0) {
      return;  // Nobody listens; there is no second place to say it.
    }
    text += written;
    length -= (size_t)written;
  }
}

_Noreturn void heap_die(const char *message, size_t length) {
  write_all(message, length);
  abort();
}

// Started before libc is set up, the process may have no environment yet.
static bool reports_only(void) {
  const char *value = getenv("HEAP_ON_ERROR");
  return value != NULL && strcmp(value, "report") == 0;
}

static void add_cause(line_t *line, heap_misuse_t misuse) {
  switch (misuse) {
    case HEAP_MISUSE_FOREIGN:
      line_add(line, "invalid pointer (no block of this heap)");
      break;
    case HEAP_MISUSE_INTERIOR:
      line_add(line, "invalid pointer (not the start of its block)");
      break;
    case HEAP_MISUSE_FREED:
      line_add(line, "double free or freed pointer");
      break;
  }
}

void heap_report_misuse(heap_misuse_t misuse, const char *function,
                        const void *ptr, uintptr_t block, size_t block_bytes) {
  int saved_errno = errno;
  line_t line = {0};
  line_add(&line, "heap: ");
  line_add(&line, function);
  line_add(&line, ": ");
  add_cause(&line, misuse);
  line_add(&line, ": ");
  line_add_number(&line, (uintptr_t)ptr, 16);
  if (block_bytes != 0) {
    line_add(&line, ", block ");
    line_add_number(&line, block, 16);
    line_add(&line, " of ");
    line_add_number(&line, block_bytes, 10);
    line_add(&line, " bytes");
  }
  line_add(&line, ", thread ");
  line_add_number(&line, (uint64_t)syscall(SYS_gettid), 10);
  line.text[line.length++] = '\n';
  write_all(line.text, line.length);
  if (!reports_only()) {
    abort();
  }
  __atomic_fetch_add(&misuse_count, 1, __ATOMIC_RELAXED);
  errno = saved_errno;
}

uint64_t heap_misuse_count(void) {
  return __atomic_load_n(&misuse_count, __ATOMIC_RELAXED);
}
