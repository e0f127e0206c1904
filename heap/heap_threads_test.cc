// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// Several threads: blocks that change hands, threads that come and go, and what
// all that leaves behind. Every block carries its size and a pattern, so that
// memory handed out twice is noticed by whoever gets it.

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <deque>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

#include "gtest/gtest.h"
#include "heap/heap.h"
#include "heap/heap_testing.h"
#include "heap/mapped.h"
#include "heap/page_table.h"

namespace {

using heap_testing::Fill;
using heap_testing::IsFilled;
using heap_testing::IsZero;
using heap_testing::Random;

// What every block begins with.
struct Header {
  uint64_t id;
  size_t size_bytes;
};

std::atomic<uint64_t> next_id{1};

void Label(void *ptr, size_t size_bytes) {
  const Header header = {next_id.fetch_add(1, std::memory_order_relaxed),
                         size_bytes};
  memcpy(ptr, &header, sizeof(header));
  Fill(static_cast<char *>(ptr) + sizeof(header), size_bytes - sizeof(header),
       header.id);
}

// Returns a labelled block of at least a header.
void *NewBlock(size_t size_bytes) {
  size_bytes += sizeof(Header);
  void *ptr = heap_alloc(size_bytes);
  EXPECT_NE(ptr, nullptr);
  Label(ptr, size_bytes);
  return ptr;
}

Header HeaderOf(const void *ptr) {
  Header header;
  memcpy(&header, ptr, sizeof(header));
  return header;
}

// Tells whether the block is as it was labelled, its first `size_bytes` at
// least.
bool IsIntact(const void *ptr, const Header &header, size_t size_bytes) {
  return IsFilled(static_cast<const char *>(ptr) + sizeof(header),
                  size_bytes - sizeof(header),
                  header.size_bytes - sizeof(header), header.id);
}

void VerifyAndFree(void *ptr) {
  const Header header = HeaderOf(ptr);
  EXPECT_TRUE(IsIntact(ptr, header, header.size_bytes)) << "id " << header.id;
  EXPECT_GE(heap_usable_size(ptr), header.size_bytes);
  heap_free(ptr);
}

void *VerifyAndRealloc(void *ptr, size_t size_bytes) {
  size_bytes += sizeof(Header);
  const Header header = HeaderOf(ptr);
  EXPECT_TRUE(IsIntact(ptr, header, header.size_bytes)) << "id " << header.id;
  ptr = heap_realloc(ptr, size_bytes);
  EXPECT_NE(ptr, nullptr);
  EXPECT_TRUE(IsIntact(ptr, header, std::min(size_bytes, header.size_bytes)));
  Label(ptr, size_bytes);
  return ptr;
}

// Mostly small, some medium, a few so large that they have mappings of their
// own when they grew to it.
size_t SomeSize(Random *random) {
  if (random->OneIn(2000)) {
    return HEAP_MAPPED_GROWN_BYTES + random->Below(1 << 20);
  }
  return random->SkewedSize(random->OneIn(50) ? 18 : 11);
}

void RunThreads(int count, const std::function<void(int)> &body) {
  std::vector<std::thread> threads;
  for (int i = 0; i < count; ++i) {
    threads.emplace_back(body, i);
  }
  for (std::thread &thread : threads) {
    thread.join();
  }
}

heap_stats_t Stats() {
  heap_stats_t stats;
  heap_stats_get(&stats);
  return stats;
}

size_t LiveBytes() {
  const heap_stats_t stats = Stats();
  return stats.mapped_bytes - stats.free_run_bytes;
}

class HeapThreadsTest : public testing::Test {
 protected:
  void TearDown() override {
    EXPECT_STREQ(heap_check(), nullptr);
  }
};

// A queue of blocks between threads.
class Queue {
 public:
  void Push(void *ptr) {
    const std::lock_guard<std::mutex> lock(mutex_);
    blocks_.push_back(ptr);
  }
  // NULL when there is none now.
  void *Pop() {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (blocks_.empty()) {
      return nullptr;
    }
    void *ptr = blocks_.front();
    blocks_.pop_front();
    return ptr;
  }
  size_t size() {
    const std::lock_guard<std::mutex> lock(mutex_);
    return blocks_.size();
  }

