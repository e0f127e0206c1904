// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// What is special about segregated private heaps: which classes and pages they
// have in how much memory, what goes back when, and what a block that is
// resized becomes.

#include "heap/segregated.h"

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "heap/fake_kernel.h"
#include "heap/heap_testing.h"
#include "heap/kernel.h"
#include "heap/private_heap.h"
#include "heap/private_heap_testing.h"

namespace {

using heap_testing::Create;
using heap_testing::fake;
using heap_testing::Fill;
using heap_testing::Heap;
using heap_testing::IsFilled;
using heap_testing::IsZero;
using heap_testing::Random;
using heap_testing::RunInChild;
using heap_testing::Stats;
using heap_testing::UseFakeKernel;

heap_options_t Options(size_t limit_bytes = 0) {
  heap_options_t options = heap_testing::Options(HEAP_SEGREGATED);
  options.limit_bytes = limit_bytes;
  return options;
}

heap_options_t InBuffer(std::vector<unsigned char> *memory) {
  heap_options_t options = Options();
  options.buffer = memory->data();
  options.buffer_bytes = memory->size();
  return options;
}

// Lengths.

TEST(SegregatedTest, PagesAreAPartOfTheHeap) {
  EXPECT_EQ(heap_segregated_span_bytes(0), 1024u);
  EXPECT_EQ(heap_segregated_span_bytes(size_t{512} << 10), 2048u);
  EXPECT_EQ(heap_segregated_span_bytes((size_t{1} << 20) - 1), 2048u);
  EXPECT_EQ(heap_segregated_span_bytes(size_t{1} << 20), 4096u);
  EXPECT_EQ(heap_segregated_span_bytes(size_t{16} << 20), 65536u);
  EXPECT_EQ(heap_segregated_span_bytes(SIZE_MAX), 65536u);
  EXPECT_EQ(Create(Options())->segregated->page_shift, 16u);
  EXPECT_EQ(Create(Options(65536))->segregated->page_shift, 10u);
  heap_options_t options = Options();
  options.span_bytes = 2048;
  EXPECT_EQ(Create(options)->segregated->page_shift, 11u);
}

// Bins and descriptors are lines of the cache, wherever the buffer starts.
TEST(SegregatedTest, TablesAreAlignedInAnyBuffer) {
  std::vector<unsigned char> memory(70000);
  for (size_t offset = 0; offset < 64; ++offset) {
    heap_options_t options = InBuffer(&memory);
    options.buffer = memory.data() + offset;
    options.buffer_bytes = 65536;
    const Heap heap = Create(options);
    const heap_segregated_t *own = heap->segregated;
    EXPECT_EQ(reinterpret_cast<uintptr_t>(own->bins) % 64, 0u);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(own->pages) % 64, 0u);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(own->states[0]) % 64, 0u);
    EXPECT_GE(heap->base, reinterpret_cast<uintptr_t>(own->map.tags +
                                                      own->map.tag_capacity));
  }
}

// Of 64 KiB three quarters are for blocks; half of all, where each class that
// there is has a page that is not full.
TEST(SegregatedTest, SmallBufferIsUseful) {
  std::vector<unsigned char> memory(65536);
  const Heap heap = Create(InBuffer(&memory));
  EXPECT_GE(Stats(heap).mapped_bytes, memory.size() * 3 / 4);
  size_t total = 0;
  std::vector<void *> blocks;
  while (total < memory.size() / 2) {
    const size_t size = 16 + blocks.size() * 16 % 512;
    blocks.push_back(heap_alloc_in(heap.get(), size));
    ASSERT_NE(blocks.back(), nullptr) << total;
    Fill(blocks.back(), size, blocks.size());
    total += size;
  }
  EXPECT_STREQ(heap_check_in(heap.get()), nullptr);
  for (void *ptr : blocks) {
    heap_free_in(heap.get(), ptr);
  }
  EXPECT_EQ(Stats(heap).num_live, 0u);
}

