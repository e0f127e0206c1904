// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// Two processes killed at once, each in the middle of a lock, an allocation, a
// root, a send or a receive: both are single-stepped by ptrace, one after the
// other, so that neither is done, and then killed. A third recovers both, and
// has to find everything whole.
//
// 75 pairs for memfd, fewer for other kinds of region, or SHMIPC_KILLS of
// them. SHMIPC_TEST_SEED for other random numbers. Skipped where ptrace is not
// permitted.

#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cinttypes>
#include <cstdio>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "shmipc/block.h"
#include "shmipc/channel.h"
#include "shmipc/channel_testing.h"
#include "shmipc/mutex.h"
#include "shmipc/root.h"
#include "shmipc/shared_heap.h"
#include "shmipc/shmipc_testing.h"

namespace {

using channel_testing::Fill;
using channel_testing::Port;
using shmipc_testing::Backends;
using shmipc_testing::NameOf;
using shmipc_testing::NowNs;
using shmipc_testing::NumKills;
using shmipc_testing::Problems;
using shmipc_testing::Seed;
using shmipc_testing::Stepped;
using shmipc_testing::TestRegion;
using shmipc_testing::Watchdog;

constexpr int64_t kHang = 5000000000;
constexpr size_t kBytes = 100;
constexpr size_t kBlock = 1000;

struct Board {
  shmipc_mutex_t mutex;
  uint64_t a;
  uint64_t b;
};

enum Operation {
  kLock,
  kAlloc,
  kLarge,
  kRoot,
  kSend,
  kReceive,
  kOperations
};
// About as many instructions as each has.
constexpr uint64_t kLengths[kOperations] = {250, 400, 1500, 6000, 350, 350};

class PairKillTest : public testing::TestWithParam<shmipc_backend_t> {
 protected:
  PairKillTest() {
    shmipc_channel_options_t options = {};
    options.kind = SHMIPC_MPMC;
    options.message_bytes = kBytes;
    options.capacity_messages = 8;
    options.max_ports = 8;
    if (shmipc_channel_create(region_, "channel", &options, &ref_) != 0) {
      abort();
    }
    num_blocks_ = NumBlocks();
  }

  void *Channel(shmipc_region_t *region) const {
    return shmipc_ref_get(region, ref_, 1);
  }

  // One that stops before the operation.
  Stepped Start(Operation operation) {
    return Stepped([this, operation] {
      shmipc_region_t *region = own_.AttachInChild();
      auto *board = own_.data<Board>();
      shmipc_port_t *port = nullptr;
      if (operation == kSend || operation == kReceive) {
        (void)!shmipc_port_open(
            region, Channel(region),
            operation == kSend ? SHMIPC_SENDER : SHMIPC_RECEIVER, &port);
      }
      // So that the thread has its record and its cache.
      (void)shmipc_block_free(region, shmipc_block_alloc(region, 50));
      raise(SIGSTOP);
      Do(operation, region, board, port);
    });
  }

  static void Do(Operation operation, shmipc_region_t *region, Board *board,
                 shmipc_port_t *port) {
    char buffer[kBytes];
    size_t len;
    shmipc_ref_t ref;
    switch (operation) {
      case kLock:
        (void)!shmipc_mutex_lock(region, &board->mutex, kHang);
        *const_cast<volatile uint64_t *>(&board->a) += 1;
        *const_cast<volatile uint64_t *>(&board->b) += 1;
        shmipc_mutex_unlock(region, &board->mutex);
        break;
      case kAlloc:
        for (size_t size : {size_t{50}, kBlock}) {
          shmipc_block_free(region, shmipc_block_alloc(region, size));
        }
        break;
      case kLarge:
        shmipc_block_free(region, shmipc_block_alloc(region, 150000));
        break;
      case kRoot:
        (void)!shmipc_root_create(region, "root", kBlock, nullptr, nullptr,
                                  &ref);
        (void)!shmipc_root_remove(region, "root", &ref);
        break;
      case kSend:
        (void)!shmipc_port_send(port, Fill(kBytes, 7).data(), kBytes, 0);
        break;
      default:
        (void)!shmipc_port_receive(port, buffer, kBytes, &len, 0);
    }
  }

  // What is wrong with the mutex.
  std::string Lock() {
    auto *board = own_.data<Board>();
    int status = shmipc_mutex_lock(region_, &board->mutex, kHang);
    if (status == -EOWNERDEAD) {
      board->b = board->a;
      shmipc_mutex_consistent(region_, &board->mutex);
    } else if (status != 0) {
      return shmipc_strerror(status);
    } else if (board->a != board->b) {
      return "torn, and nobody said so";
    }
    return shmipc_mutex_unlock(region_, &board->mutex) == 0 ? ""
                                                            : "cannot unlock";
  }

  // How many blocks can be had.
  size_t NumBlocks() {
    std::vector<void *> blocks;
    while (void *block = shmipc_block_alloc(region_, kBlock)) {
      memset(block, 0xff, kBlock);
      blocks.push_back(block);
    }
    for (void *block : blocks) {
      EXPECT_EQ(shmipc_block_free(region_, block), 0);
    }
    return blocks.size();
  }

