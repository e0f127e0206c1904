// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// malloc around the edges of threads and processes: fork while other threads
// are inside it, handlers that allocate, destructors that run after the heap's
// own.

#include <pthread.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <set>
#include <thread>
#include <vector>

#include "gtest/gtest.h"
#include "heap/heap.h"
#include "heap/heap_testing.h"

namespace {

using heap_testing::Fill;
using heap_testing::IsFilled;
using heap_testing::Random;

heap_stats_t Stats() {
  heap_stats_t stats;
  heap_stats_get(&stats);
  return stats;
}

// Allocates and frees blocks of all kinds; true when they were good.
bool UseMalloc(uint64_t seed, int steps) {
  Random random(seed);
  struct Block {
    void *ptr;
    size_t size;
    uint64_t id;
  };
  std::vector<Block> blocks(64);
  bool is_good = true;
  for (int i = 0; i < steps; ++i) {
    Block &block = blocks[random.Below(blocks.size())];
    is_good = is_good && IsFilled(block.ptr, block.size, block.size, block.id);
    const size_t size = random.SkewedSize(random.OneIn(200)  ? 23
                                          : random.OneIn(10) ? 17
                                                             : 10);
    if (random.OneIn(3)) {
      void *ptr = realloc(block.ptr, size + 1);
      is_good = is_good && ptr != nullptr &&
                IsFilled(ptr, size + 1, block.size, block.id);
      block.ptr = ptr;
    } else {
      free(block.ptr);
      block.ptr = malloc(size + 1);
      is_good = is_good && block.ptr != nullptr;
    }
    if (!is_good) {
      return false;
    }
    block.size = size + 1;
    block.id = random.Next();
    Fill(block.ptr, block.size, block.id);
  }
  for (const Block &block : blocks) {
    free(block.ptr);
  }
  return true;
}

// Handlers of others around fork, some of which run while the heap holds its
// lock: they were registered before the heap's.

std::atomic<int> handler_calls{0};
void *volatile handler_block;

void AllocInHandler() {
  handler_calls.fetch_add(1);
  void *small = malloc(100);
  void *medium = malloc(100000);
  memset(medium, 1, 100000);
  free(small);
  free(handler_block);
  handler_block = medium;
}

__attribute__((constructor(101))) void RegisterEarly() {
  pthread_atfork(AllocInHandler, AllocInHandler, AllocInHandler);
}

// Threads inside malloc for as long as it lives.
class Hammer {
 public:
  explicit Hammer(int count) {
    for (int i = 0; i < count; ++i) {
      threads_.emplace_back([this, i] {
        for (uint64_t n = 0; !stop_.load(); ++n) {
          EXPECT_TRUE(UseMalloc(static_cast<uint64_t>(i) + n * 16, 300));
        }
      });
    }
  }
  ~Hammer() {
    stop_.store(true);
    for (std::thread &thread : threads_) {
      thread.join();
    }
  }

