// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// fork and cancellation where they are least expected: in constructors,
// destructors, sources, and handlers of fork.

#include <pthread.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <mutex>
#include <thread>
#include <vector>

#include "gtest/gtest.h"
#include "slab/slab.h"
#include "slab/slab_internal.h"
#include "slab/slab_testing.h"

namespace {

using slab_testing::AllocMany;
using slab_testing::Options;
using slab_testing::Stats;

constexpr unsigned kAlarmSeconds = 60;  // A child that hangs does not for ever.

// Forks in the callback number `at` (the first is 1) and remembers who is who.
struct Forker {
  int at = 0;
  pid_t child = -1;

  void Call() {
    if (at != 0 && --at == 0) {
      child = fork();
      if (child == 0) {
        alarm(kAlarmSeconds);
      }
    }
  }

  // The child ends here, with success if `is_good`; the parent waits for it.
  void Join(bool is_good) const {
    EXPECT_TRUE(is_good);
    if (child == 0) {
      _exit(is_good ? 0 : 1);
    }
    int status = -1;
    ASSERT_EQ(waitpid(child, &status, 0), child);
    EXPECT_EQ(status, 0);
  }
};

bool IsWhole(slab_cache_t *cache) {
  const char *broken = slab_check(cache);
  EXPECT_STREQ(broken, nullptr);
  return broken == nullptr;
}

bool AllocsAndFrees(slab_cache_t *cache, size_t count) {
  const std::vector<void *> objects = AllocMany(cache, count);
  const bool is_whole = IsWhole(cache);
  slab_free_bulk(cache, objects.size(), objects.data());
  return is_whole;
}

TEST(SlabCallbacksTest, DestructorMayFork) {
  Forker forker;
  slab_options_t options = Options();
  options.destruct = [](void *, void *context) {
    static_cast<Forker *>(context)->Call();
  };
  options.context = &forker;
  slab_cache_t *cache = slab_cache_create(&options);
  AllocsAndFrees(cache, 5000);
  forker.at = 1;
  slab_reap(cache);
  bool is_good = IsWhole(cache) && AllocsAndFrees(cache, 5000);
  slab_reap(cache);
  is_good = is_good && IsWhole(cache) && Stats(cache).slab_bytes == 0;
  is_good = is_good && slab_cache_destroy(cache, 0) == 0;
  forker.Join(is_good);
}

// Threads that have magazines of a cache, and keep them until the end.
class Users {
 public:
  Users(slab_cache_t *cache, int count) {
    for (int i = 0; i < count; ++i) {
      threads_.emplace_back([this, cache] {
        slab_free(cache, slab_alloc(cache));
        ++num_ready_;
        while (!end_) {
          std::this_thread::yield();
        }
      });
      while (num_ready_ != i + 1) {
        std::this_thread::yield();
      }
    }
  }

  void Join() {
    end_ = true;
    for (std::thread &thread : threads_) {
      thread.join();
    }
  }

