// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

#include "shmipc/event.h"

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
  shmipc_event_t event;
  shmipc_mutex_t mutex;
  shmipc_condition_t filled;
  shmipc_condition_t emptied;
  uint64_t num_items;
  uint64_t num_taken;
  std::atomic<uint64_t> turn;
};

class EventTest : public testing::TestWithParam<shmipc_backend_t> {
 protected:
  EventTest() : own_(GetParam(), sizeof(Board)) {
    board_ = own_.data<Board>();
  }
  void AttachInChild() {
    own_.AttachInChild();
    board_ = own_.data<Board>();
  }
  int Wait(uint32_t key, int64_t timeout_ns = kLong) {
    return shmipc_event_wait(own_.region(), &board_->event, key, timeout_ns);
  }
  uint32_t Key() {
    return shmipc_event_key(&board_->event);
  }
  void WaitForSleeper(const shmipc_event_t *event) {
    while ((__atomic_load_n(&event->word, __ATOMIC_RELAXED) & 1) == 0) {
      std::this_thread::yield();
    }
  }
  int Lock() {
    return shmipc_mutex_lock(own_.region(), &board_->mutex, kLong);
  }
  int Unlock() {
    return shmipc_mutex_unlock(own_.region(), &board_->mutex);
  }

  Watchdog watchdog_{120};
  TestRegion own_;
  Board *board_;
};

INSTANTIATE_TEST_SUITE_P(All, EventTest, testing::ValuesIn(Backends()),
                         [](const testing::TestParamInfo<shmipc_backend_t> &i) {
                           return std::string(NameOf(i.param));
                         });

TEST_P(EventTest, NotificationAfterTheKeyEndsTheWait) {
  for (bool all : {false, true}) {
    uint32_t key = Key();
    EXPECT_EQ(Wait(key, 0), -ETIMEDOUT);
    int64_t start = NowNs();
    EXPECT_EQ(Wait(key, 20 * kMs), -ETIMEDOUT);
    EXPECT_GE(NowNs() - start, 20 * kMs);
    EXPECT_EQ(all ? shmipc_event_notify_all(own_.region(), &board_->event)
                  : shmipc_event_notify_one(own_.region(), &board_->event),
              0);
    EXPECT_EQ(Wait(key, 0), 0);
    EXPECT_NE(Key(), key);
  }
}

TEST_P(EventTest, CountMayWrapAround) {
  board_->event.word = 0xfffffffc;
  for (int i = 0; i < 5; i++) {
    uint32_t key = Key();
    std::thread waiter([&] { EXPECT_EQ(Wait(key), 0); });
    WaitForSleeper(&board_->event);
    EXPECT_EQ(shmipc_event_notify_one(own_.region(), &board_->event), 0);
    waiter.join();
    EXPECT_EQ(shmipc_event_notify_all(own_.region(), &board_->event), 0);
  }
}

TEST_P(EventTest, PointersOutsideReadOnlyAndForkedAreRefused) {
  shmipc_event_t local = {};
  EXPECT_EQ(shmipc_event_wait(own_.region(), &local, 0, 0), -EINVAL);
  EXPECT_EQ(shmipc_event_notify_all(own_.region(), &local), -EINVAL);
  own_.options().read_only = true;
  shmipc_region_t *reader = own_.Attach();
  auto *event = static_cast<shmipc_event_t *>(shmipc_region_data(reader));
  EXPECT_EQ(shmipc_event_wait(reader, event, 0, 0), -EROFS);
  EXPECT_EQ(shmipc_event_notify_one(reader, event), -EROFS);
  shmipc_region_close(reader);
  Process child([&] { return Wait(0, 0) == -ECHILD ? 0 : 1; });
  EXPECT_EQ(child.Wait(), 0);
}

