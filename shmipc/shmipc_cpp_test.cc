// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// shmipc.hpp: the offset pointer, containers in a region that several
// processes change, objects and roots, guards.

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <deque>
#include <numeric>
#include <stdexcept>
#include <string>
#include <system_error>
#include <thread>
#include <vector>

#include "gtest/gtest.h"
#include "shmipc/shared_heap.h"
#include "shmipc/shmipc.hpp"
#include "shmipc/shmipc_testing.h"

namespace {

using shmipc_testing::Process;
using shmipc_testing::Shared;
using shmipc_testing::TestRegion;
using shmipc_testing::Watchdog;

constexpr size_t kHeapBytes = 8 << 20;

void WithHeap(shmipc_region_options_t *options) {
  options->heap_bytes = kHeapBytes;
}

uint64_t NumLive(shmipc_region_t *region) {
  shmipc_heap_stats_t stats;
  EXPECT_EQ(shmipc_heap_stats_get(region, &stats), 0);
  return stats.num_live;
}

// The errno of what `work` throws; 0 if it does not.
template <typename Work>
int ErrnoOf(const Work &work) {
  try {
    work();
  } catch (const std::system_error &error) {
    return error.code().value();
  }
  return 0;
}

struct Base {
  int base = 1;
};
struct Derived : Base {
  int derived = 2;
};

TEST(OffsetPtrTest, ZeroBytesAreNull) {
  alignas(shmipc::OffsetPtr<int>) unsigned char
      bytes[sizeof(shmipc::OffsetPtr<int>)] = {};
  auto *ptr = reinterpret_cast<shmipc::OffsetPtr<int> *>(bytes);
  EXPECT_EQ(*ptr, nullptr);
  EXPECT_EQ(ptr->get(), nullptr);
  EXPECT_FALSE(*ptr);
  shmipc::OffsetPtr<int> copy = *ptr;
  EXPECT_EQ(copy.get(), nullptr);
}

TEST(OffsetPtrTest, LeadsWhereItsCopyDoes) {
  int values[4] = {10, 11, 12, 13};
  shmipc::OffsetPtr<int> ptr = values;
  std::array<shmipc::OffsetPtr<int>, 3> copies = {ptr, ptr + 1, 2 + ptr};
  EXPECT_EQ(*copies[0], 10);
  EXPECT_EQ(*copies[1], 11);
  EXPECT_EQ(copies[2][1], 13);
  EXPECT_EQ(copies[2] - copies[0], 2);
  EXPECT_LT(copies[0], copies[1]);
  EXPECT_GE(copies[2], copies[1]);
  EXPECT_EQ(ptr, copies[0]);
  EXPECT_NE(ptr, copies[1]);
  EXPECT_EQ((ptr++).get(), values);
  EXPECT_EQ((++ptr).get(), values + 2);
  EXPECT_EQ((ptr--).get(), values + 2);
  EXPECT_EQ((--ptr).get(), values);
  ptr += 3;
  ptr -= 1;
  EXPECT_EQ(*(ptr - 1), 11);
  copies[0] = nullptr;
  EXPECT_FALSE(copies[0]);
  copies[0] = values + 3;
  EXPECT_EQ(*copies[0], 13);
  EXPECT_EQ(std::accumulate(copies[1], copies[1] + 3, 0), 36);
}

TEST(OffsetPtrTest, MayLeadToItself) {
  struct Sentinel {
    shmipc::OffsetPtr<Sentinel> next;
  };
  Sentinel end;
  end.next = &end;
  EXPECT_TRUE(end.next);
  EXPECT_EQ(end.next.get(), &end);
  EXPECT_EQ(end.next->next->next.get(), &end);
}

TEST(OffsetPtrTest, ConvertsAsPlainPointersDo) {
  Derived object;
  shmipc::OffsetPtr<Derived> derived = &object;
  shmipc::OffsetPtr<Base> base = derived;
  shmipc::OffsetPtr<const Derived> constant = derived;
  shmipc::OffsetPtr<void> untyped = derived;
  EXPECT_EQ(base->base, 1);
  EXPECT_EQ(constant->derived, 2);
  EXPECT_EQ(untyped.get(), &object);
  EXPECT_EQ(static_cast<shmipc::OffsetPtr<Derived>>(untyped), derived);
  EXPECT_EQ(static_cast<shmipc::OffsetPtr<Derived>>(base), derived);
  static_assert(!std::is_convertible_v<shmipc::OffsetPtr<Base>,
                                       shmipc::OffsetPtr<Derived>>);
  static_assert(!std::is_constructible_v<shmipc::OffsetPtr<int>,
                                         shmipc::OffsetPtr<const int>>);
  static_assert(!std::is_constructible_v<shmipc::OffsetPtr<int>,
                                         shmipc::OffsetPtr<double>>);
}

TEST(OffsetPtrTest, MovesWithTheMemoryThatItIsIn) {
  struct Pair {
    shmipc::OffsetPtr<int> ptr;
    int value;
  };
  alignas(Pair) unsigned char moved[sizeof(Pair)];
  Pair pair;
  pair.value = 7;
  pair.ptr = &pair.value;
  std::memcpy(moved, static_cast<void *>(&pair), sizeof(moved));
  pair.value = 8;
  auto *there = reinterpret_cast<Pair *>(moved);
  EXPECT_EQ(there->ptr.get(), &there->value);
  EXPECT_EQ(*there->ptr, 7);
}

class RegionCppTest : public testing::TestWithParam<shmipc_backend_t> {
 protected:
  RegionCppTest() : region_(GetParam(), 4096, WithHeap) {
  }
  Watchdog watchdog_{60};
  TestRegion region_;
};

INSTANTIATE_TEST_SUITE_P(
    Kinds, RegionCppTest, testing::ValuesIn(shmipc_testing::Backends()),
    [](const testing::TestParamInfo<shmipc_backend_t> &kind) {
      return std::string(shmipc_testing::NameOf(kind.param));
    });

using Text = std::vector<char, shmipc::Allocator<char>>;

struct Library {
  explicit Library(const shmipc::Allocator<char> &allocator)
      : numbers(allocator), queue(allocator), titles(allocator) {
  }
  shmipc_mutex_t mutex = {};
  std::vector<int, shmipc::Allocator<int>> numbers;
  std::deque<int, shmipc::Allocator<int>> queue;
  std::vector<Text, shmipc::Allocator<Text>> titles;
};

// Containers made by one process, changed by another, which maps the region
// elsewhere, and read by the first.
TEST_P(RegionCppTest, ContainersMeanTheSameInEveryProcess) {
  shmipc::Region region(region_.Attach());
  auto *library =
      region.FindOrCreate<Library>("library", region.allocator<char>());
  for (int i = 0; i < 1000; i++) {
    library->numbers.push_back(i);
    library->queue.push_back(i);
  }
  library->titles.emplace_back(3, 'a', region.allocator<char>());
  Process child([&] {
    // The parent's mapping is still there, so this one is at another address.
    shmipc::Region own(region_.AttachInChild());
    auto *shared = own.Find<Library>("library");
    if (shared == nullptr || shared == library) {
      return 1;
    }
    shmipc::MutexGuard guard(own.get(), &shared->mutex);
    for (int i = 0; i < 1000; i++) {
      if (shared->numbers[i] != i || shared->queue.front() != i) {
        return 2;
      }
      shared->queue.pop_front();
      shared->queue.push_back(-i);
      shared->numbers.push_back(1000 + i);
    }
    std::reverse(shared->numbers.begin(), shared->numbers.end());
    shared->titles[0].push_back('b');
    shared->titles.emplace_back(300, 'x', own.allocator<char>());
    return shared->titles[1].size() == 300 ? 0 : 3;
  });
  ASSERT_EQ(child.Wait(), 0);
  EXPECT_EQ(library->numbers.size(), 2000u);
  EXPECT_EQ(library->numbers[0], 1999);
  EXPECT_EQ(library->numbers[1999], 0);
  EXPECT_EQ(library->queue[999], -999);
  EXPECT_EQ(std::string(library->titles[0].begin(), library->titles[0].end()),
            "aaab");
  EXPECT_EQ(library->titles[1], Text(300, 'x', region.allocator<char>()));
  // What the dead child allocated for the containers is theirs.
  EXPECT_EQ(shmipc_heap_reclaim(region.get(), SHMIPC_RECLAIM_IN_FLIGHT), 0);
  EXPECT_EQ(library->numbers[5], 1994);

  shmipc_ref_t ref;
  ASSERT_EQ(shmipc_root_remove(region.get(), "library", &ref), 0);
  region.Delete(library);
  EXPECT_EQ(NumLive(region.get()), 0u);
  EXPECT_EQ(shmipc_testing::Problems(region.get()), "");
}

TEST_P(RegionCppTest, RacingCreatorsEndWithOneObject) {
  constexpr int kProcesses = 8;
  struct Start {
    uint32_t go;
    uint64_t offsets[kProcesses];
  };
  Shared<Start> start;
  std::vector<Process> children;
  for (int i = 0; i < kProcesses; i++) {
    children.emplace_back([&, i] {
      shmipc::Region own(region_.AttachInChild());
      while (__atomic_load_n(&start->go, __ATOMIC_ACQUIRE) == 0) {
      }
      auto *library =
          own.FindOrCreate<Library>("library", own.allocator<char>());
      start->offsets[i] = shmipc_ref_of(own.get(), library).offset;
      return 0;
    });
  }
  __atomic_store_n(&start->go, 1u, __ATOMIC_RELEASE);
  for (Process &child : children) {
    EXPECT_EQ(child.Wait(), 0);
  }
  for (uint64_t offset : start->offsets) {
    EXPECT_EQ(offset, start->offsets[0]);
  }
  // What the losers made is destroyed: one root remains, with its deque's map
  // and node.
  EXPECT_EQ(shmipc_heap_reclaim(region_.region(), SHMIPC_RECLAIM_IN_FLIGHT), 0);
  EXPECT_EQ(NumLive(region_.region()), 3u);
}

struct Throws {
  explicit Throws(const shmipc::Allocator<int> &allocator)
      : numbers(100, 7, allocator) {
    throw std::runtime_error("no");
  }
  std::vector<int, shmipc::Allocator<int>> numbers;
};

TEST_P(RegionCppTest, ConstructorThatThrowsLeavesNothing) {
  shmipc::Region region(region_.Attach());
  EXPECT_THROW(region.New<Throws>(region.allocator<int>()), std::runtime_error);
  EXPECT_THROW(region.FindOrCreate<Throws>("throws", region.allocator<int>()),
               std::runtime_error);
  EXPECT_EQ(NumLive(region.get()), 0u);
  EXPECT_EQ(region.Find<Throws>("throws"), nullptr);
}

TEST_P(RegionCppTest, ObjectsAreAlignedAndDeletedOnce) {
  struct alignas(256) Wide {
    char bytes[256];
  };
  shmipc::Region region(region_.Attach());
  auto *wide = region.New<Wide>();
  EXPECT_EQ(reinterpret_cast<uintptr_t>(wide) % 256, 0u);
  std::vector<Wide, shmipc::Allocator<Wide>> wides(3, region.allocator<Wide>());
  EXPECT_EQ(reinterpret_cast<uintptr_t>(wides.data()) % 256, 0u);
  region.Delete(wide);
  EXPECT_EQ(ErrnoOf([&] { region.Delete(wide); }), EINVAL);
  region.Delete(static_cast<Wide *>(nullptr));
  int local = 0;
  EXPECT_EQ(ErrnoOf([&] { region.Delete(&local); }), EINVAL);
}

TEST_P(RegionCppTest, WantOfMemoryIsBadAlloc) {
  shmipc::Region region(region_.Attach());
  struct Huge {
    char bytes[2 * kHeapBytes];
  };
  EXPECT_THROW((void)region.New<Huge>(), std::bad_alloc);
  std::vector<int, shmipc::Allocator<int>> numbers(region.allocator<int>());
  numbers.push_back(1);
  EXPECT_THROW(numbers.reserve(kHeapBytes), std::bad_alloc);
  EXPECT_THROW((void)region.allocator<int>().allocate(SIZE_MAX / 2),
               std::bad_array_new_length);
  EXPECT_EQ(numbers[0], 1);
}

TEST_P(RegionCppTest, FindsOnlyWhatIsLongEnough) {
  shmipc::Region region(region_.Attach());
  region.FindOrCreate<char>("letter", 'a');
  EXPECT_EQ(*region.Find<char>("letter"), 'a');
  EXPECT_THROW((void)(region.Find<std::array<char, 1000>>("letter")),
               std::length_error);
  EXPECT_EQ(ErrnoOf([&] { (void)region.Find<char>(""); }), EINVAL);
  EXPECT_NE((region.data<std::array<char, 4096>>()), nullptr);
  EXPECT_THROW((void)(region.data<std::array<char, 16 * kHeapBytes>>()),
               std::length_error);
}

TEST_P(RegionCppTest, AllocatorKnowsItsRegion) {
  TestRegion other_region(GetParam(), 4096, WithHeap);
  shmipc::Region region(region_.Attach());
  shmipc::Region other(other_region.Attach());
  EXPECT_EQ(region.allocator<int>(), region.allocator<char>());
  EXPECT_NE(region.allocator<int>(), other.allocator<int>());
  std::vector<int, shmipc::Allocator<int>> here(10, 1, region.allocator<int>());
  std::vector<int, shmipc::Allocator<int>> there(10, 2, other.allocator<int>());
  here.swap(there);
  here.resize(1000);
  EXPECT_EQ(NumLive(other.get()), 1u);
  here = there;
  EXPECT_EQ(NumLive(other.get()), 0u);
  EXPECT_EQ(NumLive(region.get()), 2u);
  // Not attached: no memory, and nothing freed.
  Process child([&] {
    try {
      here.reserve(100000);
    } catch (const std::bad_alloc &) {
      return 0;
    }
    return 1;
  });
  EXPECT_EQ(child.Wait(), 0);
}

TEST_P(RegionCppTest, GuardsTakeAndLeave) {
  struct Locks {
    shmipc_mutex_t mutex;
    shmipc_rwlock_t rwlock;
  };
  shmipc::Region region(region_.Attach());
  Locks *locks = region.data<Locks>();
  {
    shmipc::MutexGuard guard(region.get(), &locks->mutex);
    EXPECT_TRUE(guard.owns_lock());
    EXPECT_FALSE(guard.owner_died());
    EXPECT_EQ(
        ErrnoOf([&] { shmipc::MutexGuard again(region.get(), &locks->mutex); }),
        EDEADLK);
    EXPECT_EQ(ErrnoOf([&] { guard.MakeConsistent(); }), EINVAL);
    std::thread([&] {
      shmipc::MutexGuard tried(region.get(), &locks->mutex,
                               std::chrono::milliseconds(1));
      EXPECT_FALSE(tried);
    }).join();
    guard.Unlock();
    EXPECT_FALSE(guard);
    std::thread([&] {
      shmipc::MutexGuard tried(region.get(), &locks->mutex,
                               std::chrono::nanoseconds(0));
      EXPECT_TRUE(tried);
    }).join();
  }
  {
    shmipc::ReadGuard read(region.get(), &locks->rwlock);
    std::thread([&] {
      EXPECT_TRUE(shmipc::ReadGuard(region.get(), &locks->rwlock));
      EXPECT_FALSE(shmipc::WriteGuard(region.get(), &locks->rwlock,
                                      std::chrono::nanoseconds(0)));
    }).join();
  }
  EXPECT_TRUE(shmipc::WriteGuard(region.get(), &locks->rwlock,
                                 std::chrono::nanoseconds(0)));
}

TEST_P(RegionCppTest, GuardTellsOfADeadOwner) {
  shmipc::Region region(region_.Attach());
  auto *mutex = region.data<shmipc_mutex_t>();
  Shared<uint32_t> is_held;
  Process owner([&] {
    shmipc::Region own(region_.AttachInChild());
    shmipc::MutexGuard guard(own.get(), own.data<shmipc_mutex_t>());
    __atomic_store_n(&*is_held, 1u, __ATOMIC_RELEASE);
    for (;;) {
    }
    return 0;
  });
  while (__atomic_load_n(&*is_held, __ATOMIC_ACQUIRE) == 0) {
  }
  owner.Kill();
  {
    shmipc::MutexGuard guard(region.get(), mutex);
    EXPECT_TRUE(guard.owner_died());
    guard.MakeConsistent();
    EXPECT_FALSE(guard.owner_died());
  }
  shmipc::MutexGuard guard(region.get(), mutex);
  EXPECT_FALSE(guard.owner_died());
}

TEST(RegionContainingTest, FollowsTheAttachments) {
  TestRegion region(SHMIPC_POSIX, 4096);
  unsigned char *data = region.data<unsigned char>();
  int local = 0;
  EXPECT_EQ(shmipc_region_containing(data), region.region());
  EXPECT_EQ(shmipc_region_containing(data + 4095), region.region());
  EXPECT_EQ(shmipc_region_containing(&local), nullptr);
  EXPECT_EQ(shmipc_region_containing(nullptr), nullptr);
  shmipc_region_t *second = region.Attach();
  auto *second_data = static_cast<unsigned char *>(shmipc_region_data(second));
  EXPECT_EQ(shmipc_region_containing(second_data), second);
  EXPECT_EQ(shmipc_region_containing(data), region.region());
  EXPECT_EQ(shmipc_region_containing(second_data), second);
  shmipc_region_close(second);
  EXPECT_EQ(shmipc_region_containing(second_data), nullptr);
  EXPECT_EQ(shmipc_region_containing(data), region.region());
  Process child(
      [&] { return shmipc_region_containing(data) == nullptr ? 0 : 1; });
  EXPECT_EQ(child.Wait(), 0);
  EXPECT_EQ(shmipc_region_containing(data), region.region());
}

}  // namespace
