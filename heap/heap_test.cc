// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// The contract of heap.h. What the kernel refuses is in heap_failure_test, bad
// pointers in heap_misuse_test, several threads in heap_threads_test, what
// needs a heap that nobody used before in heap_stats_test.

#include "heap/heap.h"

#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <set>
#include <vector>

#include "gtest/gtest.h"
#include "heap/heap_model.h"
#include "heap/heap_testing.h"
#include "heap/mapped.h"
#include "heap/size_class.h"

namespace {

using heap_testing::EdgeSizes;
using heap_testing::Fill;
using heap_testing::HeapModel;
using heap_testing::IsFilled;
using heap_testing::IsZero;
using heap_testing::Random;

// One of each kind of block: small, small in a span of two pages, medium,
// mapped.
constexpr size_t kKinds[] = {100, HEAP_SMALL_MAX_BYTES, 200 << 10, 5 << 20};

// Sizes above what any object may have. Not constants, which the compiler
// would warn of.
std::vector<size_t> ImpossibleSizes() {
  return {size_t{PTRDIFF_MAX} + 1, size_t{PTRDIFF_MAX} + 4096, SIZE_MAX - 65536,
          SIZE_MAX - 1, SIZE_MAX};
}

bool IsAligned(const void *ptr, size_t align_bytes) {
  return reinterpret_cast<uintptr_t>(ptr) % align_bytes == 0;
}

class HeapTest : public testing::Test {
 protected:
  void TearDown() override {
    EXPECT_STREQ(heap_check(), nullptr);
  }
};

// heap_free

TEST_F(HeapTest, FreeOfNullDoesNothing) {
  errno = EDOM;
  heap_free(nullptr);
  EXPECT_EQ(errno, EDOM);
}

TEST_F(HeapTest, FreePreservesErrno) {
  for (size_t size : EdgeSizes()) {
    void *ptr = heap_alloc(size);
    errno = EDOM;
    heap_free(ptr);
    EXPECT_EQ(errno, EDOM) << "size " << size;
  }
}

// heap_alloc

TEST_F(HeapTest, AllocReturnsAnAlignedWritableBlockOfEachSize) {
  std::vector<void *> blocks;
  for (size_t size : EdgeSizes()) {
    void *ptr = heap_alloc(size);
    ASSERT_NE(ptr, nullptr) << "size " << size;
    EXPECT_TRUE(IsAligned(ptr, HEAP_MIN_ALIGN_BYTES));
    EXPECT_GE(heap_usable_size(ptr), size);
    memset(ptr, 0x5A, heap_usable_size(ptr));
    blocks.push_back(ptr);
  }
  EXPECT_STREQ(heap_check(), nullptr);
  for (void *ptr : blocks) {
    heap_free(ptr);
  }
}

TEST_F(HeapTest, BlocksOfSizeZeroAreDistinct) {
  std::set<void *> blocks;
  for (int i = 0; i < 1000; ++i) {
    EXPECT_TRUE(blocks.insert(heap_alloc(0)).second);
  }
  for (void *ptr : blocks) {
    heap_free(ptr);
  }
}

TEST_F(HeapTest, AllocOfImpossibleSizeIsEnomem) {
  for (size_t size : ImpossibleSizes()) {
    errno = 0;
    EXPECT_EQ(heap_alloc(size), nullptr);
    EXPECT_EQ(errno, ENOMEM);
  }
}

TEST_F(HeapTest, AllocOfMoreThanTheAddressSpaceIsEnomem) {
  for (unsigned log2 = 48; log2 < 63; ++log2) {
    errno = 0;
    EXPECT_EQ(heap_alloc(size_t{1} << log2), nullptr);
    EXPECT_EQ(errno, ENOMEM);
  }
  errno = 0;
  EXPECT_EQ(heap_alloc(PTRDIFF_MAX), nullptr);
  EXPECT_EQ(errno, ENOMEM);
}

TEST_F(HeapTest, BlockFreedLastIsHandedOutFirst) {
  for (size_t size : {size_t{1}, size_t{64}, size_t{5000}, size_t{30000}}) {
    void *ptr = heap_alloc(size);
    heap_free(ptr);
    void *again = heap_alloc(size);
    EXPECT_EQ(again, ptr);
    heap_free(again);
  }
}

// heap_calloc

TEST_F(HeapTest, CallocIsZeroWhereverTheMemoryWasBefore) {
  for (int round = 0; round < 3; ++round) {
    for (size_t size : EdgeSizes()) {
      std::vector<void *> blocks;
      for (int i = 0; i < 3; ++i) {
        void *ptr = heap_calloc(1, size);
        ASSERT_NE(ptr, nullptr);
        EXPECT_TRUE(IsZero(ptr, size)) << "size " << size;
        memset(ptr, 0xEE, heap_usable_size(ptr));
        blocks.push_back(ptr);
      }
      for (void *ptr : blocks) {
        heap_free(ptr);
      }
    }
  }
}

TEST_F(HeapTest, CallocIsZeroAfterBlocksOfOtherSizesWereThere) {
  Random random(heap_testing::Seed());
  std::vector<void *> blocks(200);
  for (int i = 0; i < 20000; ++i) {
    void *&block = blocks[random.Below(blocks.size())];
    heap_free(block);
    const size_t size = random.SkewedSize(random.OneIn(50) ? 23 : 16);
    if (random.OneIn(2)) {
      block = heap_calloc(1, size);
      ASSERT_TRUE(IsZero(block, size)) << "size " << size;
    } else {
      block = heap_alloc(size);
    }
    Fill(block, heap_usable_size(block), 0xFF);
  }
  for (void *ptr : blocks) {
    heap_free(ptr);
  }
}

TEST_F(HeapTest, CallocMultipliesItsArguments) {
  void *ptr = heap_calloc(3, 1000);
  EXPECT_GE(heap_usable_size(ptr), 3000u);
  EXPECT_TRUE(IsZero(ptr, 3000));
  heap_free(ptr);
  for (size_t other : {size_t{0}, size_t{1}, SIZE_MAX}) {
    void *empty = heap_calloc(0, other);
    EXPECT_NE(empty, nullptr);
    heap_free(empty);
    empty = heap_calloc(other, 0);
    EXPECT_NE(empty, nullptr);
    heap_free(empty);
  }
}

TEST_F(HeapTest, CallocWhoseProductOverflowsIsEnomem) {
  const size_t half = size_t{1} << 32;
  const struct {
    size_t count;
    size_t size;
  } cases[] = {{half, half},          {SIZE_MAX, 2},
               {2, SIZE_MAX},         {SIZE_MAX, SIZE_MAX},
               {SIZE_MAX / 2 + 1, 2}, {half + 1, half - 1},
               {PTRDIFF_MAX, 2}};
  for (const auto &c : cases) {
    errno = 0;
    EXPECT_EQ(heap_calloc(c.count, c.size), nullptr)
        << c.count << " of " << c.size;
    EXPECT_EQ(errno, ENOMEM);
  }
}

// heap_aligned_alloc

TEST_F(HeapTest, AlignedAllocKeepsEveryPowerOfTwo) {
  for (size_t align = 1; align <= 64 << 20; align *= 2) {
    for (size_t size : {size_t{0}, size_t{1}, size_t{17}, size_t{4000},
                        size_t{8192}, size_t{32768}, size_t{32769},
                        size_t{65536}, size_t{1000000}, size_t{5000000}}) {
      void *first = heap_aligned_alloc(align, size);
      void *second = heap_aligned_alloc(align, size);
      ASSERT_NE(second, nullptr) << align << ", " << size;
      EXPECT_TRUE(IsAligned(first, align)) << align << ", " << size;
      EXPECT_TRUE(IsAligned(second, align)) << align << ", " << size;
      EXPECT_TRUE(IsAligned(first, HEAP_MIN_ALIGN_BYTES));
      Fill(first, heap_usable_size(first), 1);
      Fill(second, heap_usable_size(second), 2);
      EXPECT_TRUE(IsFilled(first, size, heap_usable_size(first), 1));
      EXPECT_GE(heap_usable_size(first), size);
      heap_free(first);
      heap_free(second);
    }
    EXPECT_STREQ(heap_check(), nullptr);
  }
}

TEST_F(HeapTest, AlignedAllocOfWhatIsNoPowerOfTwoIsEinval) {
  for (size_t align : {size_t{0}, size_t{3}, size_t{24}, size_t{4097}, SIZE_MAX,
                       SIZE_MAX - 15, (size_t{1} << 63) + 16}) {
    for (size_t size : {size_t{0}, size_t{100}, SIZE_MAX}) {
      errno = 0;
      EXPECT_EQ(heap_aligned_alloc(align, size), nullptr);
      EXPECT_EQ(errno, EINVAL) << "align " << align;
    }
  }
}

TEST_F(HeapTest, AlignedAllocBeyondTheAddressSpaceIsEnomem) {
  for (unsigned log2 = 48; log2 < 64; ++log2) {
    for (size_t size : {size_t{0}, size_t{1}, size_t{10} << 20, SIZE_MAX}) {
      errno = 0;
      EXPECT_EQ(heap_aligned_alloc(size_t{1} << log2, size), nullptr);
      EXPECT_EQ(errno, ENOMEM) << "2^" << log2 << ", " << size;
    }
  }
  for (size_t size : ImpossibleSizes()) {
    for (size_t align : {size_t{1}, size_t{4096}, size_t{1} << 20}) {
      errno = 0;
      EXPECT_EQ(heap_aligned_alloc(align, size), nullptr);
      EXPECT_EQ(errno, ENOMEM);
    }
  }
}

// An empty block with a mapping of its own still owns its heap page, so that
// the next mapping cannot start in that page.
TEST_F(HeapTest, EmptyBlockOfGreatAlignmentHasAHeapPage) {
  std::vector<void *> blocks;
  for (int i = 0; i < 64; ++i) {
    blocks.push_back(heap_aligned_alloc(128 << 10, 0));
    EXPECT_GE(heap_usable_size(blocks.back()), size_t{HEAP_PAGE_BYTES});
    blocks.push_back(heap_alloc(HEAP_MAPPED_MIN_BYTES));
  }
  for (void *ptr : blocks) {
    heap_free(ptr);
  }
}

// heap_realloc

TEST_F(HeapTest, ReallocOfNullAllocates) {
  for (size_t size : {size_t{0}, size_t{100}, size_t{100000}}) {
    void *ptr = heap_realloc(nullptr, size);
    ASSERT_NE(ptr, nullptr);
    EXPECT_GE(heap_usable_size(ptr), size);
    heap_free(ptr);
  }
  for (size_t size : ImpossibleSizes()) {
    errno = 0;
    EXPECT_EQ(heap_realloc(nullptr, size), nullptr);
    EXPECT_EQ(errno, ENOMEM);
  }
}

TEST_F(HeapTest, ReallocToZeroGivesASmallestBlock) {
  for (size_t size : kKinds) {
    void *ptr = heap_realloc(heap_alloc(size), 0);
    ASSERT_NE(ptr, nullptr);
    EXPECT_LE(heap_usable_size(ptr), 64u) << "from " << size;
    heap_free(ptr);
  }
}

// From each size at an edge to each other: small, medium and mapped blocks,
// growing and shrinking, in place and not.
TEST_F(HeapTest, ReallocKeepsEveryByteBetweenAllKinds) {
  const size_t sizes[] = {0,
                          1,
                          17,
                          64,
                          65,
                          1000,
                          8192,
                          8193,
                          (32 << 10) - 1,
                          32 << 10,
                          (32 << 10) + 1,
                          65536,
                          100000,
                          1 << 20,
                          (2 << 20) - 1,
                          2 << 20,
                          (2 << 20) + 1,
                          (4 << 20) - 1,
                          4 << 20,
                          (4 << 20) + 1,
                          9 << 20,
                          (32 << 20) - 1,
                          32 << 20};
  uint64_t id = 0;
  for (size_t old_size : sizes) {
    for (size_t new_size : sizes) {
      void *ptr = heap_alloc(old_size);
      const size_t old_usable = heap_usable_size(ptr);
      Fill(ptr, old_usable, ++id);
      void *moved = heap_realloc(ptr, new_size);
      ASSERT_NE(moved, nullptr) << old_size << " to " << new_size;
      EXPECT_GE(heap_usable_size(moved), new_size);
      ASSERT_TRUE(IsFilled(moved, new_size, old_usable, id))
          << old_size << " to " << new_size;
      memset(
          moved, 1,
          heap_usable_size(moved) < 100000 ? heap_usable_size(moved) : 100000);
      heap_free(moved);
    }
  }
}

TEST_F(HeapTest, ReallocOfAlignedBlocksKeepsEveryByte) {
  uint64_t id = 0;
  for (size_t align = 16; align <= 16 << 20; align *= 8) {
    for (size_t old_size : kKinds) {
      for (size_t new_size : kKinds) {
        void *ptr = heap_aligned_alloc(align, old_size);
        const size_t old_usable = heap_usable_size(ptr);
        Fill(ptr, old_usable, ++id);
        void *moved = heap_realloc(ptr, new_size);
        ASSERT_TRUE(IsFilled(moved, new_size, old_usable, id))
            << "align " << align << ", " << old_size << " to " << new_size;
        Fill(moved, heap_usable_size(moved), ++id);
        heap_free(moved);
      }
    }
  }
}

TEST_F(HeapTest, ReallocThatFitsStaysInPlace) {
  for (size_t size : kKinds) {
    void *ptr = heap_alloc(size);
    EXPECT_EQ(heap_realloc(ptr, heap_usable_size(ptr)), ptr);
    EXPECT_EQ(heap_realloc(ptr, size), ptr);
    EXPECT_EQ(heap_realloc(ptr, size - size / 4), ptr) << "size " << size;
    heap_free(ptr);
  }
}

TEST_F(HeapTest, BigBlockGrowsWithoutBeingCopied) {
  // Only the first page is touched: a copy of 1 GiB would be noticed by the
  // memory it takes.
  auto *ptr = static_cast<char *>(heap_alloc(size_t{1} << 29));
  ASSERT_NE(ptr, nullptr);
  ptr[0] = 42;
  ptr = static_cast<char *>(heap_realloc(ptr, size_t{1} << 30));
  ASSERT_NE(ptr, nullptr);
  EXPECT_EQ(ptr[0], 42);
  heap_free(ptr);
}

TEST_F(HeapTest, ReallocToImpossibleSizeLeavesTheBlock) {
  for (size_t size : kKinds) {
    void *ptr = heap_alloc(size);
    const size_t usable = heap_usable_size(ptr);
    Fill(ptr, usable, 7);
    for (size_t impossible : ImpossibleSizes()) {
      errno = 0;
      EXPECT_EQ(heap_realloc(ptr, impossible), nullptr);
      EXPECT_EQ(errno, ENOMEM);
    }
    errno = 0;
    EXPECT_EQ(heap_realloc(ptr, size_t{1} << 60), nullptr);
    EXPECT_EQ(errno, ENOMEM);
    EXPECT_EQ(heap_usable_size(ptr), usable);
    EXPECT_TRUE(IsFilled(ptr, usable, usable, 7));
    heap_free(ptr);
  }
}

// heap_usable_size

TEST_F(HeapTest, UsableSizeOfNullIsZero) {
  EXPECT_EQ(heap_usable_size(nullptr), 0u);
}

TEST_F(HeapTest, UsableSizeIsTightForEachKind) {
  for (size_t size : EdgeSizes()) {
    void *ptr = heap_alloc(size);
    const size_t usable = heap_usable_size(ptr);
    EXPECT_LE(usable, size + size / 8 + HEAP_PAGE_BYTES) << "size " << size;
    if (size > 128 && size < HEAP_MAPPED_MIN_BYTES) {
      EXPECT_LT((usable - size) * 8, usable) << "size " << size;
    }
    heap_free(ptr);
  }
}

// Model: random operations over all entry points.

class HeapModelTest : public HeapTest {
 protected:
  // `wanted` live blocks below 2^`max_log2` bytes, the whole heap checked every
  // `check_period` steps.
  static void Run(uint64_t seed, int steps, size_t wanted, unsigned max_log2,
                  int check_period) {
    Random random(seed);
    HeapModel model(256 << 20);
    for (int step = 0; step < steps; ++step) {
      Step(&random, &model, wanted, max_log2);
      if (step % check_period == 0) {
        model.Check();
      }
    }
    model.Check();
  }

