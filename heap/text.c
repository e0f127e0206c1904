// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

#include "heap/text.h"

#include <errno.h>
#include <unistd.h>

void heap_text_add(heap_text_t *text, const char *string) {
  for (; *string != '\0'; ++string, ++text->length) {
    if (text->length < text->capacity) {
      text->buffer[text->length] = *string;
    }
  }
}

static void add_number(heap_text_t *text, uint64_t value, unsigned base) {
  char digits[24];
  size_t at = sizeof(digits) - 1;
  digits[at] = '\0';
  do {
    digits[--at] = "0123456789abcdef"[value % base];
    value /= base;
  } while (value != 0);
  heap_text_add(text, digits + at);
}

void heap_text_add_decimal(heap_text_t *text, uint64_t value) {
  add_number(text, value, 10);
}

void heap_text_add_hex(heap_text_t *text, uint64_t value) {
  heap_text_add(text, "0x");
  add_number(text, value, 16);
}

void heap_text_write_bytes(const char *bytes, size_t length) {
  while (length > 0) {
    ssize_t written = write(STDERR_FILENO, bytes, length);
    if (written < 0 && errno == EINTR) {
      continue;
    }
    if (written <= 0) {
      return;  // Nobody listens; there is no second place to say it.
    }
    bytes += written;
    length -= (size_t)written;
  }
}

void heap_text_write(const heap_text_t *text) {
  heap_text_write_bytes(text->buffer, text->length < text->capacity
                                          ? text->length
                                          : text->capacity);
}
