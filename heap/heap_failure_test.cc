// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// A kernel that refuses: each operation of the heap is run again and again,
// each time in a new process, with the first, second, third... call to the
// kernel failing, until none is left to fail.

#include <sys/mman.h>

#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "heap/fake_kernel.h"
#include "heap/heap.h"
#include "heap/heap_model.h"
#include "heap/heap_testing.h"
#include "heap/page_table.h"

namespace {

using heap_testing::fake;
using heap_testing::Fill;
using heap_testing::IsFilled;
using heap_testing::IsZero;
using heap_testing::RunHeapModel;
using heap_testing::RunInChild;
using heap_testing::StrangersMemory;
using heap_testing::UseFakeKernel;

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
      RunHeapModel(static_cast<uint64_t>(fail_from), 17, 60);
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

}  // namespace
