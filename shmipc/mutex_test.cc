// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

#include "shmipc/mutex.h"

#include <sched.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <random>
#include <thread>
#include <vector>

#include "gtest/gtest.h"
#include "shmipc/region_internal.h"
#include "shmipc/shmipc_testing.h"

namespace {

using shmipc_testing::Backends;
using shmipc_testing::NameOf;
using shmipc_testing::NowNs;
using shmipc_testing::Problems;
using shmipc_testing::Process;
using shmipc_testing::Seed;
using shmipc_testing::Shared;
using shmipc_testing::TestRegion;
using shmipc_testing::Watchdog;

constexpr int64_t kMs = 1000000;
// Long enough for whatever should happen.
constexpr int64_t kLong = 20000 * kMs;

struct Board {
  shmipc_mutex_t mutex;
  shmipc_mutex_t more[SHMIPC_HOLDS_MAX + 1];
  uint64_t counter;
};

class MutexTest : public testing::TestWithParam<shmipc_backend_t> {
 protected:
  MutexTest() : own_(GetParam(), sizeof(Board)) {
    board_ = own_.data<Board>();
    mutex_ = &board_->mutex;
  }

  int Lock(int64_t timeout_ns = kLong) {
    return shmipc_mutex_lock(own_.region(), mutex_, timeout_ns);
  }
  int Unlock() {
    return shmipc_mutex_unlock(own_.region(), mutex_);
  }
  int Consistent() {
    return shmipc_mutex_consistent(own_.region(), mutex_);
  }

  // A process that has the mutex and does `then`, once it has it.
  Process Owner(const std::function<int()> &then) {
    *is_held_ = 0;
    Process owner([&] {
      own_.AttachInChild();
      mutex_ = &own_.data<Board>()->mutex;
      int status = Lock();
      *is_held_ = 1;
      return status != 0 ? 100 : then();
    });
    while (*is_held_ == 0) {
      std::this_thread::yield();
    }
    return owner;
  }
  static int WaitToBeKilled() {
    for (;;) {
      pause();
    }
  }

