// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// How the hardened variant chooses: quarantine, random places; and the sizes
// that are special to it.

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <map>
#include <set>
#include <thread>
#include <vector>

#include "gtest/gtest.h"
#include "heap/bin.h"
#include "heap/canary.h"
#include "heap/central.h"
#include "heap/fake_kernel.h"
#include "heap/hardened_testing.h"
#include "heap/heap.h"
#include "heap/heap_testing.h"
#include "heap/quarantine.h"
#include "heap/random.h"
#include "heap/size_class.h"
#include "heap/thread_heap.h"

namespace {

using heap_testing::AddressOf;
using heap_testing::ExpectFault;
using heap_testing::fake;
using heap_testing::RunHardened;
using heap_testing::RunInChild;
using heap_testing::UseFakeKernel;

// Quarantine.

// Tells whether a freed block comes back among the next allocations.
bool ComesBack() {
  void *old = heap_alloc(100);
  heap_free(old);
  for (int i = 0; i < 3000; ++i) {
    if (heap_alloc(100) == old) {
      return true;
    }
  }
  return false;
}

TEST(QuarantineTest, KeepsABlockUntilOthersAreFreed) {
  RunHardened("all", [] { EXPECT_FALSE(ComesBack()); });
  RunHardened("all,-random", [] { EXPECT_FALSE(ComesBack()); });
  RunHardened("all,-quarantine", [] { EXPECT_TRUE(ComesBack()); });
}

TEST(QuarantineTest, QueueKeepsABlockForManyFrees) {
  RunHardened("all,-random", [] {
    void *old = heap_alloc(100);
    heap_free(old);
    for (int i = 0; i < HEAP_QUEUE_SLOTS - 1; ++i) {
      void *ptr = heap_alloc(100);
      ASSERT_NE(ptr, old);
      heap_free(ptr);
    }
  });
}

// Of each size: how many blocks are freed before one comes back.
TEST(QuarantineTest, KeepsBlocksOfEachSizeForSomeFrees) {
  for (const char *list : {"all", "all,-random"}) {
    RunHardened(list, [] {
      for (size_t size = 24; size <= 32000; size += size / 4) {
        const size_t least =
            std::max<size_t>(16, std::min<size_t>(256, (60 << 10) / size));
        std::map<void *, size_t> freed_at;
        for (size_t i = 0; i < 3000; ++i) {
          void *ptr = heap_alloc(size);
          const auto found = freed_at.find(ptr);
          if (found != freed_at.end()) {
            ASSERT_GE(i - found->second, least) << size;
          }
          heap_free(ptr);
          freed_at[ptr] = i;
        }
      }
    });
  }
}

// Larger ones wait in all for 512 KiB of frees, also while a long one is being
// zeroed, which waits for nothing (or was when the process forked).
TEST(QuarantineTest, KeepsLargerBlocksForSomeFrees) {
  RunHardened("all", [] {
    for (bool is_one_claimed : {false, true}) {
      if (is_one_claimed) {
        heap_central_lock();
        EXPECT_TRUE(heap_run_quarantine_claim(1 << 20, 24 << 20));
        heap_central_unlock();
      }
      std::map<void *, size_t> freed_at;
      for (size_t i = 0; i < 3000; ++i) {
        void *ptr = heap_alloc(40000);
        const auto found = freed_at.find(ptr);
        if (found != freed_at.end()) {
          ASSERT_GE(i - found->second, 5u) << is_one_claimed;
        }
        heap_free(ptr);
        freed_at[ptr] = i;
      }
    }
  });
}

TEST(QuarantineTest, IsBoundedInBytes) {
  for (const char *list : {"all", "all,-random"}) {
    RunHardened(list, [] {
      std::vector<void *> blocks;
      for (int i = 0; i < 500; ++i) {
        blocks.push_back(heap_alloc(20000));
      }
      for (void *ptr : blocks) {
        heap_free(ptr);
        const heap_thread *thread = heap_thread_get_existing();
        EXPECT_LE(heap_quarantine_count(thread), HEAP_QUARANTINE_LEAST_COUNT);
        EXPECT_GE(heap_quarantine_count(thread), 1u);
      }
    });
  }
}

TEST(QuarantineTest, TrimEmptiesIt) {
  RunHardened("all", [] {
    for (int i = 0; i < 300; ++i) {
      heap_free(heap_alloc(1000));
      heap_free(heap_alloc(100000));
    }
    heap_trim(0);
    EXPECT_EQ(heap_quarantine_count(heap_thread_get_existing()), 0u);
    heap_stats_t stats;
    heap_stats_get(&stats);
    EXPECT_EQ(stats.num_live, 0u);
    EXPECT_EQ(stats.num_spans, 0u);
  });
}

// Chance.

// Where 64 blocks of a process lie in their pages.
std::vector<uint16_t> Places(const char *list) {
  int pipe_fds[2];
  EXPECT_EQ(pipe(pipe_fds), 0);
  std::vector<uint16_t> places(64);
  constexpr ssize_t kBytes = 64 * sizeof(uint16_t);
  RunInChild([&] {
    if (list != nullptr) {
      setenv("HEAP_HARDEN", list, 1);
    }
    for (uint16_t &place : places) {
      place = static_cast<uint16_t>(AddressOf(heap_alloc(200)));
    }
    EXPECT_EQ(write(pipe_fds[1], places.data(), kBytes), kBytes);
  });
  EXPECT_EQ(read(pipe_fds[0], places.data(), kBytes), kBytes);
  close(pipe_fds[0]);
  close(pipe_fds[1]);
  return places;
}

// "ChaCha8, 256 bits, test vector 1" of Strombergson's collection.
TEST(ChanceTest, CipherIsTheOneThatIsNamed) {
  const uint32_t expected[16] = {
      0x2fef003e, 0xd6405f89, 0xe8b85b7f, 0xa1a5091f, 0xc30e842c, 0x3b7f9ace,
      0x88e11b18, 0x1e1a71ef, 0x72e14c98, 0x416f21b9, 0x6753449f, 0x19566d45,
      0xa3424a31, 0x01b086da, 0xb8fd7b38, 0x42fe0c0e};
  heap_random_t random = {};
  random.epoch = heap_random_epoch;
  heap_random_refill(&random);
  for (size_t i = 0; i < 16; ++i) {
    uint32_t word;
    memcpy(&word, random.bytes + 16 * i, sizeof(word));
    EXPECT_EQ(word, expected[i]) << i;
  }
}

// 64 places of 260: that two runs agree by chance does not happen.
TEST(ChanceTest, PlacesDifferFromRunToRun) {
  const std::vector<uint16_t> places = Places("all");
  EXPECT_NE(places, Places("all"));
  EXPECT_FALSE(std::is_sorted(places.begin(), places.end()));
  EXPECT_EQ(std::set<uint16_t>(places.begin(), places.end()).size(), 64u);
}

TEST(ChanceTest, SeedFixesPlaces) {
  EXPECT_EQ(Places("seed=7"), Places("seed=7"));
  EXPECT_NE(Places("seed=7"), Places("seed=8"));
}

TEST(ChanceTest, WithoutItBlocksLieInOrder) {
  const std::vector<uint16_t> places = Places("-random");
  EXPECT_TRUE(std::is_sorted(places.begin(), places.end()));
  EXPECT_EQ(places, Places("-random"));
}

// With numbers left that the parent has drawn already.
TEST(ChanceTest, ChildDoesNotGoOnWithItsParentsNumbers) {
  RunHardened("all", [] {
    heap_free(heap_alloc(1));  // Forks are watched from now on.
    heap_random_t random = {};
    heap_random_byte(&random);
    int fds[2];
    ASSERT_EQ(pipe(fds), 0);
    // Of one draw of 64 bits.
    uint32_t numbers[9];
    uint32_t childs_numbers[9];
    RunInChild([&] {
      for (uint32_t &number : numbers) {
        number = heap_random_byte(&random);
      }
      EXPECT_EQ(write(fds[1], numbers, sizeof(numbers)),
                static_cast<ssize_t>(sizeof(numbers)));
    });
    ASSERT_EQ(read(fds[0], childs_numbers, sizeof(childs_numbers)),
              static_cast<ssize_t>(sizeof(childs_numbers)));
    for (uint32_t &number : numbers) {
      number = heap_random_byte(&random);
    }
    EXPECT_NE(memcmp(numbers, childs_numbers, sizeof(numbers)), 0);
  });
}

// Both start from the same heap.
TEST(ChanceTest, ChildrenOfForksGoDifferentWays) {
  RunHardened("all", [] {
    heap_free(heap_alloc(200));
    EXPECT_NE(Places(nullptr), Places(nullptr));
  });
}

// Groups of 64 blocks are chosen, too: of 16 runs not all begin in the lowest
// of five.
TEST(ChanceTest, FirstBlockIsInAnyGroup) {
  bool is_higher = false;
  for (int i = 0; i < 16; ++i) {
    is_higher = is_higher || Places("all")[0] >= 4096 + 64 * 208;
  }
  EXPECT_TRUE(is_higher);
}

// Of 20 blocks of a size that does not go through the slots, freed in order,
// which one comes back first: 16 are in the queue then, and the first four in
// their bin. -1: another one.
int FirstBack(const char *list) {
  int fds[2];
  EXPECT_EQ(pipe(fds), 0);
  int index = -1;
  RunInChild([&] {
    setenv("HEAP_HARDEN", list, 1);
    std::vector<void *> blocks;
    for (int i = 0; i < 20; ++i) {
      blocks.push_back(heap_alloc(20000));
    }
    for (void *ptr : blocks) {
      heap_free(ptr);
    }
    void *ptr = heap_alloc(20000);
    for (int i = 0; i < 20; ++i) {
      index = blocks[i] == ptr ? i : index;
    }
    EXPECT_EQ(write(fds[1], &index, sizeof(index)),
              static_cast<ssize_t>(sizeof(index)));
  });
  EXPECT_EQ(read(fds[0], &index, sizeof(index)),
            static_cast<ssize_t>(sizeof(index)));
  close(fds[0]);
  close(fds[1]);
  return index;
}

// Sixteen times the same of four does not happen by chance.
TEST(ChanceTest, AnyOfTheBlocksThatWaitedComesBackFirst) {
  std::set<int> firsts;
  for (int i = 0; i < 16; ++i) {
    const int first = FirstBack("all");
    EXPECT_GE(first, 0);
    EXPECT_LT(first, 4);
    firsts.insert(first);
  }
  EXPECT_GT(firsts.size(), 1u);
  EXPECT_EQ(FirstBack("-random"), 3);
}

// The usual way of the commonest sizes: 500 frees fill the queue and nearly all
// of 64 slots, and the bin; and of 17 blocks or more not each choice is the
// last.
TEST(ChanceTest, ShortBlocksAreShuffledAndChosen) {
  RunHardened("all", [] {
    std::vector<void *> blocks;
    for (int i = 0; i < 500; ++i) {
      blocks.push_back(heap_alloc(100));
    }
    for (void *ptr : blocks) {
      heap_free(ptr);
    }
    const heap_thread_t *thread = heap_thread_get_existing();
    ASSERT_NE(thread, nullptr);
    int shuffled = 0;
    for (const heap_waiting_t &block : thread->quarantine.shuffled) {
      shuffled += block.page != nullptr;
    }
    EXPECT_GE(shuffled, 40);
    const heap_bin_t *bin =
        &thread->bins[heap_class_of_size(100 + HEAP_CANARY_BYTES)];
    ASSERT_GE(heap_bin_cached_count(bin), 17u);
    int last = 0;
    for (int i = 0; i < 16; ++i) {
      const void *top = bin->top->ptr;
      last += heap_alloc(100) == top;
    }
    EXPECT_LT(last, 12);
  });
}

// Threads of another libc are known by their heaps alone.
TEST(ClaimTest, ASecondThreadsHeapIsNoticed) {
  RunHardened("all", [] {
    heap_free(heap_alloc(100));
    EXPECT_FALSE(heap_threads_were_two);
    std::thread([] { heap_free(heap_alloc(100)); }).join();
    EXPECT_TRUE(heap_threads_were_two);
  });
}

// Empty blocks, sizes.

TEST(EmptyBlockTest, EachIsItsOwnAndIsFreed) {
  RunHardened("all", [] {
    std::set<void *> blocks;
    for (int i = 0; i < 250000; ++i) {  // More than two regions have.
      void *ptr = heap_alloc(0);
      ASSERT_NE(ptr, nullptr);
      ASSERT_TRUE(blocks.insert(ptr).second);
    }
    size_t walked = 0;
    heap_walk(
        [](void *context, void *, size_t usable_bytes) {
          *static_cast<size_t *>(context) += usable_bytes == 0;
          return true;
        },
        &walked);
    EXPECT_EQ(walked, blocks.size());
    for (void *ptr : blocks) {
      EXPECT_EQ(heap_usable_size(ptr), 0u);
      heap_free(ptr);
    }
    for (size_t align = 16; align <= 65536; align *= 2) {
      void *ptr = heap_aligned_alloc(align, 0);
      EXPECT_EQ(AddressOf(ptr) % align, 0u);
      ExpectFault(AddressOf(ptr));
      heap_free(ptr);
    }
    void *ptr = heap_realloc(heap_alloc(0), 100);
    EXPECT_EQ(heap_usable_size(ptr), 100u);
    ptr = heap_realloc(ptr, 0);
    EXPECT_EQ(heap_usable_size(ptr), 0u);
    heap_free(ptr);
  });
}

TEST(EmptyBlockTest, ThereIsNoEndOfThem) {
  RunHardened("all", [] {
    void *last = nullptr;
    for (int i = 0; i < 5000000; ++i) {
      last = heap_alloc(0);
      ASSERT_NE(last, nullptr) << i;
    }
    heap_free(last);
  });
}

TEST(SizeTest, AbsurdOneIsRefusedBeforeTheKernelIsAsked) {
  for (bool is_on : {true, false}) {
    RunHardened(is_on ? "all" : "all,-limit", [is_on] {
      UseFakeKernel();
      fake.largest_map_bytes = size_t{1} << 40;
      EXPECT_EQ(heap_alloc((size_t{1} << 40) + (1 << 20)), nullptr);
      EXPECT_EQ(errno, ENOMEM);
      EXPECT_EQ(fake.refusals == 0, is_on);
    });
  }
}

TEST(SizeTest, SizedFreeMustNameTheSizeExactly) {
  RunHardened("all", [] {
    for (size_t size : {1, 15, 16, 100, 5000, 100000, 40 << 20}) {
      heap_free_sized(heap_alloc(size), 0, size);
      void *ptr = heap_alloc(size);
      for (size_t wrong : {size - 1, size + 1, 2 * size + 1}) {
        if (wrong > 0) {
          EXPECT_DEATH(heap_free_sized(ptr, 0, wrong), "size differs");
        }
      }
      heap_free(ptr);
      // C++ libraries round.
      heap_free_sized(heap_aligned_alloc(64, (size + 63) & ~size_t{63}), 64,
                      size);
    }
    heap_free_sized(heap_alloc(1), 0, 0);
  });
}

// As std::pmr::new_delete_resource(), whose alignment is 16 where none is
// asked for, and its like.
TEST(SizeTest, SizedFreeTakesWhatSmallAlignmentsMadeOfASize) {
  RunHardened("all", [] {
    for (size_t align : {1, 2, 4, 8, 16, 32, 4096}) {
      for (size_t size : {1, 5, 20, 100, 5000, 100001, 40 << 20}) {
        // Some libraries round to a pointer's alignment at least.
        for (size_t round : {align, std::max(align, sizeof(void *))}) {
          const size_t rounded = (size + round - 1) & ~(round - 1);
          heap_free_sized(heap_aligned_alloc(align, rounded), align, size);
          heap_free_sized(heap_aligned_alloc(align, rounded), align, rounded);
        }
        void *ptr = heap_aligned_alloc(align, size + 64);
        EXPECT_DEATH(heap_free_sized(ptr, align, size + 65), "size differs");
        EXPECT_DEATH(heap_free_sized(ptr, align, SIZE_MAX), "size differs");
        heap_free(ptr);
      }
    }
  });
}

}  // namespace
