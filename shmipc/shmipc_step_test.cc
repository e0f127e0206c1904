// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// SIGKILL at every instruction of an operation: a child is single-stepped by
// ptrace from just before the operation, killed after k steps, for each k until
// it comes through. After each kill the survivor must get what it needs without
// a hang and, in the end, find nothing left.
//
// Of all but the mutex only some of the instructions, spread over all, another
// set each time; SHMIPC_STRIDE=1 for all (an hour), or every so many. Skipped
// where ptrace is not permitted.

#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cinttypes>
#include <cstdio>
#include <functional>
#include <random>
#include <thread>

#include "gtest/gtest.h"
#include "shmipc/event.h"
#include "shmipc/mutex.h"
#include "shmipc/rwlock.h"
#include "shmipc/semaphore.h"
#include "shmipc/shmipc_testing.h"

namespace {

using shmipc_testing::Backends;
using shmipc_testing::Count;
using shmipc_testing::NameOf;
using shmipc_testing::NowNs;
using shmipc_testing::Outcome;
using shmipc_testing::Problems;
using shmipc_testing::Process;
using shmipc_testing::Seed;
using shmipc_testing::StepAndKill;
using shmipc_testing::TestRegion;
using shmipc_testing::Watchdog;

constexpr int64_t kHang = 5000000000;

struct Board {
  shmipc_mutex_t mutex;
  shmipc_mutex_t other;
  shmipc_rwlock_t rwlock;
  shmipc_semaphore_t semaphore;
  shmipc_event_t event;
  uint64_t a;
  uint64_t b;
};

class StepTest : public testing::TestWithParam<shmipc_backend_t> {
 protected:
  using Operation = std::function<void(TestRegion *own, Board *board)>;

  // `operation` is stepped in a child that is attached when `attaches`;
  // `survive` is called after each kill and returns what is wrong.
  void EveryStep(const char *what, TestRegion *own, bool attaches,
                 uint64_t stride, const Operation &operation,
                 const std::function<std::string()> &survive) {
    std::mt19937_64 random(Seed());
    uint64_t kills = 0;
    worst_stall_ns_ = 0;
    uint64_t step = stride > 1 ? random() % stride : 0;
    for (;; step += stride) {
      Outcome outcome = StepAndKill(step, [&] {
        Board *board = nullptr;
        if (attaches) {
          own->AttachInChild();
          board = own->data<Board>();
          // So that the thread has its record.
          (void)!shmipc_mutex_lock(own->region(), &board->other, kHang);
          shmipc_mutex_unlock(own->region(), &board->other);
        }
        if (prepare_) {
          prepare_(own);
        }
        raise(SIGSTOP);
        operation(own, board);
      });
      if (outcome == Outcome::kNotPermitted) {
        GTEST_SKIP() << "ptrace is not permitted";
      }
      std::string wrong = survive();
      ASSERT_EQ(wrong, "") << "killed after " << step << " steps";
      if (outcome == Outcome::kCameThrough) {
        break;
      }
      kills++;
    }
    EXPECT_GE(kills, 3u);
    printf("%s %s: killed at %" PRIu64 " of %" PRIu64
           " instructions, 0 hangs, worst stall %.2f ms\n",
           NameOf(GetParam()), what, kills, step,
           static_cast<double>(worst_stall_ns_) * 1e-6);
  }

  // The result of a wait, whose length is noted.
  int Timed(const std::function<int()> &wait) {
    int64_t start = NowNs();
    int status = wait();
    worst_stall_ns_ = std::max(worst_stall_ns_, NowNs() - start);
    return status;
  }

  static std::string Whole(shmipc_region_t *region) {
    int status = shmipc_region_recover(region);
    if (status < 0) {
      return shmipc_strerror(status);
    }
    shmipc_region_info_t info;
    if (shmipc_region_info_get(region, &info) != 0 || info.num_live != 1 ||
        info.num_dead != 0) {
      return "somebody is left";
    }
    // It takes milliseconds only if there is something to see.
    return Problems(region);
  }

  static uint64_t Stride(uint64_t otherwise) {
    return std::max<uint64_t>(1, Count("SHMIPC_STRIDE", otherwise));
  }

