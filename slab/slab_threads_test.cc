// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// Many threads on one cache: nothing is lost or handed out twice, and what
// exited threads had comes back.

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <mutex>
#include <random>
#include <set>
#include <thread>
#include <vector>

#include "gtest/gtest.h"
#include "heap/private_heap.h"
#include "slab/slab.h"
#include "slab/slab_inline.h"
#include "slab/slab_testing.h"

namespace {

using slab_testing::Stats;

struct Object {
  uint64_t owner;  // Who has it; written without a lock.
  uint64_t check;
};

slab_options_t Options(unsigned flags = 0) {
  slab_options_t options = {};
  options.name = "threads";
  options.object_bytes = sizeof(Object);
  options.flags = flags;
  return options;
}

void Own(Object *object, uint64_t id) {
  object->owner = id;
  object->check = ~id;
}

bool IsOwned(const Object *object, uint64_t id) {
  return object->owner == id && object->check == ~id;
}

// Where threads leave objects for each other.
class Exchange {
 public:
  void Give(Object *object, uint64_t id) {
    std::lock_guard<std::mutex> lock(mutex_);
    objects_.push_back({object, id});
  }
  bool Take(Object **out_object, uint64_t *out_id) {
    std::lock_guard<std::mutex> lock(mutex_);
    if (objects_.empty()) {
      return false;
    }
    *out_object = objects_.back().first;
    *out_id = objects_.back().second;
    objects_.pop_back();
    return true;
  }

 private:
  std::mutex mutex_;
  std::vector<std::pair<Object *, uint64_t>> objects_;
};

// What one thread does: gets objects, writes to them, frees them or leaves them
// to others, frees what others left.
class Worker {
 public:
  Worker(slab_cache_t *cache, Exchange *exchange, uint64_t seed)
      : cache_(cache),
        exchange_(exchange),
        seed_(seed),
        random_(seed),
        next_id_(seed << 32) {
  }

  void Run(int steps) {
    for (int i = 0; i < steps; ++i) {
      Step(i % 2 == 0);
      if (i % 5000 == 4999) {
        slab_reap(cache_);
        Stats(cache_);
      }
    }
    while (!mine_.empty()) {
      FreeLast(false);
    }
  }

 private:
  using Owned = std::pair<Object *, uint64_t>;

  void Step(bool is_inline) {
    switch (random_() % 8) {
      case 0:
      case 1:
      case 2:
        Alloc(is_inline);
        break;
      case 3:
        Give();
        break;
      case 4:
        FreeAnothers();
        break;
      case 5:
        UseBulk();
        break;
      default:
        FreeAny(is_inline);
    }
  }

  void Alloc(bool is_inline) {
    auto *object = static_cast<Object *>(is_inline ? slab_alloc_inline(cache_)
                                                   : slab_alloc(cache_));
    ASSERT_NE(object, nullptr);
    Own(object, ++next_id_);
    mine_.push_back({object, next_id_});
  }

  void Give() {
    if (!mine_.empty()) {
      exchange_->Give(mine_.back().first, mine_.back().second);
      mine_.pop_back();
    }
  }

  void FreeAnothers() {
    Object *object;
    uint64_t id;
    if (exchange_->Take(&object, &id)) {
      ASSERT_TRUE(IsOwned(object, id));
      slab_free(cache_, object);
    }
  }

  void UseBulk() {
    void *objects[50];
    ASSERT_EQ(slab_alloc_bulk(cache_, 50, objects), 0);
    for (void *object : objects) {
      Own(static_cast<Object *>(object), seed_);
    }
    for (void *object : objects) {
      ASSERT_TRUE(IsOwned(static_cast<Object *>(object), seed_));
    }
    slab_free_bulk(cache_, 50, objects);
  }

  void FreeAny(bool is_inline) {
    if (!mine_.empty()) {
      std::swap(mine_[random_() % mine_.size()], mine_.back());
      FreeLast(is_inline);
    }
  }

  void FreeLast(bool is_inline) {
    const Owned last = mine_.back();
    mine_.pop_back();
    ASSERT_TRUE(IsOwned(last.first, last.second));
    if (is_inline) {
      slab_free_inline(cache_, last.first);
    } else {
      slab_free(cache_, last.first);
    }
  }