 private:
  std::vector<std::thread> threads_;
  std::atomic<int> num_ready_{0};
  std::atomic<bool> end_{false};
};

void ConstructorForks(int num_threads) {
  Forker forker;
  slab_options_t options = Options();
  options.construct = [](void *object, void *context) {
    static_cast<Forker *>(context)->Call();
    *static_cast<uint64_t *>(object) = 42;
  };
  options.context = &forker;
  slab_cache_t *cache = slab_cache_create(&options);
  Users users(cache, num_threads);
  forker.at = 300;
  const std::vector<void *> objects = AllocMany(cache, 3000);
  bool is_good = IsWhole(cache);
  for (void *object : objects) {
    is_good = is_good && *static_cast<uint64_t *>(object) == 42;
  }
  slab_free_bulk(cache, objects.size(), objects.data());
  const slab_stats_t stats = Stats(cache);
  is_good = is_good && stats.num_live == 0 && IsWhole(cache);
  if (forker.child != 0) {
    users.Join();
  }
  forker.Join(is_good);
  EXPECT_EQ(slab_cache_destroy(cache, 0), 0);
}

TEST(SlabCallbacksTest, ConstructorMayFork) {
  ConstructorForks(3);
}

TEST(SlabCallbacksTest, ConstructorMayForkWithoutATag) {
  ConstructorForks(SLAB_TAG_MAX);
}

// Forks in a call of the source, the one that `forker` says.
slab_source_t ForkingSource(Forker *forker) {
  slab_source_t source = {};
  source.alloc = [](void *context, size_t size_bytes,
                    size_t align_bytes) -> void * {
    static_cast<Forker *>(context)->Call();
    void *ptr = nullptr;
    return posix_memalign(&ptr, align_bytes, size_bytes) == 0 ? ptr : nullptr;
  };
  source.free = [](void *context, void *ptr, size_t) {
    free(ptr);
    static_cast<Forker *>(context)->Call();
  };
  source.context = forker;
  return source;
}

// Enough for several slabs, a stack for the depot, larger magazines, and all of
// it back. Returns whether the cache was whole all the time.
bool UsesTheSourceInAllWays(slab_cache_t *cache) {
  bool is_good = true;
  for (int round = 0; round < 2; ++round) {
    is_good = AllocsAndFrees(cache, 6000) && IsWhole(cache) && is_good;
    slab_reap(cache);
    is_good = is_good && IsWhole(cache) && Stats(cache).slab_bytes == 0;
  }
  return is_good;
}

void EachCallOfTheSourceForks(unsigned flags) {
  bool is_through = false;
  int num_forks = 0;
  for (int at = 1; !is_through; ++at) {
    SCOPED_TRACE(at);
    Forker forker;
    slab_options_t options = Options();
    options.flags = flags;
    options.source = ForkingSource(&forker);
    slab_cache_t *cache = slab_cache_create(&options);
    forker.at = at;
    bool is_good = UsesTheSourceInAllWays(cache);
    is_through = forker.at > 0;
    forker.at = 0;
    is_good = is_good && slab_cache_destroy(cache, 0) == 0;
    if (is_through) {
      EXPECT_TRUE(is_good);
    } else {
      ++num_forks;
      forker.Join(is_good);
    }
  }
  EXPECT_GE(num_forks, 20);
}

TEST(SlabCallbacksTest, SourceMayForkInEachOfItsCalls) {
  EachCallOfTheSourceForks(0);
}

TEST(SlabCallbacksTest, SourceMayForkInEachOfItsCallsWithoutMagazines) {
  EachCallOfTheSourceForks(SLAB_NO_MAGAZINES);
}

TEST(SlabCallbacksTest, SourceMayForkInEachOfItsCallsInTheDebugVariant) {
  EachCallOfTheSourceForks(SLAB_DEBUG);
}

// Its lock is taken while the process forks, as an allocator's would be that
// has no handlers of its own.
struct LockedSource {
  std::mutex mutex;
  std::atomic<size_t> num_blocks{0};

