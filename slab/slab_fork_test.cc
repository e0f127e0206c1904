// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// fork, while other threads are anywhere inside of slab: the child finds every
// cache whole.

#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <functional>
#include <thread>
#include <vector>

#include "gtest/gtest.h"
#include "slab/slab.h"
#include "slab/slab_internal.h"

namespace {

struct Object {
  uint64_t magic;
  uint64_t more;
};

slab_options_t Options(unsigned flags = 0) {
  slab_options_t options = {};
  options.name = "fork";
  options.object_bytes = sizeof(Object);
  options.flags = flags;
  return options;
}

slab_stats_t Stats(slab_cache_t *cache) {
  slab_stats_t stats;
  slab_stats(cache, &stats);
  return stats;
}

void ExpectChildSucceeds(pid_t child) {
  int status = -1;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << status;
}

// Forks `num_children` times while `num_threads` run `work` again and again,
// once at least.
// Children exit with what `child` returns; 0 is success.
void ForkWhile(int num_threads, int num_children,
               const std::function<void()> &work,
               const std::function<int()> &child) {
  std::atomic<bool> end{false};
  std::vector<std::thread> threads;
  for (int i = 0; i < num_threads; ++i) {
    threads.emplace_back([&] {
      do {
        work();
      } while (!end);
    });
  }
  for (int i = 0; i < num_children; ++i) {
    const pid_t pid = fork();
    ASSERT_GE(pid, 0);
    if (pid == 0) {
      _exit(child());
    }
    ExpectChildSucceeds(pid);
  }
  end = true;
  for (std::thread &thread : threads) {
    thread.join();
  }
}

// Forks while another thread, which runs `work`, is between Enter and the end
// of it.
class Gate {
 public:
  // By the other thread: waits here, the first time, until the fork is over.
  void Enter() {
    int expected = kClosed;
    if (stage_.compare_exchange_strong(expected, kEntered)) {
      while (stage_ != kOpen) {
        std::this_thread::yield();
      }
    }
  }
  void Fork(const std::function<void()> &work,
            const std::function<int()> &child) {
    std::thread other(work);
    while (stage_ != kEntered) {
      std::this_thread::yield();
    }
    const pid_t pid = fork();
    if (pid == 0) {
      _exit(child());
    }
    stage_ = kOpen;
    other.join();
    ASSERT_GE(pid, 0);
    ExpectChildSucceeds(pid);
  }

 private:
  enum Stage {
    kClosed,
    kEntered,
    kOpen
  };
  std::atomic<int> stage_{kClosed};
};

// Magazines of other threads are flushed and popped in bulk all the time: there
// the states of objects change long before the top moves.
TEST(SlabForkTest, ForkInTheMidstOfFlushesLeavesTheChildWhole) {
  const slab_options_t options = Options();
  slab_cache_t *cache = slab_cache_create(&options);
  void *kept = slab_alloc(cache);
  ForkWhile(
      2, 100,
      [&] {
        std::vector<void *> objects(6000);
        if (slab_alloc_bulk(cache, objects.size(), objects.data()) == 0) {
          slab_free_bulk(cache, objects.size(), objects.data());
        }
      },
      [&] {
        slab_free(cache, kept);
        return slab_check(cache) == nullptr ? 0 : 1;
      });
  slab_free(cache, kept);
  EXPECT_STREQ(slab_check(cache), nullptr);
  EXPECT_EQ(slab_cache_destroy(cache, 0), 0);
}

// One thread without any magazine is about to put an object into its slab.
TEST(SlabForkTest, ForkLosesNoObjectThatIsFreedWithoutAMagazine) {
  const slab_options_t options = Options(SLAB_NO_MAGAZINES);
  slab_cache_t *cache = slab_cache_create(&options);
  ForkWhile(
      2, 100, [&] { slab_free(cache, slab_alloc(cache)); },
      [&] {
        const bool is_good =
            slab_check(cache) == nullptr && Stats(cache).num_cached == 0;
        return is_good ? 0 : 1;
      });
  EXPECT_EQ(slab_cache_destroy(cache, 0), 0);
}

// A source that forks inside of its first `alloc`, or of a later one.
struct ForkingSource {
  int calls_until_fork = 0;
  pid_t child = -1;