 private:
  std::mutex mutex_;
  std::deque<void *> blocks_;
};

TEST_F(HeapThreadsTest, ConsumersFreeWhatProducersAllocated) {
  const uint64_t seed = heap_testing::Seed();
  constexpr int kProducers = 2;
  constexpr int kBlocks = 30000;
  Queue queue;
  std::atomic<int> left{kProducers * kBlocks};
  RunThreads(2 * kProducers, [&](int i) {
    if (i < kProducers) {
      Random random(seed + static_cast<uint64_t>(i));
      for (int n = 0; n < kBlocks; ++n) {
        while (queue.size() > 5000) {
          std::this_thread::yield();
        }
        queue.Push(NewBlock(SomeSize(&random)));
      }
      return;
    }
    while (left.load() > 0) {
      void *ptr = queue.Pop();
      if (ptr == nullptr) {
        std::this_thread::yield();
        continue;
      }
      left.fetch_sub(1);
      VerifyAndFree(ptr);
    }
  });
}

TEST_F(HeapThreadsTest, BlocksChangeHandsAtRandom) {
  const uint64_t seed = heap_testing::Seed();
  std::vector<std::atomic<void *>> shared(512);
  // Threads come and go: those of the next round inherit the blocks.
  for (uint64_t round = 0; round < 6; ++round) {
    RunThreads(4, [&](int i) {
      Random random(seed + round * 16 + static_cast<uint64_t>(i));
      for (int n = 0; n < 8000; ++n) {
        std::atomic<void *> &slot = shared[random.Below(shared.size())];
        void *mine = nullptr;
        if (!random.OneIn(3)) {
          mine = NewBlock(SomeSize(&random));
        }
        void *other = slot.exchange(mine);
        if (other == nullptr) {
          continue;
        }
        if (random.OneIn(4)) {
          other = VerifyAndRealloc(other, SomeSize(&random));
        }
        VerifyAndFree(other);
      }
    });
  }
  for (std::atomic<void *> &slot : shared) {
    if (slot.load() != nullptr) {
      VerifyAndFree(slot.load());
    }
  }
}

// Every thread leaves its blocks to be freed after its exit.
TEST_F(HeapThreadsTest, ManyShortThreadsDoNotGrowTheHeap) {
  const uint64_t seed = heap_testing::Seed();
#ifdef __SANITIZE_THREAD__
  constexpr int kThreads = 1000;  // Each takes 10 ms there.
#else
  constexpr int kThreads = 10000;
#endif
  constexpr int kAtOnce = 4;
  Queue left_behind;
  size_t early_bytes = 0;
  size_t early_metadata_bytes = 0;
  for (int done = 0; done < kThreads; done += kAtOnce) {
    RunThreads(kAtOnce, [&](int i) {
      Random random(seed + static_cast<uint64_t>(done + i));
      for (int n = 0; n < 20; ++n) {
        left_behind.Push(NewBlock(random.SkewedSize(15)));
        // And frees some of what others left.
        void *ptr = n % 2 == 0 ? left_behind.Pop() : nullptr;
        if (ptr != nullptr) {
          VerifyAndFree(ptr);
        }
      }
    });
    while (left_behind.size() > 200) {
      VerifyAndFree(left_behind.Pop());
    }
    if (done == kThreads / 10) {
      heap_trim(0);
      early_bytes = LiveBytes();
      early_metadata_bytes = Stats().metadata_bytes;
    }
  }
  heap_trim(0);
  // Each of the 200 blocks that are left may hold a span alone.
  EXPECT_LE(LiveBytes(), early_bytes + 200 * 2 * HEAP_PAGE_BYTES);
  // A thread may be inside for longer than those that were counted early.
  EXPECT_LE(Stats().metadata_bytes, early_metadata_bytes + (1 << 20));
  while (void *ptr = left_behind.Pop()) {
    VerifyAndFree(ptr);
  }
}

// Short-lived threads find what the last one left, warm.
TEST_F(HeapThreadsTest, NextThreadTakesAParkedHeapWhole) {
  heap_testing::RunInChild([] {
    const auto work = [] {
      std::vector<void *> blocks;
      for (size_t i = 0; i < 1000; ++i) {
        blocks.push_back(heap_alloc(16 + i));
      }
      for (void *ptr : blocks) {
        heap_free(ptr);
      }
    };
    heap_trim(0);  // What other tests' threads left.
    std::thread(work).join();
    const heap_stats_t before = Stats();
    for (int i = 0; i < 50; ++i) {
      std::thread(work).join();
    }
    EXPECT_EQ(Stats().num_spans, before.num_spans);
    EXPECT_EQ(Stats().num_kernel_calls, before.num_kernel_calls);
    EXPECT_STREQ(heap_check(), nullptr);
  });
}

TEST_F(HeapThreadsTest, TrimGivesBackWhatExitedThreadsLeft) {
  heap_testing::RunInChild([] {
    heap_trim(0);  // What other tests' threads left.
    const size_t before = Stats().num_spans;
    ASSERT_LE(before, 10u);
    void *kept = nullptr;
    RunThreads(10, [&](int index) {
      for (size_t size = 16; size <= 2000; size += 16) {
        heap_free(heap_alloc(size));
      }
      if (index == 5) {
        kept = heap_alloc(100);
      }
    });
    EXPECT_GT(Stats().num_spans, before + 20);
    heap_trim(0);
    // Without a find these would be 49 spans.
    EXPECT_LE(Stats().num_spans, before + 25);
    EXPECT_STREQ(heap_check(), nullptr);
    heap_free(kept);
    heap_trim(0);
    EXPECT_STREQ(heap_check(), nullptr);
  });
}

// Exited threads' heaps that are too many or too large to wait for the next.
TEST_F(HeapThreadsTest, OrphanedSpansAreAdopted) {
  for (size_t size : {size_t{48}, size_t{1000}, size_t{20000}}) {
    std::vector<void *> kept;
    size_t spans_before = 0;
    std::thread([&] {
      std::vector<void *> blocks;
      for (size_t total = 0; total < 8 << 20; total += size) {
        blocks.push_back(heap_alloc(size));
      }
      for (size_t i = 0; i < blocks.size(); ++i) {
        if (i % 3 == 0) {
          kept.push_back(blocks[i]);
        } else {
          heap_free(blocks[i]);
        }
      }
      spans_before = Stats().num_spans;
    }).join();
    const size_t freed = kept.size() * 2;
    std::vector<void *> mine;
    for (size_t i = 0; i < freed * 9 / 10; ++i) {
      mine.push_back(heap_alloc(size));
    }
    EXPECT_LE(Stats().num_spans, spans_before + 10) << "size " << size;
    for (void *ptr : kept) {
      heap_free(ptr);
    }
    for (void *ptr : mine) {
      heap_free(ptr);
    }
  }
}

// Blocks freed after their thread's exit become memory of any size again.
TEST_F(HeapThreadsTest, EmptiedOrphansGoBack) {
  heap_testing::RunInChild([] {
    std::vector<void *> blocks;
    std::thread([&] {
      for (int i = 0; i < 100000; ++i) {
        blocks.push_back(heap_alloc(100));
      }
    }).join();
    EXPECT_GT(LiveBytes(), size_t{9} << 20);
    for (void *ptr : blocks) {
      heap_free(ptr);
    }
    // Found when somebody needs memory: spans of other classes.
    for (int i = 0; i < 60; ++i) {
      EXPECT_NE(heap_alloc(500 + static_cast<size_t>(i) * 500), nullptr);
    }
    for (int i = 0; i < 5000; ++i) {
      EXPECT_NE(heap_alloc(8000), nullptr);
    }
    EXPECT_LT(LiveBytes(), (size_t{48} << 20) + (2 << 20))
        << "the orphans' 10 MiB are used";
  });
}

// What others freed of a thread's full spans serves its next allocations.
TEST_F(HeapThreadsTest, OwnerFindsWhatOthersFreed) {
  std::vector<void *> blocks(50000);
  for (size_t size : {size_t{16}, size_t{200}, size_t{9000}}) {
    size_t live_bytes = 0;
    for (int round = 0; round < 8; ++round) {
      for (void *&ptr : blocks) {
        ptr = heap_alloc(size);
      }
      if (round == 1) {
        live_bytes = LiveBytes();
      }
      if (round > 1) {
        EXPECT_LE(LiveBytes(), live_bytes + live_bytes / 20);
      }
      std::thread([&] {
        for (void *ptr : blocks) {
          heap_free(ptr);
        }
      }).join();
    }
  }
}

// The owner's heap_trim counts the blocks of spans, and gives some back, while
// others free in them.
TEST_F(HeapThreadsTest, OwnerTrimsWhileOthersFree) {
  const uint64_t seed = heap_testing::Seed();
  constexpr int kBlocks = 40000;
  Queue queue;
  std::atomic<int> left{kBlocks};
  RunThreads(3, [&](int i) {
    if (i == 0) {
      Random random(seed);
      for (int n = 0; n < kBlocks; ++n) {
        const size_t size = random.SkewedSize(9) + sizeof(Header);
        void *ptr = heap_calloc(1, size);
        EXPECT_TRUE(IsZero(ptr, size));
        Label(ptr, size);
        queue.Push(ptr);
        if (random.OneIn(100)) {
          heap_trim(0);
        }
      }
      while (left.load() > 0) {
        heap_trim(0);
        std::this_thread::yield();
      }
      heap_trim(0);
      return;
    }
    while (left.load() > 0) {
      void *ptr = queue.Pop();
      if (ptr == nullptr) {
        std::this_thread::yield();
        continue;
      }
      VerifyAndFree(ptr);
      left.fetch_sub(1);
    }
  });
  // What the owner could not find would still be in spans.
  heap_trim(0);
  EXPECT_EQ(Stats().span_free_bytes, 0u);
  EXPECT_EQ(Stats().num_spans, 0u);
}

TEST_F(HeapThreadsTest, StatisticsMayBeReadMeanwhile) {
  std::atomic<bool> stop{false};
  std::thread reader([&] {
    while (!stop.load()) {
      const heap_stats_t stats = Stats();
      EXPECT_GE(stats.mapped_bytes, stats.free_run_bytes);
      heap_trim(0);
    }
  });
  RunThreads(2, [](int i) {
    Random random(static_cast<uint64_t>(i));
    std::vector<void *> blocks(100);
    for (int n = 0; n < 20000; ++n) {
      void *&ptr = blocks[random.Below(blocks.size())];
      heap_free(ptr);
      ptr = NewBlock(SomeSize(&random));
    }
    for (void *ptr : blocks) {
      heap_free(ptr);
    }
  });
  stop.store(true);
  reader.join();
}

// Mapped blocks grow and move while others map and unmap around them.
TEST_F(HeapThreadsTest, MappedBlocksMoveSideBySide) {
  const uint64_t seed = heap_testing::Seed();
  std::vector<std::atomic<void *>> shared(8);
  RunThreads(4, [&](int i) {
    Random random(seed + static_cast<uint64_t>(i));
    for (int n = 0; n < 60; ++n) {
      void *ptr = shared[random.Below(shared.size())].exchange(nullptr);
      const size_t size = (1 << 20) + random.Below(12 << 20);
      ptr = ptr == nullptr ? NewBlock(size) : VerifyAndRealloc(ptr, size);
      ptr = shared[random.Below(shared.size())].exchange(ptr);
      if (ptr != nullptr) {
        VerifyAndFree(ptr);
      }
    }
  });
  for (std::atomic<void *> &slot : shared) {
    if (slot.load() != nullptr) {
      VerifyAndFree(slot.load());
    }
  }
}

// Of many full spans only late ones have blocks that another thread freed: the
// owner looks at some at a time and must come to all.
TEST_F(HeapThreadsTest, FreesInTheLastOfManyFullSpansAreFound) {
  constexpr size_t kBlockBytes = 1024;
  constexpr size_t kCount = 64 * 400;
  std::vector<void *> blocks;
  for (size_t i = 0; i < kCount; ++i) {
    blocks.push_back(NewBlock(kBlockBytes - sizeof(Header)));
  }
  std::vector<void *> late(blocks.end() - kCount / 4, blocks.end());
  blocks.resize(blocks.size() - late.size());
  std::thread([&] {
    // One in two, so that no span is emptied.
    for (size_t i = 0; i < late.size(); i += 2) {
      VerifyAndFree(late[i]);
      late[i] = nullptr;
    }
  }).join();
  const size_t before = Stats().num_spans;
  for (size_t i = 0; i < late.size() / 2 - 64; ++i) {
    blocks.push_back(NewBlock(kBlockBytes - sizeof(Header)));
  }
  // Without a find these would be 49 spans.
  EXPECT_LE(Stats().num_spans, before + 25);
  blocks.insert(blocks.end(), late.begin(), late.end());
  for (void *block : blocks) {
    if (block != nullptr) {
      VerifyAndFree(block);
    }
  }
  EXPECT_STREQ(heap_check(), nullptr);
}

}  // namespace
