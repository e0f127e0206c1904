// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

#include "shmipc/semaphore.h"

#include <signal.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <thread>
#include <vector>

#include "gtest/gtest.h"
#include "shmipc/shmipc_testing.h"

namespace {

using shmipc_testing::Backends;
using shmipc_testing::NameOf;
using shmipc_testing::NowNs;
using shmipc_testing::Process;
using shmipc_testing::Shared;
using shmipc_testing::TestRegion;
using shmipc_testing::Watchdog;

constexpr int64_t kMs = 1000000;
constexpr int64_t kLong = 20000 * kMs;

struct Board {
  shmipc_semaphore_t first;
  shmipc_semaphore_t second;
};

class SemaphoreTest : public testing::TestWithParam<shmipc_backend_t> {
 protected:
  SemaphoreTest() : own_(GetParam(), sizeof(Board)) {
    board_ = own_.data<Board>();
  }
  int Wait(shmipc_semaphore_t *semaphore, int64_t timeout_ns = kLong) {
    return shmipc_semaphore_wait(own_.region(), semaphore, timeout_ns);
  }
  int Post(shmipc_semaphore_t *semaphore) {
    return shmipc_semaphore_post(own_.region(), semaphore);
  }

  Watchdog watchdog_{120};
  TestRegion own_;
  Board *board_;
};

INSTANTIATE_TEST_SUITE_P(All, SemaphoreTest, testing::ValuesIn(Backends()),
                         [](const testing::TestParamInfo<shmipc_backend_t> &i) {
                           return std::string(NameOf(i.param));
                         });

TEST_P(SemaphoreTest, CountsAndWaitsAtZero) {
  ASSERT_EQ(shmipc_semaphore_init(&board_->first, 2), 0);
  EXPECT_EQ(Wait(&board_->first, 0), 0);
  EXPECT_EQ(Wait(&board_->first, 0), 0);
  EXPECT_EQ(Wait(&board_->first, 0), -ETIMEDOUT);
  int64_t start = NowNs();
  EXPECT_EQ(Wait(&board_->first, 20 * kMs), -ETIMEDOUT);
  EXPECT_GE(NowNs() - start, 20 * kMs);
  EXPECT_EQ(Post(&board_->first), 0);
  EXPECT_EQ(shmipc_semaphore_value(&board_->first), 1u);
  EXPECT_EQ(Wait(&board_->first), 0);
  EXPECT_EQ(shmipc_semaphore_value(&board_->first), 0u);
}

TEST_P(SemaphoreTest, LargestValueIsNotExceeded) {
  EXPECT_EQ(shmipc_semaphore_init(&board_->first, 0x80000000), -EINVAL);
  ASSERT_EQ(shmipc_semaphore_init(&board_->first, SHMIPC_SEMAPHORE_VALUE_MAX),
            0);
  EXPECT_EQ(Post(&board_->first), -EOVERFLOW);
  EXPECT_EQ(Wait(&board_->first), 0);
  EXPECT_EQ(Post(&board_->first), 0);
}

TEST_P(SemaphoreTest, PointersOutsideReadOnlyAndForkedAreRefused) {
  shmipc_semaphore_t local = {};
  EXPECT_EQ(Wait(&local, 0), -EINVAL);
  EXPECT_EQ(Post(&local), -EINVAL);
  own_.options().read_only = true;
  shmipc_region_t *reader = own_.Attach();
  auto *semaphore =
      static_cast<shmipc_semaphore_t *>(shmipc_region_data(reader));
  EXPECT_EQ(shmipc_semaphore_post(reader, semaphore), -EROFS);
  EXPECT_EQ(shmipc_semaphore_wait(reader, semaphore, 0), -EROFS);
  shmipc_region_close(reader);
  Process child([&] { return Post(&board_->first) == -ECHILD ? 0 : 1; });
  EXPECT_EQ(child.Wait(), 0);
}

TEST_P(SemaphoreTest, ProcessesHandEachOtherTurns) {
  constexpr int kTurns = 5000;
  Process other([&] {
    own_.AttachInChild();
    board_ = own_.data<Board>();
    for (int i = 0; i < kTurns; i++) {
      if (Wait(&board_->first) != 0 || Post(&board_->second) != 0) {
        return 1;
      }
    }
    return 0;
  });
  for (int i = 0; i < kTurns; i++) {
    ASSERT_EQ(Post(&board_->first), 0);
    ASSERT_EQ(Wait(&board_->second), 0);
  }
  EXPECT_EQ(other.Wait(), 0);
}

TEST_P(SemaphoreTest, ThreadsLoseAndGainNothing) {
  constexpr int kRounds = 5000;
  ASSERT_EQ(shmipc_semaphore_init(&board_->first, 2), 0);
  std::atomic<int> inside{0};
  std::vector<std::thread> threads;
  for (int i = 0; i < 5; i++) {
    threads.emplace_back([&] {
      for (int j = 0; j < kRounds; j++) {
        ASSERT_EQ(Wait(&board_->first), 0);
        ASSERT_LE(++inside, 2);
        --inside;
        ASSERT_EQ(Post(&board_->first), 0);
      }
    });
  }
  for (std::thread &thread : threads) {
    thread.join();
  }
  EXPECT_EQ(shmipc_semaphore_value(&board_->first), 2u);
}

TEST_P(SemaphoreTest, DeadWaiterHarmsNobody) {
  Process dies([&] {
    own_.AttachInChild();
    return Wait(&own_.data<Board>()->first);
  });
  while (__atomic_load_n(&board_->first.word, __ATOMIC_RELAXED) == 0) {
    std::this_thread::yield();
  }
  std::thread lives([&] { EXPECT_EQ(Wait(&board_->first), 0); });
  dies.Kill();
  EXPECT_EQ(Post(&board_->first), 0);
  lives.join();
  EXPECT_EQ(shmipc_semaphore_value(&board_->first), 0u);
}

TEST(UndoSemaphoreTest, IsOfSystemVRegionsOnly) {
  TestRegion posix(SHMIPC_POSIX, 100);
  EXPECT_EQ(shmipc_undo_semaphore_post(posix.region(), 0), -EOPNOTSUPP);
  TestRegion sysv(SHMIPC_SYSV, 100,
                  [](auto *o) { o->num_undo_semaphores = 2; });
  EXPECT_EQ(shmipc_undo_semaphore_post(sysv.region(), 2), -EINVAL);
  EXPECT_EQ(shmipc_undo_semaphore_set(sysv.region(), 1, -1), -EINVAL);
  EXPECT_EQ(shmipc_undo_semaphore_set(sysv.region(), 1, 32768), -EINVAL);
  shmipc_region_t *region;
  shmipc_region_options_t options = posix.options();
  options.num_undo_semaphores = 1;
  EXPECT_EQ(shmipc_region_create("x", &options, &region), -EOPNOTSUPP);
}

TEST(UndoSemaphoreTest, CountsAndTimesOut) {
  TestRegion own(SHMIPC_SYSV, 100, [](auto *o) { o->num_undo_semaphores = 2; });
  shmipc_region_t *region = own.region();
  EXPECT_EQ(shmipc_undo_semaphore_value(region, 1), 0);
  ASSERT_EQ(shmipc_undo_semaphore_set(region, 1, 1), 0);
  EXPECT_EQ(shmipc_undo_semaphore_wait(region, 1, SHMIPC_FOREVER), 0);
  EXPECT_EQ(shmipc_undo_semaphore_wait(region, 1, 0), -ETIMEDOUT);
  int64_t start = NowNs();
  EXPECT_EQ(shmipc_undo_semaphore_wait(region, 1, 20 * kMs), -ETIMEDOUT);
  EXPECT_GE(NowNs() - start, 19 * kMs);
  EXPECT_EQ(shmipc_undo_semaphore_post(region, 1), 0);
  EXPECT_EQ(shmipc_undo_semaphore_value(region, 1), 1);
  EXPECT_EQ(shmipc_undo_semaphore_value(region, 0), 0);
  ASSERT_EQ(shmipc_undo_semaphore_set(region, 0, 32767), 0);
  EXPECT_EQ(shmipc_undo_semaphore_post(region, 0), -EOVERFLOW);
}

TEST(UndoSemaphoreTest, KilledHolderGivesBack) {
  Watchdog watchdog(60);
  TestRegion own(SHMIPC_SYSV, 100, [](auto *o) { o->num_undo_semaphores = 1; });
  ASSERT_EQ(shmipc_undo_semaphore_set(own.region(), 0, 3), 0);
  Shared<std::atomic<int>> has_it;
  Process holder([&]() -> int {
    own.AttachInChild();
    *has_it = shmipc_undo_semaphore_wait(own.region(), 0, kLong) == 0 &&
                      shmipc_undo_semaphore_wait(own.region(), 0, kLong) == 0
                  ? 1
                  : -1;
    for (;;) {
      pause();
    }
  });
  while (*has_it == 0) {
    std::this_thread::yield();
  }
  EXPECT_EQ(shmipc_undo_semaphore_value(own.region(), 0), 1);
  holder.Kill();
  EXPECT_EQ(shmipc_undo_semaphore_value(own.region(), 0), 3);
}

}  // namespace
