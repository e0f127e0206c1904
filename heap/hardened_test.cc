// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// The hardened variant's parts: what HEAP_HARDEN says, canaries, guards with a
// kernel that refuses them, quarantine, chance, empty blocks. What it finds in
// programs is in malloc_misuse_test.cc.

#include <pthread.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "gtest/gtest.h"
#include "heap/canary.h"
#include "heap/fake_kernel.h"
#include "heap/guard.h"
#include "heap/harden.h"
#include "heap/heap.h"
#include "heap/heap_model.h"
#include "heap/heap_testing.h"
#include "heap/quarantine.h"
#include "heap/random.h"

// thread_heap.h and fatal.h are for C only.
extern "C" heap_thread *heap_thread_get_existing(void);
extern "C" uint64_t heap_misuse_count(void);

namespace {

using heap_testing::fake;
using heap_testing::RunInChild;
using heap_testing::UseFakeKernel;

uintptr_t AddressOf(const void *ptr) {
  return reinterpret_cast<uintptr_t>(ptr);
}

// Runs in a process whose heap nobody has used.
void RunHardened(const char *list, const std::function<void()> &body) {
  RunInChild([&] {
    setenv("HEAP_HARDEN", list, 1);
    body();
    EXPECT_STREQ(heap_check(), nullptr);
  });
}

// HEAP_HARDEN.

TEST(HardenOptionTest, ListIsReadFromTheLeft) {
  const struct {
    const char *value;
    uint32_t defences;
  } cases[] = {
      {nullptr, HEAP_HARDEN_ALL},
      {"", HEAP_HARDEN_ALL},
      {"all", HEAP_HARDEN_ALL},
      {"none", 0},
      {"none,canary", HEAP_HARDEN_CANARY},
      {"all,-quarantine", HEAP_HARDEN_ALL & ~HEAP_HARDEN_QUARANTINE},
      {"-guard,-zero",
       HEAP_HARDEN_ALL & ~HEAP_HARDEN_GUARD & ~HEAP_HARDEN_ZERO},
      {"none,empty,sized,-empty", HEAP_HARDEN_SIZED},
      {"-limit,all", HEAP_HARDEN_ALL},
      {"none,reuse,random,,guard",
       HEAP_HARDEN_REUSE | HEAP_HARDEN_RANDOM | HEAP_HARDEN_GUARD},
  };
  for (const auto &test : cases) {
    const char *unknown;
    EXPECT_EQ(heap_harden_parse(test.value, &unknown).defences, test.defences)
        << test.value;
    EXPECT_EQ(unknown, nullptr);
  }
}

TEST(HardenOptionTest, SeedIsANumber) {
  const char *unknown;
  heap_harden_choice_t choice = heap_harden_parse("seed=42,-zero", &unknown);
  EXPECT_TRUE(choice.has_seed);
  EXPECT_EQ(choice.seed, 42u);
  for (const char *value :
       {"seed", "seed=", "seed=x", "seed=99999999999999999999"}) {
    choice = heap_harden_parse(value, &unknown);
    EXPECT_FALSE(choice.has_seed) << value;
    EXPECT_STREQ(unknown, value);
  }
}

TEST(HardenOptionTest, UnknownWordIsNamedAndChangesNothing) {
  const char *unknown;
  const heap_harden_choice_t choice =
      heap_harden_parse("all,-quarantin,-zero", &unknown);
  EXPECT_EQ(choice.defences, HEAP_HARDEN_ALL & ~HEAP_HARDEN_ZERO);
  char buffer[512];
  heap_text_t text = {buffer, sizeof(buffer), 0};
  heap_harden_add_complaint(unknown, &text);
  EXPECT_EQ(std::string(buffer, text.length),
            "my_alloc heap: HEAP_HARDEN: -quarantin is ignored; it can be all, "
            "none, seed=NUMBER, and with or without a - before it canary, "
            "zero, reuse, quarantine, random, guard, empty, sized, limit\n");
  for (const char *value : {"-", "ALL", "-all", "no", "canary zero"}) {
    heap_harden_parse(value, &unknown);
    EXPECT_STREQ(unknown, value);
  }
}

// Canaries.

TEST(CanaryTest, NoChangeOfOneByteIsAnotherCanary) {
  RunHardened("all", [] {
    const uintptr_t end = AddressOf(heap_alloc(100)) + 112;
    for (size_t slack = 8; slack <= HEAP_SLACK_MAX_BYTES;
         slack += slack < 600 ? 1 : 1023) {
      const uint64_t canary = heap_canary_make(end, slack);
      ASSERT_EQ(heap_canary_slack(end, canary), slack);
      for (unsigned shift = 0; shift < 64; shift += 8) {
        for (uint64_t change = 1; change < 256; ++change) {
          ASSERT_GT(heap_canary_slack(end, canary ^ change << shift),
                    HEAP_SLACK_MAX_BYTES);
        }
      }
      // Neither the end of a string, text, -1 nor 0x80 is a mark.
      EXPECT_GT(canary & 0xff, 0x80u);
      EXPECT_LT(canary & 0xff, 0xffu);
      EXPECT_EQ(canary & 1, 0u);
    }
  });
}

TEST(HardenedTest, UsableSizeIsTheRequestedOne) {
  for (const char *list : {"all", "all,-empty"}) {
    RunHardened(list, [] {
      for (size_t size : heap_testing::EdgeSizes()) {
        void *ptr = heap_alloc(size);
        EXPECT_EQ(heap_usable_size(ptr), size);
        ptr = heap_realloc(ptr, size / 2 + 1);
        EXPECT_EQ(heap_usable_size(ptr), size / 2 + 1);
        ptr = heap_realloc(ptr, size + 1);
        EXPECT_EQ(heap_usable_size(ptr), size + 1);
        heap_free(ptr);
      }
    });
  }
}

// The walk too: nobody may write further.
TEST(HardenedTest, WalkTellsTheUsableSize) {
  for (const char *list : {"all", "-canary"}) {
    RunHardened(list, [] {
      std::map<void *, size_t> blocks;
      for (size_t size : {0, 5, 1000, 40000, 40 << 20}) {
        void *ptr = heap_alloc(size);
        blocks[ptr] = heap_usable_size(ptr);
      }
      EXPECT_TRUE(heap_walk(
          [](void *context, void *ptr, size_t usable_bytes) {
            auto *all = static_cast<std::map<void *, size_t> *>(context);
            EXPECT_EQ(all->at(ptr), usable_bytes);
            all->erase(ptr);
            return true;
          },
          &blocks));
      EXPECT_TRUE(blocks.empty());
    });
  }
}

// Memory.

size_t PeakBytes() {
  rusage usage;
  EXPECT_EQ(getrusage(RUSAGE_SELF, &usage), 0);
  return static_cast<size_t>(usage.ru_maxrss) * 1024;
}

TEST(MemoryTest, ShrinkingABigBlockDoesNotTouchWhatIsGivenUp) {
  RunHardened("all", [] {
    const size_t old_peak = PeakBytes();
    auto *ptr = static_cast<char *>(heap_alloc(size_t{1} << 30));
    ptr[0] = 'x';
    ptr = static_cast<char *>(heap_realloc(ptr, 64 << 20));
    EXPECT_EQ(ptr[0], 'x');
    EXPECT_EQ(heap_usable_size(ptr), size_t{64} << 20);
    EXPECT_LT(PeakBytes() - old_peak, size_t{100} << 20);
    heap_free(ptr);
  });
}

TEST(MemoryTest, WhatShrinksAndGrowsAgainIsZeroThere) {
  RunHardened("all", [] {
    for (size_t size : {100, 5000, 400000, 20 << 20, 100 << 20}) {
      for (size_t less : {size - 1, size - size / 8, size / 2 + 1}) {
        void *ptr = heap_alloc(size);
        memset(ptr, 1, size);
        ptr = heap_realloc(ptr, less);
        ptr = heap_realloc(ptr, size);
        EXPECT_TRUE(
            heap_testing::IsZero(static_cast<char *>(ptr) + less, size - less));
        heap_free(ptr);
      }
    }
  });
}

TEST(MemoryTest, FreeOfASparseBlockDoesNotTouchTheRest) {
  RunHardened("all", [] {
    auto *ptr = static_cast<char *>(heap_alloc(31 << 20));
    ptr[0] = 'x';
    const size_t old_peak = PeakBytes();
    ptr = static_cast<char *>(heap_realloc(ptr, 20 << 20));
    heap_free(ptr);
    EXPECT_LT(PeakBytes() - old_peak, size_t{4} << 20);
    ptr = static_cast<char *>(heap_alloc(31 << 20));
    EXPECT_TRUE(heap_testing::IsZero(ptr, 31 << 20));
    heap_free(ptr);
  });
}

// The program wants addresses, too.
TEST(MemoryTest, FreedMappingsLeaveLimitedAddressesToOthers) {
  RunHardened("all", [] {
    const rlimit limit = {300 << 20, 300 << 20};
    ASSERT_EQ(setrlimit(RLIMIT_AS, &limit), 0);
    for (int i = 0; i < 4; ++i) {
      void *ptr = heap_alloc(40 << 20);
      ASSERT_NE(ptr, nullptr);
      heap_free(ptr);
    }
    EXPECT_NE(mmap(nullptr, 150 << 20, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS, -1, 0),
              MAP_FAILED);
  });
}

// With every defence, and without each.
TEST(HardenedTest, RandomCallsOfAllKinds) {
  for (const char *list :
       {"all", "none", "-canary", "-zero", "-reuse", "-quarantine", "-random",
        "-guard", "-empty", "-sized", "-canary,-zero", "none,canary"}) {
    RunHardened(list, [] {
      const uint64_t seed = heap_testing::Seed();
      for (uint64_t i = 0; i < 6; ++i) {
        heap_testing::RunHeapModel(seed + i, i == 5 ? 27 : 10 + 3 * i);
      }
      heap_trim(0);
    });
  }
}

// Guards.

void ExpectFault(uintptr_t address) {
  EXPECT_EXIT((void)*reinterpret_cast<volatile char *>(address),
              testing::KilledBySignal(SIGSEGV), "");
}

void ExpectGuards() {
  void *small = heap_alloc(100);
  const uintptr_t span = AddressOf(small) & ~uintptr_t{65535};
  ExpectFault(span);
  ExpectFault(span + 4095);
  ExpectFault(span + 65536 - 4096);
  ExpectFault(span + 65535);
  heap_free(small);
  void *medium = heap_alloc(100000);
  ExpectFault(AddressOf(medium) - 1);
  ExpectFault(AddressOf(medium) - 4096);
  ExpectFault(AddressOf(medium) + 102400);
  medium = heap_realloc(medium, 200000);
  memset(medium, 1, 200000);
  ExpectFault(AddressOf(medium) - 1);
  ExpectFault(AddressOf(medium) + 200704);
  medium = heap_realloc(medium, 90000);
  ExpectFault(AddressOf(medium) + 90112);
  heap_free(medium);
  void *big = heap_alloc(40 << 20);
  ExpectFault(AddressOf(big) - 1);
  ExpectFault(AddressOf(big) + (40 << 20) + 4096);
  big = heap_realloc(big, 50 << 20);
  ExpectFault(AddressOf(big) - 1);
  ExpectFault(AddressOf(big) + (50 << 20) + 4096);
  big = heap_realloc(big, 33 << 20);
  ExpectFault(AddressOf(big) + (33 << 20) + 4096);
  heap_free(big);
}

TEST(GuardTest, StandAroundSpansAndLargerBlocks) {
  RunHardened("all", ExpectGuards);
  RunInChild([] {
    setenv("HEAP_SOURCE", "brk", 1);
    ExpectGuards();
  });
}

// As before Linux 6.13, and of locked memory.
TEST(GuardTest, AreMappingsWhereTheKernelKnowsNoOther) {
  RunHardened("all", [] {
    UseFakeKernel();
    fake.refuse_guard = true;
    ExpectGuards();
    EXPECT_GT(heap_guard_mapping_count(), 0u);
    EXPECT_EQ(heap_guard_refused_count(), 0u);
    std::vector<void *> blocks;
    for (int i = 0; i < 3000; ++i) {
      blocks.push_back(heap_alloc(40000));
      blocks.push_back(heap_alloc(1000));
    }
    for (void *ptr : blocks) {
      memset(ptr, 1, 1000);
      heap_free(ptr);
    }
    heap_trim(0);
    EXPECT_EQ(heap_guard_mapping_count(), 0u);
  });
}

TEST(GuardTest, EndAtTheirShareOfTheMappings) {
  RunHardened("all", [] {
    UseFakeKernel();
    fake.refuse_guard = true;
    std::vector<void *> blocks;
    for (int i = 0; i < 6000; ++i) {
      blocks.push_back(heap_alloc(40000));
      ASSERT_NE(blocks.back(), nullptr);
    }
    EXPECT_EQ(heap_guard_mapping_count(), 8192u);
    EXPECT_GT(heap_guard_refused_count(), 3000u);
    for (void *ptr : blocks) {
      heap_free(ptr);
    }
    heap_trim(0);
    EXPECT_EQ(heap_guard_mapping_count(), 0u);
  });
}

TEST(GuardTest, AreDoneWithoutWhenMappingsRunOut) {
  for (size_t most : {0, 1, 7}) {
    RunHardened("all", [most] {
      UseFakeKernel();
      fake.refuse_guard = true;
      fake.most_forbidden_pages = most;
      heap_testing::RunHeapModel(heap_testing::Seed(), 20);
      EXPECT_LE(heap_guard_mapping_count(), most);
      EXPECT_GT(heap_guard_refused_count(), 0u);
    });
  }
}

TEST(GuardTest, EachFailingCallLeavesTheHeapWhole) {
  for (int fail_from = 1; fail_from < 60; ++fail_from) {
    RunHardened("all", [fail_from] {
      UseFakeKernel();
      fake.fail_from = fail_from;
      fake.fail_count = 2;
      for (size_t size : {0, 100, 30000, 100000, 6 << 20, 40 << 20}) {
        void *ptr = heap_calloc(1, size);
        EXPECT_TRUE(ptr == nullptr || heap_testing::IsZero(ptr, size));
        void *moved = heap_realloc(ptr, 2 * size + 1);
        heap_free(moved == nullptr ? ptr : moved);
        EXPECT_STREQ(heap_check(), nullptr);
      }
    });
  }
}

bool WriteByte(void *ptr);

// Writes one byte before a block, if there is no guard, and frees it.
uint64_t UnderflowAndFree(void *ptr) {
  const bool is_written = WriteByte(static_cast<char *>(ptr) - 1);
  heap_free(ptr);
  return is_written;
}

void ExpectUnderflowsReported(bool is_any_written) {
  setenv("HEAP_ON_ERROR", "report", 1);
  EXPECT_NE(freopen("/dev/null", "w", stderr), nullptr);
  std::vector<void *> blocks;
  for (int i = 0; i < 200; ++i) {
    blocks.push_back(heap_alloc(100000));
  }
  for (int i = 0; i < 50000; ++i) {
    void *ptr = heap_alloc(100);
    if (AddressOf(ptr) % 65536 == 4096) {  // The first of its span.
      blocks.push_back(ptr);
    }
  }
  EXPECT_GT(blocks.size(), 250u);
  uint64_t written = 0;
  for (void *ptr : blocks) {
    written += UnderflowAndFree(ptr);
  }
  EXPECT_EQ(written > 0, is_any_written);
  EXPECT_EQ(heap_misuse_count(), written);
}

TEST(GuardTest, UnderflowIsFoundWhereTheGuardIsNotThere) {
  RunHardened("all", [] { ExpectUnderflowsReported(false); });
  for (const char *list : {"-guard", "-guard,-zero"}) {
    RunHardened(list, [] { ExpectUnderflowsReported(true); });
  }
  for (size_t most : {0, 1, 100}) {
    RunHardened("all", [most] {
      UseFakeKernel();
      fake.refuse_guard = true;
      fake.most_forbidden_pages = most;
      ExpectUnderflowsReported(true);
    });
  }
}

// Writes to freed blocks.

// Writes one byte, as a program would, where memory is; the kernel says where.
bool WriteByte(void *ptr) {
  static int fds[2] = {-1, -1};
  if (fds[0] < 0) {
    EXPECT_EQ(pipe(fds), 0);
  }
  const char byte = 0x5a;
  EXPECT_EQ(write(fds[1], &byte, 1), 1);
  const bool is_done = read(fds[0], ptr, 1) == 1;
  char rest;
  EXPECT_TRUE(is_done || read(fds[0], &rest, 1) == 1);
  return is_done;
}

// Frees blocks but each `keep_every`th, has the heap give memory back, writes
// to what was freed, and looks at what comes next.
void WriteAfterMemoryWentBack(size_t size, size_t keep_every) {
  setenv("HEAP_ON_ERROR", "report", 1);
  EXPECT_NE(freopen("/dev/null", "w", stderr), nullptr);
  std::vector<void *> freed;
  const size_t count = (24 << 20) / size;
  for (size_t i = 1; i <= count; ++i) {
    void *ptr = heap_alloc(size);
    memset(ptr, 1, size);
    if (i % keep_every != 0) {
      freed.push_back(ptr);
    }
  }
  for (void *ptr : freed) {
    heap_free(ptr);
  }
  EXPECT_GT(heap_trim(0), 0u);
  std::set<uintptr_t> written;
  for (void *ptr : freed) {
    if (WriteByte(ptr)) {
      written.insert(AddressOf(ptr));
    }
  }
  EXPECT_FALSE(written.empty());
  uint64_t reused = 0;
  for (size_t i = 0; i < count; ++i) {
    void *ptr = heap_calloc(1, size);
    ASSERT_TRUE(heap_testing::IsZero(ptr, size)) << size;
    const auto found = written.lower_bound(AddressOf(ptr));
    reused += found != written.end() && *found < AddressOf(ptr) + size;
  }
  EXPECT_GT(reused, 0u) << size;
  EXPECT_GE(heap_misuse_count(), reused) << size;
}

TEST(ReuseTest, WriteIsFoundInMemoryThatHadBeenGivenBack) {
  for (size_t size : {100, 1000, 8000, 30000, 100000, 400000}) {
    for (size_t keep_every : {20, 60}) {
      RunHardened("all", [=] { WriteAfterMemoryWentBack(size, keep_every); });
    }
  }
}

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
    heap_random_6_bits(&random);
    int fds[2];
    ASSERT_EQ(pipe(fds), 0);
    // Of one draw of 64 bits.
    uint32_t numbers[9];
    uint32_t childs_numbers[9];
    RunInChild([&] {
      for (uint32_t &number : numbers) {
        number = heap_random_6_bits(&random);
      }
      EXPECT_EQ(write(fds[1], numbers, sizeof(numbers)),
                static_cast<ssize_t>(sizeof(numbers)));
    });
    ASSERT_EQ(read(fds[0], childs_numbers, sizeof(childs_numbers)),
              static_cast<ssize_t>(sizeof(childs_numbers)));
    for (uint32_t &number : numbers) {
      number = heap_random_6_bits(&random);
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

// Several threads.

// Lets threads that spin here go on together.
class StartLine {
 public:
  explicit StartLine(int count) : missing_(count) {
  }
  void Wait() {
    --missing_;
    while (missing_ > 0) {
    }
  }

 private:
  std::atomic<int> missing_;
};

// The test's own threads are made by libc's malloc. To read the list takes long
// enough for all of them to be there meanwhile.
TEST(HardenedTest, FirstAllocationsMayBeOfSeveralThreads) {
  std::string list = "all";
  for (int i = 0; i < 10000; ++i) {
    list += ",canary";
  }
  for (int run = 0; run < 10; ++run) {
    RunHardened(list.c_str(), [] {
      StartLine line(4);
      StartLine all_have_some(4);
      std::vector<std::thread> threads;
      for (int i = 0; i < 4; ++i) {
        threads.emplace_back([&] {
          std::vector<void *> blocks(50);
          line.Wait();
          for (void *&ptr : blocks) {
            ptr = heap_alloc(32);
          }
          all_have_some.Wait();
          for (void *ptr : blocks) {
            EXPECT_EQ(heap_usable_size(ptr), 32u);
            heap_free(ptr);
          }
        });
      }
      for (std::thread &thread : threads) {
        thread.join();
      }
    });
  }
}

// Each pair of frees at once is one too many, whoever the block's owner is.
TEST(HardenedTest, OneOfTwoFreesAtOnceIsReported) {
  for (const char *list : {"all", "all,-quarantine", "none"}) {
    RunHardened(list, [] {
      constexpr uint64_t kTurns = 20000;
      setenv("HEAP_ON_ERROR", "report", 1);
      EXPECT_NE(freopen("/dev/null", "w", stderr), nullptr);
      std::atomic<void *> current{nullptr};
      std::atomic<uint64_t> turn{0};
      std::atomic<uint64_t> done{0};
      std::thread other([&] {
        for (uint64_t i = 1; i <= kTurns; ++i) {
          while (turn < i) {
          }
          heap_free(current);
          done = i;
        }
      });
      for (uint64_t i = 1; i <= kTurns; ++i) {
        current = heap_alloc(24);
        turn = i;
        for (volatile uint64_t k = 0; k < i % 60; k = k + 1) {
        }
        heap_free(current);
        while (done < i) {
        }
      }
      other.join();
      EXPECT_EQ(heap_misuse_count(), kTurns);
    });
  }
}

TEST(HardenedTest, NoAllocationIsACancellationPoint) {
  RunHardened("all", [] {
    std::atomic<void *> got{nullptr};
    std::thread thread([&got] {
      pthread_cancel(pthread_self());
      got = heap_alloc(20);
      heap_free(got);
      pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, nullptr);
    });
    thread.join();
    EXPECT_NE(got, nullptr);
  });
}

// Others' frees, while owners come and go.
TEST(HardenedTest, ThreadsFreeEachOthersBlocks) {
  RunHardened("all", [] {
    std::vector<std::vector<unsigned char *>> passed(4);
    for (int round = 0; round < 200; ++round) {
      std::vector<std::thread> threads;
      for (size_t i = 0; i < passed.size(); ++i) {
        threads.emplace_back([&, i] {
          for (unsigned char *ptr : passed[i]) {
            heap_free(ptr);
          }
          passed[i].clear();
          for (size_t j = 0; j < 300; ++j) {
            const size_t size =
                1 + (j * 7919 + i) % (j % 50 == 0 ? 50000 : 900);
            auto *ptr = static_cast<unsigned char *>(heap_alloc(size));
            memset(ptr, static_cast<int>(j), size);
            passed[i].push_back(ptr);
          }
        });
      }
      for (std::thread &thread : threads) {
        thread.join();
      }
      std::rotate(passed.begin(), passed.begin() + 1, passed.end());
    }
    for (const auto &blocks : passed) {
      for (unsigned char *ptr : blocks) {
        heap_free(ptr);
      }
    }
  });
}

}  // namespace
