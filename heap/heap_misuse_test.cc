// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// Pointers that are not the start of a live block: each is named by one line,
// and the process dies, or goes on with a heap that is whole.

#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "gtest/gtest.h"
#include "heap/heap.h"
#include "heap/heap_model.h"
#include "heap/heap_testing.h"
#include "heap/mapped.h"

namespace {

using heap_testing::CapturedStderr;
using heap_testing::HeapModel;
using heap_testing::Random;
using heap_testing::RunInChild;

// The compiler must not see what it would warn of.
void *Launder(void *ptr) {
  void *volatile hidden = ptr;
  return hidden;
}

void *At(void *ptr, ptrdiff_t offset) {
  return Launder(static_cast<char *>(ptr) + offset);
}

// Returns what the heap writes of a bad pointer, as a regular expression;
// `block_bytes` 0 when it names no block.
std::string Message(const char *function, const char *cause,
                    size_t block_bytes) {
  const std::string block =
      block_bytes == 0
          ? ""
          : ", block 0x[0-9a-f]+ of " + std::to_string(block_bytes) + " bytes";
  return std::string("heap: ") + function + ": " + cause + ": 0x[0-9a-f]+" +
         block + ", thread [0-9]+, called from 0x[0-9a-f]+\n";
}

constexpr char kFreed[] = "double free or freed pointer";
constexpr char kInterior[] = "invalid pointer \\(not the start of its block\\)";
constexpr char kForeign[] = "invalid pointer \\(no block of this heap\\)";

// Passes `ptr` to every function that takes a block; each must die.
void ExpectDeath(void *ptr, const char *cause, size_t block_bytes) {
  EXPECT_DEATH(heap_free(ptr), Message("free", cause, block_bytes));
  EXPECT_DEATH((void)!heap_realloc(ptr, 10),
               Message("realloc", cause, block_bytes));
  EXPECT_DEATH((void)!heap_realloc(ptr, 0),
               Message("realloc", cause, block_bytes));
  EXPECT_DEATH(heap_usable_size(ptr),
               Message("usable_size", cause, block_bytes));
}

class HeapMisuseTest : public testing::Test {
 protected:
  void SetUp() override {
    unsetenv("HEAP_ON_ERROR");
  }
  void TearDown() override {
    EXPECT_STREQ(heap_check(), nullptr);
  }
};

// Pointers that were never a block.

TEST_F(HeapMisuseTest, StackMemoryDies) {
  int local = 0;
  ExpectDeath(Launder(&local), kForeign, 0);
}

TEST_F(HeapMisuseTest, StaticMemoryDies) {
  static char initialised[64] = "x";
  static char zeroed[64];
  ExpectDeath(Launder(initialised), kForeign, 0);
  ExpectDeath(Launder(zeroed), kForeign, 0);
  ExpectDeath(reinterpret_cast<void *>(&heap_free), kForeign, 0);
}

TEST_F(HeapMisuseTest, MappedMemoryOfTheCallerDies) {
  void *ptr = mmap(nullptr, 1 << 20, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  ASSERT_NE(ptr, MAP_FAILED);
  ExpectDeath(ptr, kForeign, 0);
  ExpectDeath(At(ptr, 65536), kForeign, 0);
  munmap(ptr, 1 << 20);
}

TEST_F(HeapMisuseTest, BlockOfAnotherMallocDies) {
  void *ptr = malloc(100);
  ExpectDeath(ptr, kForeign, 0);
  free(ptr);
}

TEST_F(HeapMisuseTest, AddressesNobodyCanHaveDie) {
  for (uintptr_t address :
       {uintptr_t{1}, uintptr_t{16}, uintptr_t{4096}, uintptr_t{65536},
        (uintptr_t{1} << 47) - 16, uintptr_t{1} << 47, uintptr_t{1} << 48,
        uintptr_t{0x8000000000000000}, uintptr_t{0xdeadbeefdeadbeef},
        UINTPTR_MAX - 15, UINTPTR_MAX}) {
    EXPECT_DEATH(heap_free(reinterpret_cast<void *>(address)),
                 Message("free", kForeign, 0))
        << address;
  }
  ExpectDeath(reinterpret_cast<void *>(uintptr_t{0xdeadbeefdeadbeef}), kForeign,
              0);
}

// Pointers into live blocks.

struct Kind {
  size_t size_bytes;
  size_t usable_bytes;
};

// Small, small in a span of two pages, medium, mapped.
constexpr Kind kKinds[] = {
    {100, 112}, {30000, 30720}, {100 << 10, 100 << 10}, {40 << 20, 40 << 20}};

TEST_F(HeapMisuseTest, AddressInsideALiveBlockDies) {
  for (const Kind &kind : kKinds) {
    void *ptr = heap_alloc(kind.size_bytes);
    const auto size = static_cast<ptrdiff_t>(kind.usable_bytes);
    for (ptrdiff_t offset : {ptrdiff_t{1}, ptrdiff_t{8}, ptrdiff_t{16},
                             size / 2, size - 16, size - 1}) {
      EXPECT_DEATH(heap_free(At(ptr, offset)),
                   Message("free", kInterior, kind.usable_bytes))
          << offset << " of " << size;
    }
    ExpectDeath(At(ptr, 32), kInterior, kind.usable_bytes);
    heap_free(ptr);
  }
}

TEST_F(HeapMisuseTest, AddressBeforeAMappedBlockDies) {
  void *ptr = heap_alloc(40 << 20);
  EXPECT_DEATH(heap_free(At(ptr, -16)), "heap: free: invalid pointer");
  heap_free(ptr);
  // Its mapping may start before it does.
  ptr = heap_aligned_alloc(1 << 20, 40 << 20);
  EXPECT_DEATH(heap_free(At(ptr, -4096)), "heap: free: invalid pointer");
  heap_free(ptr);
}

// Where a span's last block ends there may be a rest that is no block.
TEST_F(HeapMisuseTest, AddressBehindTheLastBlockOfASpanDies) {
  void *ptr = heap_alloc(48);
  void *page = reinterpret_cast<void *>(reinterpret_cast<uintptr_t>(ptr) &
                                        ~uintptr_t{65535});
  ASSERT_NE(65536 % 48, 0);
  ExpectDeath(At(page, 65536 / 48 * 48), kForeign, 0);
  ExpectDeath(At(page, 65535), kForeign, 0);
  heap_free(ptr);
}

TEST_F(HeapMisuseTest, BlockNeverHandedOutDies) {
  void *ptr = heap_alloc(48);
  ExpectDeath(At(ptr, 48), kFreed, 48);
  heap_free(ptr);
}

// Blocks freed before.

TEST_F(HeapMisuseTest, DoubleFreeAtOnceDies) {
  for (const Kind &kind : kKinds) {
    void *ptr = heap_alloc(kind.size_bytes);
    heap_free(ptr);
    // What was a run or a mapping is no block any more.
    const bool is_small = kind.usable_bytes < 32768;
    const bool is_mapped = kind.usable_bytes >= HEAP_MAPPED_MIN_BYTES;
    ExpectDeath(ptr, is_mapped ? kForeign : kFreed,
                is_small ? kind.usable_bytes : 0);
  }
}

TEST_F(HeapMisuseTest, DoubleFreeAfterManyOtherFreesDies) {
  std::vector<void *> blocks;
  for (int i = 0; i < 3000; ++i) {
    blocks.push_back(heap_alloc(64));
  }
  for (void *ptr : blocks) {
    heap_free(ptr);
  }
  for (size_t i : {0, 1, 31, 32, 33, 1000, 1500, 2999}) {
    EXPECT_DEATH(heap_free(blocks[i]), "heap: free: double free") << i;
  }
}

TEST_F(HeapMisuseTest, DoubleFreeWithOtherFreesBetweenDies) {
  void *a = heap_alloc(64);
  void *b = heap_alloc(64);
  heap_free(a);
  heap_free(b);
  EXPECT_DEATH(heap_free(a), Message("free", kFreed, 64));
}

TEST_F(HeapMisuseTest, DoubleFreeByAnotherThreadDies) {
  for (const Kind &kind : kKinds) {
    void *ptr = heap_alloc(kind.size_bytes);
    heap_free(ptr);
    EXPECT_DEATH(std::thread(heap_free, ptr).join(), "heap: free: ");
  }
}

TEST_F(HeapMisuseTest, DoubleFreeOfWhatAnotherThreadFreedDies) {
  for (const Kind &kind : kKinds) {
    void *ptr = heap_alloc(kind.size_bytes);
    std::thread(heap_free, ptr).join();
    EXPECT_DEATH(heap_free(ptr), "heap: free: ");
    EXPECT_DEATH(std::thread(heap_free, ptr).join(), "heap: free: ");
  }
}

TEST_F(HeapMisuseTest, DoubleFreeOfAnExitedThreadsBlockDies) {
  void *ptr = nullptr;
  void *other = nullptr;
  std::thread([&] {
    ptr = heap_alloc(64);
    other = heap_alloc(64);
    heap_free(ptr);
  }).join();
  EXPECT_DEATH(heap_free(ptr), Message("free", kFreed, 64));
  heap_free(other);
  EXPECT_DEATH(heap_free(other), "heap: free: double free");
}

// The memory of a freed block became blocks of another size; no block starts
// where it did.
TEST_F(HeapMisuseTest, FreeOfWhatBecameAnotherClassDies) {
  RunInChild([] {
    std::vector<void *> old_blocks;
    for (int i = 0; i < 5000; ++i) {
      old_blocks.push_back(heap_alloc(48));
    }
    for (void *ptr : old_blocks) {
      heap_free(ptr);
    }
    std::set<void *> live;
    for (int i = 0; i < 20; ++i) {
      live.insert(heap_alloc(8000));
    }
    int reused = 0;
    for (void *ptr : old_blocks) {
      const auto next = live.upper_bound(ptr);
      if (next == live.begin() || live.count(ptr) > 0) {
        continue;
      }
      const char *block = static_cast<char *>(*std::prev(next));
      if (static_cast<char *>(ptr) < block + 8192 && ++reused % 50 == 1) {
        EXPECT_DEATH(heap_free(ptr), Message("free", kInterior, 8192));
      }
    }
    EXPECT_GT(reused, 100);
  });
}

TEST_F(HeapMisuseTest, FreeOfWhatWentBackToTheKernelDies) {
  RunInChild([] {
    std::vector<void *> blocks;
    for (int i = 0; i < 20000; ++i) {
      blocks.push_back(heap_alloc(1000));
    }
    for (void *ptr : blocks) {
      heap_free(ptr);
    }
    heap_trim(0);
    for (size_t i : {0, 100, 10000, 19999}) {
      EXPECT_DEATH(heap_free(blocks[i]), "heap: free: ");
    }
  });
}

// Sized frees.

constexpr char kSize[] = "size differs from that of the block";

TEST_F(HeapMisuseTest, SizedFreeOfTheRightSizeFrees) {
  for (size_t size : heap_testing::EdgeSizes()) {
    heap_free_sized(heap_alloc(size), 0, size);
    for (size_t align : {size_t{1}, size_t{16}, size_t{64}, size_t{4096},
                         size_t{65536}, size_t{1} << 20}) {
      heap_free_sized(heap_aligned_alloc(align, size), align, size);
    }
    heap_free_sized(heap_realloc(heap_alloc(10), size + 11), 0, size + 11);
  }
  heap_free_sized(nullptr, 0, 100);
  EXPECT_STREQ(heap_check(), nullptr);
}

TEST_F(HeapMisuseTest, SizedFreeOfAnotherSizeDies) {
  void *ptr = heap_alloc(100);
  for (size_t size : {size_t{0}, size_t{96}, size_t{113}, size_t{5000},
                      size_t{100000}, size_t{50} << 20, SIZE_MAX}) {
    EXPECT_DEATH(heap_free_sized(ptr, 0, size),
                 Message("sized free", kSize, 112));
  }
  EXPECT_DEATH(heap_free_sized(ptr, 64, 100),
               Message("sized free", kSize, 112));
  heap_free_sized(ptr, 0, 97);  // Nobody can tell: the same class.
  ptr = heap_alloc(100 << 10);
  for (size_t size : {size_t{0}, size_t{8192}, size_t{10000}, size_t{101376},
                      size_t{102401}, SIZE_MAX}) {
    EXPECT_DEATH(heap_free_sized(ptr, 0, size),
                 Message("sized free", kSize, 102400));
  }
  heap_free_sized(ptr, 0, 101377);  // The same units.
  ptr = heap_alloc(40 << 20);
  for (size_t size : {size_t{1}, size_t{10000}, (size_t{40} << 20) - 65536,
                      (size_t{40} << 20) + 1}) {
    EXPECT_DEATH(heap_free_sized(ptr, 0, size),
                 Message("sized free", kSize, 40 << 20));
  }
  heap_free_sized(ptr, 0, (size_t{40} << 20) - 65535);
  for (size_t align : {size_t{16384}, size_t{1} << 20}) {
    for (size_t size :
         {size_t{100}, size_t{5000}, size_t{100000}, size_t{40} << 20}) {
      heap_free_sized(heap_aligned_alloc(align, size), align, size);
    }
  }
}

TEST_F(HeapMisuseTest, SizedFreeOfNoBlockDies) {
  void *ptr = heap_alloc(100);
  char *inside = static_cast<char *>(ptr) + 16;
  EXPECT_DEATH(heap_free_sized(inside, 0, 100),
               Message("(sized )?free", kInterior, 112));
  heap_free(ptr);
  EXPECT_DEATH(heap_free_sized(ptr, 0, 100),
               Message("(sized )?free", kFreed, 112));
  EXPECT_DEATH(heap_free_sized(ptr, 0, 5000),
               Message("sized free", kFreed, 112));
  EXPECT_DEATH(heap_free_sized(&ptr, 0, 8),
               Message("(sized )?free", kForeign, 0));
}

TEST_F(HeapMisuseTest, ReallocAwayAndFreeOfTheOldBlockDies) {
  void *ptr = heap_alloc(100);
  void *moved = heap_realloc(ptr, 5000);
  ASSERT_NE(moved, ptr);
  EXPECT_DEATH(heap_free(ptr), Message("free", kFreed, 112));
  heap_free(moved);

  ptr = heap_alloc(40 << 20);
  moved = heap_realloc(ptr, 900 << 20);
  if (moved != ptr) {
    EXPECT_DEATH(heap_free(ptr), Message("free", kForeign, 0));
  }
  heap_free(moved);
}

// HEAP_ON_ERROR=report.

class HeapReportTest : public HeapMisuseTest {
 protected:
  void SetUp() override {
    setenv("HEAP_ON_ERROR", "report", 1);
  }
  void TearDown() override {
    HeapMisuseTest::TearDown();
    unsetenv("HEAP_ON_ERROR");
  }

  static size_t MisuseCount() {
    heap_stats_t stats;
    heap_stats_get(&stats);
    return stats.num_misuses;
  }
};

size_t CountLines(const std::string &text) {
  return static_cast<size_t>(std::count(text.begin(), text.end(), '\n'));
}

TEST_F(HeapReportTest, BadCallHasNoEffectAndIsCounted) {
  CapturedStderr captured;
  void *ptr = heap_alloc(100);
  memset(ptr, 7, 100);
  const size_t count = MisuseCount();
  errno = EDOM;
  heap_free(At(ptr, 16));
  EXPECT_EQ(errno, EDOM);
  EXPECT_EQ(heap_usable_size(At(ptr, 16)), 0u);
  EXPECT_EQ(heap_realloc(At(ptr, 16), 50), nullptr);
  EXPECT_EQ(errno, EINVAL);
  EXPECT_EQ(MisuseCount(), count + 3);
  EXPECT_EQ(CountLines(captured.Take()), 3u);
  EXPECT_EQ(static_cast<char *>(ptr)[99], 7);
  heap_free(ptr);
  heap_free(ptr);
  EXPECT_EQ(CountLines(captured.Take()), 1u);
  EXPECT_EQ(MisuseCount(), count + 4);
}

TEST_F(HeapReportTest, OnlyTheWordReportMeansIt) {
  for (const char *value : {"", "abort", "Report", "reports", "1"}) {
    setenv("HEAP_ON_ERROR", value, 1);
    EXPECT_DEATH(heap_free(Launder(&value)), Message("free", kForeign, 0));
  }
}

// Bad calls of all kinds between good ones, which a model follows: each bad
// one is reported once, no good one ever, and no contents change.
TEST_F(HeapReportTest, StormOfBadPointersHarmsNothing) {
  constexpr int kRounds = 100;
  constexpr int kStepsARound = 2000;
  Random random(heap_testing::Seed());
  HeapModel model(128 << 20);
  size_t reported = 0;
  const size_t old_count = MisuseCount();
  for (int round = 0; round < kRounds; ++round) {
    CapturedStderr captured;
    size_t bad = 0;
    for (int step = 0; step < kStepsARound; ++step) {
      const size_t size = random.SkewedSize(random.OneIn(500)  ? 23
                                            : random.OneIn(20) ? 18
                                                               : 11);
      const size_t index = random.Next();
      void *wrong = model.BadPointer(random.Next() >> 1, random.Next() >> 40);
      switch (random.Below(8)) {
        case 0:
          model.Realloc(index, size);
          break;
        case 1:
        case 2:
          if (random.Below(1000) > model.live_count()) {
            model.Alloc(size);
          } else {
            model.Free(index);
          }
          break;
        case 3:
          model.Free(index);
          break;
        case 4:
          ++bad;
          EXPECT_EQ(heap_realloc(wrong, size), nullptr);
          break;
        case 5:
          ++bad;
          EXPECT_EQ(heap_usable_size(wrong), 0u);
          break;
        default:
          ++bad;
          heap_free(wrong);
      }
    }
    const std::string text = captured.Take();
    ASSERT_EQ(CountLines(text), bad);
    reported += bad;
    model.Check();
  }
  EXPECT_GT(reported, 90000u);
  EXPECT_EQ(MisuseCount(), old_count + reported);
}

// Several threads free one block at the same instant.
class HeapReportRaceTest : public HeapReportTest {
 protected:
  // In each round two threads free the same block, one of which may be its
  // owner. Returns the number of misuses that were reported.
  static size_t Run(bool owner_takes_part, size_t size_bytes, int rounds) {
    const size_t old_count = MisuseCount();
    std::atomic<void *> block{nullptr};
    std::atomic<int> round{0};
    std::atomic<int> done{0};
    const auto race = [&] {
      for (int i = 1; i <= rounds; ++i) {
        while (round.load() < i) {
          std::this_thread::yield();
        }
        heap_free(block.load());
        done.fetch_add(1);
      }
    };
    std::vector<std::thread> threads;
    const int helpers = owner_takes_part ? 1 : 2;
    for (int i = 0; i < helpers; ++i) {
      threads.emplace_back(race);
    }
    for (int i = 1; i <= rounds; ++i) {
      void *ptr = heap_alloc(size_bytes);
      block.store(ptr);
      done.store(0);
      round.store(i);
      if (owner_takes_part) {
        heap_free(ptr);
      }
      while (done.load() < helpers) {
        std::this_thread::yield();
      }
      ExpectDistinctBlocks(size_bytes);
    }
    for (std::thread &thread : threads) {
      thread.join();
    }
    EXPECT_STREQ(heap_check(), nullptr);
    return MisuseCount() - old_count;
  }

 private:
  static void ExpectDistinctBlocks(size_t size_bytes) {
    void *blocks[3];
    for (void *&ptr : blocks) {
      ptr = heap_alloc(size_bytes);
    }
    ASSERT_NE(blocks[0], blocks[1]);
    ASSERT_NE(blocks[0], blocks[2]);
    ASSERT_NE(blocks[1], blocks[2]);
    for (void *ptr : blocks) {
      heap_free(ptr);
    }
  }
};

TEST_F(HeapReportRaceTest, TwoThreadsAtOnceAreToldApart) {
  CapturedStderr captured;
  EXPECT_EQ(Run(false, 64, 3000), 3000u);
  EXPECT_EQ(Run(false, 100 << 10, 1000), 1000u);
  EXPECT_EQ(Run(false, 40 << 20, 300), 300u);
}

// Leaves out the numbers behind `prefix`.
std::string WithoutNumbers(std::string text, const std::string &prefix) {
  size_t at = 0;
  while ((at = text.find(prefix, at)) != std::string::npos) {
    at += prefix.size();
    const size_t end = text.find_first_not_of("0123456789abcdef", at);
    text.erase(at, end == std::string::npos ? end : end - at);
  }
  return text;
}

// Leaves out what differs from run to run.
std::string Shape(const std::string &text) {
  return WithoutNumbers(WithoutNumbers(text, "0x"), "thread ");
}

TEST(HeapReadmeTest, ShowsWhatReportsLookLike) {
  std::ifstream file("heap/README.md");
  const std::string readme =
      Shape(std::string(std::istreambuf_iterator<char>(file), {}));
  RunInChild([&] {
    setenv("HEAP_ON_ERROR", "report", 1);
    void *ptr = heap_alloc(64);
    CapturedStderr captured;
    std::vector<std::string> reports;
    heap_free_sized(heap_alloc(64), 0, 200);
    reports.push_back(captured.Take());
    heap_free(At(ptr, 8));
    reports.push_back(captured.Take());
    heap_free(Launder(&ptr));
    reports.push_back(captured.Take());
    heap_free(ptr);
    heap_free(Launder(ptr));
    reports.push_back(captured.Take());
    for (const std::string &report : reports) {
      EXPECT_NE(report, "");
      EXPECT_NE(readme.find("\n" + Shape(report)), std::string::npos) << report;
    }
  });
}

// The owner's free and another's within the same few instructions: the later
// one may go unnoticed, but no block is handed out twice.
TEST_F(HeapReportRaceTest, OwnerAndAnotherAtOnceLeaveTheHeapWhole) {
  CapturedStderr captured;
  EXPECT_LE(Run(true, 64, 3000), 3000u);
  EXPECT_LE(Run(true, 8000, 3000), 3000u);
}

}  // namespace
