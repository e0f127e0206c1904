// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// What a thread that is not in the child of a fork had taken, or waited for, is
// there for the child.

#include <pthread.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstddef>
#include <cstdlib>
#include <functional>
#include <thread>
#include <vector>

#include "gtest/gtest.h"
#include "slab/slab.h"
#include "slab/slab_internal.h"
#include "slab/slab_testing.h"

namespace {

using slab_testing::Options;
using slab_testing::Stats;

// Runs `body` in a child, which must return 0; a child that hangs is ended.
void InChild(const std::function<int()> &body) {
  constexpr unsigned kSecondsMost = 20;
  const pid_t child = fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    alarm(kSecondsMost);
    _exit(body());
  }
  int status = -1;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << status;
}

// A cache in a buffer has the slots of one magazine. A thread takes them under
// the cache's lock, and sets its magazine up under the process's after that:
// whoever forks in between finds them taken and no magazine with them. Nothing
// stops a thread there, so this test takes them itself.
TEST(SlabForkChildTest, SlotsOfABufferThatAnotherThreadJustTookServeTheChild) {
  alignas(64) static unsigned char buffer[65536];
  slab_options_t options = Options();
  options.buffer = buffer;
  options.buffer_bytes = sizeof(buffer);
  slab_cache_t *cache = slab_cache_create(&options);
  ASSERT_NE(cache, nullptr);
  pthread_mutex_lock(&cache->lock);
  cache->buffer_slots_taken = true;
  pthread_mutex_unlock(&cache->lock);
  InChild([&] {
    slab_free(cache, slab_alloc(cache));
    // By a magazine, which has it now.
    return Stats(cache).num_cached != 0 && slab_check(cache) == nullptr ? 0 : 1;
  });
  // Not here: the other thread is on its way.
  slab_free(cache, slab_alloc(cache));
  EXPECT_EQ(Stats(cache).num_cached, 0u);
  EXPECT_EQ(slab_cache_destroy(cache, 0), 0);
}

// The slots of the thread that forks stay its own.
TEST(SlabForkChildTest, SlotsOfABufferStayWithTheThreadThatForks) {
  alignas(64) static unsigned char buffer[65536];
  slab_options_t options = Options();
  options.buffer = buffer;
  options.buffer_bytes = sizeof(buffer);
  slab_cache_t *cache = slab_cache_create(&options);
  ASSERT_NE(cache, nullptr);
  slab_free(cache, slab_alloc(cache));
  InChild([&] {
    return cache->buffer_slots_taken && Stats(cache).num_cached != 0 ? 0 : 1;
  });
  EXPECT_EQ(slab_cache_destroy(cache, 0), 0);
}

// A source that holds a slab in the making until it is told to go on.
struct HeldSource {
  std::atomic<bool> is_inside{false};
  std::atomic<bool> may_go_on{false};

  static void *Alloc(void *context, size_t size_bytes, size_t align_bytes) {
    auto *source = static_cast<HeldSource *>(context);
    if (size_bytes >= SLAB_GRANULE_BYTES && !source->is_inside.exchange(true)) {
      while (!source->may_go_on) {
        std::this_thread::yield();
      }
    }
    return std::aligned_alloc(align_bytes, (size_bytes + align_bytes - 1) /
                                               align_bytes * align_bytes);
  }
  static void Free(void *, void *ptr, size_t) {
    std::free(ptr);
  }
};

// Near the limit, one thread makes the last slab and another one waits for it.
// Neither is in the child, which can use all of the limit and end the cache.
TEST(SlabForkChildTest, ThreadThatWaitsForASlabIsNotWaitedFor) {
  constexpr size_t kLimit = 100;
  HeldSource source;
  slab_options_t options = Options();
  options.flags = SLAB_NO_MAGAZINES;
  options.max_objects = kLimit;
  options.source = {HeldSource::Alloc, HeldSource::Free, &source};
  slab_cache_t *cache = slab_cache_create(&options);
  ASSERT_NE(cache, nullptr);
  auto work = [&] {
    slab_free(cache, slab_alloc(cache));
  };
  std::thread maker(work);
  while (!source.is_inside) {
    std::this_thread::yield();
  }
  std::thread waiter(work);
  for (size_t num_waiting = 0; num_waiting == 0;) {
    std::this_thread::yield();
    pthread_mutex_lock(&cache->lock);
    num_waiting = cache->num_waiting;
    pthread_mutex_unlock(&cache->lock);
  }
  InChild([&] {
    for (size_t i = 0; i < kLimit; ++i) {
      if (slab_alloc(cache) == nullptr) {
        return 1;
      }
    }
    if (slab_alloc(cache) != nullptr || slab_check(cache) != nullptr) {
      return 2;
    }
    return slab_cache_destroy(cache, SLAB_DESTROY_LIVE | SLAB_DESTROY_QUIET);
  });
  source.may_go_on = true;
  maker.join();
  waiter.join();
  EXPECT_STREQ(slab_check(cache), nullptr);
  EXPECT_EQ(slab_cache_destroy(cache, 0), 0);
}

}  // namespace
