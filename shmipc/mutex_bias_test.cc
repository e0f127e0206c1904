// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// A mutex that only one thread has ever had, and what others find
// (lock_word.c): whose it is afterwards, with which calls of membarrier(2), and
// where the kernel refuses them. What is done from inside such a call is what
// the other thread does in that time.

#include <linux/membarrier.h>
#include <sys/syscall.h>

#include <atomic>
#include <cerrno>
#include <condition_variable>
#include <cstdarg>
#include <functional>
#include <mutex>
#include <random>
#include <string>
#include <thread>
#include <utility>

#include "gtest/gtest.h"
#include "shmipc/block_internal.h"
#include "shmipc/lock_word.h"
#include "shmipc/mutex.h"
#include "shmipc/root.h"
#include "shmipc/rwlock.h"
#include "shmipc/shmipc_testing.h"

namespace {

std::atomic<bool> refuses_to_register;
std::atomic<bool> refuses_barriers;
std::atomic<int> barriers;
std::atomic<int> interrupts;  // So many pauses are ended by a signal.
// Called once, then forgotten, from inside the next barrier.
std::function<void()> in_barrier;

}  // namespace

extern "C" long syscall(long number, ...) {
  long a[6];
  va_list list;
  va_start(list, number);
  shmipc_testing::ReadArguments(list, &a);
  va_end(list);
  if (number == SYS_membarrier) {
    bool registers = a[0] == MEMBARRIER_CMD_REGISTER_GLOBAL_EXPEDITED;
    if (!registers) {
      barriers++;
      std::function<void()> work = std::exchange(in_barrier, nullptr);
      if (work) {
        work();
      }
    }
    if (registers ? refuses_to_register : refuses_barriers) {
      errno = EPERM;
      return -1;
    }
  }
  if (number == SYS_clock_nanosleep && interrupts > 0) {
    interrupts--;
    errno = EINTR;
    return -1;
  }
  return shmipc_testing::RawCall(number, a);
}

namespace {

using shmipc_testing::NowNs;
using shmipc_testing::Problems;
using shmipc_testing::Seed;
using shmipc_testing::TestRegion;
using shmipc_testing::Watchdog;

constexpr int64_t kMs = 1000000;
constexpr int64_t kLong = 20000 * kMs;

// A thread that does one thing after the other.
class Worker {
 public:
  Worker() : thread_([this] { Run(); }) {
  }
  ~Worker() {
    End();
  }
  // Returns when it is done.
  void Do(const std::function<void()> &work) {
    std::unique_lock<std::mutex> lock(mutex_);
    work_ = work;
    changed_.notify_all();
    changed_.wait(lock, [&] { return work_ == nullptr; });
  }
  void End() {
    if (thread_.joinable()) {
      {
        std::lock_guard<std::mutex> lock(mutex_);
        is_over_ = true;
        changed_.notify_all();
      }
      thread_.join();
    }
  }

 private:
  void Run() {
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
      changed_.wait(lock, [&] { return work_ != nullptr || is_over_; });
      if (work_ == nullptr) {
        return;
      }
      work_();
      work_ = nullptr;
      changed_.notify_all();
    }
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  std::function<void()> work_;
  bool is_over_ = false;
  std::thread thread_;
};

struct Board {
  shmipc_mutex_t mutex;
  shmipc_mutex_t other;
  shmipc_rwlock_t rwlock;
};

class MutexBiasTest : public testing::Test {
 protected:
  MutexBiasTest() {
    refuses_to_register = false;
    refuses_barriers = false;
    barriers = 0;
    interrupts = 0;
  }
  void SetUp() override {
    if (!own_.region()->is_registered) {
      GTEST_SKIP() << "membarrier(2) is refused";
    }
  }
  ~MutexBiasTest() override {
    refuses_to_register = false;
    refuses_barriers = false;
    in_barrier = nullptr;
  }

