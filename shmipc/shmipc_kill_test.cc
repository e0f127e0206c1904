// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// SIGKILL at random instants of three processes in a tight loop over one
// operation; each one that is killed is replaced. Nobody may hang (every wait
// has a timeout that is far longer than any it should take), no lock may be
// owned twice, and after a recovery nothing is left.
//
// 150 kills for each operation, fewer for all kinds of region but one, or
// SHMIPC_KILLS of them.
// SHMIPC_TEST_SEED for other random numbers. Each test prints a line of counts;
// a stall is the time that a survivor waited for a lock, so it includes what
// the scheduler did; as much as that is, bare loops in their place show.

#include <signal.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cinttypes>
#include <cstdio>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "shmipc/event.h"
#include "shmipc/mutex.h"
#include "shmipc/registry.h"
#include "shmipc/rwlock.h"
#include "shmipc/semaphore.h"
#include "shmipc/shmipc_testing.h"

namespace {

using shmipc_testing::Backends;
using shmipc_testing::Name;
using shmipc_testing::NameOf;
using shmipc_testing::NowNs;
using shmipc_testing::NumKills;
using shmipc_testing::Problems;
using shmipc_testing::Process;
using shmipc_testing::Seed;
using shmipc_testing::Shared;
using shmipc_testing::TestRegion;
using shmipc_testing::Watchdog;
using shmipc_testing::WorstGapNs;

constexpr int kWorkers = 3;
constexpr int64_t kPauseNs = 1500000;  // Between two kills, at most.
constexpr int64_t kHang = 5000000000;  // A wait this long is a hang.

struct Board {
  shmipc_mutex_t mutex;
  shmipc_rwlock_t rwlock;
  shmipc_semaphore_t semaphore;
  shmipc_event_t event;
  std::atomic<uint32_t> inside;
  uint64_t a;
  uint64_t b;
  std::atomic<uint64_t> turns;
};

// Outside of the region, so that nothing in it can be the judge.
struct Tally {
  std::atomic<uint64_t> rounds;
  std::atomic<uint64_t> deaths;  // Reported by -EOWNERDEAD.
  std::atomic<uint64_t> hangs;
  std::atomic<uint64_t> double_owned;
  std::atomic<uint64_t> torn;  // Data that is not whole, unreported.
  std::atomic<uint64_t> errors;
  std::atomic<uint64_t> busy;  // That were told to try again.
  std::atomic<uint64_t> boards_used;
  std::atomic<uint64_t> lives;
  std::atomic<int64_t> worst_stall_ns;
  std::atomic<int> last_error;
  std::atomic<uint32_t> is_over;

  void Stall(int64_t ns) {
    int64_t seen = worst_stall_ns;
    while (seen < ns && !worst_stall_ns.compare_exchange_weak(seen, ns)) {
    }
  }
  void Error(int status) {
    if (status == -ETIMEDOUT) {
      hangs++;
    } else {
      errors++;
      last_error = status;
    }
  }
};

class KillTest : public testing::TestWithParam<shmipc_backend_t> {
 protected:
  using Round = std::function<void(shmipc_region_t *, Board *)>;

  // One worker: attaches and goes round until it is killed or all is over.
  int Work(TestRegion *own, const Round &round) {
    shmipc_region_t *region = own->AttachInChild();
    if (region == nullptr) {
      tally_->errors++;
      return 1;
    }
    while (tally_->is_over == 0) {
      round(region, own->data<Board>());
      tally_->rounds++;
    }
    return 0;
  }

  // Kills a random worker after a random time, again and again. All that the
  // supervisor waits for is their ends.
  void Torture(const char *what, const std::function<int()> &work) {
    std::mt19937_64 random(Seed() + static_cast<uint64_t>(GetParam()));
    std::vector<Process> workers;
    for (int i = 0; i < kWorkers; i++) {
      workers.emplace_back(work);
    }
    for (uint64_t i = 0; i < num_kills_; i++) {
      struct timespec pause = {
          0, static_cast<long>(random() % uint64_t{kPauseNs})};
      nanosleep(&pause, nullptr);
      size_t victim = random() % workers.size();
      if (workers[victim].Kill() != -SIGKILL) {
        tally_->errors++;
      }
      workers.erase(workers.begin() + static_cast<long>(victim));
      workers.emplace_back(work);
    }
    tally_->is_over = 1;
    for (Process &worker : workers) {
      EXPECT_EQ(worker.Wait(), 0);
    }
    Report(what);
  }