 private:
  static void Step(Random *random, HeapModel *model, size_t wanted,
                   unsigned max_log2) {
    const size_t index = random->Next();
    const size_t size = random->SkewedSize(max_log2);
    const bool grow = random->Below(wanted * 2) >= model->live_count();
    switch (random->Below(8)) {
      case 0:
        model->Calloc(1 + random->Below(8), size / 8);
        break;
      case 1:
        model->AlignedAlloc(size_t{1} << random->Below(18), size);
        break;
      case 2:
        model->Realloc(index, size);
        break;
      case 3:
        model->UsableSize(index);
        break;
      default:
        if (grow) {
          model->Alloc(size);
        } else {
          model->Free(index);
        }
    }
  }
};

TEST_F(HeapModelTest, SmallHeapsAgreeAfterEveryStep) {
  const uint64_t seed = heap_testing::Seed();
  Run(seed, 2000, 50, 12, 1);
  Run(seed + 1, 2000, 200, 15, 1);
  Run(seed + 2, 500, 30, 20, 1);
  Run(seed + 3, 300, 20, 23, 1);
}

TEST_F(HeapModelTest, BigHeapsAgree) {
  const uint64_t seed = heap_testing::Seed();
  Run(seed, 200000, 2000, 10, 20000);
  Run(seed + 1, 50000, 1000, 17, 5000);
  Run(seed + 2, 5000, 300, 23, 1000);
}

}  // namespace
