// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

#include "leakcheck/stack_table.h"

#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <map>
#include <memory>
#include <random>
#include <thread>
#include <utility>
#include <vector>

namespace {

using Key = std::pair<uint32_t, uintptr_t>;

struct Definitions {
  std::map<uint32_t, Key> by_id;
};

void Define(void *context, uint32_t id, uint32_t parent_id, uintptr_t address) {
  auto *definitions = static_cast<Definitions *>(context);
  EXPECT_TRUE(definitions->by_id.emplace(id, Key(parent_id, address)).second);
}

void DefineNothing(void *, uint32_t, uint32_t, uintptr_t) {
}

class StackTableTest : public ::testing::Test {
 protected:
  void SetUp() override {
    table_ = stack_table_create(100000);
    ASSERT_NE(table_, nullptr);
  }

  void TearDown() override {
    EXPECT_EQ(stack_table_check(table_), nullptr);
    stack_table_destroy(table_);
  }

  uint32_t Intern(uint32_t parent_id, uintptr_t address) {
    return stack_table_intern(table_, parent_id, address, Define,
                              &definitions_);
  }

  stack_table_t *table_ = nullptr;
  Definitions definitions_;
};

TEST_F(StackTableTest, DestroyOfNullIsANoOp) {
  stack_table_destroy(nullptr);
}

TEST_F(StackTableTest, FirstIdIsOne) {
  EXPECT_EQ(stack_table_count(table_), 0u);
  EXPECT_EQ(Intern(STACK_TABLE_NONE, 0x1000), 1u);
  EXPECT_EQ(stack_table_count(table_), 1u);
}

TEST_F(StackTableTest, SamePairGivesSameIdAndOneDefinition) {
  uint32_t root = Intern(STACK_TABLE_NONE, 0x1000);
  uint32_t child = Intern(root, 0x2000);
  EXPECT_EQ(Intern(STACK_TABLE_NONE, 0x1000), root);
  EXPECT_EQ(Intern(root, 0x2000), child);
  EXPECT_EQ(definitions_.by_id.size(), 2u);
  EXPECT_EQ(definitions_.by_id[child], Key(root, 0x2000));
}

TEST_F(StackTableTest, SameAddressUnderOtherParentIsAnotherNode) {
  uint32_t left = Intern(STACK_TABLE_NONE, 0x1000);
  uint32_t right = Intern(STACK_TABLE_NONE, 0x2000);
  EXPECT_NE(Intern(left, 0x3000), Intern(right, 0x3000));
}

TEST_F(StackTableTest, AddressZeroIsAnAddress) {
  uint32_t id = Intern(STACK_TABLE_NONE, 0);
  EXPECT_NE(id, STACK_TABLE_NONE);
  EXPECT_EQ(Intern(STACK_TABLE_NONE, 0), id);
}

TEST_F(StackTableTest, FullTableSaysNoneButKnowsWhatItHas) {
  stack_table_t *small = stack_table_create(4096);
  ASSERT_NE(small, nullptr);
  for (uintptr_t i = 1; i <= 4096; i++) {
    ASSERT_EQ(stack_table_intern(small, 0, i << 4, DefineNothing, nullptr), i);
  }
  for (uintptr_t i = 0; i < 10; i++) {
    EXPECT_EQ(stack_table_intern(small, 0, 0x777, DefineNothing, nullptr),
              STACK_TABLE_NONE);
  }
  EXPECT_EQ(stack_table_intern(small, 0, 5 << 4, DefineNothing, nullptr), 5u);
  EXPECT_EQ(stack_table_count(small), 4096u);
  EXPECT_EQ(stack_table_check(small), nullptr);
  stack_table_destroy(small);
}

TEST_F(StackTableTest, ForgottenAddressesGetNewIds) {
  uint32_t outside = Intern(STACK_TABLE_NONE, 0x1000);
  uint32_t inside = Intern(outside, 0x2000);
  uint32_t below_inside = Intern(inside, 0x3000);
  stack_table_forget(table_, 0x2000, 0x3000);
  EXPECT_EQ(Intern(STACK_TABLE_NONE, 0x1000), outside);
  uint32_t again = Intern(outside, 0x2000);
  EXPECT_GT(again, below_inside);
  EXPECT_EQ(Intern(inside, 0x3000), below_inside);
  EXPECT_NE(Intern(again, 0x3000), below_inside);
}

TEST_F(StackTableTest, ReservesLessWhenAddressSpaceIsShort) {
  pid_t pid = fork();
  ASSERT_GE(pid, 0);
  if (pid == 0) {
    // Room for a few MiB more than what is mapped now.
    FILE *statm = fopen("/proc/self/statm", "r");
    unsigned long pages = 0;
    if (statm == nullptr || fscanf(statm, "%lu", &pages) != 1) {
      _exit(2);
    }
    struct rlimit limit;
    limit.rlim_cur = limit.rlim_max =
        pages * static_cast<rlim_t>(getpagesize()) + (8 << 20);
    if (setrlimit(RLIMIT_AS, &limit) != 0) {
      _exit(3);
    }
    stack_table_t *table = stack_table_create(1 << 22);
    _exit(table != nullptr && stack_table_intern(table, 0, 0x10, DefineNothing,
                                                 nullptr) == 1
              ? 0
              : 1);
  }
  int status;
  ASSERT_EQ(waitpid(pid, &status, 0), pid);
  EXPECT_EQ(status, 0);
}

TEST_F(StackTableTest, ForkedChildFindsItEmptyAndUsable) {
  ASSERT_EQ(Intern(STACK_TABLE_NONE, 0x1000), 1u);
  ASSERT_EQ(Intern(STACK_TABLE_NONE, 0x2000), 2u);
  pid_t pid = fork();
  ASSERT_GE(pid, 0);
  if (pid == 0) {
    bool good =
        stack_table_count(table_) == 0 &&
        stack_table_intern(table_, 0, 0x2000, DefineNothing, nullptr) == 1;
    _exit(good ? 0 : 1);
  }
  int status;
  ASSERT_EQ(waitpid(pid, &status, 0), pid);
  EXPECT_EQ(status, 0);
  EXPECT_EQ(Intern(STACK_TABLE_NONE, 0x2000), 2u);
}

TEST_F(StackTableTest, AgreesWithAMap) {
  const unsigned seed = std::random_device()();
  SCOPED_TRACE(seed);
  std::mt19937 random(seed);
  std::map<Key, uint32_t> model;
  std::vector<uint32_t> ids = {STACK_TABLE_NONE};
  for (int i = 0; i < 50000; i++) {
    Key key(ids[random() % ids.size()], 0x1000 + 16 * (random() % 50));
    uint32_t id = Intern(key.first, key.second);
    auto [place, is_new] = model.emplace(key, id);
    ASSERT_EQ(place->second, id);
    if (is_new) {
      ASSERT_EQ(definitions_.by_id[id], key);
      ids.push_back(id);
    }
    if (i % 10000 == 0) {
      ASSERT_EQ(stack_table_check(table_), nullptr);
    }
  }
  EXPECT_EQ(definitions_.by_id.size(), model.size());
}

// Every id that intern returns was defined before, whoever defined it.
struct SharedDefinitions {
  std::unique_ptr<std::atomic<uint64_t>[]> keys =
      std::make_unique<std::atomic<uint64_t>[]>(100001);
};

uint64_t Pack(uint32_t parent_id, uintptr_t address) {
  return static_cast<uint64_t>(parent_id) << 32 | address;
}

void DefineShared(void *context, uint32_t id, uint32_t parent_id,
                  uintptr_t address) {
  auto *definitions = static_cast<SharedDefinitions *>(context);
  // Relaxed: the table's publication must make it visible.
  EXPECT_EQ(definitions->keys[id].exchange(Pack(parent_id, address),
                                           std::memory_order_relaxed),
            0u);
}

TEST_F(StackTableTest, ThreadsAgreeAndSeeDefinitionsOfOthers) {
  SharedDefinitions definitions;
  constexpr int kThreads = 8;
  constexpr uint32_t kSteps = 20000;
  std::vector<std::vector<uint32_t>> ids(kThreads);
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; t++) {
    threads.emplace_back([&, t] {
      // The same walk through the same tree in each thread.
      std::mt19937 random(1);
      uint32_t id = STACK_TABLE_NONE;
      for (uint32_t step = 0; step < kSteps; step++) {
        uintptr_t address = 0x1000 + 16 * (random() % 20);
        uint32_t parent = step % 12 == 0 ? STACK_TABLE_NONE : id;
        id = stack_table_intern(table_, parent, address, DefineShared,
                                &definitions);
        ASSERT_NE(id, STACK_TABLE_NONE);
        ASSERT_EQ(definitions.keys[id].load(std::memory_order_relaxed),
                  Pack(parent, address));
        ids[t].push_back(id);
      }
    });
  }
  for (std::thread &thread : threads) {
    thread.join();
  }
  for (int t = 1; t < kThreads; t++) {
    EXPECT_EQ(ids[t], ids[0]);
  }
}

TEST_F(StackTableTest, ForgettingWhileOthersInternIsHarmless) {
  std::atomic<bool> stop(false);
  std::thread forgetter([&] {
    while (!stop.load()) {
      stack_table_forget(table_, 0x2000, 0x3000);
    }
  });
  for (uintptr_t i = 0; i < 20000; i++) {
    uint32_t id =
        stack_table_intern(table_, STACK_TABLE_NONE,
                           0x1000 + 0x10 * (i % 0x200), DefineNothing, nullptr);
    ASSERT_NE(id, STACK_TABLE_NONE);
  }
  stop.store(true);
  forgetter.join();
}

}  // namespace
