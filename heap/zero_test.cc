// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

#include "heap/zero.h"

#include <cstddef>
#include <cstring>
#include <memory>
#include <new>

#include "gtest/gtest.h"

namespace {

// By how many bytes a look goes at once, at most: what a processor may have.
class ZeroTest : public testing::TestWithParam<size_t> {
 protected:
  void SetUp() override {
    heap_zero_start(GetParam());
  }
};

INSTANTIATE_TEST_SUITE_P(All, ZeroTest, testing::Values(8, 32, 64));

struct Freed {
  void operator()(char *ptr) const {
    ::operator delete (ptr, std::align_val_t{4096});
  }
};
using Memory = std::unique_ptr<char, Freed>;

// Exactly as long, so that a sanitizer sees what is read behind it.
Memory MakeMemory(size_t size_bytes, int value) {
  Memory memory(
      static_cast<char *>(::operator new (size_bytes, std::align_val_t{4096})));
  memset(memory.get(), value, size_bytes);
  return memory;
}

// Where the byte is looked for: all places of what is short.
size_t StepOf(size_t size_bytes) {
  return size_bytes <= 2048 ? 1 : 61;
}

TEST_P(ZeroTest, LookFindsAByteAnywhere) {
  for (size_t size = 16; size <= 9000; size += size < 1200 ? 16 : 1360) {
    const Memory memory = MakeMemory(size, 0);
    char *bytes = memory.get();
    ASSERT_TRUE(heap_is_zero(bytes, size)) << size;
    for (size_t at = 0; at < size; at += StepOf(size)) {
      bytes[at] = 1;
      ASSERT_FALSE(heap_is_zero(bytes, size)) << at << " of " << size;
      bytes[at] = 0;
    }
    bytes[size - 1] = 1;
    ASSERT_FALSE(heap_is_zero(bytes, size)) << size;
  }
}

TEST_P(ZeroTest, LookReadsNothingBeyond) {
  for (size_t size = 16; size <= 2048; size += 16) {
    const Memory memory = MakeMemory(size + 32, 1);
    char *bytes = memory.get() + 16;
    memset(bytes, 0, size);
    ASSERT_TRUE(heap_is_zero(bytes, size)) << size;
  }
}

TEST_P(ZeroTest, SmallBlockIsZeroedAndNothingBeyond) {
  for (size_t size = 16; size <= 4096; size += 16) {
    const Memory memory = MakeMemory(size + 32, 1);
    char *bytes = memory.get() + 16;
    heap_zero_small(bytes, size);
    ASSERT_TRUE(heap_is_zero(bytes, size)) << size;
    ASSERT_EQ(bytes[-1], 1) << size;
    ASSERT_EQ(bytes[size], 1) << size;
  }
}

// Below and above the lengths from which on pages are looked at, and caches
// passed by; with pages that are zero in between, and without.
TEST_P(ZeroTest, LongBlockIsZeroedAndNothingBeyond) {
  for (size_t size : {4096, 100000, 300000, 2 << 20, 4 << 20, 5 << 20}) {
    for (size_t tail : {0, 16, 4080}) {
      for (bool has_gaps : {false, true}) {
        const size_t length = size + tail;
        const Memory memory = MakeMemory(length + 1, 1);
        char *bytes = memory.get();
        for (size_t at = 0; has_gaps && at + 4096 <= length; at += 3 * 4096) {
          memset(bytes + at, 0, 4096);
        }
        heap_zero_pages(bytes, length);
        ASSERT_TRUE(heap_is_zero_long(bytes, length & ~size_t{15})) << length;
        ASSERT_EQ(bytes[length - 1], 0) << length;
        ASSERT_EQ(bytes[length], 1) << length;
      }
    }
  }
}

}  // namespace