  int Lock(int64_t timeout_ns = kLong) {
    return shmipc_mutex_lock(own_.region(), &board_->mutex, timeout_ns);
  }
  int Unlock() {
    return shmipc_mutex_unlock(own_.region(), &board_->mutex);
  }
  int Consistent() {
    return shmipc_mutex_consistent(own_.region(), &board_->mutex);
  }
  uint32_t Word() const {
    return __atomic_load_n(&board_->mutex.word, __ATOMIC_RELAXED);
  }
  bool IsBiased() const {
    return shmipc_word_is_biased(Word());
  }
  // By the worker.
  void TheyLock() {
    first_.Do([&] { ASSERT_EQ(Lock(), 0); });
  }
  void TheyUnlock() {
    first_.Do([&] { ASSERT_EQ(Unlock(), 0); });
  }
  // It has the bias afterwards, and not the mutex.
  void Bias() {
    TheyLock();
    TheyUnlock();
    ASSERT_TRUE(IsBiased());
  }
  // Takes it, and gives it back.
  void ExpectFree() {
    EXPECT_EQ(Lock(), 0);
    EXPECT_EQ(Word() & ~SHMIPC_WORD_WAITERS & ~SHMIPC_WORD_OWNER,
              SHMIPC_WORD_SHARED);
    EXPECT_EQ(Unlock(), 0);
    EXPECT_EQ(Word(), SHMIPC_WORD_SHARED);
    EXPECT_EQ(Problems(own_.region()), "");
  }