// Each class, in each shape: blocks of that length at multiples of it, states
// that no other span has.
TEST(SegregatedTest, EachClassInEachShape) {
  for (size_t span = 1024; span <= 65536; span *= 2) {
    heap_options_t options = Options(size_t{32} << 20);
    options.span_bytes = span;
    const Heap heap = Create(options);
    std::vector<std::pair<unsigned char *, size_t>> blocks;
    for (size_t i = 0; i < HEAP_CLASS_COUNT; ++i) {
      const size_t size = heap_class_info[i].size_bytes;
      for (int n = 0; n < 70; ++n) {
        auto *ptr =
            static_cast<unsigned char *>(heap_alloc_in(heap.get(), size));
        ASSERT_NE(ptr, nullptr);
        if (size <= span / 2) {
          EXPECT_EQ(heap_usable_size_in(heap.get(), ptr), size);
        }
        Fill(ptr, size, blocks.size());
        blocks.emplace_back(ptr, size);
      }
      ASSERT_STREQ(heap_check_in(heap.get()), nullptr) << span << " " << size;
    }
    for (size_t i = 0; i < blocks.size(); ++i) {
      EXPECT_TRUE(
          IsFilled(blocks[i].first, blocks[i].second, blocks[i].second, i));
      heap_free_in(heap.get(), blocks[i].first);
    }
    EXPECT_STREQ(heap_check_in(heap.get()), nullptr);
    heap_trim_in(heap.get());
    EXPECT_EQ(Stats(heap).num_free, 1u);
  }
}

// A byte a block is touched, not more than a few times that.
TEST(SegregatedTest, StatesAreDense) {
  for (const size_t size : {16, 32, 64, 256, 1024}) {
    const Heap heap = Create(Options());
    const heap_segregated_t *own = heap->segregated;
    const size_t kBytes = size_t{8} << 20;
    for (size_t i = 0; i < kBytes / size; ++i) {
      ASSERT_NE(heap_alloc_in(heap.get(), size), nullptr);
    }
    // How much of each area there is: heap->count is in 16 bytes.
    const size_t shares[] = {1, 2, 4, 16};
    size_t states = 0;
    for (size_t area = 0; area < 4; ++area) {
      const uint8_t *start = own->states[area];
      const size_t length = heap->count / shares[area];
      for (size_t i = 0; i < length; i += 4096) {
        const size_t end = std::min(length, i + 4096);
        const bool is_used = std::any_of(
            start + i, start + end, [](uint8_t state) { return state != 0; });
        states += is_used ? end - i : 0;
      }
    }
    const size_t blocks = kBytes / size;
    EXPECT_LE(states, blocks + blocks / 2 + 32768) << size;
  }
}

// What is given back.

TEST(SegregatedTest, EmptyPagesGoToOtherClasses) {
  const Heap heap = Create(Options(size_t{1} << 20));
  for (size_t size = 16; size <= 4096; size *= 2) {
    std::vector<void *> blocks;
    while (void *ptr = heap_alloc_in(heap.get(), size)) {
      blocks.push_back(ptr);
    }
    EXPECT_GE(blocks.size() * size, (size_t{1} << 20) * 99 / 100) << size;
    EXPECT_STREQ(heap_check_in(heap.get()), nullptr);
    for (void *ptr : blocks) {
      heap_free_in(heap.get(), ptr);
    }
  }
  EXPECT_NE(heap_alloc_in(heap.get(), size_t{1} << 20), nullptr)
      << "what bins hold is given up in need";
}

// Of two pages, too: their blocks are counted together.
TEST(SegregatedTest, EmptySpansAreFreeAtOnce) {
  const Heap heap = Create(Options());
  std::vector<void *> blocks;
  for (int i = 0; i < 400; ++i) {
    blocks.push_back(heap_alloc_in(heap.get(), 20000));
    ASSERT_NE(blocks.back(), nullptr);
  }
  for (void *ptr : blocks) {
    heap_free_in(heap.get(), ptr);
  }
  EXPECT_STREQ(heap_check_in(heap.get()), nullptr);
  EXPECT_GE(Stats(heap).largest_free_bytes, Stats(heap).mapped_bytes * 3 / 4);
}

TEST(SegregatedTest, TrimReachesPagesInsideOfSpans) {
  const Heap heap = Create(Options());
  std::vector<void *> blocks;
  for (int i = 0; i < 64; ++i) {
    blocks.push_back(heap_alloc_in(heap.get(), 1024));
    memset(blocks.back(), 1, 1024);
  }
  // All but the first one: one page of 4 KiB of 16.
  for (size_t i = 1; i < blocks.size(); ++i) {
    heap_free_in(heap.get(), blocks[i]);
  }
  EXPECT_GE(heap_trim_in(heap.get()), 15u * 4096);
  EXPECT_STREQ(heap_check_in(heap.get()), nullptr);
  EXPECT_TRUE(IsFilled(blocks[0], 0, 0, 0));
  EXPECT_EQ(*static_cast<unsigned char *>(blocks[0]), 1);
  for (int i = 0; i < 64; ++i) {
    void *ptr = heap_calloc_in(heap.get(), 1, 1024);
    EXPECT_TRUE(IsZero(ptr, 1024));
  }
}

