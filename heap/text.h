// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// Text built in a buffer of the caller's: what malloc and an exit handler can
// use instead of stdio.

#ifndef MY_ALLOC_HEAP_TEXT_H_
#define MY_ALLOC_HEAP_TEXT_H_

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct heap_text {
  char *buffer;
  size_t capacity;
  size_t length;  // Of the whole text; what is beyond capacity is not stored.
} heap_text_t;

void heap_text_add(heap_text_t *text, const char *string);
void heap_text_add_decimal(heap_text_t *text, uint64_t value);
void heap_text_add_hex(heap_text_t *text, uint64_t value);

// Writes what is stored, or any bytes, to stderr.
void heap_text_write(const heap_text_t *text);
void heap_text_write_bytes(const char *bytes, size_t length);

#ifdef __cplusplus
}  // extern "C"
#endif

#endif  // MY_ALLOC_HEAP_TEXT_H_