  Watchdog watchdog_{120};
  TestRegion own_{SHMIPC_MEMFD, sizeof(Board)};
  Board *board_ = own_.data<Board>();
  Worker first_;  // Dies before the region.
};

TEST_F(MutexBiasTest, ItsThreadChangesNoWord) {
  ASSERT_EQ(Lock(), 0);
  uint32_t word = Word();
  EXPECT_TRUE(shmipc_word_is_biased(word));
  for (int i = 0; i < 3; i++) {
    EXPECT_EQ(Unlock(), 0);
    EXPECT_EQ(Word(), word);
    EXPECT_EQ(Unlock(), -EPERM);
    EXPECT_EQ(Consistent(), -EPERM);
    EXPECT_EQ(Lock(0), 0);
    EXPECT_EQ(Word(), word);
    EXPECT_EQ(Lock(), -EDEADLK);
    EXPECT_EQ(Consistent(), -EINVAL);
  }
  // Behind another, and not the last to be unlocked.
  EXPECT_EQ(Unlock(), 0);
  ASSERT_EQ(shmipc_mutex_lock(own_.region(), &board_->other, 0), 0);
  EXPECT_EQ(Lock(), 0);
  EXPECT_EQ(Lock(), -EDEADLK);
  EXPECT_EQ(shmipc_mutex_unlock(own_.region(), &board_->other), 0);
  EXPECT_EQ(Unlock(), 0);
  EXPECT_EQ(Word(), word);
  EXPECT_EQ(barriers, 0);
  first_.Do([&] { ExpectFree(); });
}

TEST_F(MutexBiasTest, AnotherEndsItForGoodWithOneBarrier) {
  Bias();
  ExpectFree();
  EXPECT_EQ(barriers, 1);
  TheyLock();
  EXPECT_FALSE(IsBiased());
  EXPECT_EQ(Lock(0), -ETIMEDOUT);
  TheyUnlock();
  ExpectFree();
  EXPECT_EQ(barriers, 1);
}

TEST_F(MutexBiasTest, WhoHasItKeepsIt) {
  TheyLock();
  EXPECT_TRUE(IsBiased());
  EXPECT_EQ(Lock(0), -ETIMEDOUT);
  EXPECT_FALSE(IsBiased());
  EXPECT_EQ(Lock(kMs), -ETIMEDOUT);
  EXPECT_EQ(barriers, 1);
  EXPECT_EQ(Problems(own_.region()), "");
  first_.Do([&] { EXPECT_EQ(Lock(), -EDEADLK); });
  TheyUnlock();
  ExpectFree();
}

TEST_F(MutexBiasTest, WhoSleepsIsWoken) {
  TheyLock();
  std::thread sleeper([&] { ExpectFree(); });
  while (IsBiased() || (Word() & SHMIPC_WORD_WAITERS) == 0) {
    std::this_thread::yield();
  }
  TheyUnlock();
  sleeper.join();
}

TEST_F(MutexBiasTest, ItsThreadLocksDuringTheBarrier) {
  Bias();
  in_barrier = [&] {
    TheyLock();
  };
  EXPECT_EQ(Lock(0), -ETIMEDOUT);
  EXPECT_FALSE(IsBiased());
  TheyUnlock();
  ExpectFree();
}

TEST_F(MutexBiasTest, ItsThreadUnlocksDuringTheBarrier) {
  TheyLock();
  in_barrier = [&] {
    TheyUnlock();
  };
  EXPECT_EQ(Lock(0), 0);
  EXPECT_EQ(Unlock(), 0);
  ExpectFree();
}

TEST_F(MutexBiasTest, ItsThreadLocksAndUnlocksDuringTheBarrier) {
  Bias();
  in_barrier = [&] {
    TheyLock();
    TheyUnlock();
  };
  EXPECT_EQ(Lock(0), 0);
  EXPECT_EQ(Unlock(), 0);
  ExpectFree();
}

TEST_F(MutexBiasTest, AThirdTakesItDuringTheBarrier) {
  Bias();
  Worker third;
  in_barrier = [&] {
    third.Do([&] { EXPECT_EQ(Lock(0), 0); });
  };
  EXPECT_EQ(Lock(0), -ETIMEDOUT);
  third.Do([&] { EXPECT_EQ(Unlock(), 0); });
  ExpectFree();
}

TEST_F(MutexBiasTest, ItsThreadEndsWithoutIt) {
  Bias();
  first_.End();
  EXPECT_TRUE(IsBiased());
  EXPECT_EQ(Problems(own_.region()), "");
  ExpectFree();
}

TEST_F(MutexBiasTest, ItsThreadEndsWithIt) {
  for (bool in_the_middle : {false, true}) {
    shmipc_mutex_init(&board_->mutex);
    Worker owner;
    owner.Do([&] { ASSERT_EQ(Lock(), 0); });
    if (in_the_middle) {
      in_barrier = [&] {
        owner.End();
      };
    } else {
      owner.End();
    }
    EXPECT_EQ(Lock(0), -EOWNERDEAD);
    EXPECT_EQ(Consistent(), 0);
    EXPECT_EQ(Unlock(), 0);
    ExpectFree();
  }
}

// The next thread has the record by then, and waits for the mutex as we do.
TEST_F(MutexBiasTest, TheNextThreadsNoteIsNotItsThreads) {
  Bias();
  std::thread next;
  std::atomic<bool> has_noted{false};
  std::atomic<bool> goes_on{false};
  in_barrier = [&] {
    first_.End();
    in_barrier = [&] {
      has_noted = true;
      while (!goes_on) {
        std::this_thread::yield();
      }
    };
    next = std::thread([&] { ExpectFree(); });
    while (!has_noted) {
      std::this_thread::yield();
    }
  };
  EXPECT_EQ(Lock(0), 0);
  goes_on = true;
  EXPECT_EQ(Unlock(), 0);
  next.join();
  EXPECT_EQ(barriers, 2);
  ExpectFree();
}

// The other comes at any instruction of its thread, on another CPU.
TEST_F(MutexBiasTest, TwoThatMeetExcludeEachOther) {
  constexpr uint64_t kRounds = 5000;
  constexpr uint64_t kTimes = 30;  // By the first one.
  std::mt19937_64 random(Seed());
  std::atomic<uint64_t> begun{0};
  std::atomic<uint64_t> done{0};
  uint64_t counter = 0;
  uint64_t num_biased = 0;
  std::thread first([&] {
    for (uint64_t round = 1; round <= kRounds; round++) {
      shmipc_mutex_init(&board_->mutex);
      for (uint64_t i = 0; i < kTimes; i++) {
        ASSERT_EQ(Lock(), 0);
        counter++;
        ASSERT_EQ(Unlock(), 0);
        begun = round;
      }
      while (done != round) {
        shmipc_pause();
      }
    }
  });
  for (uint64_t round = 1; round <= kRounds; round++) {
    while (begun != round) {
      shmipc_pause();
    }
    for (uint64_t i = random() % 500; i > 0; i--) {
      __atomic_signal_fence(__ATOMIC_SEQ_CST);
    }
    num_biased += IsBiased();
    ASSERT_EQ(Lock(), 0);
    counter++;
    ASSERT_EQ(Unlock(), 0);
    done = round;
  }
  first.join();
  EXPECT_EQ(counter, kRounds * (kTimes + 1));
  EXPECT_EQ(num_biased, kRounds);
  EXPECT_EQ(Problems(own_.region()), "");
}

TEST_F(MutexBiasTest, WhoCannotRegisterHasNoBias) {
  refuses_to_register = true;
  TestRegion late(SHMIPC_MEMFD, sizeof(Board));
  auto *board = late.data<Board>();
  shmipc_mutex_t *mutex = &board->mutex;
  ASSERT_EQ(shmipc_mutex_lock(late.region(), mutex, 0), 0);
  EXPECT_FALSE(shmipc_word_is_biased(mutex->word));
  uint32_t name = mutex->word & SHMIPC_WORD_OWNER;
  EXPECT_EQ(shmipc_mutex_unlock(late.region(), mutex), 0);
  EXPECT_EQ(mutex->word, SHMIPC_WORD_SHARED);
  // One of the same name, long ago, could.
  mutex->word = name;
  ASSERT_EQ(shmipc_mutex_lock(late.region(), mutex, 0), 0);
  EXPECT_EQ(mutex->word, name | SHMIPC_WORD_SHARED);
  EXPECT_EQ(shmipc_mutex_unlock(late.region(), mutex), 0);
  EXPECT_EQ(mutex->word, SHMIPC_WORD_SHARED);
  EXPECT_EQ(barriers, 0);
}

// When its thread comes to look, the memory may be anything else.
TEST_F(MutexBiasTest, OnlyWhatIsLeftForItIsHandedOver) {
  shmipc_self_t *self;
  ASSERT_EQ(shmipc_self_find(own_.region(), &self), 0);
  const uint32_t kFlags[] = {SHMIPC_WORD_SHARED, SHMIPC_WORD_DIED,
                             SHMIPC_WORD_WAITERS};
  for (uint32_t bits = 0; bits < 8; bits++) {
    uint32_t flags = 0;
    for (uint32_t i = 0; i < 3; i++) {
      flags |= (bits >> i & 1) * kFlags[i];
    }
    bool is_left = (flags & ~SHMIPC_WORD_SHARED) == SHMIPC_WORD_WAITERS;
    for (uint32_t name : {self->id, self->id + 1}) {
      uint32_t word = name | flags;
      shmipc_word_hand_over(self, &word);
      EXPECT_EQ(word, is_left && name == self->id ? SHMIPC_WORD_SHARED
                                                  : name | flags);
    }
  }
}

TEST_F(MutexBiasTest, WhoMayNotCallTheBarrierWaitsInstead) {
  refuses_barriers = true;
  Bias();
  interrupts = 3;
  int64_t start = NowNs();
  ExpectFree();
  EXPECT_GE(NowNs() - start, kMs);
  EXPECT_EQ(interrupts, 0);
  shmipc_mutex_init(&board_->mutex);
  TheyLock();
  EXPECT_EQ(Lock(0), -ETIMEDOUT);
  TheyUnlock();
  ExpectFree();
}

TEST_F(MutexBiasTest, MutexesOfTheHeapAndWritersHaveNone) {
  TestRegion heap(SHMIPC_MEMFD, 4096, [](auto *o) { o->heap_bytes = 1 << 20; });
  shmipc_ref_t ref;
  ASSERT_EQ(
      shmipc_root_create(heap.region(), "name", 8, nullptr, nullptr, &ref), 0);
  EXPECT_EQ(shmipc_heap_head_of(heap.region())->roots_mutex.word,
            SHMIPC_WORD_SHARED);
  ASSERT_EQ(
      shmipc_rwlock_write_lock(own_.region(), &board_->rwlock, SHMIPC_FOREVER),
      0);
  EXPECT_FALSE(shmipc_word_is_biased(board_->rwlock.word));
  EXPECT_EQ(shmipc_rwlock_unlock(own_.region(), &board_->rwlock), 0);
}

}  // namespace
