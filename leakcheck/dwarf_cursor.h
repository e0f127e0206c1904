// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// Reading DWARF's variable-length numbers and encoded pointers from memory.
// A cursor never passes its end: reading past it gives 0 and sets `failed`.

#ifndef MY_ALLOC_LEAKCHECK_DWARF_CURSOR_H_
#define MY_ALLOC_LEAKCHECK_DWARF_CURSOR_H_

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

// Pointer encodings (DW_EH_PE_*).
enum {
  DWARF_PE_ABSPTR = 0x00,
  DWARF_PE_UDATA2 = 0x02,
  DWARF_PE_UDATA4 = 0x03,
  DWARF_PE_UDATA8 = 0x04,
  DWARF_PE_SDATA2 = 0x0a,
  DWARF_PE_SDATA4 = 0x0b,
  DWARF_PE_SDATA8 = 0x0c,
  DWARF_PE_PCREL = 0x10,
  DWARF_PE_DATAREL = 0x30,
};

typedef struct cursor {
  const uint8_t *at;
  const uint8_t *end;
  bool failed;  // Ran past the end; every later read gives 0.
} dwarf_cursor_t;

static inline uint64_t dwarf_read_fixed(dwarf_cursor_t *cursor,
                                        size_t num_bytes) {
  uint64_t value = 0;
  if ((size_t)(cursor->end - cursor->at) < num_bytes) {
    cursor->failed = true;
    cursor->at = cursor->end;
    return 0;
  }
  memcpy(&value, cursor->at, num_bytes);  // Little-endian, as x86 is.
  cursor->at += num_bytes;
  return value;
}

static inline uint64_t dwarf_read_uleb(dwarf_cursor_t *cursor) {
  uint64_t value = 0;
  unsigned shift = 0;
  uint64_t byte;
  do {
    byte = dwarf_read_fixed(cursor, 1);
    if (shift < 64) {
      value |= (byte & 0x7f) << shift;
    }
    shift += 7;
  } while ((byte & 0x80) != 0 && !cursor->failed);
  return value;
}

static inline int64_t dwarf_read_sleb(dwarf_cursor_t *cursor) {
  uint64_t value = 0;
  unsigned shift = 0;
  uint64_t byte;
  do {
    byte = dwarf_read_fixed(cursor, 1);
    if (shift < 64) {
      value |= (byte & 0x7f) << shift;
    }
    shift += 7;
  } while ((byte & 0x80) != 0 && !cursor->failed);
  if (shift < 64 && (byte & 0x40) != 0) {
    value |= ~(uint64_t)0 << shift;
  }
  return (int64_t)value;
}

// A number in one of the pointer encodings' formats, without what it is
// relative to.
static inline uint64_t dwarf_read_format(dwarf_cursor_t *cursor,
                                         uint8_t encoding) {
  switch (encoding & 0x0f) {
    case DWARF_PE_ABSPTR:
    case DWARF_PE_UDATA8:
    case DWARF_PE_SDATA8:
      return dwarf_read_fixed(cursor, 8);
    case DWARF_PE_UDATA2:
      return dwarf_read_fixed(cursor, 2);
    case DWARF_PE_UDATA4:
      return dwarf_read_fixed(cursor, 4);
    case DWARF_PE_SDATA2:
      return (uint64_t)(int16_t)dwarf_read_fixed(cursor, 2);
    case DWARF_PE_SDATA4:
      return (uint64_t)(int32_t)dwarf_read_fixed(cursor, 4);
    default:
      cursor->failed = true;
      return 0;
  }
}

static inline uint64_t dwarf_read_pointer(dwarf_cursor_t *cursor,
                                          uint8_t encoding) {
  uintptr_t origin = (uintptr_t)cursor->at;
  uint64_t value = dwarf_read_format(cursor, encoding);
  switch (encoding & 0xf0) {
    case DWARF_PE_ABSPTR:
      return value;
    case DWARF_PE_PCREL:
      return value + origin;
    default:
      cursor->failed = true;
      return 0;
  }
}

static inline dwarf_cursor_t dwarf_read_block(dwarf_cursor_t *cursor,
                                              uint64_t num_bytes) {
  dwarf_cursor_t block = *cursor;
  if (num_bytes > (uint64_t)(cursor->end - cursor->at)) {
    cursor->failed = true;
    num_bytes = (uint64_t)(cursor->end - cursor->at);
  }
  block.end = cursor->at + num_bytes;
  cursor->at = block.end;
  return block;
}

#endif  // MY_ALLOC_LEAKCHECK_DWARF_CURSOR_H_
