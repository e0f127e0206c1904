// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// A kernel that refuses: each operation of the heap is run again and again,
// each time in a new process, with the first, second, third... call to the
// kernel failing, until none is left to fail. And a kernel whose break is
// moved by others.

#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <climits>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "heap/heap.h"
#include "heap/heap_model.h"
#include "heap/heap_testing.h"
#include "heap/kernel.h"
#include "heap/page_table.h"

namespace {

using heap_testing::Fill;
using heap_testing::HeapModel;
using heap_testing::IsFilled;
using heap_testing::IsZero;
using heap_testing::Random;
using heap_testing::RunInChild;

// Memory that is not the heap's, filled.
struct StrangersMemory {
  unsigned char *ptr;
  size_t size_bytes;
};

// What the heap calls in these tests. All state is of one process and thread.
struct FakeKernel {
  // Fails call number `fail_from` (from 1 on) and the `fail_count - 1` after.
  int fail_from = 0;
  int fail_count = 0;
  int calls = 0;
  int failures = 0;  // Of these.
  // Fails these calls always.
  bool refuse_break = false;
  bool refuse_commit = false;
  bool refuse_discard = false;
  size_t largest_map_bytes = SIZE_MAX;
  int refusals = 0;  // Of these.
  int break_moves = 0;
  size_t mapped_bytes = 0;                 // Now, reservations included.
  std::vector<StrangersMemory> strangers;  // Where moves failed.
  // Runs before the break is raised.
  std::function<void()> before_break_rise;

