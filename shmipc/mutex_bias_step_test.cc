// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// The thread to which a mutex is biased is killed, or stopped, at every
// instruction of locking and unlocking, and another takes the mutex: it gets it
// at once unless the first has it, and then never; nothing torn goes unsaid;
// and the stopped one, which goes on, does not come in beside the other.
//
// A process is stepped by ptrace. Skipped where that is not permitted. Of the
// one that ends a bias every seventh instruction, others each time;
// SHMIPC_STRIDE=1 for all.

#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cinttypes>
#include <cstdio>
#include <fstream>
#include <random>
#include <string>
#include <thread>

#include "gtest/gtest.h"
#include "shmipc/lock_word.h"
#include "shmipc/mutex.h"
#include "shmipc/region_internal.h"
#include "shmipc/shmipc_testing.h"

namespace {

using shmipc_testing::Count;
using shmipc_testing::Outcome;
using shmipc_testing::Problems;
using shmipc_testing::Seed;
using shmipc_testing::StepAndKill;
using shmipc_testing::Stepped;
using shmipc_testing::TestRegion;
using shmipc_testing::Watchdog;

constexpr int64_t kHang = 5000000000;

struct Board {
  shmipc_mutex_t mutex;
  shmipc_mutex_t other;
  uint64_t a;
  uint64_t b;
  std::atomic<pid_t> stepped;
  std::atomic<uint32_t> is_ours;     // The taker has it.
  std::atomic<uint32_t> num_beside;  // The other came in meanwhile.
};

// What the mutex is when the stepping begins.
enum class Start {
  kNew,
  kBiased,  // To the one that is stepped.
  kBiasedToOther,
  kHeldByOther,  // Which has the bias, too.
  kShared
};

class MutexBiasStepTest : public testing::Test {
 protected:
  void BiasToThis() {
    EXPECT_EQ(Lock(0), 0);
    EXPECT_EQ(Unlock(), 0);
    EXPECT_TRUE(shmipc_word_is_biased(Word()));
  }
  int Lock(int64_t timeout_ns) {
    return shmipc_mutex_lock(own_.region(), &board_->mutex, timeout_ns);
  }
  int Unlock() {
    return shmipc_mutex_unlock(own_.region(), &board_->mutex);
  }
  uint32_t Word() const {
    return __atomic_load_n(&board_->mutex.word, __ATOMIC_RELAXED);
  }
  // In the child, which is stopped once it is ready.
  void LockAndUnlock(Start start, int64_t timeout_ns = kHang) {
    if (own_.AttachInChild() == nullptr) {
      _exit(3);
    }
    board_ = own_.data<Board>();
    // So that the thread has its record.
    (void)!shmipc_mutex_lock(own_.region(), &board_->other, kHang);
    (void)shmipc_mutex_unlock(own_.region(), &board_->other);
    if (start == Start::kBiased) {
      BiasToThis();
    }
    board_->stepped = getpid();
    raise(SIGSTOP);
    if (Lock(timeout_ns) == 0) {
      board_->num_beside += board_->is_ours;
      *const_cast<volatile uint64_t *>(&board_->a) += 1;
      *const_cast<volatile uint64_t *>(&board_->b) += 1;
      board_->num_beside += board_->is_ours;
      (void)Unlock();
    }
  }

  static bool IsAsleep(pid_t process) {
    std::ifstream file("/proc/" + std::to_string(process) + "/stat");
    std::string number;
    std::string name;  // Without a blank.
    std::string state;
    file >> number >> name >> state;
    return state == "S";
  }
  static void WaitFor(const std::atomic<bool> &flag) {
    while (!flag) {
      std::this_thread::yield();
    }
  }

  void SetUp() override {
    if (!own_.region()->is_registered) {
      GTEST_SKIP() << "membarrier(2) is refused";
    }
  }

  static uint64_t Stride() {
    return std::max<uint64_t>(1, Count("SHMIPC_STRIDE", 7));
  }