TEST_P(EventTest, ProcessesHandEachOtherTurns) {
  constexpr uint64_t kTurns = 4000;
  auto play = [&](uint64_t who) {
    for (uint64_t i = 0; i < kTurns; i++) {
      for (;;) {
        uint32_t key = Key();
        if (board_->turn % 2 == who) {
          break;
        }
        if (Wait(key) != 0) {
          return 1;
        }
      }
      board_->turn++;
      if (shmipc_event_notify_one(own_.region(), &board_->event) != 0) {
        return 2;
      }
    }
    return 0;
  };
  Process other([&] {
    AttachInChild();
    return play(1);
  });
  EXPECT_EQ(play(0), 0);
  EXPECT_EQ(other.Wait(), 0);
  EXPECT_EQ(board_->turn, 2 * kTurns);
}

TEST_P(EventTest, DeadWaiterHarmsNobodyAndItsMarkGoesAway) {
  Process dies([&] {
    AttachInChild();
    return Wait(Key());
  });
  WaitForSleeper(&board_->event);
  dies.Kill();
  uint32_t key = Key();
  EXPECT_EQ(shmipc_event_notify_one(own_.region(), &board_->event), 0);
  EXPECT_EQ(board_->event.word & 1, 0u) << "nobody was there to be woken";
  EXPECT_EQ(Wait(key, 0), 0);
}

TEST_P(EventTest, ConditionNeedsItsMutex) {
  EXPECT_EQ(
      shmipc_condition_wait(own_.region(), &board_->filled, &board_->mutex, 0),
      -EPERM);
  ASSERT_EQ(Lock(), 0);
  EXPECT_EQ(shmipc_condition_wait(own_.region(), &board_->filled,
                                  &board_->mutex, 5 * kMs),
            -ETIMEDOUT);
  EXPECT_EQ(Unlock(), 0) << "held after the timeout";
}

TEST_P(EventTest, ConditionsJoinProducersAndConsumers) {
  constexpr uint64_t kItems = 4000;
  auto produce = [&] {
    for (uint64_t i = 0; i < kItems; i++) {
      ASSERT_EQ(Lock(), 0);
      while (board_->num_items == 3) {
        ASSERT_EQ(shmipc_condition_wait(own_.region(), &board_->emptied,
                                        &board_->mutex, kLong),
                  0);
      }
      board_->num_items++;
      ASSERT_EQ(Unlock(), 0);
      EXPECT_EQ(shmipc_condition_signal(own_.region(), &board_->filled), 0);
    }
  };
  auto consume = [&] {
    for (uint64_t i = 0; i < kItems; i++) {
      ASSERT_EQ(Lock(), 0);
      while (board_->num_items == 0) {
        ASSERT_EQ(shmipc_condition_wait(own_.region(), &board_->filled,
                                        &board_->mutex, kLong),
                  0);
      }
      board_->num_items--;
      board_->num_taken++;
      EXPECT_EQ(shmipc_condition_broadcast(own_.region(), &board_->emptied), 0);
      ASSERT_EQ(Unlock(), 0);
    }
  };
  std::vector<std::thread> threads;
  for (int i = 0; i < 2; i++) {
    threads.emplace_back(produce);
    threads.emplace_back(consume);
  }
  for (std::thread &thread : threads) {
    thread.join();
  }
  EXPECT_EQ(board_->num_taken, 2 * kItems);
  EXPECT_EQ(board_->num_items, 0u);
}

TEST_P(EventTest, ConditionReportsTheDeathOfTheMutexOwner) {
  ASSERT_EQ(Lock(), 0);
  Process dies([&] {
    AttachInChild();
    if (Lock() != 0 ||
        shmipc_condition_signal(own_.region(), &board_->filled) != 0) {
      return 1;
    }
    return 0;  // Without unlocking.
  });
  EXPECT_EQ(shmipc_condition_wait(own_.region(), &board_->filled,
                                  &board_->mutex, kLong),
            -EOWNERDEAD);
  EXPECT_EQ(shmipc_mutex_consistent(own_.region(), &board_->mutex), 0);
  EXPECT_EQ(Unlock(), 0);
  EXPECT_EQ(dies.Wait(), 0);
}

}  // namespace
