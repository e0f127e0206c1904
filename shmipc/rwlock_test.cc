// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

#include "shmipc/rwlock.h"

#include <signal.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <thread>
#include <vector>

#include "gtest/gtest.h"
#include "shmipc/region_layout.h"
#include "shmipc/shmipc_testing.h"

namespace {

using shmipc_testing::Backends;
using shmipc_testing::NameOf;
using shmipc_testing::NowNs;
using shmipc_testing::Problems;
using shmipc_testing::Process;
using shmipc_testing::Shared;
using shmipc_testing::TestRegion;
using shmipc_testing::Watchdog;

constexpr int64_t kMs = 1000000;
constexpr int64_t kLong = 20000 * kMs;

struct Board {
  shmipc_rwlock_t lock;
  uint64_t a;
  uint64_t b;
};

class RwlockTest : public testing::TestWithParam<shmipc_backend_t> {
 protected:
  RwlockTest() : own_(GetParam(), sizeof(Board)) {
    board_ = own_.data<Board>();
  }

  int Read(int64_t timeout_ns = kLong) {
    return shmipc_rwlock_read_lock(own_.region(), &board_->lock, timeout_ns);
  }
  int Write(int64_t timeout_ns = kLong) {
    return shmipc_rwlock_write_lock(own_.region(), &board_->lock, timeout_ns);
  }
  int Unlock() {
    return shmipc_rwlock_unlock(own_.region(), &board_->lock);
  }
  int Consistent() {
    return shmipc_rwlock_consistent(own_.region(), &board_->lock);
  }

  // A process that has the lock, for `reads` or writing, until it is killed.
  Process Owner(bool reads, int signal = 0) {
    *is_held_ = 0;
    Process owner([&] {
      own_.AttachInChild();
      board_ = own_.data<Board>();
      int status = reads ? Read() : Write();
      *is_held_ = status == 0 ? 1 : -1;
      if (signal != 0) {
        raise(signal);
        return Unlock() == 0 ? 0 : 1;
      }
      for (;;) {
        pause();
      }
    });
    while (*is_held_ == 0) {
      std::this_thread::yield();
    }
    EXPECT_EQ(*is_held_, 1);
    return owner;
  }