  Watchdog watchdog_{240};
  TestRegion own_{SHMIPC_MEMFD, sizeof(Board)};
  Board *board_ = own_.data<Board>();
};

TEST_F(MutexBiasStepTest, KilledAtEachInstruction) {
  std::mt19937_64 random(Seed());
  for (Start start : {Start::kNew, Start::kBiased, Start::kBiasedToOther,
                      Start::kHeldByOther}) {
    bool is_held = start == Start::kHeldByOther;
    uint64_t num_told = 0;
    uint64_t num_free = 0;
    Outcome outcome = Outcome::kKilled;
    // Waiting is long.
    uint64_t stride = start == Start::kBiasedToOther || is_held ? Stride() : 1;
    for (uint64_t step = random() % stride; outcome != Outcome::kCameThrough;
         step += stride) {
      shmipc_mutex_init(&board_->mutex);
      shmipc_mutex_init(&board_->other);
      if (start == Start::kBiasedToOther || is_held) {
        BiasToThis();
        ASSERT_EQ(is_held ? Lock(0) : 0, 0);
      }
      outcome =
          StepAndKill(step, [&] { LockAndUnlock(start, is_held ? 0 : kHang); });
      if (outcome == Outcome::kNotPermitted) {
        GTEST_SKIP() << "ptrace is not permitted";
      }
      if (is_held) {
        ASSERT_EQ(Lock(0), -EDEADLK);
        ASSERT_EQ(Unlock(), 0);
      }
      int status = Lock(kHang);
      ASSERT_TRUE(status == 0 || (status == -EOWNERDEAD && !is_held)) << status;
      if (status == 0) {
        ASSERT_EQ(board_->a, board_->b) << "torn, and nobody said so";
        num_free++;
      } else {
        board_->b = board_->a;
        num_told++;
        ASSERT_EQ(shmipc_mutex_consistent(own_.region(), &board_->mutex), 0);
      }
      ASSERT_EQ(Unlock(), 0);
      ASSERT_GE(shmipc_region_recover(own_.region()), 0);
      ASSERT_EQ(Problems(own_.region()), "");
    }
    EXPECT_GE(num_told, is_held ? 0u : 3u);
    EXPECT_GE(num_free, 3u);
    printf("start %d: killed at %" PRIu64 " instructions, told at %" PRIu64
           " of them\n",
           static_cast<int>(start), num_told + num_free - 1, num_told);
  }
}

TEST_F(MutexBiasStepTest, StoppedAtEachInstruction) {
  std::mt19937_64 random(Seed());
  for (Start start :
       {Start::kNew, Start::kBiased, Start::kBiasedToOther, Start::kShared}) {
    uint64_t num_held = 0;
    uint64_t num_free = 0;
    bool is_within = true;
    uint64_t stride = start == Start::kBiasedToOther ? Stride() : 1;
    for (uint64_t step = random() % stride; is_within; step += stride) {
      shmipc_mutex_init(&board_->mutex);
      shmipc_mutex_init(&board_->other);
      if (start == Start::kShared) {
        board_->mutex.word = SHMIPC_WORD_SHARED;
      }
      std::atomic<bool> is_ready{false};
      std::atomic<bool> may_try{false};
      std::atomic<bool> has_tried{false};
      std::atomic<bool> is_over{false};
      int status = -ETIMEDOUT;
      // Another thread, since this one is the tracer.
      std::thread taker([&] {
        if (start == Start::kBiasedToOther) {
          BiasToThis();
        }
        is_ready = true;
        WaitFor(may_try);
        if (is_over) {
          return;
        }
        status = Lock(0);
        board_->is_ours = status == 0;
        has_tried = true;
        // Until the first one waits for it, or was done before.
        while (status == 0 && !is_over && !IsAsleep(board_->stepped)) {
          std::this_thread::yield();
        }
        if (status == 0) {
          EXPECT_EQ(board_->a, board_->b);
          board_->is_ours = 0;
          EXPECT_EQ(Unlock(), 0);
        }
      });
      WaitFor(is_ready);
      Stepped first([&] { LockAndUnlock(start); });
      if (!first.is_stopped()) {
        is_over = true;
        may_try = true;
        taker.join();
        GTEST_SKIP() << "ptrace is not permitted";
      }
      is_within = first.Step(step);
      may_try = true;
      WaitFor(has_tried);
      first.GoOn();
      is_over = true;
      taker.join();
      ASSERT_TRUE(status == 0 || status == -ETIMEDOUT) << status;
      (status == 0 ? num_free : num_held)++;
      ASSERT_EQ(board_->num_beside, 0u) << "two owners, stopped at " << step;
      ASSERT_EQ(board_->a, board_->b);
      // Nobody has it now.
      ASSERT_EQ(Lock(0), 0) << "stopped at " << step;
      ASSERT_EQ(Unlock(), 0);
    }
    EXPECT_GE(num_held, 3u);
    EXPECT_GE(num_free, 3u);
    printf("start %d: stopped at %" PRIu64
           " instructions, it had the mutex at %" PRIu64 " of them\n",
           static_cast<int>(start), num_held + num_free, num_held);
  }
}

}  // namespace
