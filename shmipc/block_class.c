// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// The table of classes. Below 4 KiB four between powers of two; above, each is
// what so many blocks a page make possible. Powers of two are among them, for
// alignment.
//
// Class by size: a table up to 1 KiB, the rest by looking.

#include "shmipc/block_class.h"

#define IN_PAGE(size, count)                                                \
  {                                                                         \
    (size), (count), (uint32_t)((((uint64_t)1 << 32) + (size)-1) / (size)), \
        SHMIPC_PAGE_BYTES - (count) * sizeof(uint32_t)                      \
  }
#define IN_TABLE(size, count) \
  { (size), (count), (uint32_t)((((uint64_t)1 << 32) + (size)-1) / (size)), 0 }

const shmipc_class_t shmipc_classes[SHMIPC_CLASSES] = {
    IN_PAGE(16, 3276),  IN_PAGE(32, 1820),  IN_PAGE(48, 1260),
    IN_PAGE(64, 963),   IN_PAGE(80, 780),   IN_PAGE(96, 655),
    IN_PAGE(112, 564),  IN_PAGE(128, 496),  IN_PAGE(160, 399),
    IN_PAGE(192, 334),  IN_PAGE(224, 287),  IN_PAGE(256, 252),
    IN_PAGE(320, 202),  IN_PAGE(384, 168),  IN_PAGE(448, 144),
    IN_PAGE(512, 127),  IN_PAGE(640, 101),  IN_PAGE(768, 84),
    IN_PAGE(896, 72),   IN_PAGE(1024, 63),  IN_PAGE(1280, 51),
    IN_PAGE(1536, 42),  IN_PAGE(1792, 36),  IN_PAGE(2048, 31),
    IN_PAGE(2560, 25),  IN_PAGE(3072, 21),  IN_PAGE(3584, 18),
    IN_TABLE(4096, 16), IN_TABLE(4672, 14), IN_TABLE(5456, 12),
    IN_TABLE(5952, 11), IN_TABLE(6544, 10), IN_TABLE(7280, 9),
    IN_TABLE(8192, 8),  IN_TABLE(9360, 7),  IN_TABLE(10912, 6),
    IN_TABLE(13104, 5), IN_TABLE(16384, 4), IN_TABLE(21840, 3),
    IN_TABLE(32768, 2),
};

const uint8_t shmipc_class_table[SHMIPC_CLASS_TABLE_MAX / 16 + 1] = {
    0,  0,  1,  2,  3,  4,  5,  6,  7,  8,  8,  9,  9,  10, 10, 11, 11,
    12, 12, 12, 12, 13, 13, 13, 13, 14, 14, 14, 14, 15, 15, 15, 15, 16,
    16, 16, 16, 16, 16, 16, 16, 17, 17, 17, 17, 17, 17, 17, 17, 18, 18,
    18, 18, 18, 18, 18, 18, 19, 19, 19, 19, 19, 19, 19, 19,
};

uint32_t shmipc_class_of(size_t size_bytes) {
  if (size_bytes <= SHMIPC_CLASS_TABLE_MAX) {
    return shmipc_class_table[(size_bytes + 15) / 16];
  }
  uint32_t index = shmipc_class_table[SHMIPC_CLASS_TABLE_MAX / 16];
  while (index < SHMIPC_CLASSES &&
         shmipc_classes[index].size_bytes < size_bytes) {
    index++;
  }
  return index;
}

uint32_t shmipc_class_aligned(size_t alignment, size_t size_bytes) {
  uint32_t index = shmipc_class_of(size_bytes);
  while (index < SHMIPC_CLASSES &&
         shmipc_classes[index].size_bytes % alignment != 0) {
    index++;
  }
  return index;
}