  Watchdog watchdog_{120};
  Shared<std::atomic<int>> is_held_;
  TestRegion own_;
  Board *board_;
};

INSTANTIATE_TEST_SUITE_P(All, RwlockTest, testing::ValuesIn(Backends()),
                         [](const testing::TestParamInfo<shmipc_backend_t> &i) {
                           return std::string(NameOf(i.param));
                         });

TEST_P(RwlockTest, ReadersShareAndWritersDoNot) {
  ASSERT_EQ(Read(), 0);
  std::thread others([&] {
    EXPECT_EQ(Read(0), 0);
    EXPECT_EQ(Unlock(), 0);
    EXPECT_EQ(Write(kMs), -ETIMEDOUT);
    EXPECT_EQ(Read(0), 0) << "the writer that gave up is still in the way";
    EXPECT_EQ(Unlock(), 0);
  });
  others.join();
  EXPECT_EQ(Unlock(), 0);
  ASSERT_EQ(Write(), 0);
  std::thread more([&] {
    EXPECT_EQ(Read(0), -ETIMEDOUT);
    EXPECT_EQ(Read(kMs), -ETIMEDOUT);
    EXPECT_EQ(Write(kMs), -ETIMEDOUT);
    EXPECT_EQ(Unlock(), -EPERM);
  });
  more.join();
  EXPECT_EQ(Unlock(), 0);
  EXPECT_EQ(Unlock(), -EPERM);
  EXPECT_EQ(Problems(own_.region()), "");
}

TEST_P(RwlockTest, RecursionIsForReadersOnly) {
  ASSERT_EQ(Read(), 0);
  EXPECT_EQ(Write(), -EDEADLK);
  EXPECT_EQ(Read(), 0);
  EXPECT_EQ(Unlock(), 0);
  std::thread writer([&] { EXPECT_EQ(Write(kMs), -ETIMEDOUT); });
  writer.join();
  EXPECT_EQ(Unlock(), 0);
  ASSERT_EQ(Write(), 0);
  EXPECT_EQ(Write(), -EDEADLK);
  EXPECT_EQ(Read(), -EDEADLK);
  EXPECT_EQ(Consistent(), -EINVAL);
  EXPECT_EQ(Unlock(), 0);
  int count = 0;
  while (Read() == 0) {
    count++;
  }
  EXPECT_EQ(count, SHMIPC_HOLDS_MAX);
  EXPECT_EQ(Read(), -ENOLCK);
  while (count-- > 0) {
    EXPECT_EQ(Unlock(), 0);
  }
}

TEST_P(RwlockTest, ReaderMayReadAgainWhileAWriterWaits) {
  ASSERT_EQ(Read(), 0);
  std::thread writer([&] {
    EXPECT_EQ(Write(), 0);
    EXPECT_EQ(Unlock(), 0);
  });
  while ((__atomic_load_n(&board_->lock.word, __ATOMIC_RELAXED) &
          SHMIPC_WORD_INDEX) == 0) {
    std::this_thread::yield();
  }
  EXPECT_EQ(Read(), 0);
  std::thread reader([&] { EXPECT_EQ(Read(kMs), -ETIMEDOUT); });
  reader.join();
  EXPECT_EQ(Unlock(), 0);
  EXPECT_EQ(Unlock(), 0);
  writer.join();
}

TEST_P(RwlockTest, DeadReaderDoesNotCount) {
  Process reader = Owner(true);
  EXPECT_EQ(Write(10 * kMs), -ETIMEDOUT);
  EXPECT_EQ(Problems(own_.region()), "");
  reader.Kill();
  EXPECT_EQ(Write(), 0);
  EXPECT_EQ(Unlock(), 0);
  // The same, recovered first.
  Owner(true).Kill();
  EXPECT_EQ(shmipc_region_recover(own_.region()), 1);
  EXPECT_EQ(Write(0), 0);
  EXPECT_EQ(Unlock(), 0);
}

TEST_P(RwlockTest, ReaderThreadThatEndsDoesNotCount) {
  std::thread reader([&] { EXPECT_EQ(Read(), 0); });
  reader.join();
  EXPECT_EQ(Write(0), 0);
  EXPECT_EQ(Unlock(), 0);
}

TEST_P(RwlockTest, StoppedReaderCounts) {
  Process reader = Owner(true, SIGSTOP);
  for (int i = 0; i < 3; i++) {
    EXPECT_EQ(Write(30 * kMs), -ETIMEDOUT);
  }
  reader.Signal(SIGCONT);
  EXPECT_EQ(Write(), 0);
  EXPECT_EQ(Unlock(), 0);
  EXPECT_EQ(reader.Wait(), 0);
}

TEST_P(RwlockTest, DeadWriterIsReportedToWritersAndReaders) {
  Owner(false).Kill();
  EXPECT_EQ(Read(), -EOWNERDEAD);
  EXPECT_EQ(Consistent(), -EPERM) << "readers do not repair";
  EXPECT_EQ(Unlock(), 0);
  EXPECT_EQ(Read(), -EOWNERDEAD) << "until a writer has repaired";
  EXPECT_EQ(Unlock(), 0);
  EXPECT_EQ(Write(), -EOWNERDEAD);
  EXPECT_EQ(Consistent(), 0);
  EXPECT_EQ(Unlock(), 0);
  EXPECT_EQ(Read(), 0);
  EXPECT_EQ(Unlock(), 0);
}

TEST_P(RwlockTest, WithoutRepairItIsNotRecoverable) {
  Owner(false).Kill();
  EXPECT_EQ(Write(), -EOWNERDEAD);
  EXPECT_EQ(Unlock(), 0);
  EXPECT_EQ(Write(), -ENOTRECOVERABLE);
  EXPECT_EQ(Read(), -ENOTRECOVERABLE);
  shmipc_rwlock_init(&board_->lock);
  EXPECT_EQ(Read(), 0);
  EXPECT_EQ(Unlock(), 0);
}

TEST_P(RwlockTest, WriterThatGivesUpKeepsTheMarkOfADeath) {
  Owner(false).Kill();
  ASSERT_EQ(Read(), -EOWNERDEAD);
  std::thread writer([&] { EXPECT_EQ(Write(kMs), -ETIMEDOUT); });
  writer.join();
  EXPECT_EQ(Unlock(), 0);
  EXPECT_EQ(Write(), -EOWNERDEAD);
  EXPECT_EQ(Consistent(), 0);
  EXPECT_EQ(Unlock(), 0);
}

TEST_P(RwlockTest, PointersOutsideAndReadOnlyAreRefused) {
  shmipc_rwlock_t local = {};
  EXPECT_EQ(shmipc_rwlock_read_lock(own_.region(), &local, 0), -EINVAL);
  EXPECT_EQ(shmipc_rwlock_write_lock(own_.region(), &local, 0), -EINVAL);
  EXPECT_EQ(shmipc_rwlock_unlock(own_.region(), &local), -EINVAL);
  own_.options().read_only = true;
  shmipc_region_t *reader = own_.Attach();
  auto *lock = static_cast<shmipc_rwlock_t *>(shmipc_region_data(reader));
  EXPECT_EQ(shmipc_rwlock_read_lock(reader, lock, 0), -EROFS);
  shmipc_region_close(reader);
}

TEST_P(RwlockTest, ThreadsSeeWholeData) {
  constexpr int kRounds = 10000;
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; i++) {
    threads.emplace_back([&, i] {
      for (int j = 0; j < kRounds; j++) {
        bool writes = (j + i) % 4 == 0;
        ASSERT_EQ(writes ? Write() : Read(), 0);
        ASSERT_EQ(board_->a, board_->b);
        if (writes) {
          board_->a++;
          board_->b++;
        }
        ASSERT_EQ(Unlock(), 0);
      }
    });
  }
  for (std::thread &thread : threads) {
    thread.join();
  }
  EXPECT_EQ(board_->a, uint64_t{kRounds});
  EXPECT_EQ(Problems(own_.region()), "");
}

}  // namespace