// What was never used is zero; whatever calloc skips must be.
TEST(SegregatedTest, CallocIsZeroWhereverTheMemoryIsFrom) {
  std::vector<unsigned char> memory(300000, 0xA5);
  for (const heap_options_t &options : {Options(), InBuffer(&memory)}) {
    const Heap heap = Create(options);
    Random random(1);
    for (int round = 0; round < 3; ++round) {
      for (int i = 0; i < 500; ++i) {
        const size_t size = random.SkewedSize(14);
        void *ptr = heap_calloc_in(heap.get(), 1, size);
        if (ptr != nullptr) {
          EXPECT_TRUE(IsZero(ptr, size));
          memset(ptr, 0x5A, size);
        }
        if (i % 3 == 0) {
          heap_free_in(heap.get(), ptr);
        }
      }
      heap_reset(heap.get());
      EXPECT_STREQ(heap_check_in(heap.get()), nullptr);
    }
  }
}

// Blocks lie in two of the kernel's pages, of which trim gives one back.
TEST(SegregatedTest, CallocIsZeroWhereTrimReachedAPartOfABlock) {
  const size_t kBytes = 3000;
  const Heap heap = Create(Options());
  std::vector<void *> blocks;
  for (int i = 0; i < 20; ++i) {
    blocks.push_back(heap_alloc_in(heap.get(), kBytes));
    memset(blocks.back(), 0xA5, kBytes);
  }
  for (size_t i = 1; i + 1 < blocks.size(); ++i) {
    heap_free_in(heap.get(), blocks[i]);
  }
  EXPECT_GE(heap_trim_in(heap.get()), 10u * 4096);
  EXPECT_STREQ(heap_check_in(heap.get()), nullptr);
  for (size_t i = 1; i + 1 < blocks.size(); ++i) {
    EXPECT_TRUE(IsZero(heap_calloc_in(heap.get(), 1, kBytes), kBytes));
  }
}

// A run that grew was used as far as it reached.
TEST(SegregatedTest, CallocIsZeroWhereARunGrewInPlace) {
  const Heap heap = Create(Options());
  void *ptr = heap_alloc_in(heap.get(), 40000);
  ASSERT_EQ(heap_realloc_in(heap.get(), ptr, 60000), ptr);
  memset(ptr, 0xA5, 60000);
  heap_free_in(heap.get(), ptr);
  ASSERT_EQ(heap_alloc_in(heap.get(), 40000), ptr);
  EXPECT_TRUE(IsZero(heap_calloc_in(heap.get(), 1, 33000), 33000));
}

// Without memory for another, a block that shrinks stays what it is.
TEST(SegregatedTest, ShrinkingNeverFails) {
  std::vector<unsigned char> memory(65536);
  const Heap heap = Create(InBuffer(&memory));
  void *large = heap_alloc_in(heap.get(), 8192);
  void *small = heap_alloc_in(heap.get(), 512);
  ASSERT_NE(small, nullptr);
  Fill(large, 8192, 1);
  Fill(small, 512, 2);
  for (size_t size = 8192; size >= 16; size /= 2) {
    while (heap_alloc_in(heap.get(), size) != nullptr) {
    }
  }
  void *shrunk = heap_realloc_in(heap.get(), small, 16);
  EXPECT_EQ(shrunk, small);
  EXPECT_TRUE(IsFilled(shrunk, 16, 512, 2));
  shrunk = heap_realloc_in(heap.get(), large, 100);
  ASSERT_NE(shrunk, nullptr);
  EXPECT_TRUE(IsFilled(shrunk, 100, 8192, 1));
  EXPECT_EQ(heap_realloc_in(heap.get(), shrunk, 60000), nullptr);
  EXPECT_EQ(errno, ENOMEM);
  EXPECT_TRUE(IsFilled(shrunk, 100, 8192, 1));
  EXPECT_STREQ(heap_check_in(heap.get()), nullptr);
}