  std::string Heap() {
    if (shmipc_heap_reclaim(region_, SHMIPC_RECLAIM_IN_FLIGHT) < 0) {
      return "cannot reclaim";
    }
    shmipc_ref_t ref;
    if (shmipc_root_remove(region_, "root", &ref) == 0 &&
        shmipc_block_free(region_, shmipc_block_get(region_, ref, kBlock)) !=
            0) {
      return "the root leads nowhere";
    }
    shmipc_heap_stats_t stats;
    if (shmipc_heap_stats_get(region_, &stats) != 0 || stats.num_live != 1) {
      return std::to_string(stats.num_live) + " blocks, not the channel's only";
    }
    size_t count = NumBlocks();
    return count == num_blocks_ ? "" : std::to_string(count) + " blocks left";
  }

  // Ours that nobody of the dead received, and theirs, whole; then as many as
  // there is room for.
  std::string Messages(size_t num_senders, size_t num_receivers) {
    Port receiver(region_, Channel(region_), SHMIPC_RECEIVER);
    size_t ours = 0;
    size_t theirs = 0;
    for (int quiet = 0; quiet < 2;) {
      std::string message = receiver.Receive();
      if (message == "one" || message == "two") {
        ours++;
      } else if (message == Fill(kBytes, 7)) {
        theirs++;
      } else if (message != "EOWNERDEAD" && message != "ETIMEDOUT") {
        return "half a message, or " + message;
      }
      quiet = message == "ETIMEDOUT" ? quiet + 1 : 0;
    }
    if (ours > 2 || ours + num_receivers < 2 || theirs > num_senders) {
      return std::to_string(ours) + " of ours and " + std::to_string(theirs) +
             " of theirs came";
    }
    Port sender(region_, Channel(region_), SHMIPC_SENDER);
    uint64_t sent = 0;
    while (sender.Send(Fill(kBytes, sent)) == 0) {
      sent++;
    }
    if (sent < 8) {
      return "room for " + std::to_string(sent) + " messages";
    }
    for (uint64_t i = 0; i < sent; i++) {
      if (receiver.Receive(kHang) != Fill(kBytes, i)) {
        return "what was sent after does not come";
      }
    }
    return "";
  }

  uint64_t num_pairs_ = NumKills(GetParam(), 75);
  Watchdog watchdog_{static_cast<unsigned int>(100 + num_pairs_ / 10)};
  TestRegion own_{GetParam(), sizeof(Board), [](auto *o) {
                    o->heap_bytes = 8 << 16;
                    o->max_processes = 8;
                    o->max_threads = 8;
                  }};
  shmipc_region_t *region_ = own_.region();
  shmipc_ref_t ref_ = {};
  size_t num_blocks_ = 0;
};

INSTANTIATE_TEST_SUITE_P(All, PairKillTest, testing::ValuesIn(Backends()),
                         [](const testing::TestParamInfo<shmipc_backend_t> &i) {
                           return std::string(NameOf(i.param));
                         });

TEST_P(PairKillTest, AThirdFindsEverythingWhole) {
  std::mt19937_64 random(Seed());
  uint64_t both = 0;
  int64_t worst_ns = 0;
  for (uint64_t i = 0; i < num_pairs_; i++) {
    {
      Port sender(region_, Channel(region_), SHMIPC_SENDER);
      ASSERT_EQ(sender.Send("one"), 0);
      ASSERT_EQ(sender.Send("two"), 0);
    }
    Operation operations[2];
    for (Operation &one : operations) {
      one = static_cast<Operation>(random() % kOperations);
    }
    uint64_t steps[2];
    {
      Stepped first = Start(operations[0]);
      Stepped second = Start(operations[1]);
      if (!first.is_stopped() || !second.is_stopped()) {
        GTEST_SKIP() << "ptrace is not permitted";
      }
      bool is_within = true;
      Stepped *all[] = {&first, &second};
      for (int j = 0; j < 2; j++) {
        steps[j] = random() % kLengths[operations[j]];
        is_within &= all[j]->Step(steps[j]);
      }
      both += is_within;
      first.Kill();
      second.Kill();
    }
    auto count = [&](Operation which) {
      return static_cast<size_t>(
          std::count(std::begin(operations), std::end(operations), which));
    };
    int64_t start = NowNs();
    std::string wrong = Lock();
    worst_ns = std::max(worst_ns, NowNs() - start);
    // Slots are recovered before or after.
    if (i % 2 == 0 && shmipc_region_recover(region_) < 0) {
      wrong += ", cannot recover";
    }
    wrong += Heap();
    wrong += Messages(count(kSend), count(kReceive));
    if (shmipc_region_recover(region_) < 0) {
      wrong += ", cannot recover";
    }
    ASSERT_EQ(wrong + Problems(region_), "")
        << "operations " << operations[0] << " and " << operations[1]
        << ", killed after " << steps[0] << " and " << steps[1] << " steps";
  }
  printf("%s: %" PRIu64 " pairs killed at once, %" PRIu64
         " of them both in the middle, 0 hangs, 0 lost, worst stall %.2f ms\n",
         NameOf(GetParam()), num_pairs_, both,
         static_cast<double>(worst_ns) * 1e-6);
  EXPECT_GT(both, num_pairs_ / 4);
}

}  // namespace
