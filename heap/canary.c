// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

#include "heap/canary.h"

#define MARK(index) \
  ((0x82 + 2 * (uint64_t)(index)) * UINT64_C(0x0101010101010101))
#define MARKS_4(index) \
  MARK(index), MARK((index) + 1), MARK((index) + 2), MARK((index) + 3)
#define MARKS_16(index)                                       \
  MARKS_4(index), MARKS_4((index) + 4), MARKS_4((index) + 8), \
      MARKS_4((index) + 12)

// Up to 0xfe.
const uint64_t heap_canary_marks[HEAP_MARK_COUNT] = {
    MARKS_16(0), MARKS_16(16), MARKS_16(32), MARKS_4(48), MARKS_4(52),
    MARKS_4(56), MARK(60),     MARK(61),     MARK(62),    MARK(0),
};

const uint8_t heap_canary_window[32] = {
    [16 ... 31] = 0xff,
};

bool heap_canary_are_marks(const void *ptr, size_t count, uint8_t mark) {
  uint64_t word = mark * UINT64_C(0x0101010101010101);
  const heap_chunk_t marks = {word, word};
  const char *bytes = ptr;
  heap_chunk_t wrong = {0};
  size_t at = 0;
  for (; at + sizeof(marks) <= count; at += sizeof(marks)) {
    wrong |= *(const heap_chunk_t *)(bytes + at) ^ marks;
  }
  uint64_t rest = wrong[0] | wrong[1];
  for (; at < count; ++at) {
    rest |= (uint8_t)bytes[at] ^ mark;
  }
  return rest == 0;
}