// Half of the heap is free, but no page is.
TEST(SegregatedTest, SmallBlocksNeedNoWholePage) {
  const Heap heap = Create(Options(size_t{1} << 20));
  ASSERT_NE(heap_alloc_in(heap.get(), 5120), nullptr) << "a unit off the pages";
  std::vector<void *> blocks;
  while (void *ptr = heap_alloc_in(heap.get(), 4096)) {
    blocks.push_back(ptr);
  }
  for (size_t i = 0; i < blocks.size(); i += 2) {
    heap_free_in(heap.get(), blocks[i]);
  }
  ASSERT_GE(Stats(heap).free_bytes, size_t{500} << 10);
  for (size_t count = 0; void *ptr = heap_alloc_in(heap.get(), 16); ++count) {
    Fill(ptr, heap_usable_size_in(heap.get(), ptr), count);
  }
  EXPECT_LT(Stats(heap).free_bytes, 4096u);
  EXPECT_STREQ(heap_check_in(heap.get()), nullptr);
  // What became free is for blocks of any size, in place or not.
  void *ptr = blocks[1];
  heap_free_in(heap.get(), ptr);
  ptr = heap_alloc_in(heap.get(), 2048);
  ASSERT_NE(ptr, nullptr);
  EXPECT_NE(heap_realloc_in(heap.get(), ptr, 4000), nullptr);
  EXPECT_STREQ(heap_check_in(heap.get()), nullptr);
}

// A heap of one page has no room for a span of two.
TEST(SegregatedTest, OnePageServesAllSizes) {
  heap_options_t options = Options(65536);
  options.span_bytes = 65536;
  for (size_t size = 16; size <= 65536; size += 784) {
    const Heap heap = Create(options);
    void *ptr = heap_alloc_in(heap.get(), size);
    ASSERT_NE(ptr, nullptr) << size;
    EXPECT_GE(heap_usable_size_in(heap.get(), ptr), size);
    EXPECT_STREQ(heap_check_in(heap.get()), nullptr);
    heap_free_in(heap.get(), ptr);
    EXPECT_STREQ(heap_check_in(heap.get()), nullptr);
  }
}

// Behind twenty of the same list that are too short.
TEST(SegregatedTest, RunThatFitsIsFoundInNeed) {
  const Heap heap = Create(Options(size_t{4} << 20));
  const size_t kFits = size_t{71} << 10;
  const size_t kSeparates = size_t{9} << 10;
  std::vector<void *> blocks = {heap_alloc_in(heap.get(), kFits)};
  for (int i = 0; i < 20; ++i) {
    ASSERT_NE(heap_alloc_in(heap.get(), kSeparates), nullptr);
    blocks.push_back(heap_alloc_in(heap.get(), size_t{64} << 10));
  }
  while (heap_alloc_in(heap.get(), kSeparates) != nullptr) {
  }
  for (void *ptr : blocks) {
    heap_free_in(heap.get(), ptr);
  }
  EXPECT_EQ(heap_alloc_in(heap.get(), kFits), blocks[0]);
  EXPECT_EQ(heap_alloc_in(heap.get(), kFits), nullptr);
  EXPECT_STREQ(heap_check_in(heap.get()), nullptr);
}

// From an eighth of a page on, whatever the page is.
TEST(SegregatedTest, BlockThatGrowsBecomesARunAndGrowsInPlace) {
  for (size_t span = 1024; span <= 65536; span *= 2) {
    heap_options_t options = Options(size_t{4} << 20);
    options.span_bytes = span;
    const Heap heap = Create(options);
    const size_t unit = heap_segregated_unit_bytes(heap->segregated);
    const size_t small = span / 8;
    void *ptr = heap_alloc_in(heap.get(), small);
    Fill(ptr, small, 1);
    void *moved = heap_realloc_in(heap.get(), ptr, small + 1);
    ASSERT_NE(moved, ptr);
    EXPECT_EQ(heap_usable_size_in(heap.get(), moved),
              std::max((small / unit + 1) * unit, HEAP_RUN_MIN_UNITS * unit));
    for (size_t size = span; size < 100 * span / 8; size += span / 8) {
      ASSERT_EQ(heap_realloc_in(heap.get(), moved, size), moved);
    }
    EXPECT_TRUE(IsFilled(moved, small, small, 1));
    EXPECT_EQ(Stats(heap).num_live, 1u);
    EXPECT_STREQ(heap_check_in(heap.get()), nullptr);
  }
}