  Watchdog watchdog_{120};
  Shared<std::atomic<int>> is_held_;
  TestRegion own_;
  Board *board_;
  shmipc_mutex_t *mutex_;
};

INSTANTIATE_TEST_SUITE_P(All, MutexTest, testing::ValuesIn(Backends()),
                         [](const testing::TestParamInfo<shmipc_backend_t> &i) {
                           return std::string(NameOf(i.param));
                         });

TEST_P(MutexTest, IsFreeWhenZeroOrInitialised) {
  EXPECT_EQ(sizeof(shmipc_mutex_t), 4u);
  EXPECT_EQ(Lock(), 0);
  EXPECT_EQ(Unlock(), 0);
  mutex_->word = 0x12345678;
  shmipc_mutex_init(mutex_);
  EXPECT_EQ(Lock(0), 0);
  EXPECT_EQ(Unlock(), 0);
}

TEST_P(MutexTest, MisuseIsRefused) {
  EXPECT_EQ(Unlock(), -EPERM);
  EXPECT_EQ(Consistent(), -EPERM);
  ASSERT_EQ(Lock(), 0);
  EXPECT_EQ(Lock(), -EDEADLK);
  EXPECT_EQ(Lock(0), -EDEADLK);
  EXPECT_EQ(Consistent(), -EINVAL);
  std::thread other([&] {
    EXPECT_EQ(Unlock(), -EPERM);
    EXPECT_EQ(Lock(kMs), -ETIMEDOUT);
  });
  other.join();
  EXPECT_EQ(Unlock(), 0);
  EXPECT_EQ(Unlock(), -EPERM);
  EXPECT_EQ(Problems(own_.region()), "");
}

TEST_P(MutexTest, PointersOutsideTheDataAreRefused) {
  shmipc_mutex_t local = {};
  unsigned char *data = own_.data<unsigned char>();
  for (void *where :
       {static_cast<void *>(&local), static_cast<void *>(own_.region()->base),
        static_cast<void *>(data - 4), static_cast<void *>(data + 1),
        static_cast<void *>(data + shmipc_region_size(own_.region()))}) {
    auto *mutex = static_cast<shmipc_mutex_t *>(where);
    EXPECT_EQ(shmipc_mutex_lock(own_.region(), mutex, 0), -EINVAL);
    EXPECT_EQ(shmipc_mutex_unlock(own_.region(), mutex), -EINVAL);
  }
}

TEST_P(MutexTest, ReadOnlyAndForkedMayNotLock) {
  own_.options().read_only = true;
  shmipc_region_t *reader = own_.Attach();
  auto *mutex = static_cast<shmipc_mutex_t *>(shmipc_region_data(reader));
  EXPECT_EQ(shmipc_mutex_lock(reader, mutex, 0), -EROFS);
  shmipc_region_close(reader);
  ASSERT_EQ(Lock(), 0);
  Process child(
      [&] { return Lock(0) == -ECHILD && Unlock() == -ECHILD ? 0 : 1; });
  EXPECT_EQ(child.Wait(), 0);
  EXPECT_EQ(Unlock(), 0) << "the child's end is not ours";
}

TEST_P(MutexTest, HoldsAreLimitedAndReleasedInAnyOrder) {
  std::mt19937_64 random(Seed());
  for (int round = 0; round < 20; round++) {
    std::vector<shmipc_mutex_t *> held;
    for (int i = 0; i < SHMIPC_HOLDS_MAX; i++) {
      held.push_back(&board_->more[i]);
      ASSERT_EQ(shmipc_mutex_lock(own_.region(), held.back(), 0), 0);
    }
    EXPECT_EQ(Lock(0), -ENOLCK);
    EXPECT_EQ(Problems(own_.region()), "");
    std::shuffle(held.begin(), held.end(), random);
    // A hole in the middle is room for one.
    EXPECT_EQ(shmipc_mutex_unlock(own_.region(), held.back()), 0);
    held.pop_back();
    EXPECT_EQ(Lock(0), 0);
    EXPECT_EQ(Unlock(), 0);
    for (shmipc_mutex_t *mutex : held) {
      ASSERT_EQ(shmipc_mutex_unlock(own_.region(), mutex), 0);
    }
  }
}

TEST_P(MutexTest, AnotherProcessTimesOutNotBefore) {
  Process owner = Owner(WaitToBeKilled);
  for (int64_t timeout : {int64_t{0}, kMs, 30 * kMs}) {
    int64_t start = NowNs();
    EXPECT_EQ(Lock(timeout), -ETIMEDOUT);
    EXPECT_GE(NowNs() - start, timeout);
  }
  EXPECT_EQ(Problems(own_.region()), "");
}

TEST_P(MutexTest, DeathOfTheOwnerIsReportedOnceAndRepaired) {
  for (int64_t timeout : {kLong, SHMIPC_FOREVER, int64_t{0}}) {
    Process owner = Owner(WaitToBeKilled);
    owner.Kill();
    ASSERT_EQ(Lock(timeout), -EOWNERDEAD);
    EXPECT_EQ(Lock(), -EDEADLK) << "it is held";
    EXPECT_EQ(Consistent(), 0);
    EXPECT_EQ(Unlock(), 0);
    EXPECT_EQ(Lock(), 0);
    EXPECT_EQ(Unlock(), 0);
  }
  // Whoever attached recovered those before it.
  EXPECT_EQ(shmipc_region_recover(own_.region()), 1);
  EXPECT_EQ(Problems(own_.region()), "");
}

TEST_P(MutexTest, DeathIsReportedToAWaiterThatSleeps) {
  Process owner = Owner(WaitToBeKilled);
  std::thread waiter([&] {
    EXPECT_EQ(Lock(), -EOWNERDEAD);
    EXPECT_EQ(Consistent(), 0);
    EXPECT_EQ(Unlock(), 0);
  });
  while ((__atomic_load_n(&mutex_->word, __ATOMIC_RELAXED) &
          SHMIPC_WORD_WAITERS) == 0) {
    std::this_thread::yield();
  }
  owner.Kill();
  waiter.join();
}

TEST_P(MutexTest, WithoutRepairItIsNotRecoverable) {
  Owner(WaitToBeKilled).Kill();
  ASSERT_EQ(Lock(), -EOWNERDEAD);
  EXPECT_EQ(Unlock(), 0);
  EXPECT_EQ(Lock(), -ENOTRECOVERABLE);
  EXPECT_EQ(Unlock(), -EPERM);
  shmipc_mutex_init(mutex_);
  EXPECT_EQ(Lock(), 0);
  EXPECT_EQ(Unlock(), 0);
}

TEST_P(MutexTest, DeathDuringTheRepairIsReportedAgain) {
  Owner(WaitToBeKilled).Kill();
  Process repairer([&] {
    own_.AttachInChild();
    mutex_ = &own_.data<Board>()->mutex;
    return Lock() == -EOWNERDEAD ? 0 : 1;
  });
  EXPECT_EQ(repairer.Wait(), 0);
  EXPECT_EQ(Lock(), -EOWNERDEAD);
  EXPECT_EQ(Consistent(), 0);
  EXPECT_EQ(Unlock(), 0);
}

TEST_P(MutexTest, SlotOfTheDeadOwnerMayBeAnothersBefore) {
  Owner(WaitToBeKilled).Kill();
  // Takes the slot and the record of the dead one, and stays.
  Shared<std::atomic<int>> is_ready;
  Process next([&] {
    own_.AttachInChild();
    Board *board = own_.data<Board>();
    int status = shmipc_mutex_lock(own_.region(), &board->more[0], 0);
    *is_ready = status == 0 ? 1 : -1;
    return WaitToBeKilled();
  });
  while (*is_ready == 0) {
    std::this_thread::yield();
  }
  EXPECT_EQ(*is_ready, 1);
  EXPECT_EQ(Lock(), -EOWNERDEAD);
  EXPECT_EQ(Consistent(), 0);
  EXPECT_EQ(Unlock(), 0);
  EXPECT_EQ(Problems(own_.region()), "");
}

TEST_P(MutexTest, ThreadThatEndsWithItIsADeadOwner) {
  std::thread owner([&] { EXPECT_EQ(Lock(), 0); });
  owner.join();
  EXPECT_EQ(Lock(), -EOWNERDEAD);
  EXPECT_EQ(Consistent(), 0);
  EXPECT_EQ(Unlock(), 0);
}

TEST_P(MutexTest, ManyThreadsInTurnNeedOneRecord) {
  TestRegion small(GetParam(), sizeof(Board),
                   [](auto *o) { o->max_threads = 2; });
  auto *mutex = small.data<shmipc_mutex_t>();
  ASSERT_EQ(shmipc_mutex_lock(small.region(), mutex, 0), 0);
  ASSERT_EQ(shmipc_mutex_unlock(small.region(), mutex), 0);
  for (int i = 0; i < 20; i++) {
    std::thread other([&] {
      EXPECT_EQ(shmipc_mutex_lock(small.region(), mutex, 0), 0);
      std::thread third([&] {
        EXPECT_EQ(shmipc_mutex_lock(small.region(), mutex, 0), -ENFILE);
      });
      third.join();
      EXPECT_EQ(shmipc_mutex_unlock(small.region(), mutex), 0);
    });
    other.join();
  }
}

TEST_P(MutexTest, CloseReleasesAsDeathDoes) {
  shmipc_region_t *second = own_.Attach();
  auto *mutex = static_cast<shmipc_mutex_t *>(shmipc_region_data(second));
  ASSERT_EQ(shmipc_mutex_lock(second, mutex, 0), 0);
  EXPECT_EQ(Lock(0), -ETIMEDOUT) << "another attachment is another owner";
  shmipc_region_close(second);
  EXPECT_EQ(Lock(), -EOWNERDEAD);
  EXPECT_EQ(Consistent(), 0);
  EXPECT_EQ(Unlock(), 0);
}

TEST_P(MutexTest, ExecWithItIsDeathButNotOnSystemV) {
  if (GetParam() == SHMIPC_SYSV) {
    GTEST_SKIP() << "the kernel keeps SEM_UNDO across exec";
  }
  int pipe_fds[2];
  ASSERT_EQ(pipe(pipe_fds), 0);
  Process owner([&] {
    own_.AttachInChild();
    mutex_ = &own_.data<Board>()->mutex;
    if (Lock() != 0) {
      return 1;
    }
    dup2(pipe_fds[1], 1);
    execl("/bin/sh", "sh", "-c", "echo running; exec sleep 100", nullptr);
    return 1;
  });
  char byte;
  ASSERT_EQ(read(pipe_fds[0], &byte, 1), 1);
  EXPECT_EQ(Lock(), -EOWNERDEAD);
  EXPECT_EQ(Unlock(), 0);
  close(pipe_fds[0]);
  close(pipe_fds[1]);
}

TEST_P(MutexTest, StoppedOwnerIsNeverRobbed) {
  Process owner = Owner([&] {
    raise(SIGSTOP);
    return Unlock() == 0 ? 0 : 1;
  });
  for (int i = 0; i < 5; i++) {
    EXPECT_EQ(Lock(40 * kMs), -ETIMEDOUT);
    EXPECT_EQ(shmipc_region_recover(own_.region()), 0);
  }
  owner.Signal(SIGCONT);
  EXPECT_EQ(Lock(), 0);
  EXPECT_EQ(owner.Wait(), 0);
  EXPECT_EQ(Unlock(), 0);
}

TEST_P(MutexTest, OwnerInAnotherPidNamespaceIsSeenToDie) {
  Shared<std::atomic<int>> step;
  Process outside([&] {
    if (unshare(CLONE_NEWPID) != 0) {
      *step = -1;
      return 0;
    }
    Process inside([&] {
      own_.AttachInChild();
      mutex_ = &own_.data<Board>()->mutex;
      *step = Lock() == 0 && getpid() == 1 ? 1 : -2;
      return WaitToBeKilled();
    });
    while (*step != 2 && *step >= 0) {
      usleep(1000);
    }
    inside.Kill();
    *step = 3;
    return 0;
  });
  while (*step == 0) {
    std::this_thread::yield();
  }
  if (*step == -1) {
    GTEST_SKIP() << "may not make a pid namespace";
  }
  ASSERT_EQ(*step, 1);
  EXPECT_EQ(Lock(10 * kMs), -ETIMEDOUT);
  *step = 2;
  EXPECT_EQ(Lock(), -EOWNERDEAD);
  EXPECT_EQ(Unlock(), 0);
}

TEST_P(MutexTest, ForgedWordsNeverHang) {
  std::mt19937_64 random(Seed());
  ASSERT_EQ(Lock(), 0);
  uint32_t ours = mutex_->word;
  ASSERT_EQ(Unlock(), 0);
  std::vector<uint32_t> words = {
      1,          0xffff,     0xfffe,     0xffffffff, 0x80000000,
      0x40000000, 0xc0000000, 0x00010000, 0x3fff0000, ours ^ 0x10000};
  for (int i = 0; i < 2000; i++) {
    words.push_back(static_cast<uint32_t>(random()));
  }
  int num_taken = 0;
  for (uint32_t word : words) {
    mutex_->word = word;
    int status = Lock(0);
    if (status == 0 || status == -EOWNERDEAD) {
      num_taken++;
      EXPECT_EQ(Unlock(), 0);
    } else {
      EXPECT_TRUE(status == -ETIMEDOUT || status == -ENOTRECOVERABLE ||
                  status == -EDEADLK)
          << word << ' ' << status;
    }
  }
  EXPECT_GT(num_taken, 1900);
  printf("%zu forged words, %d taken\n", words.size(), num_taken);
}

TEST_P(MutexTest, ThreadsExcludeEachOther) {
  constexpr int kThreads = 4;
  constexpr int kRounds = 20000;
  std::vector<std::thread> threads;
  for (int i = 0; i < kThreads; i++) {
    threads.emplace_back([&] {
      for (int j = 0; j < kRounds; j++) {
        ASSERT_EQ(Lock(), 0);
        board_->counter++;
        ASSERT_EQ(Unlock(), 0);
      }
    });
  }
  for (std::thread &thread : threads) {
    thread.join();
  }
  EXPECT_EQ(board_->counter, uint64_t{kThreads} * kRounds);
  EXPECT_EQ(Problems(own_.region()), "");
}

TEST_P(MutexTest, ProcessesExcludeEachOther) {
  constexpr int kProcesses = 3;
  constexpr int kRounds = 20000;
  std::vector<Process> processes;
  for (int i = 0; i < kProcesses; i++) {
    processes.emplace_back([&] {
      own_.AttachInChild();
      Board *board = own_.data<Board>();
      mutex_ = &board->mutex;
      for (int j = 0; j < kRounds; j++) {
        if (Lock() != 0) {
          return 1;
        }
        board->counter++;
        if (Unlock() != 0) {
          return 2;
        }
      }
      return 0;
    });
  }
  for (Process &process : processes) {
    EXPECT_EQ(process.Wait(), 0);
  }
  EXPECT_EQ(board_->counter, uint64_t{kProcesses} * kRounds);
}

TEST_P(MutexTest, ForksWhileThreadsLockHarmNobody) {
  std::atomic<bool> is_done{false};
  std::thread locker([&] {
    while (!is_done) {
      ASSERT_EQ(Lock(), 0);
      board_->counter++;
      ASSERT_EQ(Unlock(), 0);
    }
  });
  for (int i = 0; i < 100; i++) {
    Process child([&] {
      own_.AttachInChild();
      mutex_ = &own_.data<Board>()->mutex;
      return Lock() == 0 && Unlock() == 0 ? 0 : 1;
    });
    ASSERT_EQ(child.Wait(), 0);
  }
  is_done = true;
  locker.join();
  EXPECT_EQ(Problems(own_.region()), "");
}

}  // namespace