  slab_source_t Get() {
    slab_source_t source = {};
    source.alloc = [](void *context, size_t size_bytes, size_t align_bytes) {
      auto *self = static_cast<LockedSource *>(context);
      const std::lock_guard<std::mutex> lock(self->mutex);
      void *ptr = nullptr;
      self->num_blocks += 1;
      return posix_memalign(&ptr, align_bytes, size_bytes) == 0 ? ptr : nullptr;
    };
    source.free = [](void *context, void *ptr, size_t) {
      auto *self = static_cast<LockedSource *>(context);
      const std::lock_guard<std::mutex> lock(self->mutex);
      self->num_blocks -= 1;
      std::free(ptr);
    };
    source.context = this;
    return source;
  }
};

TEST(SlabCallbacksTest, ForkDoesNotCallTheSource) {
  LockedSource source;
  slab_options_t options = Options();
  options.source = source.Get();
  slab_cache_t *cache = slab_cache_create(&options);
  slab_free(cache, slab_alloc(cache));
  Users users(cache, 3);
  source.mutex.lock();
  const pid_t child = fork();
  if (child == 0) {
    // So far nobody waited for the lock. What was dropped goes back later.
    alarm(kAlarmSeconds);
    source.mutex.unlock();
    const size_t before = source.num_blocks;
    slab_reap(cache);
    const bool is_good = source.num_blocks + 3 <= before &&
                         slab_cache_destroy(cache, 0) == 0 &&
                         source.num_blocks == 0;
    _exit(is_good ? 0 : 1);
  }
  source.mutex.unlock();
  int status = -1;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
  users.Join();
  EXPECT_EQ(slab_cache_destroy(cache, 0), 0);
  EXPECT_EQ(source.num_blocks, 0u);
}

slab_cache_t *handlers_cache;

TEST(SlabCallbacksTest, ProgramsHandlerInTheChildMayUseCaches) {
  // Registered before the process has a cache, in a process of its own.
  EXPECT_EXIT(
      {
        alarm(kAlarmSeconds);
        pthread_atfork(nullptr, nullptr, [] {
          slab_free(handlers_cache, slab_alloc(handlers_cache));
        });
        const slab_options_t options = Options();
        handlers_cache = slab_cache_create(&options);
        slab_free(handlers_cache, slab_alloc(handlers_cache));
        const pid_t child = fork();
        if (child == 0) {
          _exit(0);
        }
        int status = -1;
        waitpid(child, &status, 0);
        _exit(status == 0 ? 0 : 1);
      },
      testing::ExitedWithCode(0), "");
}

// A source that waits with the first slab, until it is let go.
struct SlowSource {
  std::atomic<bool> is_in{false};
  std::atomic<bool> go{false};

  slab_source_t Get() {
    slab_source_t source = {};
    source.alloc = [](void *context, size_t size_bytes,
                      size_t align_bytes) -> void * {
      auto *self = static_cast<SlowSource *>(context);
      if (size_bytes >= SLAB_GRANULE_BYTES) {
        self->is_in = true;
        while (!self->go) {
          std::this_thread::yield();
        }
      }
      void *ptr = nullptr;
      return posix_memalign(&ptr, align_bytes, size_bytes) == 0 ? ptr : nullptr;
    };
    source.free = [](void *, void *ptr, size_t) {
      std::free(ptr);
    };
    source.context = this;
    return source;
  }
};

struct Waiter {
  slab_cache_t *cache;
  std::atomic<bool> is_done{false};
};

void *AllocAndFree(void *argument) {
  auto *waiter = static_cast<Waiter *>(argument);
  slab_free(waiter->cache, slab_alloc(waiter->cache));
  waiter->is_done = true;
  pthread_testcancel();
  return nullptr;
}

// The limit is all in the slab that another thread makes, so that an allocation
// waits for it; cancelled there, the thread would keep the cache's lock.
TEST(SlabCallbacksTest, WaitingForASlabIsNoCancellationPoint) {
  SlowSource source;
  slab_options_t options = Options();
  options.source = source.Get();
  options.max_objects = 500;
  Waiter waiter;
  waiter.cache = slab_cache_create(&options);
  std::thread maker([&] { slab_free(waiter.cache, slab_alloc(waiter.cache)); });
  while (!source.is_in) {
    std::this_thread::yield();
  }
  pthread_t thread;
  ASSERT_EQ(pthread_create(&thread, nullptr, AllocAndFree, &waiter), 0);
  bool waits = false;
  while (!waits) {
    pthread_mutex_lock(&waiter.cache->lock);
    waits = waiter.cache->num_waiting != 0;
    pthread_mutex_unlock(&waiter.cache->lock);
  }
  ASSERT_EQ(pthread_cancel(thread), 0);
  source.go = true;
  maker.join();
  void *result = nullptr;
  ASSERT_EQ(pthread_join(thread, &result), 0);
  EXPECT_TRUE(waiter.is_done);
  EXPECT_EQ(result, PTHREAD_CANCELED);
  EXPECT_EQ(Stats(waiter.cache).num_live, 0u);
  EXPECT_EQ(slab_cache_destroy(waiter.cache, 0), 0);
}

}  // namespace
