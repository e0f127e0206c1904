// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// What others do while a process is stopped between two instructions of a call
// of the heap (ptrace), and what it makes of that when it goes on. Skipped
// where ptrace is not permitted.

#include <signal.h>
#include <unistd.h>

#include <atomic>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

#include "gtest/gtest.h"
#include "shmipc/block.h"
#include "shmipc/block_testing.h"
#include "shmipc/root.h"

namespace {

using shmipc_testing::kPage;
using shmipc_testing::Shared;
using shmipc_testing::Stepped;

class BlockStoppedTest : public shmipc_testing::HeapTest {};

INSTANTIATE_TEST_SUITE_P(All, BlockStoppedTest, testing::Values(SHMIPC_MEMFD));

// One page of the run that it is about to have goes to somebody else.
TEST_P(BlockStoppedTest, ARunThatFailedHalfwayLeavesNothing) {
  Stepped claims([&] {
    shmipc_region_t *region = own_.AttachInChild();
    (void)shmipc_block_free(region, shmipc_block_alloc(region, 5 * kPage));
    raise(SIGSTOP);
    void *block = shmipc_block_alloc(region, 5 * kPage);
    if (block == nullptr) {
      _exit(3);
    }
    raise(SIGSTOP);
  });
  if (!claims.is_stopped()) {
    GTEST_SKIP() << "ptrace is not permitted";
  }
  auto kind = [&](uint32_t page) {
    return shmipc_kind_of(shmipc_head_load(region_, page));
  };
  ASSERT_TRUE(
      claims.StepUntil([&] { return kind(0) == SHMIPC_PAGE_PREPARING; }));
  shmipc_heap_head_of(region_)->first_free = 2;
  ASSERT_EQ(shmipc_block_alloc(region_, 1000), shmipc_page_of(region_, 2));
  claims.GoOn();
  ASSERT_TRUE(claims.is_stopped()) << "it has found nothing";
  // While it lives, others can have what it could not.
  EXPECT_EQ(kind(0), SHMIPC_PAGE_FREE);
  EXPECT_EQ(kind(1), SHMIPC_PAGE_FREE);
  EXPECT_EQ(kind(3), SHMIPC_PAGE_LARGE);
}

// A reader is stopped at many instructions of the copy of a name, which becomes
// another one meanwhile.
TEST_P(BlockStoppedTest, AReaderDoesNotSeeAMixtureOfTwoRoots) {
  Shared<char[SHMIPC_ROOT_NAME_MAX + 1]> seen;
  uint64_t changed = 0;
  for (uint64_t steps = 11;; steps += 53) {
    std::string name[2] = {std::string(100, 'a'), std::string(100, 'b')};
    shmipc_ref_t ref;
    ASSERT_EQ(
        shmipc_root_create(region_, name[0].c_str(), 8, nullptr, nullptr, &ref),
        0);
    Stepped reads([&] {
      shmipc_region_t *region = own_.AttachInChild();
      raise(SIGSTOP);
      shmipc_root_list(
          region,
          [](void *context, const char *one, shmipc_ref_t) {
            strcpy(static_cast<char *>(context), one);
          },
          &*seen);
    });
    if (!reads.is_stopped()) {
      GTEST_SKIP() << "ptrace is not permitted";
    }
    memset(&*seen, 0, sizeof(*seen));
    bool is_within = reads.Step(steps) && (*seen)[0] == '\0';
    ASSERT_EQ(shmipc_root_remove(region_, name[0].c_str(), &ref), 0);
    ASSERT_EQ(shmipc_block_free(region_, shmipc_block_get(region_, ref, 8)), 0);
    ASSERT_EQ(
        shmipc_root_create(region_, name[1].c_str(), 8, nullptr, nullptr, &ref),
        0);
    reads.GoOn();
    std::string found = &(*seen)[0];
    EXPECT_TRUE(found.empty() || found == name[0] || found == name[1])
        << found << " after " << steps << " steps";
    ASSERT_EQ(shmipc_root_remove(region_, name[1].c_str(), &ref), 0);
    ASSERT_EQ(shmipc_block_free(region_, shmipc_block_get(region_, ref, 8)), 0);
    if (!is_within) {
      break;
    }
    changed++;
  }
  EXPECT_GT(changed, 3u);
}

}  // namespace