 private:
  std::atomic<bool> stop_{false};
  std::vector<std::thread> threads_;
};

// Forks; true when the child, which runs `body`, says so. A child that hangs is
// killed by the alarm.
template <typename Body>
bool ChildSucceeds(Body body) {
  const pid_t child = fork();
  if (child == 0) {
    alarm(60);
    _exit(body() ? 0 : 1);
  }
  int status = -1;
  return child > 0 && waitpid(child, &status, 0) == child &&
         WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

TEST(MallocThreadsTest, ChildOfAProcessWithThreadsInMallocUsesMalloc) {
  const uint64_t seed = heap_testing::Seed();
  const Hammer hammer(3);
  for (uint64_t i = 0; i < 150; ++i) {
    ASSERT_TRUE(ChildSucceeds([&] { return UseMalloc(seed + i, 300); }));
  }
}

// The child of a vfork uses its parent's heap until it execs.
TEST(MallocThreadsTest, ProgramsAreStartedWhileThreadsAreInMalloc) {
  const uint64_t seed = heap_testing::Seed();
  const Hammer hammer(3);
  for (uint64_t i = 0; i < 100; ++i) {
    char name[] = "true";
    char *arguments[] = {name, nullptr};
    pid_t child = -1;
    int status = -1;
    ASSERT_EQ(posix_spawnp(&child, name, nullptr, nullptr, arguments, environ),
              0);
    EXPECT_TRUE(UseMalloc(seed + i, 100));
    ASSERT_EQ(waitpid(child, &status, 0), child);
    EXPECT_EQ(status, 0);
  }
}

TEST(MallocThreadsTest, ChildMayStartThreadsAndForkAgain) {
  const uint64_t seed = heap_testing::Seed();
  const Hammer hammer(2);
  for (uint64_t i = 0; i < 40; ++i) {
    ASSERT_TRUE(ChildSucceeds([&] {
      std::atomic<bool> is_good{true};
      std::thread thread([&] { is_good = UseMalloc(seed + i, 200); });
      const bool is_grandchild_good =
          ChildSucceeds([&] { return UseMalloc(seed + i, 100); });
      thread.join();
      return is_good && is_grandchild_good;
    }));
  }
}

TEST(MallocThreadsTest, ChildFreesBlocksOfThreadsItDoesNotHave) {
  std::vector<void *> blocks;
  std::atomic<int> phase{0};
  std::thread owner([&] {
    for (size_t size : {10, 1000, 20000, 100000, 8 << 20}) {
      for (int i = 0; i < 100; ++i) {
        blocks.push_back(malloc(size));
        if (size > 1 << 20) {
          break;
        }
      }
    }
    phase = 1;
    while (phase.load() != 2) {
      std::this_thread::yield();
    }
  });
  while (phase.load() != 1) {
    std::this_thread::yield();
  }
  EXPECT_TRUE(ChildSucceeds([&] {
    for (void *ptr : blocks) {
      free(ptr);
    }
    return UseMalloc(1, 1000) && heap_check() == nullptr;
  }));
  // They are the parent's still.
  for (void *ptr : blocks) {
    free(ptr);
  }
  phase = 2;
  owner.join();
  EXPECT_STREQ(heap_check(), nullptr);
}

TEST(MallocThreadsTest, ForkHandlersMayAllocate) {
  pthread_atfork(AllocInHandler, AllocInHandler, AllocInHandler);
  const Hammer hammer(2);
  for (int i = 0; i < 50; ++i) {
    const int old_calls = handler_calls.load();
    ASSERT_TRUE(ChildSucceeds([&] {
      return handler_calls.load() == old_calls + 4 && UseMalloc(1, 50);
    }));
    EXPECT_EQ(handler_calls.load(), old_calls + 4);
  }
}

// Destructors of thread-specific data that run after the heap's own.

pthread_key_t late_key;

// Runs again and again, as often as the C library lets it.
void UseMallocAndComeBack(void *value) {
  void *ptr = malloc(200);
  Fill(ptr, 200, 1);
  free(value);
  free(malloc(50000));
  pthread_setspecific(late_key, ptr);
}

// Runs twice.
void UseMallocAndComeBackOnce(void *value) {
  const bool again = *static_cast<char *>(value) == 1;
  free(value);
  if (again) {
    auto *next = static_cast<char *>(malloc(200));
    *next = 0;
    pthread_setspecific(late_key, next);
  }
}

struct ThreadLocal {
  ~ThreadLocal() {
    free(ptr);
    free(malloc(3000));
  }
  void *ptr = nullptr;
};

thread_local ThreadLocal thread_local_block;

TEST(MallocThreadsTest, DestructorsOfThreadsMayUseMalloc) {
  ASSERT_EQ(pthread_key_create(&late_key, UseMallocAndComeBackOnce), 0);
  size_t early_metadata_bytes = 0;
  for (int i = 0; i < 2000; ++i) {
    std::thread([] {
      thread_local_block.ptr = malloc(100);
      auto *value = static_cast<char *>(malloc(100));
      *value = 1;
      pthread_setspecific(late_key, value);
    }).join();
    if (i == 200) {
      early_metadata_bytes = Stats().metadata_bytes;
    }
  }
  EXPECT_EQ(Stats().metadata_bytes, early_metadata_bytes)
      << "threads leave nothing behind";
  pthread_key_delete(late_key);
  EXPECT_STREQ(heap_check(), nullptr);
}

TEST(MallocThreadsTest, DestructorsMayUseMallocToTheVeryEnd) {
  ASSERT_EQ(pthread_key_create(&late_key, UseMallocAndComeBack), 0);
  for (int i = 0; i < 50; ++i) {
    std::thread([] { pthread_setspecific(late_key, malloc(100)); }).join();
  }
  pthread_key_delete(late_key);
  EXPECT_STREQ(heap_check(), nullptr);
}

TEST(MallocThreadsTest, BlocksOfThreadsThatAreGoneAreReused) {
  size_t early_bytes = 0;
  for (int i = 0; i < 300; ++i) {
    std::vector<void *> blocks(300);
    std::thread([&] {
      for (void *&ptr : blocks) {
        ptr = malloc(1000);
      }
    }).join();
    for (void *ptr : blocks) {
      free(ptr);
    }
    if (i == 30) {
      early_bytes = Stats().mapped_bytes;
    }
  }
  EXPECT_LE(Stats().mapped_bytes, early_bytes + (1 << 20));
}

}  // namespace