  void TakeAndRepair(shmipc_region_t *region, Board *board,
                     std::string *wrong) {
    int status =
        Timed([&] { return shmipc_mutex_lock(region, &board->mutex, kHang); });
    if (status == -EOWNERDEAD) {
      board->b = board->a;
      shmipc_mutex_consistent(region, &board->mutex);
    } else if (status != 0) {
      *wrong = shmipc_strerror(status);
    } else if (board->a != board->b) {
      *wrong = "torn, and nobody said so";
    }
    if (wrong->empty() && shmipc_mutex_unlock(region, &board->mutex) != 0) {
      *wrong = "cannot unlock";
    }
  }

  // What a child does before the operation, unstepped.
  std::function<void(TestRegion *own)> prepare_;
  int64_t worst_stall_ns_ = 0;  // By one thread at a time.
  Watchdog watchdog_{static_cast<unsigned int>(
      Count("SHMIPC_STRIDE", 1000) < 300 ? 7200 : 240)};
};

INSTANTIATE_TEST_SUITE_P(All, StepTest, testing::ValuesIn(Backends()),
                         [](const testing::TestParamInfo<shmipc_backend_t> &i) {
                           return std::string(NameOf(i.param));
                         });

TEST_P(StepTest, MutexLockAndUnlock) {
  TestRegion own(GetParam(), sizeof(Board));
  EveryStep(
      "mutex", &own, true, 1,
      [](TestRegion *mine, Board *board) {
        (void)!shmipc_mutex_lock(mine->region(), &board->mutex, kHang);
        *const_cast<volatile uint64_t *>(&board->a) += 1;
        *const_cast<volatile uint64_t *>(&board->b) += 1;
        shmipc_mutex_unlock(mine->region(), &board->mutex);
      },
      [&] {
        std::string wrong;
        TakeAndRepair(own.region(), own.data<Board>(), &wrong);
        return wrong.empty() ? Whole(own.region()) : wrong;
      });
}

TEST_P(StepTest, RwlockReadAndWrite) {
  TestRegion own(GetParam(), sizeof(Board));
  EveryStep(
      "rwlock", &own, true, Stride(19),
      [](TestRegion *mine, Board *board) {
        (void)!shmipc_rwlock_read_lock(mine->region(), &board->rwlock, kHang);
        shmipc_rwlock_unlock(mine->region(), &board->rwlock);
        (void)!shmipc_rwlock_write_lock(mine->region(), &board->rwlock, kHang);
        shmipc_rwlock_unlock(mine->region(), &board->rwlock);
      },
      [&]() -> std::string {
        shmipc_rwlock_t *lock = &own.data<Board>()->rwlock;
        int status = Timed([&] {
          return shmipc_rwlock_write_lock(own.region(), lock, kHang);
        });
        if (status == -EOWNERDEAD) {
          shmipc_rwlock_consistent(own.region(), lock);
        } else if (status != 0) {
          return shmipc_strerror(status);
        }
        status = shmipc_rwlock_unlock(own.region(), lock);
        return status != 0 ? shmipc_strerror(status) : Whole(own.region());
      });
}

TEST_P(StepTest, SemaphoreAndEvent) {
  TestRegion own(GetParam(), sizeof(Board));
  EveryStep(
      "semaphore, event", &own, true, Stride(11),
      [](TestRegion *mine, Board *board) {
        shmipc_semaphore_post(mine->region(), &board->semaphore);
        (void)!shmipc_semaphore_wait(mine->region(), &board->semaphore, 0);
        // A waiter that sleeps not at all, or for one slice at most.
        uint32_t key = shmipc_event_key(&board->event);
        shmipc_event_notify_one(mine->region(), &board->event);
        (void)!shmipc_event_wait(mine->region(), &board->event, key, 0);
        shmipc_event_notify_all(mine->region(), &board->event);
      },
      [&]() -> std::string {
        Board *board = own.data<Board>();
        if (shmipc_semaphore_value(&board->semaphore) > 1) {
          return "a unit out of nothing";
        }
        (void)!shmipc_semaphore_init(&board->semaphore, 0);
        uint32_t key = shmipc_event_key(&board->event);
        shmipc_event_notify_one(own.region(), &board->event);
        int status = shmipc_event_wait(own.region(), &board->event, key, kHang);
        return status != 0 ? shmipc_strerror(status) : Whole(own.region());
      });
}

TEST_P(StepTest, ContendedLockWithASleeper) {
  // The survivor sleeps on the mutex all the while. (Its stalls include those
  // by an owner that is alive, but stepped.)
  TestRegion own(GetParam(), sizeof(Board));
  Board *board = own.data<Board>();
  EveryStep(
      "contended unlock", &own, true, 1,
      [](TestRegion *mine, Board *theirs) {
        shmipc_mutex_unlock(mine->region(), &theirs->mutex);
      },
      [&] {
        std::string wrong;
        TakeAndRepair(own.region(), board, &wrong);
        return wrong.empty() ? Whole(own.region()) : wrong;
      });
  std::atomic<bool> is_done{false};
  std::atomic<uint64_t> rounds{0};
  std::thread sleeper([&] {
    while (!is_done) {
      std::string wrong;
      TakeAndRepair(own.region(), board, &wrong);
      EXPECT_EQ(wrong, "");
      rounds++;
    }
  });
  EveryStep(
      "against a sleeper", &own, true, Stride(7),
      [](TestRegion *mine, Board *theirs) {
        (void)!shmipc_mutex_lock(mine->region(), &theirs->mutex, 1000000);
        shmipc_mutex_unlock(mine->region(), &theirs->mutex);
      },
      [&]() -> std::string {
        uint64_t before = rounds;
        int64_t start = NowNs();
        while (rounds == before) {
          if (NowNs() - start > kHang) {
            return "the sleeper hangs";
          }
          std::this_thread::yield();
        }
        return "";
      });
  is_done = true;
  sleeper.join();
}

TEST_P(StepTest, AttachLockDetach) {
  TestRegion own(GetParam(), sizeof(Board),
                 [](auto *o) { o->max_processes = 4; });
  EveryStep(
      "attach, lock, detach", &own, false, Stride(2801),
      [](TestRegion *mine, Board *) {
        shmipc_region_t *region = mine->AttachInChild();
        Board *board = mine->data<Board>();
        (void)!shmipc_mutex_lock(region, &board->mutex, kHang);
        mine->CloseOwn();
      },
      [&] {
        std::string wrong;
        TakeAndRepair(own.region(), own.data<Board>(), &wrong);
        if (wrong.empty()) {
          int status;
          shmipc_region_close(own.Attach(&status));
          wrong = status != 0 ? shmipc_strerror(status) : "";
        }
        return wrong.empty() ? Whole(own.region()) : wrong;
      });
}

TEST_P(StepTest, RecovererIsKilledToo) {
  TestRegion own(GetParam(), sizeof(Board),
                 [](auto *o) { o->max_processes = 4; });
  // Dies with a mutex and as a reader, once the recoverer is attached. (It is
  // not traced.)
  prepare_ = [](TestRegion *mine) {
    Process dies([&] {
      shmipc_region_t *region = mine->AttachInChild();
      Board *board = mine->data<Board>();
      int status = shmipc_rwlock_read_lock(region, &board->rwlock, kHang);
      return status != 0 ? 1 : shmipc_mutex_lock(region, &board->mutex, kHang);
    });
    if (dies.Wait() != 0) {
      _exit(1);
    }
  };
  EveryStep(
      "recovery", &own, true, Stride(301),
      [](TestRegion *mine, Board *) { shmipc_region_recover(mine->region()); },
      [&]() -> std::string {
        std::string wrong;
        Board *board = own.data<Board>();
        if ((board->mutex.word & 0x7fffffff) == 0) {
          return "nobody died";
        }
        TakeAndRepair(own.region(), board, &wrong);
        if (!wrong.empty()) {
          return wrong;
        }
        int status = Timed([&] {
          return shmipc_rwlock_write_lock(own.region(), &board->rwlock, kHang);
        });
        if (status != 0) {
          return shmipc_strerror(status);
        }
        shmipc_rwlock_unlock(own.region(), &board->rwlock);
        return Whole(own.region());
      });
}

}  // namespace
