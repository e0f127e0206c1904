// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// What a program that defines heap_initial_hooks is told, in which order.

#include <cerrno>
#include <climits>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <map>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "heap/fake_kernel.h"
#include "heap/heap.h"
#include "heap/heap_testing.h"
#include "heap/kernel.h"

namespace {

using heap_testing::fake;
using heap_testing::Fill;
using heap_testing::IsFilled;
using heap_testing::Random;
using heap_testing::RunInChild;
using heap_testing::UseFakeKernel;

struct Event {
  std::string kind;
  void *ptr;
  size_t size_bytes;
  size_t usable_bytes;
};

bool operator==(const Event &a, const Event &b) {
  return a.kind == b.kind && a.ptr == b.ptr && a.size_bytes == b.size_bytes &&
         a.usable_bytes == b.usable_bytes;
}

std::ostream &operator<<(std::ostream &stream, const Event &event) {
  return stream << event.kind << " " << event.ptr << " " << event.size_bytes
                << " " << event.usable_bytes;
}

// This program's own malloc is another one, so the hooks may use it.
std::vector<Event> events;
size_t mapped_bytes;
void (*inside_alloc)(void *ptr);
void (*inside_free)(void *ptr);

void OnAlloc(void *ptr, size_t size_bytes, size_t usable_bytes) {
  events.push_back({"alloc", ptr, size_bytes, usable_bytes});
  if (inside_alloc != nullptr) {
    inside_alloc(ptr);
  }
}

void OnFree(void *ptr) {
  events.push_back({"free", ptr, 0, 0});
  if (inside_free != nullptr) {
    inside_free(ptr);
  }
}

void OnResize(void *ptr, size_t size_bytes, size_t usable_bytes) {
  events.push_back({"resize", ptr, size_bytes, usable_bytes});
}

void OnMap(void *ptr, size_t size_bytes) {
  mapped_bytes += size_bytes;
  events.push_back({"map", ptr, size_bytes, 0});
}

void OnUnmap(void *ptr, size_t size_bytes) {
  mapped_bytes -= size_bytes;
  events.push_back({"unmap", ptr, size_bytes, 0});
}

using Events = std::vector<Event>;

// Returns the events since the last call, but for those of mappings.
Events TakeBlockEvents() {
  Events taken;
  for (const Event &event : events) {
    if (event.kind != "map" && event.kind != "unmap") {
      taken.push_back(event);
    }
  }
  events.clear();
  return taken;
}

Events TakeEvents() {
  Events taken;
  taken.swap(events);
  return taken;
}

// Small, small in a span of two pages, medium, mapped.
constexpr size_t kKinds[] = {100, 30000, 200 << 10, 5 << 20};

void OnMisuse(heap_misuse_t misuse, const void *ptr) {
  events.push_back(
      {"misuse", const_cast<void *>(ptr), static_cast<size_t>(misuse), 0});
}

class HeapHooksTest : public testing::Test {
 protected:
  void SetUp() override {
    inside_alloc = nullptr;
    inside_free = nullptr;
    events.clear();
  }
  void TearDown() override {
    EXPECT_STREQ(heap_check(), nullptr);
  }
};

TEST_F(HeapHooksTest, EachAllocationAndFreeIsTold) {
  for (size_t size : kKinds) {
    void *ptr = heap_alloc(size);
    EXPECT_EQ(TakeBlockEvents(),
              (Events{{"alloc", ptr, size, heap_usable_size(ptr)}}));
    heap_free(ptr);
    EXPECT_EQ(TakeBlockEvents(), (Events{{"free", ptr, 0, 0}}));

    ptr = heap_calloc(2, size);
    EXPECT_EQ(TakeBlockEvents(),
              (Events{{"alloc", ptr, 2 * size, heap_usable_size(ptr)}}));
    heap_free(ptr);
    events.clear();

    for (size_t align : {16, 4096, 1 << 17}) {
      ptr = heap_aligned_alloc(align, size);
      EXPECT_EQ(TakeBlockEvents(),
                (Events{{"alloc", ptr, size, heap_usable_size(ptr)}}));
      heap_free(ptr);
      EXPECT_EQ(TakeBlockEvents(), (Events{{"free", ptr, 0, 0}}));
    }

    ptr = heap_realloc(nullptr, size);
    EXPECT_EQ(TakeBlockEvents(),
              (Events{{"alloc", ptr, size, heap_usable_size(ptr)}}));
    heap_free(ptr);
    events.clear();
  }
}

TEST_F(HeapHooksTest, CallsThatChangeNothingAreNotTold) {
  void *ptr = heap_alloc(100);
  events.clear();
  // Not constants, which the compiler would warn of.
  const volatile size_t one = 1;
  const size_t impossible = SIZE_MAX - one;
  heap_free(nullptr);
  EXPECT_EQ(heap_alloc(impossible), nullptr);
  EXPECT_EQ(heap_calloc(impossible, 2), nullptr);
  EXPECT_EQ(heap_aligned_alloc(2 + one, 100), nullptr);
  EXPECT_EQ(heap_realloc(ptr, impossible), nullptr);
  EXPECT_GT(heap_usable_size(ptr), 0u);
  EXPECT_EQ(TakeEvents(), Events{});
  heap_free(ptr);
}

TEST_F(HeapHooksTest, ReportedMisuseChangesNoBlock) {
  setenv("HEAP_ON_ERROR", "report", 1);
  heap_testing::CapturedStderr captured;
  for (size_t size : kKinds) {
    char *ptr = static_cast<char *>(heap_alloc(size));
    events.clear();
    heap_free(ptr + 16);
    EXPECT_EQ(heap_realloc(ptr + 16, 10), nullptr);
    const Event misuse = {"misuse", ptr + 16, HEAP_MISUSE_INTERIOR, 0};
    EXPECT_EQ(TakeEvents(), (Events{misuse, misuse}));
    heap_free(ptr);
    events.clear();
    heap_free(ptr);
    const Events taken = TakeEvents();
    ASSERT_EQ(taken.size(), 1u);
    EXPECT_EQ(taken[0].kind, "misuse");
  }
  unsetenv("HEAP_ON_ERROR");
}

TEST_F(HeapHooksTest, ReallocInPlaceIsAResize) {
  for (size_t size : kKinds) {
    void *ptr = heap_alloc(size);
    events.clear();
    const size_t smaller = size - size / 5;
    ASSERT_EQ(heap_realloc(ptr, smaller), ptr);
    EXPECT_EQ(TakeBlockEvents(),
              (Events{{"resize", ptr, smaller, heap_usable_size(ptr)}}));
    heap_free(ptr);
  }
}

TEST_F(HeapHooksTest, ReallocThatCopiesIsAnAllocationAndAFree) {
  for (size_t old_size : kKinds) {
    for (size_t new_size : kKinds) {
      void *ptr = heap_alloc(old_size);
      events.clear();
      void *moved = heap_realloc(ptr, new_size);
      if (moved != ptr) {
        EXPECT_EQ(TakeBlockEvents(),
                  (Events{{"alloc", moved, new_size, heap_usable_size(moved)},
                          {"free", ptr, 0, 0}}))
            << old_size << " to " << new_size;
      }
      heap_free(moved);
    }
  }
}

TEST_F(HeapHooksTest, MappingMovedByTheKernelIsAFreeAndAnAllocation) {
  RunInChild([] {
    // No mapping grows in place here.
    heap_kernel_t kernel = heap_kernel_default;
    kernel.resize = [](void *, size_t, size_t) {
      return false;
    };
    heap_kernel = &kernel;
    void *ptr = heap_alloc(40 << 20);
    events.clear();
    void *moved = heap_realloc(ptr, 72 << 20);
    ASSERT_NE(moved, ptr);
    EXPECT_EQ(TakeEvents(), (Events{{"free", ptr, 0, 0},
                                    {"unmap", ptr, 40 << 20, 0},
                                    {"map", moved, 72 << 20, 0},
                                    {"alloc", moved, 72 << 20, 72 << 20}}));
    heap_free(moved);
  });
}

TEST_F(HeapHooksTest, MoveThatTheKernelRefusesIsTakenBack) {
  RunInChild([] {
    heap_kernel_t kernel = heap_kernel_default;
    kernel.resize = [](void *, size_t, size_t) {
      return false;
    };
    kernel.move = [](void *, size_t, void *, size_t) {
      return false;
    };
    heap_kernel = &kernel;
    void *ptr = heap_alloc(40 << 20);
    events.clear();
    void *moved = heap_realloc(ptr, 72 << 20);
    EXPECT_EQ(TakeBlockEvents(), (Events{{"free", ptr, 0, 0},
                                         {"alloc", ptr, 40 << 20, 40 << 20},
                                         {"alloc", moved, 72 << 20, 72 << 20},
                                         {"free", ptr, 0, 0}}));
    heap_free(moved);
  });
}

TEST_F(HeapHooksTest, MappingsAreToldBeforeTheirBlocks) {
  RunInChild([] {
    void *ptr = heap_alloc(48 << 20);
    EXPECT_EQ(TakeEvents(), (Events{{"map", ptr, 48 << 20, 0},
                                    {"alloc", ptr, 48 << 20, 48 << 20}}));
    ASSERT_EQ(heap_realloc(ptr, 36 << 20), ptr);
    EXPECT_EQ(
        TakeEvents(),
        (Events{{"unmap", static_cast<char *>(ptr) + (36 << 20), 12 << 20, 0},
                {"resize", ptr, 36 << 20, 36 << 20}}));
    heap_free(ptr);
    EXPECT_EQ(TakeEvents(),
              (Events{{"free", ptr, 0, 0}, {"unmap", ptr, 36 << 20, 0}}));
    // The break: a step of it holds the block that it was made for.
    Events taken;
    do {
      ptr = heap_alloc(1 << 20);
      taken = TakeEvents();
    } while (taken.size() == 1);
    ASSERT_EQ(taken.size(), 2u);
    EXPECT_EQ(taken[0].kind, "map");
    EXPECT_LT(ptr, static_cast<char *>(taken[0].ptr) + taken[0].size_bytes);
    EXPECT_GT(static_cast<char *>(ptr) + (1 << 20), taken[0].ptr);
    EXPECT_EQ(taken[1].kind, "alloc");
  });
}

TEST_F(HeapHooksTest, BreakThatIsNotLoweredIsMappedAgain) {
  RunInChild([] {
    static heap_kernel_t kernel = heap_kernel_default;
    kernel.move_break = [](intptr_t delta_bytes) -> void * {
      return delta_bytes < 0 ? nullptr
                             : heap_kernel_default.move_break(delta_bytes);
    };
    heap_kernel = &kernel;
    std::vector<void *> blocks;
    for (int i = 0; i < 100; ++i) {
      blocks.push_back(heap_alloc(100 << 10));
    }
    for (void *ptr : blocks) {
      heap_free(ptr);
    }
    heap_trim(0);
    heap_stats_t stats;
    heap_stats_get(&stats);
    EXPECT_EQ(mapped_bytes, stats.mapped_bytes);
  });
}

// Whoever keeps books by the hooks has the right balance at any time.
TEST_F(HeapHooksTest, BooksKeptByHooksAgreeWithTheHeap) {
  const uint64_t seed = heap_testing::Seed();
  RunInChild([seed] {
    Random random(seed);
    std::map<void *, size_t> live;
    std::vector<void *> blocks(100);
    for (int step = 0; step < 20000; ++step) {
      void *&ptr = blocks[random.Below(blocks.size())];
      const size_t size = random.SkewedSize(random.OneIn(100) ? 24 : 16);
      if (random.OneIn(2)) {
        ptr = heap_realloc(ptr, size);
      } else {
        heap_free(ptr);
        ptr = heap_aligned_alloc(size_t{1} << random.Below(18), size);
      }
      for (const Event &event : TakeBlockEvents()) {
        if (event.kind == "free") {
          ASSERT_EQ(live.erase(event.ptr), 1u);
        } else if (event.kind == "alloc") {
          ASSERT_TRUE(live.emplace(event.ptr, event.usable_bytes).second);
          ASSERT_LE(event.size_bytes, event.usable_bytes);
        } else {
          ASSERT_EQ(live.count(event.ptr), 1u);
          live[event.ptr] = event.usable_bytes;
        }
      }
      if (step % 1000 == 0) {
        heap_stats_t stats;
        heap_stats_get(&stats);
        ASSERT_EQ(stats.mapped_bytes, mapped_bytes);
        ASSERT_EQ(stats.num_live, live.size());
      }
    }
    for (const auto &[ptr, usable_bytes] : live) {
      EXPECT_EQ(heap_usable_size(ptr), usable_bytes);
    }
  });
}

// What was told of mappings adds up to what the heap has, whatever the kernel
// does, and whosever memory it is.
TEST_F(HeapHooksTest, EachMappingIsToldOnce) {
  static unsigned char own_memory[1 << 20];
  RunInChild([] {
    UseFakeKernel();
    const auto expect_sum = [] {
      heap_stats_t stats;
      heap_stats_get(&stats);
      EXPECT_EQ(stats.mapped_bytes, mapped_bytes);
    };
    EXPECT_GT(heap_add_memory(own_memory, sizeof(own_memory), false), 0u);
    expect_sum();
    const size_t before = mapped_bytes;
    fake.refuse_break = true;
    for (bool refuse_unmap : {true, false}) {
      fake.refuse_unmap = refuse_unmap;
      std::vector<void *> blocks;
      for (int i = 0; i < 200; ++i) {
        blocks.push_back(heap_alloc(1 << 20));
        memset(blocks.back(), 1, 1 << 20);
      }
      expect_sum();
      for (void *ptr : blocks) {
        heap_free(ptr);
      }
      heap_trim(0);
      expect_sum();
    }
    EXPECT_LE(mapped_bytes, before);
  });
}

TEST_F(HeapHooksTest, BlockThatShrinksInNeedIsTold) {
  for (size_t size : {size_t{30000}, size_t{200000}, size_t{40} << 20}) {
    RunInChild([=] {
      UseFakeKernel();
      void *ptr = heap_alloc(size);
      fake.fail_from = fake.calls + 1;
      fake.fail_count = INT_MAX;
      for (size_t other = size_t{32} << 20; other >= 16; other /= 2) {
        while (heap_alloc(other) != nullptr) {
        }
      }
      TakeEvents();
      ASSERT_EQ(heap_realloc(ptr, 100), ptr);
      EXPECT_EQ(TakeBlockEvents(),
                (Events{{"resize", ptr, 100, heap_usable_size(ptr)}}));
    });
  }
}

// Hooks that allocate.

std::vector<void *> inner_blocks;
int depth;

void AllocOnce(void *) {
  if (depth == 0) {
    ++depth;
    inner_blocks.push_back(heap_alloc(100));
    heap_free(heap_alloc(200 << 10));
    --depth;
  }
}

TEST_F(HeapHooksTest, HooksMayAllocateAndAreEnteredAgain) {
  inside_alloc = AllocOnce;
  inside_free = AllocOnce;
  for (size_t size : kKinds) {
    void *ptr = heap_alloc(size);
    ASSERT_EQ(inner_blocks.size(), 1u);
    void *inner = inner_blocks[0];
    EXPECT_NE(inner, ptr);
    const Events taken = TakeBlockEvents();
    ASSERT_EQ(taken.size(), 4u);
    EXPECT_EQ(taken[0], (Event{"alloc", ptr, size, heap_usable_size(ptr)}));
    EXPECT_EQ(taken[1], (Event{"alloc", inner, 100, heap_usable_size(inner)}));
    EXPECT_EQ(taken[2].kind, "alloc");
    EXPECT_EQ(taken[3], (Event{"free", taken[2].ptr, 0, 0}));
    Fill(ptr, size, 1);
    Fill(inner, 100, 2);
    EXPECT_TRUE(IsFilled(ptr, size, size, 1));

    // While a block is about to become free nobody gets it.
    inner_blocks.clear();
    heap_free(ptr);
    ASSERT_EQ(inner_blocks.size(), 1u);
    EXPECT_NE(inner_blocks[0], ptr);
    inner_blocks.push_back(inner);
    inside_free = nullptr;
    for (void *block : inner_blocks) {
      heap_free(block);
    }
    inner_blocks.clear();
    inside_free = AllocOnce;
    events.clear();
  }
}

TEST_F(HeapHooksTest, EachMisuseIsToldByItsKind) {
  RunInChild([] {
    setenv("HEAP_ON_ERROR", "report", 1);
    heap_testing::CapturedStderr captured;
    void *ptr = heap_alloc(100);
    void *other = heap_alloc(200000);
    heap_free(ptr);
    TakeEvents();
    heap_free(ptr);
    EXPECT_EQ(TakeEvents(), (Events{{"misuse", ptr, HEAP_MISUSE_FREED, 0}}));
    void *inside = static_cast<char *>(other) + 16;
    EXPECT_EQ(heap_realloc(inside, 10), nullptr);
    EXPECT_EQ(TakeEvents(),
              (Events{{"misuse", inside, HEAP_MISUSE_INTERIOR, 0}}));
    heap_free_sized(other, 0, 100);
    EXPECT_EQ(TakeBlockEvents(), (Events{{"misuse", other, HEAP_MISUSE_SIZE, 0},
                                         {"free", other, 0, 0}}));
    heap_free(&captured);
    EXPECT_EQ(TakeEvents(),
              (Events{{"misuse", &captured, HEAP_MISUSE_FOREIGN, 0}}));
  });
}

}  // namespace

extern "C" const heap_hooks_t heap_initial_hooks = {OnAlloc, OnFree,  OnResize,
                                                    OnMap,   OnUnmap, OnMisuse};
