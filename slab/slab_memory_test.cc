// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// What a cache takes of memory and what it gives back: limits, reaps, sources,
// buffers.

#include "slab/slab.h"

#include <cstdint>
#include <memory>
#include <thread>
#include <vector>

#include "gtest/gtest.h"
#include "slab/slab_testing.h"

namespace {

using slab_testing::AllocMany;
using slab_testing::CacheModel;
using slab_testing::FakeSource;
using slab_testing::Options;
using slab_testing::Stats;

constexpr size_t kObjectBytes = 64;

class SlabMemoryTest : public testing::Test {
 protected:
  void TearDown() override {
    if (cache_ != nullptr) {
      EXPECT_STREQ(slab_check(cache_), nullptr);
      EXPECT_EQ(slab_cache_destroy(cache_, 0), 0);
    }
  }

  void Create(const slab_options_t &options) {
    cache_ = slab_cache_create(&options);
    ASSERT_NE(cache_, nullptr);
  }

  FakeSource source_;
  slab_cache_t *cache_ = nullptr;
};

// ---- limits, giving back ----

TEST_F(SlabMemoryTest, LimitIsHard) {
  for (unsigned flags :
       {0u, unsigned{SLAB_NO_MAGAZINES}, unsigned{SLAB_DEBUG}}) {
    for (size_t limit : {1, 2, 10, 1000, 5000}) {
      slab_options_t options = Options();
      options.max_objects = limit;
      options.flags = flags;
      CacheModel model(options);
      for (size_t i = 0; i < limit; ++i) {
        ASSERT_TRUE(model.Alloc());
      }
      EXPECT_FALSE(model.Alloc());
      EXPECT_EQ(Stats(model.cache()).capacity, limit);
      model.Free(0);
      EXPECT_TRUE(model.Alloc());
      EXPECT_FALSE(model.Alloc());
    }
  }
}

// What a thread keeps of a limit while another one wants all of it.
TEST_F(SlabMemoryTest, ThreadKeepsNoMoreOfALimitThanItsShare) {
  for (unsigned flags :
       {0u, unsigned{SLAB_NO_MAGAZINES}, unsigned{SLAB_DEBUG}}) {
    for (size_t limit : {1, 2, 10, 63, 64, 127, 128, 129, 1000, 5000, 100000}) {
      slab_options_t options = Options();
      options.max_objects = limit;
      options.flags = flags;
      Create(options);
      for (void *object : AllocMany(cache_, limit)) {
        slab_free(cache_, object);
      }
      const size_t share = flags == 0 && limit >= 128 ? limit / 64 : 0;
      EXPECT_LE(Stats(cache_).num_cached, share) << limit;
      std::thread([&] {
        std::vector<void *> objects;
        while (void *object = slab_alloc(cache_)) {
          objects.push_back(object);
        }
        EXPECT_GE(objects.size(), limit - share) << limit;
        EXPECT_LE(objects.size(), limit) << limit;
        for (void *object : objects) {
          slab_free(cache_, object);
        }
      }).join();
      EXPECT_EQ(slab_cache_destroy(cache_, 0), 0);
      cache_ = nullptr;
    }
  }
}

TEST_F(SlabMemoryTest, ReapGivesAllEmptySlabsBack) {
  slab_options_t options = Options();
  options.source = source_.Get();
  Create(options);
  const size_t empty_bytes = source_.live_bytes();
  std::vector<void *> objects = AllocMany(cache_, 100000);
  EXPECT_EQ(slab_reap(cache_) % 65536, 0u);
  EXPECT_GT(source_.live_bytes(), 100000 * kObjectBytes);
  for (void *object : objects) {
    slab_free(cache_, object);
  }
  EXPECT_GT(slab_reap(cache_), 0u);
  EXPECT_EQ(Stats(cache_).num_slabs, 0u);
  // What is known of each of 100 slabs stays: their states, and a line.
  EXPECT_LT(source_.live_bytes(), empty_bytes + 100000 + 100 * 150);
  EXPECT_EQ(slab_reap(cache_), 0u);
}

TEST_F(SlabMemoryTest, SlabsGoBackByThemselvesWhenMostAreEmpty) {
  Create(Options());
  std::vector<void *> objects = AllocMany(cache_, 1000000);
  const size_t most_bytes = Stats(cache_).slab_bytes;
  EXPECT_GE(most_bytes, 64000000u);
  for (void *object : objects) {
    slab_free(cache_, object);
  }
  EXPECT_LT(Stats(cache_).slab_bytes, most_bytes / 4);
}

// 4 MiB of empty slabs are kept, and a quarter of what is in use; what the
// magazine and the depot have, 1 MiB each, keeps slabs as well.
TEST_F(SlabMemoryTest, EmptySlabsAreKeptUpToABound) {
  Create(Options());
  std::vector<void *> objects = AllocMany(cache_, 1000000);
  slab_free_bulk(cache_, objects.size(), objects.data());
  slab_stats_t stats = Stats(cache_);
  EXPECT_LE(stats.num_cached * kObjectBytes, size_t{2} << 20);
  EXPECT_GE(stats.slab_bytes, size_t{4} << 20);
  EXPECT_LE(stats.slab_bytes, size_t{16} << 20);
  EXPECT_GT(slab_reap(cache_), 0u);
  EXPECT_EQ(Stats(cache_).slab_bytes, 0u);
}

// What is wanted again soon is kept, until a reap.
TEST_F(SlabMemoryTest, MoreIsKeptOfWhatComesBackSoon) {
  Create(Options());
  size_t kept_bytes[2][14];
  for (auto &kept : kept_bytes) {
    for (size_t &bytes : kept) {
      std::vector<void *> objects = AllocMany(cache_, 500000);
      slab_free_bulk(cache_, objects.size(), objects.data());
      bytes = Stats(cache_).slab_bytes;
    }
    slab_reap(cache_);
  }
  for (const auto &kept : kept_bytes) {
    EXPECT_LT(kept[0], kept[13]);
    EXPECT_GE(kept[13], 500000 * kObjectBytes);
  }
  EXPECT_EQ(kept_bytes[1][0], kept_bytes[0][0]);
}

// What came back soon for a while, and then did not.
TEST_F(SlabMemoryTest, LessIsKeptOfWhatIsNotWantedAgain) {
  Create(Options());
  for (int round = 0; round < 9; ++round) {
    std::vector<void *> objects = AllocMany(cache_, 500000);
    slab_free_bulk(cache_, objects.size(), objects.data());
  }
  EXPECT_GE(Stats(cache_).slab_bytes, 500000 * kObjectBytes);
  std::vector<void *> objects = AllocMany(cache_, 2000000);
  slab_free_bulk(cache_, objects.size(), objects.data());
  EXPECT_LT(Stats(cache_).slab_bytes, 500000 * kObjectBytes);
}

// With all that is known of them.
TEST_F(SlabMemoryTest, OverheadOfAnObjectIsAByteAndLittleMore) {
  for (const size_t size : {16, 64}) {
    Create(Options(size));
    std::vector<void *> objects = AllocMany(cache_, 2000000);
    const slab_stats_t stats = Stats(cache_);
    const double payload = static_cast<double>(stats.capacity * size);
    const double all =
        static_cast<double>(stats.slab_bytes + stats.metadata_bytes);
    EXPECT_LT(all / payload, size == 16 ? 1.08 : 1.02);
    slab_free_bulk(cache_, objects.size(), objects.data());
    EXPECT_EQ(slab_cache_destroy(cache_, 0), 0);
    cache_ = nullptr;
  }
}

TEST_F(SlabMemoryTest, ReapKeepsLiveObjects) {
  CacheModel model(Options(200));
  ASSERT_TRUE(model.AllocBulk(30000));
  while (model.num_live() > 100) {
    model.Free(model.num_live() / 3);
  }
  model.Reap();
  model.Check();
  ASSERT_TRUE(model.AllocBulk(1000));
  model.Check();
}

TEST_F(SlabMemoryTest, SourceGetsAllBack) {
  for (unsigned flags :
       {0u, unsigned{SLAB_NO_MAGAZINES}, unsigned{SLAB_DEBUG}}) {
    slab_options_t options = Options();
    options.source = source_.Get();
    options.flags = flags;
    {
      CacheModel model(options);
      ASSERT_TRUE(model.AllocBulk(30000));
      model.Reap();
      ASSERT_TRUE(model.AllocBulk(3000));
    }
    EXPECT_EQ(source_.live_bytes(), 0u);
  }
}

// ---- buffer ----

TEST_F(SlabMemoryTest, BufferHoldsWhatItIsSaidToHold) {
  for (size_t size : {1, 8, 64, 100, 3000}) {
    for (size_t align : {1, 16, 64, 4096}) {
      for (size_t count : {1, 10, 1000}) {
        const size_t bytes = SLAB_BUFFER_BYTES(size, align, count);
        std::vector<char> buffer(bytes + 1);
        slab_options_t options = Options(size, align);
        options.buffer = buffer.data() + 1;
        options.buffer_bytes = bytes;
        CacheModel model(options);
        for (size_t i = 0; i < count; ++i) {
          ASSERT_TRUE(model.Alloc()) << size << " " << align << " " << count;
        }
        model.Check();
        while (model.Alloc()) {
        }
        for (size_t i = 0; i < model.num_live(); ++i) {
          model.Free(i);
        }
        model.Reap();
        EXPECT_TRUE(model.Alloc());
      }
    }
  }
}

TEST_F(SlabMemoryTest, BufferOfManyObjectsHoldsThem) {
  struct {
    size_t size;
    size_t align;
    size_t count;
  } cases[] = {
      {1, 1, 1500000}, {2, 1, 700000},  {3, 4, 700000},     {8, 8, 1000000},
      {64, 64, 60000}, {1, 4096, 2000}, {5000, 4096, 1000}, {1, 1 << 20, 8},
  };
  for (const auto &each : cases) {
    for (const bool is_debug : {false, true}) {
      // A debug variant fills and looks at every byte.
      const size_t count = is_debug ? each.count / 8 : each.count;
      const size_t bytes =
          is_debug ? SLAB_BUFFER_BYTES_DEBUG(each.size, each.align, count)
                   : SLAB_BUFFER_BYTES(each.size, each.align, count);
      for (const size_t shift : {0, 1, 63}) {
        std::unique_ptr<char[]> buffer(new char[bytes + shift]);
        slab_options_t options = Options(each.size, each.align);
        options.flags = is_debug ? unsigned{SLAB_DEBUG} : 0u;
        options.buffer = buffer.get() + shift;
        options.buffer_bytes = bytes;
        slab_cache_t *cache = slab_cache_create(&options);
        ASSERT_NE(cache, nullptr);
        EXPECT_GE(Stats(cache).capacity, count)
            << each.size << " " << each.align << " " << is_debug;
        void *object = slab_alloc(cache);
        slab_free(cache, object);
        EXPECT_EQ(slab_cache_destroy(cache, 0), 0);
      }
    }
  }
}

TEST_F(SlabMemoryTest, BufferIsAllThatIsWritten) {
  std::vector<unsigned char> memory(100000, 0x77);
  slab_options_t options = Options();
  options.buffer = memory.data() + 1000;
  options.buffer_bytes = memory.size() - 2000;
  {
    CacheModel model(options);
    while (model.Alloc()) {
    }
    EXPECT_GT(model.num_live() * 65, options.buffer_bytes * 9 / 10);
  }
  for (size_t i = 0; i < 1000; ++i) {
    ASSERT_EQ(memory[i], 0x77);
    ASSERT_EQ(memory[memory.size() - 1 - i], 0x77);
  }
}

}  // namespace