  static void *Alloc(void *context, size_t size_bytes, size_t align_bytes) {
    ForkingSource *source = static_cast<ForkingSource *>(context);
    if (--source->calls_until_fork == 0) {
      source->child = fork();
    }
    return std::aligned_alloc(align_bytes, (size_bytes + align_bytes - 1) /
                                               align_bytes * align_bytes);
  }
  static void Free(void *, void *ptr, size_t) {
    std::free(ptr);
  }
};

// The thread that forks goes on in the child with the slab that it was making.
TEST(SlabForkTest, ForkInsideTheSourceLeavesTheChildWhole) {
  constexpr size_t kLimit = 3000;
  for (int call = 1; call <= 3; ++call) {
    ForkingSource source;
    slab_options_t options = Options(SLAB_NO_MAGAZINES);
    options.max_objects = kLimit;
    options.source = {ForkingSource::Alloc, ForkingSource::Free, &source};
    slab_cache_t *cache = slab_cache_create(&options);
    ASSERT_NE(cache, nullptr);
    source.calls_until_fork = call;
    std::vector<void *> objects;
    for (void *object; (object = slab_alloc(cache)) != nullptr;) {
      objects.push_back(object);
    }
    const bool is_whole =
        slab_check(cache) == nullptr && objects.size() == kLimit;
    for (void *object : objects) {
      slab_free(cache, object);
    }
    const bool is_good = is_whole && slab_cache_destroy(cache, 0) == 0;
    if (source.child == 0) {
      _exit(is_good ? 0 : 1);
    }
    EXPECT_TRUE(is_good);
    ASSERT_GT(source.child, 0);
    ExpectChildSucceeds(source.child);
  }
}

// Objects are constructed if they have `kMagic`; only those may be handed out
// or destructed.
constexpr uint64_t kMagic = 0x600d0b7ec7;

struct Constructed {
  Gate gate;
  std::atomic<int> num_bad{0};
  std::atomic<int> num_destructed{0};

