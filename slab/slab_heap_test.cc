// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// Caches whose source is a real heap, of each strategy: it gives memory to
// others as well, says no at its limit, and knows what was not given back.

#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <random>
#include <vector>

#include "gtest/gtest.h"
#include "heap/heap.h"
#include "heap/private_heap.h"
#include "slab/slab.h"
#include "slab/slab_testing.h"

namespace {

using slab_testing::CacheModel;
using slab_testing::Options;
using slab_testing::Stats;

void *FromHeap(void *context, size_t size_bytes, size_t align_bytes) {
  return heap_aligned_alloc_in(static_cast<heap_t *>(context), align_bytes,
                               size_bytes);
}

void ToHeap(void *context, void *ptr, size_t) {
  heap_free_in(static_cast<heap_t *>(context), ptr);
}

class SlabHeapTest : public testing::TestWithParam<int> {
 protected:
  void TearDown() override {
    if (heap_ != nullptr) {
      EXPECT_EQ(HeapStats().num_live, 0u);
      EXPECT_EQ(heap_check_in(heap_), nullptr);
      heap_destroy(heap_);
    }
  }

  void CreateHeap(heap_options_t options) {
    options.strategy = static_cast<heap_strategy_t>(GetParam());
    heap_ = heap_create(&options);
    ASSERT_NE(heap_, nullptr);
  }
  slab_options_t OnHeap(size_t object_bytes, unsigned flags = 0) const {
    slab_options_t options = Options(object_bytes);
    options.flags = flags;
    options.source = {FromHeap, ToHeap, heap_};
    return options;
  }
  heap_private_stats_t HeapStats() const {
    heap_private_stats_t stats;
    heap_stats_get_in(heap_, &stats);
    return stats;
  }

  heap_t *heap_ = nullptr;
};

INSTANTIATE_TEST_SUITE_P(Strategies, SlabHeapTest,
                         testing::Range(0, int{HEAP_STRATEGY_COUNT}));

// Blocks of the heap's other users lie between the slabs, and are as they were.
TEST_P(SlabHeapTest, ModelsShareAHeapWithBlocks) {
  CreateHeap({});
  std::mt19937_64 random(slab_testing::Seed());
  std::vector<unsigned char *> blocks;
  {
    CacheModel plain(OnHeap(64));
    CacheModel large(OnHeap(3000, SLAB_NO_MAGAZINES));
    CacheModel checked(OnHeap(100, SLAB_DEBUG));
    for (int i = 0; i < 900; ++i) {
      for (CacheModel *model : {&plain, &large, &checked}) {
        if (random() % 100 < (i / 300 % 2 == 0 ? 70u : 30u)) {
          ASSERT_TRUE(model->AllocBulk(random() % 20));
        } else {
          model->FreeBulk(random(), random() % 20);
        }
        if (i % 100 == 0) {
          model->Reap();
          model->Check();
        }
      }
      blocks.push_back(
          static_cast<unsigned char *>(heap_alloc_in(heap_, 1000)));
      ASSERT_NE(blocks.back(), nullptr);
      blocks.back()[0] = blocks.back()[999] = static_cast<unsigned char>(i);
    }
    EXPECT_EQ(heap_check_in(heap_), nullptr);
  }
  EXPECT_EQ(HeapStats().num_live, blocks.size());
  for (size_t i = 0; i < blocks.size(); ++i) {
    EXPECT_EQ(blocks[i][0], static_cast<unsigned char>(i));
    EXPECT_EQ(blocks[i][999], static_cast<unsigned char>(i));
    heap_free_in(heap_, blocks[i]);
  }
}

TEST_P(SlabHeapTest, ReapGivesSlabsBackToTheHeap) {
  CreateHeap({});
  const slab_options_t options = OnHeap(64);
  slab_cache_t *cache = slab_cache_create(&options);
  ASSERT_NE(cache, nullptr);
  std::vector<void *> objects(50000);
  ASSERT_EQ(slab_alloc_bulk(cache, objects.size(), objects.data()), 0);
  const size_t slab_bytes = Stats(cache).slab_bytes;
  EXPECT_GE(slab_bytes, 50000u * 64);
  const size_t live_bytes = HeapStats().live_bytes;
  EXPECT_GE(live_bytes, slab_bytes);
  slab_free_bulk(cache, objects.size(), objects.data());
  EXPECT_EQ(slab_reap(cache), slab_bytes);
  EXPECT_LE(HeapStats().live_bytes, live_bytes - slab_bytes);
  EXPECT_EQ(slab_cache_destroy(cache, 0), 0);
}

// The heap's limit is the cache's: it says so, stays whole, and goes on when
// there is memory again.
TEST_P(SlabHeapTest, HeapThatIsFullIsNoMemory) {
  heap_options_t heap_options = {};
  heap_options.limit_bytes = size_t{2} << 20;
  CreateHeap(heap_options);
  for (const unsigned flags :
       {0u, unsigned{SLAB_NO_MAGAZINES}, unsigned{SLAB_DEBUG}}) {
    const slab_options_t options = OnHeap(200, flags);
    slab_cache_t *cache = slab_cache_create(&options);
    ASSERT_NE(cache, nullptr);
    for (int round = 0; round < 2; ++round) {
      std::vector<void *> objects;
      errno = 0;
      for (void *object; (object = slab_alloc(cache)) != nullptr;) {
        objects.push_back(object);
      }
      EXPECT_EQ(errno, ENOMEM);
      EXPECT_GT(objects.size(), 2000u);
      EXPECT_STREQ(slab_check(cache), nullptr);
      EXPECT_EQ(heap_check_in(heap_), nullptr);
      slab_free_bulk(cache, objects.size(), objects.data());
      slab_reap(cache);
    }
    EXPECT_EQ(slab_cache_destroy(cache, 0), 0);
  }
}

// Heap, cache and objects, all in one array.
TEST_P(SlabHeapTest, HeapInABuffer) {
  alignas(1 << 16) static unsigned char memory[size_t{2} << 20];
  heap_options_t heap_options = {};
  heap_options.buffer = memory;
  heap_options.buffer_bytes = sizeof(memory);
  CreateHeap(heap_options);
  CacheModel model(OnHeap(48));
  std::mt19937_64 random(slab_testing::Seed());
  for (int i = 0; i < 300; ++i) {
    if (i / 100 % 2 == 0) {
      ASSERT_TRUE(model.AllocBulk(random() % 50));
    } else {
      model.FreeBulk(random(), random() % 50);
    }
  }
  model.Check();
}

// As README has it.
void *FromProcessHeap(void *, size_t size_bytes, size_t align_bytes) {
  return heap_aligned_alloc(align_bytes, size_bytes);
}

void ToProcessHeap(void *, void *ptr, size_t) {
  heap_free(ptr);
}

TEST(SlabProcessHeapTest, ModelOnTheProcessHeap) {
  slab_options_t options = Options(64);
  options.source = {FromProcessHeap, ToProcessHeap, nullptr};
  std::mt19937_64 random(slab_testing::Seed());
  CacheModel model(options);
  for (int i = 0; i < 600; ++i) {
    if (random() % 100 < (i / 200 % 2 == 0 ? 70u : 30u)) {
      ASSERT_TRUE(model.AllocBulk(random() % 50));
    } else {
      model.FreeBulk(random(), random() % 50);
    }
    if (i % 100 == 0) {
      model.Reap();
      model.Check();
    }
  }
}

}  // namespace