  void Report(const char *what) {
    printf(
        "%s %s: %" PRIu64 " kills, %" PRIu64 " rounds, %" PRIu64
        " deaths reported, %" PRIu64 " hangs, %" PRIu64
        " double-owned, %" PRIu64 " torn, %" PRIu64
        " errors, worst stall %.2f ms, of bare loops in their place "
        "%.2f ms\n",
        NameOf(GetParam()), what, num_kills_, tally_->rounds.load(),
        tally_->deaths.load(), tally_->hangs.load(),
        tally_->double_owned.load(), tally_->torn.load(), tally_->errors.load(),
        static_cast<double>(tally_->worst_stall_ns) * 1e-6,
        static_cast<double>(WorstGapNs(kWorkers, num_kills_, kPauseNs)) * 1e-6);
    EXPECT_GT(tally_->rounds, 0u);
    EXPECT_EQ(tally_->hangs, 0u);
    EXPECT_EQ(tally_->double_owned, 0u);
    EXPECT_EQ(tally_->torn, 0u);
    EXPECT_EQ(tally_->errors, 0u) << shmipc_strerror(tally_->last_error);
  }

  // Recovers, and finds nothing left of anybody.
  static void ExpectWhole(shmipc_region_t *region) {
    EXPECT_GE(shmipc_region_recover(region), 0);
    shmipc_region_info_t info;
    ASSERT_EQ(shmipc_region_info_get(region, &info), 0);
    EXPECT_EQ(info.num_live, 1u);
    EXPECT_EQ(info.num_dead, 0u);
    EXPECT_EQ(Problems(region), "");
  }

  // System V waits for a name's lock for 100 ms only, which the scheduler takes
  // from whoever has it when the machine is busy.
  void AttachError(int status) {
    if (status == -EBUSY && GetParam() == SHMIPC_SYSV) {
      tally_->busy++;
    } else {
      tally_->Error(status);
    }
  }

  // The owner's part of a round, of a mutex or as a writer.
  void Change(Board *board, bool was_reported) {
    uint32_t me = static_cast<uint32_t>(getpid());
    uint32_t other = board->inside.exchange(me);
    if (other != 0 && !was_reported) {
      tally_->double_owned++;
    }
    if (board->a != board->b && !was_reported) {
      tally_->torn++;
    }
    board->b = board->a;
    std::atomic_signal_fence(std::memory_order_seq_cst);
    board->a++;
    std::atomic_signal_fence(std::memory_order_seq_cst);
    board->b++;
    if (board->inside.exchange(0) != me) {
      tally_->double_owned++;
    }
  }

  void LockAndChange(shmipc_region_t *region, Board *board) {
    int64_t start = NowNs();
    int status = shmipc_mutex_lock(region, &board->mutex, kHang);
    tally_->Stall(NowNs() - start);
    if (status != 0 && status != -EOWNERDEAD) {
      tally_->Error(status);
      return;
    }
    Change(board, status != 0);
    if (status != 0) {
      tally_->deaths++;
      shmipc_mutex_consistent(region, &board->mutex);
    }
    status = shmipc_mutex_unlock(region, &board->mutex);
    if (status != 0) {
      tally_->Error(status);
    }
  }

