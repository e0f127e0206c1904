// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// Blocks found by name.

#include "shmipc/root.h"

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <map>
#include <string>
#include <thread>
#include <vector>

#include "gtest/gtest.h"
#include "shmipc/block.h"
#include "shmipc/block_internal.h"
#include "shmipc/shared_heap.h"
#include "shmipc/shmipc_testing.h"

namespace {

using shmipc_testing::Backends;
using shmipc_testing::NameOf;
using shmipc_testing::Problems;
using shmipc_testing::Process;
using shmipc_testing::Shared;
using shmipc_testing::TestRegion;
using shmipc_testing::Watchdog;

class RootTest : public testing::TestWithParam<shmipc_backend_t> {
 protected:
  uint64_t NumLive() {
    shmipc_heap_stats_t stats = {};
    EXPECT_EQ(shmipc_heap_stats_get(region_, &stats), 0);
    return stats.num_live;
  }

  Watchdog watchdog_{60};
  TestRegion own_{GetParam(), 4096, [](auto *o) {
                    o->heap_bytes = 1 << 20;
                  }};
  shmipc_region_t *region_ = own_.region();
};

INSTANTIATE_TEST_SUITE_P(All, RootTest, testing::ValuesIn(Backends()),
                         [](const testing::TestParamInfo<shmipc_backend_t> &i) {
                           return std::string(NameOf(i.param));
                         });

TEST_P(RootTest, NamesAreChecked) {
  shmipc_ref_t ref;
  std::string longest(SHMIPC_ROOT_NAME_MAX, 'x');
  EXPECT_EQ(shmipc_root_find(region_, nullptr, &ref), -EINVAL);
  EXPECT_EQ(shmipc_root_find(region_, "", &ref), -EINVAL);
  EXPECT_EQ(shmipc_root_find(region_, (longest + "x").c_str(), &ref),
            -ENAMETOOLONG);
  EXPECT_EQ(shmipc_root_find(region_, longest.c_str(), &ref), -ENOENT);
  EXPECT_EQ(shmipc_root_remove(region_, longest.c_str(), &ref), -ENOENT);
  ASSERT_EQ(
      shmipc_root_create(region_, longest.c_str(), 1, nullptr, nullptr, &ref),
      0);
  shmipc_ref_t found;
  EXPECT_EQ(shmipc_root_find(region_, longest.c_str(), &found), 0);
  EXPECT_EQ(found.offset, ref.offset);
  EXPECT_EQ(shmipc_root_find(region_, longest.substr(1).c_str(), &ref),
            -ENOENT);
  EXPECT_EQ(Problems(region_), "");
}

TEST_P(RootTest, CreatedFilledFoundByOthersAndRemoved) {
  shmipc_ref_t ref;
  auto fill = [](void *context, void *block, size_t size_bytes) {
    // Zeroed before.
    auto *bytes = static_cast<char *>(block);
    if (std::count(bytes, bytes + size_bytes, 0) !=
        static_cast<long>(size_bytes)) {
      return -EIO;
    }
    memcpy(block, context, 6);
    return 0;
  };
  // So that the memory is not new.
  void *used = shmipc_block_alloc(region_, 500);
  memset(used, 0xff, 500);
  shmipc_block_free(region_, used);
  char text[] = "hello";
  ASSERT_EQ(shmipc_root_create(region_, "a", 500, fill, text, &ref), 0);
  shmipc_region_t *other = own_.Attach();
  shmipc_ref_t found;
  ASSERT_EQ(shmipc_root_find(other, "a", &found), 0);
  char *block = static_cast<char *>(shmipc_block_get(other, found, 500));
  ASSERT_NE(block, nullptr);
  EXPECT_STREQ(block, "hello");
  found.offset = 0;
  EXPECT_EQ(shmipc_root_create(other, "a", 9, fill, text, &found), -EEXIST);
  EXPECT_EQ(found.offset, ref.offset);
  EXPECT_EQ(NumLive(), 1u);
  ASSERT_EQ(shmipc_root_remove(other, "a", &found), 0);
  EXPECT_EQ(found.offset, ref.offset);
  EXPECT_EQ(shmipc_root_find(region_, "a", &found), -ENOENT);
  // It is theirs.
  EXPECT_EQ(shmipc_block_give(other, block), 0);
  EXPECT_EQ(shmipc_block_free(other, block), 0);
  EXPECT_EQ(Problems(region_), "");
  shmipc_region_close(other);
}

TEST_P(RootTest, AFailedInitialisationLeavesNothing) {
  shmipc_ref_t ref = {77};
  EXPECT_EQ(shmipc_root_create(
                region_, "a", 100, [](void *, void *, size_t) { return -EIO; },
                nullptr, &ref),
            -EIO);
  EXPECT_EQ(ref.offset, 77u);
  EXPECT_EQ(shmipc_root_find(region_, "a", &ref), -ENOENT);
  EXPECT_EQ(shmipc_root_create(region_, "a", SIZE_MAX, nullptr, nullptr, &ref),
            -ENOMEM);
  EXPECT_EQ(NumLive(), 0u);
}

TEST_P(RootTest, OnlyOnesOwnBlockCanBeAdded) {
  shmipc_region_t *other = own_.Attach();
  void *block = shmipc_block_alloc(region_, 10);
  void *theirs = shmipc_block_get(other, shmipc_ref_of(region_, block), 10);
  EXPECT_EQ(shmipc_root_add(other, "a", theirs), -EPERM);
  EXPECT_EQ(shmipc_root_add(region_, "a", static_cast<char *>(block) + 1),
            -EINVAL);
  EXPECT_EQ(shmipc_root_add(region_, "a", nullptr), -EINVAL);
  EXPECT_EQ(shmipc_root_add(region_, "a", block), 0);
  // It is the region's.
  EXPECT_EQ(shmipc_root_add(region_, "b", block), -EPERM);
  void *second = shmipc_block_alloc(region_, 10);
  EXPECT_EQ(shmipc_root_add(region_, "a", second), -EEXIST);
  EXPECT_EQ(shmipc_root_add(region_, "b", second), 0);
  shmipc_region_close(other);
}

TEST_P(RootTest, AsManyAsThereAre) {
  shmipc_ref_t ref;
  for (uint32_t round = 0; round < 2; round++) {
    for (uint32_t i = 0; i < SHMIPC_ROOTS_MAX; i++) {
      ASSERT_EQ(shmipc_root_create(region_, std::to_string(i).c_str(), 8,
                                   nullptr, nullptr, &ref),
                0);
    }
    EXPECT_EQ(shmipc_root_create(region_, "more", 8, nullptr, nullptr, &ref),
              -ENOSPC);
    EXPECT_EQ(NumLive(), SHMIPC_ROOTS_MAX);
    std::map<std::string, uint64_t> all;
    EXPECT_EQ(
        shmipc_root_list(
            region_,
            [](void *context, const char *name, shmipc_ref_t one) {
              (*static_cast<std::map<std::string, uint64_t> *>(context))[name] =
                  one.offset;
            },
            &all),
        static_cast<int>(SHMIPC_ROOTS_MAX));
    EXPECT_EQ(all.size(), SHMIPC_ROOTS_MAX);
    EXPECT_EQ(Problems(region_), "");
    for (uint32_t i = 0; i < SHMIPC_ROOTS_MAX; i++) {
      ASSERT_EQ(shmipc_root_remove(region_, std::to_string(i).c_str(), &ref),
                0);
      EXPECT_EQ(ref.offset, all[std::to_string(i)]);
      ASSERT_EQ(shmipc_block_free(region_, shmipc_block_get(region_, ref, 8)),
                0);
    }
  }
}

TEST_P(RootTest, OfManyThatCreateOneDoes) {
  std::atomic<int> created{0};
  std::atomic<int> other{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; t++) {
    threads.emplace_back([&] {
      for (int i = 0; i < 100; i++) {
        shmipc_ref_t ref;
        int status = shmipc_root_create(region_, std::to_string(i).c_str(), 8,
                                        nullptr, nullptr, &ref);
        created += status == 0;
        other += status != 0 && status != -EEXIST;
      }
    });
  }
  for (std::thread &thread : threads) {
    thread.join();
  }
  EXPECT_EQ(created, 100);
  EXPECT_EQ(other, 0);
  EXPECT_EQ(NumLive(), 100u);
}

TEST_P(RootTest, ReadersNeverSeeHalfAName) {
  // Two names of which no mixture is looked for, on one entry.
  std::atomic<bool> is_over{false};
  std::thread changes([&] {
    for (int i = 0; i < 3000; i++) {
      shmipc_ref_t ref;
      std::string name(100, i % 2 == 0 ? 'a' : 'b');
      EXPECT_EQ(
          shmipc_root_create(region_, name.c_str(), 8, nullptr, nullptr, &ref),
          0);
      EXPECT_EQ(shmipc_root_remove(region_, name.c_str(), &ref), 0);
      EXPECT_EQ(shmipc_block_free(region_, shmipc_block_get(region_, ref, 8)),
                0);
    }
    is_over = true;
  });
  while (!is_over) {
    shmipc_root_list(
        region_,
        [](void *, const char *name, shmipc_ref_t) {
          std::string text(name);
          EXPECT_TRUE(text == std::string(100, 'a') ||
                      text == std::string(100, 'b'))
              << text;
        },
        nullptr);
  }
  changes.join();
}

TEST_P(RootTest, ARootOfADeadProcessIsKept) {
  Process dies([&] {
    shmipc_region_t *region = own_.AttachInChild();
    shmipc_ref_t ref;
    return -shmipc_root_create(region, "a", 100, nullptr, nullptr, &ref);
  });
  ASSERT_EQ(dies.Wait(), 0);
  EXPECT_EQ(shmipc_heap_reclaim(region_, 0), 0);
  shmipc_ref_t ref;
  ASSERT_EQ(shmipc_root_find(region_, "a", &ref), 0);
  EXPECT_NE(shmipc_block_get(region_, ref, 100), nullptr);
}

TEST_P(RootTest, AStoppedProcessIsWaitedForOneSecondAndNotRobbed) {
  Shared<std::atomic<uint32_t>> has;
  Process holds([&] {
    shmipc_region_t *region = own_.AttachInChild();
    has->store(shmipc_roots_lock(region) == 0 ? 1 : 2);
    pause();
    return 0;
  });
  while (*has == 0) {
    std::this_thread::yield();
  }
  ASSERT_EQ(*has, 1u);
  shmipc_ref_t ref;
  EXPECT_EQ(shmipc_root_create(region_, "a", 8, nullptr, nullptr, &ref),
            -EBUSY);
  EXPECT_EQ(NumLive(), 0u);
  EXPECT_EQ(shmipc_root_find(region_, "a", &ref), -ENOENT);
  EXPECT_NE(shmipc_block_alloc(region_, 8), nullptr);
  holds.Kill();
  EXPECT_EQ(shmipc_root_create(region_, "a", 8, nullptr, nullptr, &ref), 0);
  EXPECT_EQ(Problems(region_), "");
}

TEST_P(RootTest, RemovingDoesNotTakeABlockThatIsSomebodyElses) {
  shmipc_region_t *other = own_.Attach();
  shmipc_ref_t ref;
  shmipc_ref_t none = {77};
  // One that was freed, then allocated again; and one that was taken.
  ASSERT_EQ(shmipc_root_create(region_, "a", 100, nullptr, nullptr, &ref), 0);
  ASSERT_EQ(shmipc_block_free(other, shmipc_block_get(other, ref, 1)), 0);
  EXPECT_NE(Problems(region_).find("leads to no live block"),
            std::string::npos);
  void *block;
  do {
    block = shmipc_block_alloc(region_, 100);
    ASSERT_NE(block, nullptr);
  } while (shmipc_ref_of(region_, block).offset != ref.offset);
  EXPECT_NE(Problems(region_).find("its block is a process's"),
            std::string::npos);
  EXPECT_EQ(shmipc_root_remove(other, "a", &none), -ESTALE);
  EXPECT_EQ(none.offset, 77u);
  EXPECT_EQ(shmipc_root_find(region_, "a", &none), -ENOENT);
  EXPECT_EQ(shmipc_block_give(region_, block), 0);
  ASSERT_EQ(shmipc_root_create(region_, "a", 100, nullptr, nullptr, &ref), 0);
  block = shmipc_block_get(region_, ref, 1);
  ASSERT_EQ(shmipc_block_take(region_, block), 0);
  EXPECT_EQ(shmipc_root_remove(other, "a", &none), -ESTALE);
  EXPECT_EQ(shmipc_block_give(region_, block), 0);
  // Freed, and not used again.
  ASSERT_EQ(shmipc_root_create(region_, "a", 100, nullptr, nullptr, &ref), 0);
  ASSERT_EQ(shmipc_block_free(other, shmipc_block_get(other, ref, 1)), 0);
  EXPECT_EQ(shmipc_root_remove(other, "a", &none), -ESTALE);
  EXPECT_EQ(Problems(region_), "");
  shmipc_region_close(other);
}

TEST_P(RootTest, AFreedBlockCannotBeAdded) {
  void *block = shmipc_block_alloc(region_, 100);
  ASSERT_EQ(shmipc_block_free(region_, block), 0);
  EXPECT_EQ(shmipc_root_add(region_, "a", block), -EALREADY);
}

TEST_P(RootTest, ARootThatWasHalfAddedIsCompleted) {
  // As one leaves it that dies between the name and the owner's change.
  auto leave = [&] {
    Process dies([&] {
      shmipc_region_t *region = own_.AttachInChild();
      shmipc_ref_t ref;
      int status = shmipc_root_create(region, "a", 100, nullptr, nullptr, &ref);
      void *block = shmipc_block_get(region, ref, 1);
      return status == 0 && shmipc_block_take(region, block) == 0 ? 0 : 1;
    });
    ASSERT_EQ(dies.Wait(), 0);
  };
  leave();
  EXPECT_EQ(Problems(region_), "");
  shmipc_ref_t ref;
  EXPECT_EQ(shmipc_heap_reclaim(region_, 0), 0);
  ASSERT_EQ(shmipc_root_find(region_, "a", &ref), 0);
  EXPECT_NE(shmipc_block_get(region_, ref, 100), nullptr);
  ASSERT_EQ(shmipc_root_remove(region_, "a", &ref), 0);
  ASSERT_EQ(shmipc_block_free(region_, shmipc_block_get(region_, ref, 1)), 0);
  // Removed before anybody completed it.
  leave();
  ASSERT_EQ(shmipc_root_remove(region_, "a", &ref), 0);
  ASSERT_EQ(shmipc_block_free(region_, shmipc_block_get(region_, ref, 1)), 0);
  EXPECT_EQ(NumLive(), 0u);
}

TEST_P(RootTest, AShortNameReplacesALongOneWhole) {
  shmipc_ref_t ref;
  std::string longest(SHMIPC_ROOT_NAME_MAX, 'x');
  for (const std::string &name : {longest, std::string("ab"), longest}) {
    ASSERT_EQ(
        shmipc_root_create(region_, name.c_str(), 8, nullptr, nullptr, &ref),
        0);
    const char *rest = shmipc_root_of(region_, 0)->name;
    EXPECT_EQ(
        std::string(rest, sizeof(shmipc_root_t::name)),
        name + std::string(sizeof(shmipc_root_t::name) - name.size(), '\0'));
    ASSERT_EQ(shmipc_root_remove(region_, name.c_str(), &ref), 0);
    ASSERT_EQ(shmipc_block_free(region_, shmipc_block_get(region_, ref, 8)), 0);
  }
}

}  // namespace