// Nothing of the heap's lies where the program writes.
TEST(SegregatedTest, WritesAfterFreeHarmNothing) {
  std::vector<unsigned char> memory(200000);
  const Heap heap = Create(InBuffer(&memory));
  Random random(heap_testing::Seed());
  heap_testing::CapturedStderr captured;
  for (int round = 0; round < 200; ++round) {
    std::vector<std::pair<void *, size_t>> blocks;
    for (int i = 0; i < 100; ++i) {
      const size_t size = random.SkewedSize(12);
      void *ptr = heap_alloc_in(heap.get(), size);
      if (ptr != nullptr) {
        blocks.emplace_back(ptr, heap_usable_size_in(heap.get(), ptr));
      }
    }
    const size_t half = blocks.size() / 2;
    for (size_t i = 0; i < half; ++i) {
      Fill(blocks[i].first, blocks[i].second, i);
    }
    for (size_t i = half; i < blocks.size(); ++i) {
      heap_free_in(heap.get(), blocks[i].first);
      memset(blocks[i].first, static_cast<int>(random.Below(256)),
             blocks[i].second);
    }
    ASSERT_STREQ(heap_check_in(heap.get()), nullptr) << round;
    for (size_t i = 0; i < half; ++i) {
      EXPECT_TRUE(
          IsFilled(blocks[i].first, blocks[i].second, blocks[i].second, i));
      heap_free_in(heap.get(), blocks[i].first);
    }
  }
  EXPECT_EQ(captured.Take(), "");
  EXPECT_EQ(Stats(heap).num_live, 0u);
  EXPECT_STREQ(heap_check_in(heap.get()), nullptr);
}

// Steps.

TEST(SegregatedTest, StepsAreCounted) {
  const Heap heap = Create(Options());
  void *ptr = heap_alloc_in(heap.get(), 100);
  const uint64_t first = Stats(heap).num_steps;
  EXPECT_GT(first, 8u) << "a span was made";
  heap_free_in(heap.get(), ptr);
  EXPECT_EQ(Stats(heap).num_steps, first + 1) << "the bin takes it";
  EXPECT_EQ(heap_alloc_in(heap.get(), 100), ptr);
  EXPECT_EQ(Stats(heap).num_steps, first + 2) << "the bin has it";
  EXPECT_EQ(Stats(heap).max_steps, first);
}

// A call that fails takes as long as bins are, however many states there are.
TEST(SegregatedTest, CallInNeedReadsNoStates) {
  const Heap heap = Create(Options(size_t{16} << 20));
  std::vector<void *> blocks;
  while (void *ptr = heap_alloc_in(heap.get(), 16)) {
    blocks.push_back(ptr);
  }
  for (size_t i = 0; i < blocks.size(); i += 2) {
    heap_free_in(heap.get(), blocks[i]);
  }
  ASSERT_GT(blocks.size() / 8, 100000u) << "words of states";
  for (int i = 0; i < 10; ++i) {
    heap_free_in(heap.get(), heap_alloc_in(heap.get(), 16));
    const uint64_t first = Stats(heap).num_steps;
    EXPECT_EQ(heap_alloc_in(heap.get(), 100000), nullptr);
    EXPECT_LT(Stats(heap).num_steps - first, 1000u);
    EXPECT_GE(Stats(heap).max_steps, Stats(heap).num_steps - first);
  }
  EXPECT_STREQ(heap_check_in(heap.get()), nullptr);
}

// Nothing is live, but bins have blocks of many spans.
TEST(SegregatedTest, CallInNeedTakesWhatBinsHave) {
  const Heap heap = Create(Options(size_t{16} << 20));
  const heap_segregated_t *own = heap->segregated;
  Random random(heap_testing::Seed());
  for (int round = 0; round < 20; ++round) {
    std::vector<void *> blocks;
    for (size_t i = 0; i < own->class_count; ++i) {
      const size_t size = heap_class_info[i].size_bytes;
      for (uint64_t n = random.Below(100000 / size + 2); n > 0; --n) {
        blocks.push_back(heap_alloc_in(heap.get(), size));
      }
    }
    ASSERT_NE(blocks.back(), nullptr) << "there is room for all";
    while (!blocks.empty()) {
      std::swap(blocks[random.Below(blocks.size())], blocks.back());
      heap_free_in(heap.get(), blocks.back());
      blocks.pop_back();
    }
    ASSERT_LT(Stats(heap).largest_free_bytes, size_t{16} << 20);
    void *all = heap_alloc_in(heap.get(), size_t{16} << 20);
    ASSERT_NE(all, nullptr);
    EXPECT_STREQ(heap_check_in(heap.get()), nullptr);
    heap_free_in(heap.get(), all);
  }
}