  uint64_t num_kills_ = NumKills(GetParam(), 150);
  Watchdog watchdog_{static_cast<unsigned int>(60 + num_kills_ / 20)};
  Shared<Tally> tally_;
};

INSTANTIATE_TEST_SUITE_P(All, KillTest, testing::ValuesIn(Backends()),
                         [](const testing::TestParamInfo<shmipc_backend_t> &i) {
                           return std::string(NameOf(i.param));
                         });

TEST_P(KillTest, Mutex) {
  TestRegion own(GetParam(), sizeof(Board));
  Round round = [&](shmipc_region_t *region, Board *board) {
    LockAndChange(region, board);
  };
  Torture("mutex", [&] { return Work(&own, round); });
  EXPECT_GT(tally_->deaths, 0u) << "nobody was killed while it had the mutex";
  ExpectWhole(own.region());
}

// Each has mutexes that nobody else had before, one after the other, and now
// and then comes to those of the others, dead or alive.
TEST_P(KillTest, MutexesOfOne) {
  constexpr uint64_t kBoards = 1 << 15;
  TestRegion own(GetParam(), kBoards * sizeof(Board));
  uint64_t seed = Seed();
  Torture("mutexes of one", [&] {
    std::mt19937_64 random(seed + tally_->lives++);
    uint64_t mine = 0;
    uint64_t left = 0;
    Round round = [&](shmipc_region_t *region, Board *boards) {
      if (left == 0) {
        mine = tally_->boards_used++;
        left = 1 + random() % 3000;
      }
      left--;
      uint64_t board = mine;
      if (random() % 64 == 0) {
        board = mine - std::min<uint64_t>(mine, random() % 6);
      }
      LockAndChange(region, &boards[board % kBoards]);
    };
    return Work(&own, round);
  });
  printf("  %" PRIu64 " mutexes\n", tally_->boards_used.load());
  EXPECT_GT(tally_->deaths, 0u) << "nobody was killed while it had a mutex";
  ExpectWhole(own.region());
}

TEST_P(KillTest, Rwlock) {
  TestRegion own(GetParam(), sizeof(Board));
  Round round = [&](shmipc_region_t *region, Board *board) {
    bool writes = tally_->rounds % 3 == 0;
    int64_t start = NowNs();
    int status = writes
                     ? shmipc_rwlock_write_lock(region, &board->rwlock, kHang)
                     : shmipc_rwlock_read_lock(region, &board->rwlock, kHang);
    tally_->Stall(NowNs() - start);
    if (status != 0 && status != -EOWNERDEAD) {
      tally_->Error(status);
      return;
    }
    if (writes) {
      Change(board, status != 0);
      if (status != 0) {
        tally_->deaths++;
        shmipc_rwlock_consistent(region, &board->rwlock);
      }
    } else if (status == 0) {
      if (board->inside != 0) {
        tally_->double_owned++;
      }
      if (board->a != board->b) {
        tally_->torn++;
      }
    }
    status = shmipc_rwlock_unlock(region, &board->rwlock);
    if (status != 0) {
      tally_->Error(status);
    }
  };
  Torture("rwlock", [&] { return Work(&own, round); });
  EXPECT_GT(tally_->deaths, 0u);
  ExpectWhole(own.region());
}

TEST_P(KillTest, Semaphore) {
  TestRegion own(GetParam(), sizeof(Board));
  Board *board = own.data<Board>();
  // Each kill takes one unit at most out of the world.
  uint32_t units = static_cast<uint32_t>(num_kills_) + 2;
  ASSERT_EQ(shmipc_semaphore_init(&board->semaphore, units), 0);
  Round round = [&](shmipc_region_t *region, Board *mine) {
    int64_t start = NowNs();
    int status = shmipc_semaphore_wait(region, &mine->semaphore, kHang);
    tally_->Stall(NowNs() - start);
    if (status == 0) {
      status = shmipc_semaphore_post(region, &mine->semaphore);
    }
    if (status != 0) {
      tally_->Error(status);
    }
  };
  Torture("semaphore", [&] { return Work(&own, round); });
  uint32_t left = shmipc_semaphore_value(&board->semaphore);
  EXPECT_LE(left, units);
  EXPECT_GE(left, 2u);
  printf("  %u of %u units left\n", left, units);
  ExpectWhole(own.region());
}

TEST_P(KillTest, UndoSemaphore) {
  if (GetParam() != SHMIPC_SYSV) {
    GTEST_SKIP() << "System V only";
  }
  TestRegion own(GetParam(), sizeof(Board),
                 [](auto *o) { o->num_undo_semaphores = 1; });
  ASSERT_EQ(shmipc_undo_semaphore_set(own.region(), 0, 2), 0);
  Round round = [&](shmipc_region_t *region, Board *) {
    int64_t start = NowNs();
    int status = shmipc_undo_semaphore_wait(region, 0, kHang);
    tally_->Stall(NowNs() - start);
    if (status == 0) {
      status = shmipc_undo_semaphore_post(region, 0);
    }
    if (status != 0) {
      tally_->Error(status);
    }
  };
  Torture("undo semaphore", [&] { return Work(&own, round); });
  EXPECT_EQ(shmipc_undo_semaphore_value(own.region(), 0), 2);
  ExpectWhole(own.region());
}

TEST_P(KillTest, Event) {
  TestRegion own(GetParam(), sizeof(Board));
  Round round = [&](shmipc_region_t *region, Board *board) {
    // Everybody is waiter and notifier in turn: a lost wake-up stops all.
    uint32_t key = shmipc_event_key(&board->event);
    board->turns++;
    int status = tally_->rounds % 2 == 0
                     ? shmipc_event_notify_one(region, &board->event)
                     : shmipc_event_notify_all(region, &board->event);
    if (status == 0) {
      status = shmipc_event_wait(region, &board->event, key, kHang);
    }
    if (status != 0) {
      tally_->Error(status);
    }
    // One that all but the last to come wait for.
    key = shmipc_event_key(&board->event);
    int64_t start = NowNs();
    status = shmipc_event_wait(region, &board->event, key, 2000000);
    if (status == 0) {
      tally_->Stall(NowNs() - start);
    } else if (status != -ETIMEDOUT) {
      tally_->Error(status);
    }
  };
  Torture("event", [&] { return Work(&own, round); });
  ExpectWhole(own.region());
}

TEST_P(KillTest, AttachAndDetach) {
  TestRegion own(GetParam(), sizeof(Board),
                 [](auto *o) { o->max_processes = 6; });
  own.data<Board>()->a = 0;
  Torture("attach", [&] {
    own.CloseOwn();
    while (tally_->is_over == 0) {
      int status;
      int64_t start = NowNs();
      shmipc_region_t *region = own.Attach(&status);
      tally_->Stall(NowNs() - start);
      if (status != 0) {
        AttachError(status);
        continue;
      }
      auto *board = static_cast<Board *>(shmipc_region_data(region));
      status = shmipc_mutex_lock(region, &board->mutex, kHang);
      if (status == -EOWNERDEAD) {
        shmipc_mutex_consistent(region, &board->mutex);
      } else if (status != 0) {
        tally_->Error(status);
      }
      // Every other time it is the close that releases it.
      if (tally_->rounds++ % 2 == 0) {
        shmipc_mutex_unlock(region, &board->mutex);
      }
      shmipc_region_close(region);
    }
    return 0;
  });
  ExpectWhole(own.region());
}

TEST_P(KillTest, CreateAndUnlink) {
  if (GetParam() == SHMIPC_MEMFD) {
    GTEST_SKIP() << "no name";
  }
  std::string name = Name("create");
  shmipc_region_options_t options = {};
  options.backend = GetParam();
  options.size_bytes = 100000;
  options.layout_tag = 77;
  options.initialize = [](void *, void *data, size_t size_bytes) {
    auto *words = static_cast<uint64_t *>(data);
    for (size_t i = 0; i < size_bytes / 8; i++) {
      words[i] = i ^ 0x5555;
    }
    return 0;
  };
  auto work = [&] {
    while (tally_->is_over == 0) {
      shmipc_region_t *region;
      int64_t start = NowNs();
      int status =
          shmipc_region_create_or_open(name.c_str(), &options, &region);
      tally_->Stall(NowNs() - start);
      if (status == 0) {
        auto *words = static_cast<uint64_t *>(shmipc_region_data(region));
        for (size_t i = 0; i < 12500; i += 511) {
          if (words[i] != (i ^ 0x5555)) {
            tally_->torn++;
          }
        }
        shmipc_region_close(region);
      } else {
        AttachError(status);
      }
      if (tally_->rounds++ % 4 == 0) {
        status = shmipc_region_unlink(name.c_str(), GetParam());
        if (status != 0 && status != -ENOENT) {
          AttachError(status);
        }
      }
    }
    return 0;
  };
  Torture("create", work);
  shmipc_region_t *region;
  ASSERT_EQ(shmipc_region_create_or_open(name.c_str(), &options, &region), 0);
  ExpectWhole(region);
  shmipc_region_close(region);
  EXPECT_EQ(shmipc_region_unlink(name.c_str(), GetParam()), 0);
  EXPECT_EQ(shmipc_region_open(name.c_str(), &options, &region), -ENOENT);
}

TEST_P(KillTest, Grow) {
  if (GetParam() == SHMIPC_SYSV) {
    GTEST_SKIP() << "does not grow";
  }
  // So far that they grow until the end.
  const size_t most = std::min<size_t>(
      size_t{1} << 31, (num_kills_ / 100 + 1) * size_t{64 << 20});
  TestRegion own(GetParam(), sizeof(Board),
                 [&](auto *o) { o->capacity_bytes = most; });
  Round round = [&](shmipc_region_t *region, Board *board) {
    size_t size_bytes = shmipc_region_size(region);
    int64_t start = NowNs();
    int status =
        size_bytes < most ? shmipc_region_grow(region, size_bytes + 4096) : 0;
    tally_->Stall(NowNs() - start);
    if (status != 0) {
      tally_->Error(status);
      return;
    }
    // The last byte is there, for all who ask.
    size_t last = shmipc_region_size(region) - 1;
    auto *byte =
        static_cast<volatile char *>(shmipc_region_at(region, last, 1));
    if (byte == nullptr || *byte != 0) {
      tally_->torn++;
    }
    board->turns++;
  };
  Torture("grow", [&] { return Work(&own, round); });
  // All bytes that any of them had are there.
  EXPECT_NE(shmipc_region_at(own.region(), sizeof(Board), 1), nullptr);
  EXPECT_EQ(shmipc_region_grow(own.region(), most), 0);
  ExpectWhole(own.region());
}

}  // namespace