  bool Fails(bool is_refused) {
    ++calls;
    refusals += is_refused;
    const bool is_chosen = calls >= fail_from && calls - fail_from < fail_count;
    failures += is_chosen;
    return is_refused || is_chosen;
  }
};

FakeKernel fake;

void *FakeMoveBreak(intptr_t delta_bytes) {
  if (fake.Fails(fake.refuse_break && delta_bytes != 0)) {
    return nullptr;
  }
  if (delta_bytes != 0) {
    ++fake.break_moves;
    if (delta_bytes > 0 && fake.before_break_rise) {
      fake.before_break_rise();
    }
  }
  return heap_kernel_default.move_break(delta_bytes);
}

void *FakeMap(size_t size_bytes, bool reserve_only) {
  if (fake.Fails(size_bytes > fake.largest_map_bytes)) {
    return nullptr;
  }
  fake.mapped_bytes += size_bytes;
  return heap_kernel_default.map(size_bytes, reserve_only);
}

bool FakeCommit(void *ptr, size_t size_bytes) {
  return !fake.Fails(fake.refuse_commit) &&
         heap_kernel_default.commit(ptr, size_bytes);
}

bool FakeResize(void *ptr, size_t old_bytes, size_t new_bytes) {
  if (fake.Fails(false) ||
      !heap_kernel_default.resize(ptr, old_bytes, new_bytes)) {
    return false;
  }
  fake.mapped_bytes += new_bytes - old_bytes;
  return true;
}

// A failed move takes the target with it, and a stranger comes in its place.
bool FakeMove(void *ptr, size_t old_bytes, void *target, size_t new_bytes) {
  if (fake.Fails(false) ||
      !heap_kernel_default.move(ptr, old_bytes, target, new_bytes)) {
    munmap(target, new_bytes);
    fake.mapped_bytes -= new_bytes;
    void *stranger = mmap(target, new_bytes, PROT_READ | PROT_WRITE,
                          MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
    fake.strangers.push_back({static_cast<unsigned char *>(stranger), 4096});
    Fill(stranger, 4096, 4096);
    return false;
  }
  fake.mapped_bytes -= old_bytes;
  return true;
}

bool FakeDiscard(void *ptr, size_t size_bytes) {
  if (fake.Fails(fake.refuse_discard)) {
    errno = EINVAL;
    return false;
  }
  return heap_kernel_default.discard(ptr, size_bytes);
}

bool FakeUnmap(void *ptr, size_t size_bytes) {
  if (fake.Fails(false)) {
    return false;
  }
  fake.mapped_bytes -= size_bytes;
  return heap_kernel_default.unmap(ptr, size_bytes);
}

constexpr heap_kernel_t kFakeKernel = {
    FakeMoveBreak, FakeMap,     FakeCommit, FakeResize,
    FakeMove,      FakeDiscard, FakeUnmap,
};

void UseFakeKernel() {
  fake = FakeKernel();
  heap_kernel = &kFakeKernel;
}

heap_stats_t Stats() {
  heap_stats_t stats;
  heap_stats_get(&stats);
  return stats;
}

// Bytes in blocks, or in spans of them.
size_t LiveBytes() {
  const heap_stats_t stats = Stats();
  return stats.mapped_bytes - stats.free_run_bytes;
}

// Random operations of all kinds.
void RunModel(uint64_t seed, unsigned max_log2, int steps = 600) {
  Random random(seed);
  HeapModel model(64 << 20);
  for (int step = 0; step < steps; ++step) {
    const size_t index = random.Next();
    const size_t size = random.SkewedSize(max_log2);
    switch (random.Below(8)) {
      case 0:
        model.Calloc(1, size);
        break;
      case 1:
        model.AlignedAlloc(size_t{1} << random.Below(18), size);
        break;
      case 2:
        model.Realloc(index, size);
        break;
      case 3:
      case 4:
      case 5:
        model.Free(index);
        break;
      default:
        model.Alloc(size);
    }
    if (step % 50 == 0) {
      model.Check();
    }
  }
  model.Check();
}

// One call to the heap, and what it needs before.
struct Operation {
  std::string name;
  // Runs on the real kernel; its result is given to `run`.
  std::function<void *()> prepare;
  // Returns false when the heap says that it failed.
  std::function<bool(void *)> run;
};

Operation AllocOperation(std::string name, std::function<void *()> alloc) {
  return {std::move(name), [] { return nullptr; },
          [alloc](void *) {
            errno = 0;
            void *ptr = alloc();
            EXPECT_TRUE(ptr != nullptr || errno == ENOMEM);
            if (ptr != nullptr) {
              memset(ptr, 1, heap_usable_size(ptr));
              heap_free(ptr);
            }
            return ptr != nullptr;
          }};
}

Operation ReallocOperation(size_t old_bytes, size_t new_bytes,
                           size_t align_bytes = 16) {
  return {"realloc of " + std::to_string(old_bytes) + " to " +
              std::to_string(new_bytes),
          [=] {
            void *ptr = heap_aligned_alloc(align_bytes, old_bytes);
            Fill(ptr, old_bytes, 1);
            return ptr;
          },
          [=](void *ptr) {
            errno = 0;
            void *moved = heap_realloc(ptr, new_bytes);
            EXPECT_TRUE(moved != nullptr || errno == ENOMEM);
            void *live = moved != nullptr ? moved : ptr;
            const size_t kept_bytes = moved != nullptr ? new_bytes : old_bytes;
            EXPECT_TRUE(IsFilled(live, kept_bytes, old_bytes, 1));
            memset(live, 1, kept_bytes);
            heap_free(live);
            return moved != nullptr;
          }};
}

Operation FreeOperation(size_t size_bytes) {
  return {"free of " + std::to_string(size_bytes),
          [=] { return heap_alloc(size_bytes); },
          [](void *ptr) {
            errno = EDOM;
            heap_free(ptr);
            EXPECT_EQ(errno, EDOM);
            return true;
          }};
}

// Frees so much that the heap gives some of it back.
Operation PurgeOperation() {
  return {"free of many blocks",
          [] {
            auto *blocks = new std::vector<void *>;
            for (int i = 0; i < 200; ++i) {
              blocks->push_back(heap_alloc(60000));
              Fill(blocks->back(), 60000, 1);
            }
            return static_cast<void *>(blocks);
          },
          [](void *prepared) {
            auto *blocks = static_cast<std::vector<void *> *>(prepared);
            for (size_t i = 0; i < blocks->size(); ++i) {
              if (i % 50 != 0) {
                heap_free((*blocks)[i]);
              }
            }
            heap_trim(0);
            for (size_t i = 0; i < blocks->size(); i += 50) {
              EXPECT_TRUE(IsFilled((*blocks)[i], 60000, 60000, 1));
              heap_free((*blocks)[i]);
            }
            // What was given back, or was not, is not taken for zero.
            for (int i = 0; i < 20; ++i) {
              void *ptr = heap_calloc(1, 60000);
              EXPECT_TRUE(ptr == nullptr || IsZero(ptr, 60000));
              heap_free(ptr);
            }
            delete blocks;
            return true;
          }};
}

std::vector<Operation> Operations() {
  std::vector<Operation> operations;
  for (size_t size :
       {size_t{100}, size_t{30000}, size_t{100000}, size_t{5} << 20}) {
    const std::string text = std::to_string(size);
    operations.push_back(
        AllocOperation("alloc of " + text, [=] { return heap_alloc(size); }));
    operations.push_back(AllocOperation("calloc of " + text,
                                        [=] { return heap_calloc(1, size); }));
    for (size_t align : {size_t{4096}, size_t{65536}, size_t{1} << 20}) {
      operations.push_back(AllocOperation("aligned_alloc of " + text, [=] {
        return heap_aligned_alloc(align, size);
      }));
    }
    operations.push_back(FreeOperation(size));
    for (size_t other : {size_t{10}, size_t{30000}, size_t{200000},
                         size_t{1} << 20, size_t{6} << 20, size_t{50} << 20}) {
      operations.push_back(ReallocOperation(size, other));
    }
  }
  operations.push_back(ReallocOperation(5 << 20, 9 << 20, 1 << 20));
  operations.push_back(ReallocOperation(9 << 20, 5 << 20));
  operations.push_back(PurgeOperation());
  return operations;
}

// What the child tells its parent.
struct Outcome {
  bool failed_a_call;
  bool succeeded;
};

class HeapFailureTest : public testing::Test {
 protected:
  void SetUp() override {
    outcome_ = static_cast<Outcome *>(mmap(nullptr, sizeof(Outcome),
                                           PROT_READ | PROT_WRITE,
                                           MAP_SHARED | MAP_ANONYMOUS, -1, 0));
    ASSERT_NE(outcome_, MAP_FAILED);
  }
  void TearDown() override {
    munmap(outcome_, sizeof(Outcome));
  }

  // Runs the operation in a new process with the calls to the kernel from
  // number `fail_from` on failing, `fail_count` of them.
  void RunFailing(const Operation &operation, int fail_from, int fail_count,
                  bool use_break) {
    *outcome_ = {};
    RunInChild([&] {
      UseFakeKernel();
      fake.refuse_break = !use_break;
      void *prepared = operation.prepare();
      const size_t live_before = LiveBytes();
      fake.fail_from = fake.calls + fail_from;
      fake.fail_count = fail_count;
      const bool succeeded = operation.run(prepared);
      *outcome_ = {fake.failures > 0, succeeded};
      fake.fail_count = 0;
      EXPECT_STREQ(heap_check(), nullptr);
      for (const StrangersMemory &memory : fake.strangers) {
        EXPECT_TRUE(IsFilled(memory.ptr, memory.size_bytes, memory.size_bytes,
                             memory.size_bytes));
      }
      // Both on success and on failure the block is freed by now; a span of
      // one class may stay behind for its next use.
      EXPECT_LE(LiveBytes(), live_before + 2 * HEAP_PAGE_BYTES);
      EXPECT_EQ(Stats().huge_bytes, 0u);
      RunModel(static_cast<uint64_t>(fail_from), 17, 60);
      EXPECT_STREQ(heap_check(), nullptr);
    });
  }

  void FailEachCall(int fail_count, bool use_break) {
    for (const Operation &operation : Operations()) {
      int fail_from = 1;
      do {
        RunFailing(operation, fail_from++, fail_count, use_break);
        ASSERT_FALSE(HasFailure())
            << operation.name << ", failing " << fail_count
            << " calls from number " << fail_from - 1;
      } while (outcome_->failed_a_call);
      EXPECT_TRUE(outcome_->succeeded) << operation.name;
    }
  }

  Outcome *outcome_ = nullptr;
};

TEST_F(HeapFailureTest, EachCallMayFailOnce) {
  FailEachCall(1, true);
}

TEST_F(HeapFailureTest, EachCallMayFailAndAllBehindIt) {
  FailEachCall(1 << 30, true);
}

TEST_F(HeapFailureTest, EachCallMayFailWithoutTheBreak) {
  FailEachCall(1, false);
}

TEST_F(HeapFailureTest, FailedCallsLeaveNoMappingBehind) {
  for (const Operation &operation : Operations()) {
    int fail_from = 1;
    do {
      *outcome_ = {};
      RunInChild([&] {
        UseFakeKernel();
        void *prepared = operation.prepare();
        fake.fail_from = fake.calls + fail_from;
        fake.fail_count = 1;
        operation.run(prepared);
        *outcome_ = {fake.failures > 0, true};
        // What is mapped is the heap's tables; more only where giving back
        // itself was refused, or where the break was and an arena took over.
        const size_t unknown = fake.mapped_bytes - Stats().metadata_bytes;
        EXPECT_TRUE(unknown == 0 || fake.failures > 0);
        EXPECT_LE(unknown, (size_t{64} << 20) + HEAP_PAGE_BYTES);
      });
      ASSERT_FALSE(HasFailure())
          << operation.name << ", failing call " << fail_from;
      ++fail_from;
    } while (outcome_->failed_a_call);
  }
}

// The heap goes on where one kind of call is refused for ever.

TEST_F(HeapFailureTest, ArenasAreMappedWhereTheBreakIsRefused) {
  const uint64_t seed = heap_testing::Seed();
  RunInChild([seed] {
    UseFakeKernel();
    fake.refuse_break = true;
    for (uint64_t i = 0; i < 10; ++i) {
      RunModel(seed + i, 12 + i);
    }
    EXPECT_EQ(fake.break_moves, 0);
    EXPECT_STREQ(heap_check(), nullptr);
  });
}

TEST_F(HeapFailureTest, ReservationsAreSmallWhereAddressesAreShort) {
  RunInChild([] {
    UseFakeKernel();
    fake.refuse_break = true;
    fake.largest_map_bytes = 3 << 20;
    std::vector<void *> blocks;
    for (;;) {
      void *ptr = heap_alloc(100000);
      if (ptr == nullptr) {
        break;
      }
      memset(ptr, 1, 100000);
      blocks.push_back(ptr);
    }
    // All of the arenas the heap can have, well used.
    EXPECT_GT(blocks.size() * 100000, 50u << 20);
    EXPECT_STREQ(heap_check(), nullptr);
    for (void *ptr : blocks) {
      heap_free(ptr);
    }
    EXPECT_STREQ(heap_check(), nullptr);
  });
}

TEST_F(HeapFailureTest, BigBlocksAreRunsWhereNoMappingIsToBeHad) {
  const uint64_t seed = heap_testing::Seed();
  RunInChild([seed] {
    UseFakeKernel();
    fake.largest_map_bytes = 2 << 20;
    void *ptr = heap_calloc(1, 5 << 20);
    ASSERT_NE(ptr, nullptr);
    EXPECT_TRUE(IsZero(ptr, 5 << 20));
    Fill(ptr, 5 << 20, 1);
    EXPECT_EQ(Stats().huge_bytes, 0u);
    ptr = heap_realloc(ptr, 9 << 20);
    ASSERT_NE(ptr, nullptr);
    EXPECT_TRUE(IsFilled(ptr, 9 << 20, 5 << 20, 1));
    heap_free(ptr);
    RunModel(seed, 24);
  });
}

TEST_F(HeapFailureTest, RefusedCommitIsEnomemAndCanBeTriedAgain) {
  RunInChild([] {
    UseFakeKernel();
    fake.refuse_break = true;
    fake.refuse_commit = true;
    for (size_t size : {size_t{10}, size_t{100000}}) {
      errno = 0;
      EXPECT_EQ(heap_alloc(size), nullptr);
      EXPECT_EQ(errno, ENOMEM);
      EXPECT_STREQ(heap_check(), nullptr);
    }
    EXPECT_NE(heap_alloc(8 << 20), nullptr) << "a mapping of its own";
    fake.refuse_commit = false;
    RunModel(1, 20);
  });
}

// Neither addresses nor arenas are used up by allocations that fail.
TEST_F(HeapFailureTest, RefusedCommitsLeaveNoArenasBehind) {
  RunInChild([] {
    UseFakeKernel();
    fake.refuse_break = true;
    fake.refuse_commit = true;
    EXPECT_EQ(heap_alloc(100000), nullptr);
    const size_t mapped_bytes = fake.mapped_bytes;
    for (int i = 0; i < 100; ++i) {
      EXPECT_EQ(heap_alloc(100000), nullptr);
    }
    EXPECT_EQ(fake.mapped_bytes, mapped_bytes);
    EXPECT_EQ(fake.mapped_bytes, Stats().metadata_bytes);
    fake.refuse_commit = false;
    RunModel(1, 20);
    EXPECT_STREQ(heap_check(), nullptr);
  });
}

// What threads left, and bins hold, is no reason for being out of memory.
TEST_F(HeapFailureTest, CachedMemoryIsUsedWhenTheKernelHasNone) {
  RunInChild([] {
    UseFakeKernel();
    const auto use_all_classes = [] {
      for (size_t size = 16; size <= 32768; size += 16) {
        heap_free(heap_alloc(size));
      }
    };
    std::thread(use_all_classes).join();
    use_all_classes();
    // No run is left that is as long as half of the next block.
    while (Stats().largest_free_run_bytes >= 1 << 20) {
      ASSERT_NE(heap_alloc(Stats().largest_free_run_bytes), nullptr);
    }
    fake.fail_from = fake.calls + 1;
    fake.fail_count = INT_MAX;
    EXPECT_NE(heap_alloc(2 << 20), nullptr);
    EXPECT_EQ(heap_alloc(64 << 20), nullptr);
    EXPECT_EQ(errno, ENOMEM);
    EXPECT_STREQ(heap_check(), nullptr);
  });
}

TEST_F(HeapFailureTest, PagesThatCannotBeDiscardedAreUsedAgain) {
  const uint64_t seed = heap_testing::Seed();
  RunInChild([seed] {
    UseFakeKernel();
    fake.refuse_discard = true;
    for (uint64_t i = 0; i < 5; ++i) {
      RunModel(seed + i, 20);
      heap_trim(0);
      EXPECT_STREQ(heap_check(), nullptr);
    }
    EXPECT_GT(fake.refusals, 0);
  });
}

TEST_F(HeapFailureTest, TrimGivesEmptyReservationsBack) {
  RunInChild([] {
    UseFakeKernel();
    setenv("HEAP_SOURCE", "mmap", 1);
    void *kept = heap_alloc(100000);
    const size_t first_bytes = fake.mapped_bytes;
    for (int round = 0; round < 3; ++round) {
      std::vector<void *> blocks;
      while (fake.mapped_bytes < size_t{400} << 20) {
        blocks.push_back(heap_alloc(1 << 20));
        memset(blocks.back(), 1, 1 << 20);
      }
      for (void *ptr : blocks) {
        heap_free(ptr);
      }
      if (round == 1) {
        fake.fail_from = fake.calls + 1;  // The first of two.
        fake.fail_count = 1;
      }
      heap_trim(0);
      EXPECT_STREQ(heap_check(), nullptr);
      EXPECT_EQ(fake.mapped_bytes - Stats().metadata_bytes > first_bytes,
                round == 1);
      EXPECT_EQ(Stats().idle_bytes, 0u);
      heap_trim(0);
      EXPECT_LE(fake.mapped_bytes - Stats().metadata_bytes, first_bytes);
      void *zero = heap_calloc(1, 70 << 20);
      EXPECT_TRUE(IsZero(zero, 70 << 20));
      heap_free(zero);
    }
    heap_free(kept);
    heap_trim(0);
    EXPECT_EQ(fake.mapped_bytes, Stats().metadata_bytes);
    RunModel(1, 20);
  });
}

TEST_F(HeapFailureTest, FreePreservesErrnoWhenAPurgeIsRefused) {
  RunInChild([] {
    UseFakeKernel();
    std::vector<void *> blocks;
    for (int i = 0; i < 50000; ++i) {
      blocks.push_back(heap_alloc(300));
    }
    void *wall = heap_alloc(100000);  // Or the break would be lowered.
    fake.refuse_discard = true;
    for (void *ptr : blocks) {
      errno = EDOM;
      heap_free(ptr);
      ASSERT_EQ(errno, EDOM);
    }
    EXPECT_GT(fake.refusals, 0);
    heap_free(wall);
  });
}

TEST_F(HeapFailureTest, SourceMmapNeverMovesTheBreak) {
  const uint64_t seed = heap_testing::Seed();
  RunInChild([seed] {
    UseFakeKernel();
    setenv("HEAP_SOURCE", "mmap", 1);
    const void *old_break = sbrk(0);
    for (uint64_t i = 0; i < 5; ++i) {
      RunModel(seed + i, 20);
    }
    EXPECT_EQ(fake.break_moves, 0);
    EXPECT_EQ(sbrk(0), old_break);
  });
}

// Strangers at the break.

StrangersMemory TakeFromBreak(size_t size_bytes) {
  void *ptr = sbrk(static_cast<intptr_t>(size_bytes));
  EXPECT_NE(ptr, reinterpret_cast<void *>(-1));
  Fill(ptr, size_bytes, size_bytes);
  return {static_cast<unsigned char *>(ptr), size_bytes};
}

TEST_F(HeapFailureTest, BreakRaisedByOthersIsSteppedOver) {
  const uint64_t seed = heap_testing::Seed();
  RunInChild([seed] {
    UseFakeKernel();
    Random random(seed);
    std::vector<StrangersMemory> strangers;
    for (uint64_t i = 0; i < 12; ++i) {
      strangers.push_back(TakeFromBreak(1 + random.Below(200000)));
      RunModel(seed + i, 21);
    }
    EXPECT_GT(fake.break_moves, 5);
    for (const StrangersMemory &memory : strangers) {
      EXPECT_TRUE(IsFilled(memory.ptr, memory.size_bytes, memory.size_bytes,
                           memory.size_bytes));
    }
    EXPECT_STREQ(heap_check(), nullptr);
  });
}

TEST_F(HeapFailureTest, OthersMemoryInABreakIsNoBlock) {
  RunInChild([] {
    void *first = heap_alloc(100000);
    const StrangersMemory memory = TakeFromBreak(150001);
    void *second = heap_alloc(1 << 20);
    ASSERT_GT(static_cast<void *>(second), static_cast<void *>(memory.ptr));
    const heap_stats_t stats = Stats();
    const size_t range = static_cast<size_t>(static_cast<char *>(sbrk(0)) -
                                             static_cast<char *>(first));
    EXPECT_LE(stats.mapped_bytes, range - 150001) << "a hole is not ours";
    setenv("HEAP_ON_ERROR", "report", 1);
    heap_testing::CapturedStderr captured;
    heap_free(memory.ptr);
    heap_free(memory.ptr + 65536);
    const std::string text = captured.Take();
    EXPECT_NE(text.find("no block of this heap"), std::string::npos) << text;
    EXPECT_STREQ(heap_check(), nullptr);
    heap_free(second);
    heap_free(first);
    EXPECT_TRUE(IsFilled(memory.ptr, memory.size_bytes, memory.size_bytes,
                         memory.size_bytes));
  });
}

// Somebody moves the break just when the heap has looked where it is.
TEST_F(HeapFailureTest, BreakRaisedBetweenTwoCallsIsNotLost) {
  const uint64_t seed = heap_testing::Seed();
  RunInChild([seed] {
    UseFakeKernel();
    std::vector<StrangersMemory> strangers;
    Random random(seed);
    fake.before_break_rise = [&] {
      if (random.OneIn(2)) {
        strangers.push_back(TakeFromBreak(1 + random.Below(100000)));
      }
    };
    for (uint64_t i = 0; i < 12; ++i) {
      RunModel(seed + i, 21);
    }
    EXPECT_GT(strangers.size(), 3u);
    for (const StrangersMemory &memory : strangers) {
      EXPECT_TRUE(IsFilled(memory.ptr, memory.size_bytes, memory.size_bytes,
                           memory.size_bytes));
    }
  });
}

TEST_F(HeapFailureTest, BreakLoweredByOthersIsNeverMovedAgain) {
  RunInChild([] {
    UseFakeKernel();
    // The heap has 256 KiB and nothing live at their end.
    void *low = heap_alloc(50000);
    memset(low, 1, 50000);
    ASSERT_NE(sbrk(-65536), reinterpret_cast<void *>(-1));
    const void *old_break = sbrk(0);
    const int old_moves = fake.break_moves;
    std::vector<void *> blocks;
    for (int i = 0; i < 50; ++i) {
      blocks.push_back(heap_alloc(1 << 20));
      ASSERT_NE(blocks.back(), nullptr);
      Fill(blocks.back(), 1 << 20, 1);
    }
    EXPECT_STREQ(heap_check(), nullptr);
    for (void *ptr : blocks) {
      EXPECT_TRUE(IsFilled(ptr, 1 << 20, 1 << 20, 1));
      heap_free(ptr);
    }
    heap_free(low);
    heap_trim(0);
    EXPECT_STREQ(heap_check(), nullptr);
    EXPECT_EQ(fake.break_moves, old_moves);
    EXPECT_EQ(sbrk(0), old_break);
  });
}

TEST_F(HeapFailureTest, BreakIsNotLoweredUnderOthersMemory) {
  RunInChild([] {
    void *ptr = heap_alloc(3 << 20);
    memset(ptr, 1, 3 << 20);
    const StrangersMemory memory = TakeFromBreak(1000);
    const void *old_break = sbrk(0);
    heap_free(ptr);
    heap_trim(0);
    EXPECT_EQ(sbrk(0), old_break);
    EXPECT_TRUE(IsFilled(memory.ptr, memory.size_bytes, memory.size_bytes,
                         memory.size_bytes));
    RunModel(1, 20);
  });
}

}  // namespace