// What cannot be had empties no bins.
TEST(SegregatedTest, CallThatCannotBeMetLeavesBinsAlone) {
  const Heap heap = Create(Options(size_t{1} << 20));
  ASSERT_NE(heap_alloc_in(heap.get(), 600000), nullptr);
  void *ptr = heap_alloc_in(heap.get(), 100);
  heap_free_in(heap.get(), ptr);
  EXPECT_EQ(heap_alloc_in(heap.get(), 600000), nullptr);
  const uint64_t first = Stats(heap).num_steps;
  EXPECT_EQ(heap_alloc_in(heap.get(), 100), ptr);
  EXPECT_EQ(Stats(heap).num_steps, first + 1);
}

// Free runs that are looked at and do not fit are steps, too.
TEST(SegregatedTest, StepsOfASearchAreCounted) {
  const Heap heap = Create(Options());
  std::vector<void *> blocks;
  for (int i = 0; i < 10; ++i) {
    blocks.push_back(heap_alloc_in(heap.get(), size_t{64} << 10));
    ASSERT_NE(heap_alloc_in(heap.get(), size_t{64} << 10), nullptr);
  }
  for (void *ptr : blocks) {
    heap_free_in(heap.get(), ptr);
  }
  const uint64_t first = Stats(heap).num_steps;
  ASSERT_NE(heap_alloc_in(heap.get(), size_t{66} << 10), nullptr);
  EXPECT_GE(Stats(heap).num_steps - first, 10u);
}

// One that fits is the last of a long list: more memory is sooner there.
TEST(SegregatedTest, HeapGrowsBeforeASearchGetsLong) {
  heap_options_t options = Options();
  options.span_bytes = 16384;  // 9 KiB are a run.
  const Heap heap = Create(options);
  const size_t kTooShort = size_t{64} << 10;
  const size_t kFits = size_t{66} << 10;
  std::vector<void *> blocks;
  for (int i = 0; i < 100; ++i) {
    blocks.push_back(heap_alloc_in(heap.get(), kTooShort));
    ASSERT_NE(heap_alloc_in(heap.get(), size_t{9} << 10), nullptr);
  }
  // All that is left, but for a run of that length at the end.
  const size_t left = Stats(heap).largest_free_bytes;
  ASSERT_GT(left, kFits);
  ASSERT_NE(heap_alloc_in(heap.get(), left - kFits), nullptr);
  const size_t mapped = Stats(heap).mapped_bytes;
  for (void *ptr : blocks) {
    heap_free_in(heap.get(), ptr);
  }
  const uint64_t first = Stats(heap).num_steps;
  ASSERT_NE(heap_alloc_in(heap.get(), kFits), nullptr);
  EXPECT_LT(Stats(heap).num_steps - first, 60u);
  EXPECT_GT(Stats(heap).mapped_bytes, mapped);
}

// Tables.

TEST(SegregatedTest, GrowthFailsWhereATableCannotGrow) {
  RunInChild([] {
    UseFakeKernel();
    const Heap heap = Create(Options());
    fake.refuse_commit = true;
    EXPECT_EQ(heap_alloc_in(heap.get(), 100), nullptr);
    EXPECT_EQ(errno, ENOMEM);
    EXPECT_EQ(Stats(heap).mapped_bytes, 0u);
    EXPECT_STREQ(heap_check_in(heap.get()), nullptr);
    fake.refuse_commit = false;
    EXPECT_NE(heap_alloc_in(heap.get(), 100), nullptr);
    EXPECT_STREQ(heap_check_in(heap.get()), nullptr);
  });
}

// The default limit costs addresses, not a charge for memory.
TEST(SegregatedTest, TablesAreReservedOnly) {
  RunInChild([] {
    static size_t charged_bytes = 0;
    static heap_kernel_t kernel = heap_kernel_default;
    kernel.map = [](size_t size_bytes, bool reserve_only) {
      charged_bytes += reserve_only ? 0 : size_bytes;
      return heap_kernel_default.map(size_bytes, reserve_only);
    };
    kernel.commit = [](void *ptr, size_t size_bytes) {
      charged_bytes += size_bytes;
      return heap_kernel_default.commit(ptr, size_bytes);
    };
    heap_kernel = &kernel;
    const Heap heap = Create(Options());
    ASSERT_NE(heap_alloc_in(heap.get(), 100), nullptr);
    EXPECT_LE(charged_bytes, size_t{256} << 10);
    EXPECT_LE(Stats(heap).metadata_bytes, (size_t{4} << 30) / 8);
  });
}

}  // namespace