  static void Construct(void *object, void *context) {
    static_cast<Constructed *>(context)->gate.Enter();
    static_cast<Object *>(object)->magic = kMagic;
  }
  static void Destruct(void *object, void *context) {
    auto *self = static_cast<Constructed *>(context);
    self->num_bad += static_cast<Object *>(object)->magic != kMagic;
    ++self->num_destructed;
  }
};

TEST(SlabForkTest, ForkDuringAConstructorLeavesItsObjectAlone) {
  for (unsigned flags :
       {0u, unsigned{SLAB_NO_MAGAZINES}, unsigned{SLAB_DEBUG}}) {
    Constructed constructed;
    slab_options_t options = Options(flags);
    options.construct = Constructed::Construct;
    options.destruct = Constructed::Destruct;
    options.context = &constructed;
    slab_cache_t *cache = slab_cache_create(&options);
    constructed.gate.Fork(
        [&] { slab_free(cache, slab_alloc(cache)); },
        [&] {
          std::vector<void *> objects(3000);
          for (void *&object : objects) {
            object = slab_alloc(cache);
            if (static_cast<Object *>(object)->magic != kMagic) {
              return 1;
            }
          }
          if (slab_check(cache) != nullptr) {
            return 2;
          }
          slab_free_bulk(cache, objects.size(), objects.data());
          // What was never handed out does not keep the cache alive.
          if (slab_cache_destroy(cache, SLAB_DESTROY_LIVE) != 0 ||
              constructed.num_bad != 0 || constructed.num_destructed < 3000) {
            return 3;
          }
          return 0;
        });
    EXPECT_STREQ(slab_check(cache), nullptr);
    EXPECT_EQ(slab_cache_destroy(cache, 0), 0);
    EXPECT_EQ(constructed.num_bad, 0);
  }
}

// A thread that is just giving slabs back: the child has neither their objects
// nor the rest of them to be given back, but their addresses.
TEST(SlabForkTest, ForkDuringADestructorLeavesTheChildWhole) {
  static Gate *gate;
  Gate this_gate;
  gate = &this_gate;
  slab_options_t options = Options();
  options.destruct = [](void *, void *) {
    gate->Enter();
  };
  slab_cache_t *cache = slab_cache_create(&options);
  void *kept = slab_alloc(cache);
  gate->Fork(
      [&] {
        std::vector<void *> objects(100000);
        if (slab_alloc_bulk(cache, objects.size(), objects.data()) == 0) {
          slab_free_bulk(cache, objects.size(), objects.data());
        }
        slab_reap(cache);
      },
      [&] {
        if (slab_check(cache) != nullptr) {
          return 1;
        }
        std::vector<void *> objects(200000);
        if (slab_alloc_bulk(cache, objects.size(), objects.data()) != 0) {
          return 2;
        }
        if (slab_check(cache) != nullptr ||
            Stats(cache).num_live != objects.size() + 1) {
          return 3;
        }
        slab_free_bulk(cache, objects.size(), objects.data());
        slab_free(cache, kept);
        slab_reap(cache);
        // No slab, not even a retired one, is in between.
        return cache->range.next_bytes == 0 && slab_check(cache) == nullptr ? 0
                                                                            : 4;
      });
  slab_free(cache, kept);
  EXPECT_STREQ(slab_check(cache), nullptr);
  EXPECT_EQ(slab_cache_destroy(cache, 0), 0);
}

void *GatedAlloc(void *context, size_t size_bytes, size_t align_bytes) {
  if (size_bytes >= 1 << 16) {
    static_cast<Gate *>(context)->Enter();
  }
  return std::aligned_alloc(
      align_bytes, (size_bytes + align_bytes - 1) / align_bytes * align_bytes);
}

void PlainFree(void *, void *ptr, size_t) {
  std::free(ptr);
}

TEST(SlabForkTest, ForkDuringTheSourcesWorkLosesNothingOfTheLimit) {
  constexpr size_t kLimit = 100;
  Gate gate;
  slab_options_t options = Options(SLAB_NO_MAGAZINES);
  options.max_objects = kLimit;
  options.source = {GatedAlloc, PlainFree, &gate};
  slab_cache_t *cache = slab_cache_create(&options);
  gate.Fork([&] { slab_free(cache, slab_alloc(cache)); },
            [&] {
              if (slab_check(cache) != nullptr) {
                return 1;
              }
              for (size_t i = 0; i < kLimit; ++i) {
                if (slab_alloc(cache) == nullptr) {
                  return 2;
                }
              }
              return slab_alloc(cache) == nullptr ? 0 : 3;
            });
  EXPECT_STREQ(slab_check(cache), nullptr);
  EXPECT_EQ(slab_cache_destroy(cache, 0), 0);
}

TEST(SlabForkTest, ChildOfForkFindsEverythingWhole) {
  const slab_options_t options = Options();
  slab_cache_t *cache = slab_cache_create(&options);
  void *kept = slab_alloc(cache);
  // More than a magazine takes, so that all of them are flushed, refilled and
  // given up to a reap.
  std::atomic<unsigned> num_rounds{0};
  ForkWhile(
      3, 30,
      [&] {
        std::vector<void *> objects(2000);
        for (void *&object : objects) {
          object = slab_alloc(cache);
        }
        for (void *object : objects) {
          slab_free(cache, object);
        }
        if (++num_rounds % 3 == 0) {
          slab_reap(cache);
        }
      },
      [&] {
        bool is_good = slab_check(cache) == nullptr;
        slab_free(cache, kept);
        for (int j = 0; j < 3000; ++j) {
          void *object = slab_alloc(cache);
          is_good = is_good && object != nullptr;
          if (j % 3 != 0) {
            slab_free(cache, object);
          }
        }
        is_good = is_good && slab_check(cache) == nullptr;
        return is_good ? 0 : 1;
      });
  EXPECT_GE(num_rounds, 3u);
  slab_free(cache, kept);
  EXPECT_STREQ(slab_check(cache), nullptr);
  EXPECT_EQ(Stats(cache).num_live, 0u);
  EXPECT_EQ(slab_cache_destroy(cache, 0), 0);
}

}  // namespace
