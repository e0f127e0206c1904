// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// What private heaps say of pointers that are none of their blocks, and of
// writes into free ones.

#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <functional>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "heap/fit.h"
#include "heap/heap_testing.h"
#include "heap/private_heap.h"
#include "heap/private_heap_testing.h"

namespace {

using heap_testing::Create;
using heap_testing::Fill;
using heap_testing::Heap;
using heap_testing::IsFilled;
using heap_testing::KeepsLinksInFreeBlocks;
using heap_testing::kStrategies;
using heap_testing::Options;
using heap_testing::Random;
using heap_testing::Stats;

class PrivateHeapMisuseTest : public testing::TestWithParam<heap_strategy_t> {};

INSTANTIATE_TEST_SUITE_P(Strategies, PrivateHeapMisuseTest,
                         testing::ValuesIn(kStrategies));

std::string ReportOf(const std::function<void()> &body) {
  std::string text;
  setenv("HEAP_ON_ERROR", "report", 1);
  heap_testing::CapturedStderr captured;
  body();
  text = captured.Take();
  unsetenv("HEAP_ON_ERROR");
  return text;
}

bool Has(const std::string &text, const char *part) {
  return text.find(part) != std::string::npos;
}

void ReportsWrongPointers(const heap_options_t &options) {
  const Heap heap = Create(options);
  const Heap other = Create(options);
  auto *ptr = static_cast<char *>(heap_alloc_in(heap.get(), 100));
  auto *freed = static_cast<char *>(heap_alloc_in(heap.get(), 100));
  void *others = heap_alloc_in(other.get(), 100);
  int on_stack = 0;
  heap_free_in(heap.get(), freed);
  const char *const kForeign = "invalid pointer (no block of this heap)";
  const char *const kInterior = "invalid pointer (not the start of its block)";
  const char *const kFreed = "double free or freed pointer";
  const struct {
    void *ptr;
    const char *text;
  } cases[] = {{freed, kFreed},
               {freed + 16, kFreed},
               {ptr + 16, kInterior},
               {ptr + 1, kInterior},
               {others, kForeign},
               {&on_stack, kForeign},
               {reinterpret_cast<void *>(1), kForeign}};
  for (const auto &wrong : cases) {
    EXPECT_TRUE(Has(ReportOf([&] { heap_free_in(heap.get(), wrong.ptr); }),
                    wrong.text));
    EXPECT_TRUE(Has(ReportOf([&] {
                      EXPECT_EQ(heap_usable_size_in(heap.get(), wrong.ptr), 0u);
                    }),
                    wrong.text));
    EXPECT_TRUE(Has(ReportOf([&] {
                      errno = 0;
                      EXPECT_EQ(heap_realloc_in(heap.get(), wrong.ptr, 10),
                                nullptr);
                      EXPECT_EQ(errno, EINVAL);
                    }),
                    wrong.text));
    EXPECT_STREQ(heap_check_in(heap.get()), nullptr);
  }
  EXPECT_EQ(ReportOf([&] { heap_free_in(heap.get(), ptr); }), "");
  EXPECT_DEATH(heap_free_in(heap.get(), ptr), "double free");
  heap_free_in(heap.get(), nullptr);
}

TEST_P(PrivateHeapMisuseTest, WrongPointersAreReported) {
  heap_options_t options = Options(GetParam());
  ReportsWrongPointers(options);
  options.single_threaded = true;
  ReportsWrongPointers(options);
}

// The buffer is still there, so nothing else stops who goes on.
TEST_P(PrivateHeapMisuseTest, DestroyedHeapInABufferIsNotUsed) {
  for (const bool single_threaded : {false, true}) {
    std::vector<unsigned char> memory(100000);
    heap_options_t options = Options(GetParam());
    options.buffer = memory.data();
    options.buffer_bytes = memory.size();
    options.single_threaded = single_threaded;
    heap_t *heap = heap_create(&options);
    void *ptr = heap_alloc_in(heap, 100);
    heap_free_in(heap, heap_alloc_in(heap, 100));
    heap_destroy(heap);
    const char *const kUsed = "heap: private heap: used after heap_destroy\n";
    EXPECT_DEATH(heap_free_in(heap, ptr), kUsed);
    EXPECT_DEATH(EXPECT_EQ(heap_alloc_in(heap, 100), nullptr), kUsed);
    EXPECT_DEATH(EXPECT_EQ(heap_calloc_in(heap, 1, 100), nullptr), kUsed);
    EXPECT_DEATH(EXPECT_EQ(heap_realloc_in(heap, ptr, 1), nullptr), kUsed);
    EXPECT_DEATH(heap_usable_size_in(heap, ptr), kUsed);
    EXPECT_DEATH(heap_check_in(heap), kUsed);
    EXPECT_DEATH(heap_reset(heap), kUsed);
    EXPECT_DEATH(heap_destroy(heap), "heap: private heap: destroyed twice\n");
    // Its buffer may have another one.
    heap = heap_create(&options);
    EXPECT_NE(heap_alloc_in(heap, 100), nullptr);
    EXPECT_STREQ(heap_check_in(heap), nullptr);
    heap_destroy(heap);
  }
}

// A free block's links are somebody's bytes.
TEST_P(PrivateHeapMisuseTest, WritesAfterFreeAreFoundAndMended) {
  if (!KeepsLinksInFreeBlocks(GetParam())) {
    GTEST_SKIP() << "keeps nothing in free blocks";
  }
  const uint64_t seed = heap_testing::Seed();
  Random random(seed);
  int found[2] = {0, 0};  // With a lock, without.
  for (int round = 0; round < 300; ++round) {
    heap_options_t options = Options(GetParam());
    options.single_threaded = round % 2 != 0;
    const Heap heap = Create(options);
    std::vector<void *> blocks;
    for (int i = 0; i < 200; ++i) {
      blocks.push_back(heap_alloc_in(heap.get(), 16 + random.Below(300)));
      Fill(blocks.back(), 16, static_cast<uint64_t>(i));
    }
    const std::string text = ReportOf([&] {
      for (size_t i = 0; i < blocks.size(); i += 2) {
        heap_free_in(heap.get(), blocks[i]);
      }
      // Somebody still writes into one of them: anything, or what looks right.
      const uint32_t values[] = {0, 1, static_cast<uint32_t>(random.Below(200)),
                                 UINT32_MAX,
                                 static_cast<uint32_t>(random.Next())};
      auto *links = static_cast<uint32_t *>(blocks[2 * random.Below(100)]);
      links[0] = values[random.Below(5)];
      links[1] = values[random.Below(5)];
      std::vector<void *> more;
      for (int i = 0; i < 300; ++i) {
        more.push_back(heap_alloc_in(heap.get(), 16 + random.Below(300)));
      }
      for (size_t i = 1; i < blocks.size(); i += 2) {
        EXPECT_TRUE(IsFilled(blocks[i], 16, 16, i));
        heap_free_in(heap.get(), blocks[i]);
      }
      for (void *ptr : more) {
        heap_free_in(heap.get(), ptr);
      }
    });
    found[round % 2] += Has(text, "free block was written to");
    EXPECT_EQ(Stats(heap).num_live, 0u) << text;
    EXPECT_STREQ(heap_check_in(heap.get()), nullptr) << text;
  }
  EXPECT_GT(found[0], 50);
  EXPECT_GT(found[1], 50);
}

// The first of a list is looked at by the free that comes before it there.
TEST_P(PrivateHeapMisuseTest, FreeLooksAtTheFirstOfItsList) {
  if (GetParam() != HEAP_TLSF && GetParam() != HEAP_BUDDY) {
    GTEST_SKIP() << "has no lists";
  }
  for (const bool single_threaded : {false, true}) {
    heap_options_t options = Options(GetParam());
    options.single_threaded = single_threaded;
    const Heap heap = Create(options);
    void *first = heap_alloc_in(heap.get(), 64);
    ASSERT_NE(heap_alloc_in(heap.get(), 64), nullptr);
    void *second = heap_alloc_in(heap.get(), 64);
    ASSERT_NE(heap_alloc_in(heap.get(), 64), nullptr);
    const std::string text = ReportOf([&] {
      heap_free_in(heap.get(), first);
      static_cast<uint32_t *>(first)[1] = 12345;
      heap_free_in(heap.get(), second);
    });
    EXPECT_TRUE(Has(text, "free block was written to")) << text;
    EXPECT_STREQ(heap_check_in(heap.get()), nullptr);
  }
}

// And by the alloc that leaves a piece of that length.
TEST(TlsfMisuseTest, AllocLooksAtTheFirstOfTheListOfTheRest) {
  for (const bool single_threaded : {false, true}) {
    heap_options_t options = Options(HEAP_TLSF);
    options.single_threaded = single_threaded;
    const Heap heap = Create(options);
    void *first = heap_alloc_in(heap.get(), 64);
    ASSERT_NE(heap_alloc_in(heap.get(), 64), nullptr);
    void *longer = heap_alloc_in(heap.get(), 144);
    ASSERT_NE(heap_alloc_in(heap.get(), 64), nullptr);
    const std::string text = ReportOf([&] {
      heap_free_in(heap.get(), longer);
      heap_free_in(heap.get(), first);
      static_cast<uint32_t *>(first)[1] = 12345;
      EXPECT_EQ(heap_alloc_in(heap.get(), 80), longer);
    });
    EXPECT_TRUE(Has(text, "free block was written to")) << text;
    EXPECT_STREQ(heap_check_in(heap.get()), nullptr);
  }
}

// However large the heap is: a search goes in circles no longer than there are
// free pieces.
TEST(BestFitMisuseTest, LinkToItselfIsFoundSoon) {
  const Heap heap = Create(Options(HEAP_BEST_FIT));
  heap_free_in(heap.get(), heap_alloc_in(heap.get(), size_t{1} << 30));
  std::vector<void *> blocks;
  for (int i = 0; i < 40; ++i) {
    blocks.push_back(heap_alloc_in(heap.get(), 1000));
  }
  for (size_t i = 0; i < blocks.size(); i += 2) {
    heap_free_in(heap.get(), blocks[i]);
  }
  const uint64_t before = Stats(heap).num_steps;
  const std::string text = ReportOf([&] {
    for (size_t i = 0; i < blocks.size(); i += 2) {
      const uintptr_t offset =
          reinterpret_cast<uintptr_t>(blocks[i]) - heap->base;
      auto *links = static_cast<uint32_t *>(blocks[i]);
      links[0] = static_cast<uint32_t>(offset / 16) + 1;
      links[1] = links[0];
    }
    EXPECT_NE(heap_alloc_in(heap.get(), 900), nullptr);
  });
  EXPECT_TRUE(Has(text, "free block was written to")) << text;
  EXPECT_LT(Stats(heap).num_steps - before, 10000u);
  EXPECT_STREQ(heap_check_in(heap.get()), nullptr);
}

}  // namespace
