// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// Processes that fork while their threads are in the heap, or exec while they
// have a lock, blocks and a port; and attachments so many that what counts them
// wraps around.

#include <fcntl.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

#include "gtest/gtest.h"
#include "shmipc/block.h"
#include "shmipc/block_internal.h"
#include "shmipc/channel.h"
#include "shmipc/channel_testing.h"
#include "shmipc/mutex.h"
#include "shmipc/root.h"
#include "shmipc/shared_heap.h"
#include "shmipc/shmipc_testing.h"

namespace {

using channel_testing::KindName;
using channel_testing::kKinds;
using channel_testing::Port;
using shmipc_testing::Backends;
using shmipc_testing::NameOf;
using shmipc_testing::Problems;
using shmipc_testing::Process;
using shmipc_testing::TestRegion;
using shmipc_testing::Watchdog;

constexpr int64_t kLong = 20000000000;

struct Board {
  shmipc_mutex_t mutex;
};

class ProcessTest : public testing::TestWithParam<shmipc_backend_t> {
 protected:
  uint64_t NumLive() {
    shmipc_heap_stats_t stats = {};
    EXPECT_EQ(shmipc_heap_stats_get(region_, &stats), 0);
    return stats.num_live;
  }

  Watchdog watchdog_{120};
  TestRegion own_{GetParam(), sizeof(Board), [](auto *o) {
                    o->heap_bytes = 256 << 16;
                    o->max_processes = 16;
                    o->max_threads = 16;
                  }};
  shmipc_region_t *region_ = own_.region();
  Board *board_ = own_.data<Board>();
};

INSTANTIATE_TEST_SUITE_P(All, ProcessTest, testing::ValuesIn(Backends()),
                         [](const testing::TestParamInfo<shmipc_backend_t> &i) {
                           return std::string(NameOf(i.param));
                         });

// What a program has that execs is as a dead one's, but of System V, where the
// kernel keeps what it had until it ends.
TEST_P(ProcessTest, ExecWithALockBlocksAndAPortIsDeathButNotOnSystemV) {
  for (shmipc_channel_kind_t kind : kKinds) {
    shmipc_channel_options_t options = {};
    options.kind = kind;
    options.message_bytes = 40;
    options.capacity_messages = 4;
    shmipc_ref_t ref;
    ASSERT_EQ(shmipc_channel_create(region_, KindName(kind), &options, &ref),
              0);
    uint64_t live = NumLive();
    Port receiver(region_, shmipc_ref_get(region_, ref, 1), SHMIPC_RECEIVER);
    int pipe_fds[2];
    ASSERT_EQ(pipe2(pipe_fds, O_CLOEXEC), 0);
    Process child([&] {
      shmipc_region_t *region = own_.AttachInChild();
      shmipc_port_t *port;
      void *place;
      if (shmipc_mutex_lock(region, &own_.data<Board>()->mutex, kLong) != 0 ||
          shmipc_block_alloc(region, 100) == nullptr ||
          shmipc_block_alloc(region, 200000) == nullptr ||
          shmipc_port_open(region, shmipc_ref_get(region, ref, 1),
                           SHMIPC_SENDER, &port) != 0 ||
          shmipc_port_send(port, "sent", 4, 0) != 0 ||
          shmipc_port_reserve(port, 8, &place, 0) != 0) {
        return 1;
      }
      dup2(pipe_fds[1], 1);
      execl("/bin/sh", "sh", "-c", "echo running; exec sleep 100", nullptr);
      return 1;
    });
    char byte;
    ASSERT_EQ(read(pipe_fds[0], &byte, 1), 1);
    EXPECT_EQ(receiver.Receive(), "sent");
    if (GetParam() == SHMIPC_SYSV) {
      // It has all of it still.
      EXPECT_EQ(shmipc_mutex_lock(region_, &board_->mutex, 0), -ETIMEDOUT);
      EXPECT_EQ(shmipc_heap_reclaim(region_, 0), 0);
      EXPECT_EQ(receiver.Receive(), "ETIMEDOUT");
      child.Kill();
    }
    EXPECT_EQ(shmipc_mutex_lock(region_, &board_->mutex, kLong), -EOWNERDEAD);
    EXPECT_EQ(shmipc_mutex_consistent(region_, &board_->mutex), 0);
    EXPECT_EQ(shmipc_mutex_unlock(region_, &board_->mutex), 0);
    EXPECT_EQ(shmipc_heap_reclaim(region_, 0), 2);
    EXPECT_EQ(NumLive(), live);
    EXPECT_EQ(receiver.Receive(kLong), "EOWNERDEAD");
    Port sender(region_, shmipc_ref_get(region_, ref, 1), SHMIPC_SENDER);
    EXPECT_EQ(sender.Send("next"), 0);
    EXPECT_EQ(receiver.Receive(kLong), "next");
    EXPECT_GE(shmipc_region_recover(region_), 0);
    EXPECT_EQ(Problems(region_), "");
    close(pipe_fds[0]);
    close(pipe_fds[1]);
  }
}

// Whatever a thread was in the middle of, the child finds no lock that nobody
// will open, and what the parent has is not the child's.
TEST_P(ProcessTest, ForksWhileThreadsAllocateHarmNobody) {
  std::atomic<bool> is_over{false};
  std::atomic<uint64_t> rounds{0};
  std::atomic<uint64_t> errors{0};
  std::vector<std::thread> threads;
  for (unsigned int t = 0; t < 3; t++) {
    threads.emplace_back([&, t] {
      std::vector<void *> blocks;
      for (size_t i = t; !is_over; i++) {
        blocks.push_back(
            shmipc_block_alloc(region_, i % 50 == 0 ? 70000 : 16 + i % 3000));
        if (blocks.back() == nullptr) {
          blocks.pop_back();
          errors++;
        }
        while (blocks.size() > 20) {
          errors += shmipc_block_free(region_, blocks.front()) != 0;
          blocks.erase(blocks.begin());
        }
        rounds++;
      }
      for (void *block : blocks) {
        errors += shmipc_block_free(region_, block) != 0;
      }
    });
  }
  for (int i = 0; i < 100; i++) {
    uint64_t before = rounds;
    while (rounds < before + 10) {
      std::this_thread::yield();
    }
    bool dies = i % 2 == 0;
    Process child([&] {
      alarm(20);
      if (shmipc_block_alloc(region_, 10) != nullptr || errno != ECHILD ||
          shmipc_heap_trim(region_) != -ECHILD) {
        return 2;
      }
      shmipc_region_t *region = own_.AttachInChild();
      if (region == nullptr) {
        return 3;
      }
      void *small = shmipc_block_alloc(region, 100);
      void *large = shmipc_block_alloc(region, 70000);
      if (small == nullptr || large == nullptr ||
          shmipc_block_free(region, large) != 0) {
        return 4;
      }
      if (!dies) {
        shmipc_block_free(region, small);
        own_.CloseOwn();
      }
      return 0;
    });
    int result = child.Wait();
    EXPECT_EQ(result, 0) << i;
    if (result != 0) {
      break;
    }
  }
  is_over = true;
  for (std::thread &thread : threads) {
    thread.join();
  }
  EXPECT_EQ(errors, 0u);
  EXPECT_EQ(shmipc_heap_reclaim(region_, 0), 50);
  EXPECT_EQ(NumLive(), 0u);
  EXPECT_GE(shmipc_region_recover(region_), 0);
  EXPECT_EQ(Problems(region_), "");
}

// Generations of slots and records, tags of runs, changes of roots.
TEST_P(ProcessTest, CountersWrapAround) {
  for (uint32_t i = 0; i < region_->num_slots; i++) {
    if (i != region_->slot) {
      shmipc_slot_of(region_, i)->word = 0x7ffffffeu << 1;
    }
  }
  for (uint32_t i = 0; i < region_->num_records; i++) {
    if (shmipc_record_of(region_, i)->owner == 0) {
      shmipc_record_of(region_, i)->generation = 0xfffffffe;
    }
  }
  shmipc_heap_head_of(region_)->num_runs = (uint64_t{1} << 56) - 2;
  for (uint32_t i = 0; i < SHMIPC_ROOTS_MAX; i++) {
    shmipc_root_of(region_, i)->state = 0xfffffffe;
  }
  ASSERT_EQ(Problems(region_), "");
  for (int i = 0; i < 6; i++) {
    Process dies([&] {
      shmipc_region_t *region = own_.AttachInChild();
      shmipc_ref_t ref;
      bool good =
          shmipc_mutex_lock(region, &own_.data<Board>()->mutex, kLong) == 0 &&
          shmipc_block_alloc(region, 100) != nullptr &&
          shmipc_block_alloc(region, 9000) != nullptr &&
          shmipc_block_alloc(region, 200000) != nullptr &&
          shmipc_root_create(region, "root", 100, nullptr, nullptr, &ref) == 0;
      return good ? 0 : 1;
    });
    ASSERT_EQ(dies.Wait(), 0) << i;
    ASSERT_EQ(Problems(region_), "") << i;
    ASSERT_EQ(shmipc_mutex_lock(region_, &board_->mutex, kLong), -EOWNERDEAD);
    ASSERT_EQ(shmipc_mutex_consistent(region_, &board_->mutex), 0);
    ASSERT_EQ(shmipc_mutex_unlock(region_, &board_->mutex), 0);
    ASSERT_EQ(shmipc_heap_reclaim(region_, 0), 3) << i;
    shmipc_ref_t ref;
    ASSERT_EQ(shmipc_root_remove(region_, "root", &ref), 0);
    ASSERT_EQ(shmipc_block_free(region_, shmipc_block_get(region_, ref, 1)), 0);
    ASSERT_EQ(shmipc_region_recover(region_), 1);
    // Pages of its thread, too.
    ASSERT_GE(shmipc_heap_trim(region_), 0);
    shmipc_heap_stats_t stats;
    ASSERT_EQ(shmipc_heap_stats_get(region_, &stats), 0);
    ASSERT_EQ(stats.num_live, 0u) << i;
    ASSERT_EQ(stats.free_page_bytes, stats.heap_bytes) << i;
    ASSERT_EQ(Problems(region_), "") << i;
  }
}

}  // namespace