  slab_cache_t *cache_;
  Exchange *exchange_;
  uint64_t seed_;
  std::mt19937_64 random_;
  uint64_t next_id_;
  std::vector<Owned> mine_;
};

void RunThreads(slab_cache_t *cache, int num_threads, int steps) {
  const uint64_t seed = slab_testing::Seed();
  Exchange exchange;
  std::vector<std::thread> threads;
  for (int i = 0; i < num_threads; ++i) {
    threads.emplace_back([&, i] {
      Worker(cache, &exchange, seed + static_cast<uint64_t>(i) + 1).Run(steps);
    });
  }
  for (std::thread &thread : threads) {
    thread.join();
  }
  Object *object;
  uint64_t id;
  while (exchange.Take(&object, &id)) {
    EXPECT_TRUE(IsOwned(object, id));
    slab_free(cache, object);
  }
  EXPECT_STREQ(slab_check(cache), nullptr);
  EXPECT_EQ(Stats(cache).num_live, 0u);
}

TEST(SlabThreadsTest, ObjectsAreInOneHandAtATime) {
  for (unsigned flags :
       {0u, unsigned{SLAB_NO_MAGAZINES}, unsigned{SLAB_DEBUG}}) {
    const slab_options_t options = Options(flags);
    slab_cache_t *cache = slab_cache_create(&options);
    RunThreads(cache, 4, 20000);
    EXPECT_EQ(slab_cache_destroy(cache, 0), 0);
  }
}

TEST(SlabThreadsTest, MoreThreadsThanTags) {
  const slab_options_t options = Options();
  slab_cache_t *cache = slab_cache_create(&options);
  // All of these have a magazine at once.
  constexpr int kThreads = 140;
  std::atomic<int> num_ready{0};
  std::vector<std::thread> threads;
  for (int i = 0; i < kThreads; ++i) {
    threads.emplace_back([&, i] {
      void *first = slab_alloc(cache);
      ++num_ready;
      while (num_ready < kThreads) {
        std::this_thread::yield();
      }
      std::vector<Object *> objects;
      for (int j = 0; j < 300; ++j) {
        objects.push_back(static_cast<Object *>(slab_alloc(cache)));
        Own(objects.back(), static_cast<uint64_t>(i));
      }
      for (Object *object : objects) {
        ASSERT_TRUE(IsOwned(object, static_cast<uint64_t>(i)));
        slab_free(cache, object);
      }
      slab_free(cache, first);
    });
  }
  for (std::thread &thread : threads) {
    thread.join();
  }
  EXPECT_STREQ(slab_check(cache), nullptr);
  EXPECT_EQ(Stats(cache).num_live, 0u);
  EXPECT_EQ(slab_cache_destroy(cache, 0), 0);
}

// What another thread frees comes back by way of the depot, and is counted.
TEST(SlabThreadsTest, DepotPassesObjectsBetweenThreads) {
  const slab_options_t options = Options();
  slab_cache_t *cache = slab_cache_create(&options);
  std::vector<void *> objects(3000);
  ASSERT_EQ(slab_alloc_bulk(cache, objects.size(), objects.data()), 0);
  const slab_stats_t before = Stats(cache);
  EXPECT_EQ(before.num_flushes, 0u);
  EXPECT_EQ(before.num_depot_exchanges, 0u);
  std::atomic<int> stage{0};
  std::thread other([&] {
    slab_free_bulk(cache, objects.size(), objects.data());
    stage = 1;
    while (stage != 2) {
      std::this_thread::yield();
    }
  });
  while (stage != 1) {
    std::this_thread::yield();
  }
  const slab_stats_t freed = Stats(cache);
  EXPECT_EQ(freed.num_live, 0u);
  EXPECT_GT(freed.num_flushes, 0u);
  EXPECT_GT(freed.num_depot_exchanges, 0u);
  EXPECT_LE(freed.num_depot_exchanges, freed.num_flushes);
  const std::set<void *> known(objects.begin(), objects.end());
  size_t num_known = 0;
  for (int i = 0; i < 2000; ++i) {
    void *object = slab_alloc(cache);
    num_known += known.count(object);
  }
  EXPECT_GT(num_known, 1000u);
  const slab_stats_t after = Stats(cache);
  EXPECT_GT(after.num_depot_exchanges, freed.num_depot_exchanges);
  EXPECT_GT(after.num_refills, freed.num_refills);
  EXPECT_EQ(after.num_allocs, before.num_allocs + 2000);
  stage = 2;
  other.join();
  EXPECT_STREQ(slab_check(cache), nullptr);
  EXPECT_EQ(slab_cache_destroy(cache, SLAB_DESTROY_LIVE | SLAB_DESTROY_QUIET),
            0);
}

TEST(SlabThreadsTest, BufferServesManyThreads) {
  std::vector<char> buffer(200000);
  slab_options_t options = Options();
  options.buffer = buffer.data();
  options.buffer_bytes = buffer.size();
  slab_cache_t *cache = slab_cache_create(&options);
  ASSERT_NE(cache, nullptr);
  RunThreads(cache, 3, 5000);
  EXPECT_EQ(slab_cache_destroy(cache, 0), 0);
}

TEST(SlabThreadsTest, ExitedThreadsLeaveNothingCached) {
  const slab_options_t options = Options();
  slab_cache_t *cache = slab_cache_create(&options);
  for (int i = 0; i < 300; ++i) {
    std::thread([&] {
      std::vector<void *> objects(100);
      for (void *&object : objects) {
        object = slab_alloc(cache);
      }
      for (void *object : objects) {
        slab_free(cache, object);
      }
    }).join();
  }
  const slab_stats_t stats = Stats(cache);
  EXPECT_EQ(stats.num_cached, 0u);
  EXPECT_EQ(stats.num_allocs, 30000u);
  EXPECT_EQ(stats.num_slabs, 1u);
  EXPECT_STREQ(slab_check(cache), nullptr);
  EXPECT_EQ(slab_cache_destroy(cache, 0), 0);
}

// Frees in a destructor of the thread that runs after slab's own, maybe.
TEST(SlabThreadsTest, CacheIsUsableWhileAThreadExits) {
  const slab_options_t options = Options();
  static slab_cache_t *cache;
  cache = slab_cache_create(&options);
  pthread_key_t key;
  ASSERT_EQ(pthread_key_create(&key,
                               [](void *object) {
                                 slab_free(cache, object);
                                 slab_free(cache, slab_alloc(cache));
                               }),
            0);
  for (int i = 0; i < 20; ++i) {
    std::thread([&] { pthread_setspecific(key, slab_alloc(cache)); }).join();
  }
  pthread_key_delete(key);
  EXPECT_STREQ(slab_check(cache), nullptr);
  EXPECT_EQ(Stats(cache).num_live, 0u);
  EXPECT_EQ(Stats(cache).num_cached, 0u);
  EXPECT_EQ(slab_cache_destroy(cache, 0), 0);
}

TEST(SlabThreadsTest, DestroyTakesBackWhatRunningThreadsHaveCached) {
  for (int round = 0; round < 20; ++round) {
    const slab_options_t options = Options();
    slab_cache_t *cache = slab_cache_create(&options);
    std::atomic<int> stage{0};
    std::thread other([&] {
      for (int i = 0; i < 100; ++i) {
        slab_free(cache, slab_alloc(cache));
      }
      stage = 1;
      while (stage != 2) {
        std::this_thread::yield();
      }
      // The number is another cache's by now.
      slab_free(cache, slab_alloc(cache));
    });
    while (stage != 1) {
      std::this_thread::yield();
    }
    EXPECT_EQ(slab_cache_destroy(cache, 0), 0);
    cache = slab_cache_create(&options);
    stage = 2;
    other.join();
    EXPECT_STREQ(slab_check(cache), nullptr);
    EXPECT_EQ(slab_cache_destroy(cache, 0), 0);
  }
}

TEST(SlabThreadsTest, ReapReachesOtherThreadsWhenTheyOverflow) {
  const slab_options_t options = Options();
  slab_cache_t *cache = slab_cache_create(&options);
  std::atomic<int> stage{0};
  std::thread other([&] {
    std::vector<void *> objects(5000);
    for (void *&object : objects) {
      object = slab_alloc(cache);
    }
    for (size_t i = 0; i < 2000; ++i) {
      slab_free(cache, objects[i]);
    }
    stage = 1;
    while (stage != 2) {
      std::this_thread::yield();
    }
    // Without a reap, an overflow gives up half, or nothing.
    size_t most = Stats(cache).num_cached;
    size_t now = most;
    for (size_t i = 2000; i < objects.size(); ++i) {
      slab_free(cache, objects[i]);
      if (now >= most) {
        most = now;
        now = Stats(cache).num_cached;
        EXPECT_TRUE(now > most || now <= 2) << now << " of " << most;
      }
    }
    EXPECT_LT(now, most);
    stage = 3;
    while (stage != 4) {
      std::this_thread::yield();
    }
  });
  while (stage != 1) {
    std::this_thread::yield();
  }
  slab_reap(cache);
  EXPECT_GT(Stats(cache).num_cached, 100u);
  stage = 2;
  while (stage != 3) {
    std::this_thread::yield();
  }
  // It still runs: what it freed since is in its magazine or the depot.
  EXPECT_EQ(Stats(cache).num_live, 0u);
  EXPECT_GT(Stats(cache).num_slabs, 0u);
  stage = 4;
  other.join();
  slab_reap(cache);
  EXPECT_EQ(Stats(cache).num_slabs, 0u);
  EXPECT_EQ(slab_cache_destroy(cache, 0), 0);
}

TEST(SlabThreadsTest, CacheOnAPrivateHeapServesManyThreads) {
  heap_options_t heap_options = {};
  heap_options.strategy = HEAP_TLSF;
  heap_t *heap = heap_create(&heap_options);
  ASSERT_NE(heap, nullptr);
  slab_options_t options = Options();
  options.source.context = heap;
  options.source.alloc = [](void *context, size_t size_bytes,
                            size_t align_bytes) {
    return heap_aligned_alloc_in(static_cast<heap_t *>(context), align_bytes,
                                 size_bytes);
  };
  options.source.free = [](void *context, void *ptr, size_t) {
    heap_free_in(static_cast<heap_t *>(context), ptr);
  };
  slab_cache_t *cache = slab_cache_create(&options);
  ASSERT_NE(cache, nullptr);
  RunThreads(cache, 3, 10000);
  EXPECT_EQ(slab_cache_destroy(cache, 0), 0);
  EXPECT_EQ(heap_check_in(heap), nullptr);
  heap_private_stats_t stats;
  heap_stats_get_in(heap, &stats);
  EXPECT_EQ(stats.num_live, 0u);
  heap_destroy(heap);
}

// Slabs outside of a range come and go all the time, and others move in the
// table meanwhile: each free must find its own.
TEST(SlabThreadsTest, SlabsOfASourceAreFoundWhileOthersComeAndGo) {
  slab_options_t options = Options();
  options.object_bytes = 4096;
  options.source.alloc = [](void *, size_t size_bytes, size_t align_bytes) {
    void *ptr = nullptr;
    return posix_memalign(&ptr, align_bytes, size_bytes) == 0 ? ptr : nullptr;
  };
  options.source.free = [](void *, void *ptr, size_t) {
    free(ptr);
  };
  slab_cache_t *cache = slab_cache_create(&options);
  ASSERT_NE(cache, nullptr);
  std::atomic<int> num_working{3};
  std::vector<std::thread> threads;
  for (uint64_t id = 1; id <= 3; ++id) {
    threads.emplace_back([&, id] {
      std::mt19937_64 random(slab_testing::Seed() + id);
      std::vector<Object *> objects;
      for (int round = 0; round < 300; ++round) {
        // Up to 50 slabs, all of which go again.
        const size_t count = 1 + random() % 600;
        while (objects.size() < count) {
          objects.push_back(static_cast<Object *>(slab_alloc(cache)));
          Own(objects.back(), id);
        }
        std::shuffle(objects.begin(), objects.end(), random);
        for (Object *object : objects) {
          EXPECT_TRUE(IsOwned(object, id));
          slab_free(cache, object);
        }
        objects.clear();
        slab_reap(cache);
      }
      --num_working;
    });
  }
  threads.emplace_back([&] {
    while (num_working != 0) {
      slab_reap(cache);
      std::this_thread::yield();
    }
  });
  for (std::thread &thread : threads) {
    thread.join();
  }
  EXPECT_STREQ(slab_check(cache), nullptr);
  slab_reap(cache);
  EXPECT_EQ(Stats(cache).num_slabs, 0u);
  EXPECT_EQ(slab_cache_destroy(cache, 0), 0);
}

}  // namespace
