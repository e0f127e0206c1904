// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

#include "heap/size_class.h"

#include <cstddef>
#include <cstdint>

#include "gtest/gtest.h"
#include "heap/page_table.h"
#include "heap/span.h"

namespace {

size_t SpanBytes(const heap_class_info_t &info) {
  const auto shape =
      static_cast<size_t>(&info - heap_class_info) / HEAP_CLASS_COUNT;
  return static_cast<size_t>(info.page_count) * (HEAP_PAGE_BYTES >> shape);
}

TEST(SizeClassTest, ClassesAscendFromAQuantumToTheLargestSmallBlock) {
  EXPECT_EQ(heap_class_info[0].size_bytes,
            static_cast<uint32_t>(HEAP_CLASS_QUANTUM_BYTES));
  for (size_t i = 1; i < HEAP_CLASS_COUNT; ++i) {
    EXPECT_LT(heap_class_info[i - 1].size_bytes, heap_class_info[i].size_bytes);
    EXPECT_EQ(heap_class_info[i].size_bytes % HEAP_CLASS_QUANTUM_BYTES, 0u);
  }
  EXPECT_EQ(heap_class_info[HEAP_CLASS_COUNT - 1].size_bytes,
            static_cast<uint32_t>(HEAP_SMALL_MAX_BYTES));
  EXPECT_EQ(heap_class_info[HEAP_TABLE_CLASS_COUNT - 1].size_bytes,
            static_cast<uint32_t>(HEAP_TABLE_MAX_BYTES));
}

TEST(SizeClassTest, EverySizeGetsTheSmallestClassThatHoldsIt) {
  size_t want = 0;
  for (size_t size = 0; size <= HEAP_SMALL_MAX_BYTES; ++size) {
    want += size > heap_class_info[want].size_bytes;
    ASSERT_EQ(heap_class_of_size(size), want) << "size " << size;
    if (size <= HEAP_TABLE_MAX_BYTES) {
      ASSERT_EQ(heap_bin_offset_lookup(size), want * HEAP_BIN_BYTES)
          << "size " << size;
    }
  }
}

TEST(SizeClassTest, AtMostAnEighthOfABlockAbove128BytesIsLost) {
  for (size_t size = 129; size <= HEAP_SMALL_MAX_BYTES; ++size) {
    const size_t class_bytes =
        heap_class_info[heap_class_of_size(size)].size_bytes;
    ASSERT_LE((class_bytes - size) * 8, class_bytes) << "size " << size;
  }
}

// A shape's classes are the same; those of which a span would have few blocks
// have none.
TEST(SizeClassTest, ShapesAreScaled) {
  for (size_t shape = 0; shape < HEAP_SHAPE_COUNT; ++shape) {
    for (size_t i = 0; i < HEAP_CLASS_COUNT; ++i) {
      const heap_class_info_t &info = *heap_class_info_in(shape, i);
      EXPECT_EQ(info.size_bytes, heap_class_info[i].size_bytes);
      EXPECT_EQ(info.reciprocal, heap_class_info[i].reciprocal);
      const size_t page_bytes = size_t{HEAP_PAGE_BYTES} >> shape;
      EXPECT_EQ(info.page_count == 0, info.size_bytes > page_bytes / 2);
      EXPECT_EQ(info.page_count == 1, info.size_bytes <= page_bytes / 4);
      EXPECT_LE(info.page_count, 2u);
      EXPECT_EQ(info.block_count >= 4, info.page_count != 0);
    }
  }
}

TEST(SizeClassTest, SpanIsFilledUpToLessThanABlock) {
  for (const heap_class_info_t &info : heap_class_info) {
    if (info.page_count == 0) {
      continue;
    }
    const size_t used_bytes = size_t{info.block_count} * info.size_bytes;
    EXPECT_LE(used_bytes, SpanBytes(info));
    EXPECT_LT(SpanBytes(info) - used_bytes, info.size_bytes);
  }
}

// What a free relies on: every offset into a span is told apart as the start of
// a block, or not, by one multiplication.
TEST(SizeClassTest, ReciprocalDividesEveryOffsetExactly) {
  for (const heap_class_info_t &info : heap_class_info) {
    for (uint64_t offset = 0; offset < SpanBytes(info); ++offset) {
      const uint64_t product = offset * info.reciprocal;
      ASSERT_EQ(product >> 32, offset / info.size_bytes)
          << "size " << info.size_bytes << " offset " << offset;
      ASSERT_EQ(static_cast<uint32_t>(product) < info.reciprocal,
                offset % info.size_bytes == 0)
          << "size " << info.size_bytes << " offset " << offset;
    }
  }
}

// A block that would start in the rest behind the last one has a state, too: a
// byte of padding in the last group.
TEST(SizeClassTest, RestOfASpanHasAState) {
  for (const heap_class_info_t &info : heap_class_info) {
    if (info.page_count == 0) {
      continue;
    }
    const size_t last_index = (SpanBytes(info) - 1) / info.size_bytes;
    const size_t groups =
        (info.block_count + HEAP_GROUP_BLOCKS - 1) / HEAP_GROUP_BLOCKS;
    EXPECT_LT(last_index, groups * HEAP_GROUP_BLOCKS)
        << "size " << info.size_bytes;
  }
}

}  // namespace
