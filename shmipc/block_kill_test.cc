// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// SIGKILL at random instants of three processes that allocate, free, resize,
// hand over, name and reclaim blocks in a tight loop; each one that is killed
// is replaced. No block may be two processes', no byte of one may change, and
// when all is over there must be as many blocks to be had as in a new heap. And
// SIGSTOP: the others go on.
//
// 300 kills, fewer for all kinds of region but one, or SHMIPC_KILLS of them.
// SHMIPC_TEST_SEED for other random numbers.

#include <signal.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cinttypes>
#include <cstdio>
#include <cstring>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "shmipc/block.h"
#include "shmipc/block_class.h"
#include "shmipc/root.h"
#include "shmipc/shared_heap.h"
#include "shmipc/shmipc_testing.h"

namespace {

using shmipc_testing::Backends;
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

constexpr size_t kPage = SHMIPC_PAGE_BYTES;
constexpr uint32_t kPages = 160;
constexpr int kWorkers = 3;
constexpr int64_t kPauseNs = 3000000;  // Between two kills, at most.
constexpr size_t kPlaces = 64;

struct Board {
  std::atomic<uint64_t> places[kPlaces];  // Refs of blocks in flight.
};

// Outside of the region, so that nothing in it can be the judge.
struct Tally {
  std::atomic<uint64_t> allocs;
  std::atomic<uint64_t> received;
  std::atomic<uint64_t> full;
  std::atomic<uint64_t> reclaimed;
  std::atomic<uint64_t> double_owned;
  std::atomic<uint64_t> errors;
  std::atomic<int> last_error;
  std::atomic<uint64_t> last_stamp;
  std::atomic<int64_t> worst_stall_ns;
  std::atomic<uint32_t> is_over;
  // Roots have a mutex, which a stopped process may have.
  std::atomic<uint32_t> without_roots;
  std::atomic<uint64_t> rounds[kWorkers];
};

// The first and the last bytes of a block, as its owner has written them.
struct Stamp {
  uint64_t number;  // No other block ever has it.
  uint64_t offset;
  uint64_t size;
};

class Worker {
 public:
  Worker(shmipc_region_t *region, Tally *tally, uint64_t seed)
      : region_(region),
        board_(static_cast<Board *>(shmipc_region_data(region))),
        tally_(tally),
        random_(seed) {
  }

  void Round() {
    switch (random_() % 16) {
      case 0:
        Resize();
        break;
      case 1:
      case 2:
      case 3:
        HandOver();
        break;
      case 4:
        Name();
        break;
      case 5:
        if (random_() % 64 == 0) {
          Reclaim();
        }
        break;
      default:
        if (blocks_.size() < 40 && random_() % 2 == 0) {
          Alloc();
        } else {
          Free();
        }
    }
  }
  void FreeAll() {
    while (!blocks_.empty()) {
      Free();
    }
  }

 private:
  struct Block {
    char *start;
    Stamp stamp;
  };

  void Error(int status) {
    tally_->errors++;
    tally_->last_error = status;
  }

  size_t Size() {
    switch (random_() % 32) {
      case 0:
        return 32769 + random_() % 300000;
      case 1:
      case 2:
        return 4096 + random_() % 28000;
      default:
        return sizeof(Stamp) + random_() % 1500;
    }
  }

  void Write(Block *block, size_t size) {
    block->stamp.number = tally_->last_stamp++;
    block->stamp.offset = shmipc_ref_of(region_, block->start).offset;
    block->stamp.size = size;
    memcpy(block->start, &block->stamp, sizeof(Stamp));
    block->start[size - 1] = LastByte(block->stamp);
  }
  // The last byte of small ones is in the stamp.
  static char LastByte(const Stamp &stamp) {
    return stamp.size > sizeof(Stamp)
               ? static_cast<char>(stamp.number)
               : reinterpret_cast<const char *>(&stamp)[stamp.size - 1];
  }
  void Check(const Block &block) {
    if (memcmp(block.start, &block.stamp, sizeof(Stamp)) != 0 ||
        block.start[block.stamp.size - 1] != LastByte(block.stamp)) {
      tally_->double_owned++;
    }
  }

  void Alloc() {
    size_t size = Size();
    int64_t start = NowNs();
    Block block = {static_cast<char *>(shmipc_block_alloc(region_, size)), {}};
    Stall(start);
    if (block.start == nullptr) {
      if (errno != ENOMEM) {
        Error(-errno);
      }
      tally_->full++;
      FreeAll();
      Reclaim();
      return;
    }
    tally_->allocs++;
    Write(&block, size);
    blocks_.push_back(block);
  }

  Block TakeOne() {
    std::swap(blocks_[random_() % blocks_.size()], blocks_.back());
    Block block = blocks_.back();
    blocks_.pop_back();
    Check(block);
    return block;
  }

  void Free() {
    if (blocks_.empty()) {
      return;
    }
    Block block = TakeOne();
    int64_t start = NowNs();
    int status = shmipc_block_free(region_, block.start);
    Stall(start);
    if (status != 0) {
      Error(status);
    }
  }

  void Resize() {
    if (blocks_.empty()) {
      return;
    }
    Block block = TakeOne();
    size_t size = Size();
    void *moved = shmipc_block_realloc(region_, block.start, size);
    if (moved == nullptr && errno != ENOMEM) {
      Error(-errno);
    }
    if (moved != nullptr) {
      block.start = static_cast<char *>(moved);
      if (memcmp(moved, &block.stamp, sizeof(Stamp)) != 0) {
        tally_->double_owned++;
      }
      Write(&block, size);
    }
    blocks_.push_back(block);
  }

  // Puts a block in a place, and takes what was there.
  void HandOver() {
    uint64_t given = 0;
    if (!blocks_.empty()) {
      Block block = TakeOne();
      int status = shmipc_block_give(region_, block.start);
      if (status != 0) {
        Error(status);
      }
      given = block.stamp.offset;
    }
    uint64_t offset = board_->places[random_() % kPlaces].exchange(given);
    if (offset == 0) {
      return;
    }
    Block block = {static_cast<char *>(shmipc_block_get(
                       region_, shmipc_ref_t{offset}, sizeof(Stamp))),
                   {}};
    int status =
        block.start != nullptr ? shmipc_block_take(region_, block.start) : -EIO;
    if (status != 0) {
      Error(status);
      return;
    }
    memcpy(&block.stamp, block.start, sizeof(Stamp));
    if (block.stamp.offset != offset ||
        block.stamp.size > shmipc_block_usable_size(region_, block.start)) {
      tally_->double_owned++;
      return;
    }
    Check(block);
    tally_->received++;
    blocks_.push_back(block);
  }

  void Name() {
    if (tally_->without_roots != 0) {
      return;
    }
    std::string name = "root" + std::to_string(random_() % 8);
    shmipc_ref_t ref;
    bool removes = random_() % 2 == 0;
    int status = removes ? shmipc_root_remove(region_, name.c_str(), &ref)
                         : shmipc_root_create(region_, name.c_str(), 200,
                                              nullptr, nullptr, &ref);
    if (status != 0 && status != -EEXIST && status != -ENOENT &&
        status != -ENOMEM) {
      Error(status);
    }
    if (removes && status == 0) {
      status = shmipc_block_free(region_, shmipc_block_get(region_, ref, 200));
      if (status != 0) {
        Error(status);
      }
    }
  }

  void Reclaim() {
    if (tally_->without_roots != 0) {
      return;
    }
    int status = shmipc_heap_reclaim(region_, 0);
    if (status < 0) {
      Error(status);
    } else {
      tally_->reclaimed += static_cast<uint64_t>(status);
    }
  }

  void Stall(int64_t start) {
    int64_t ns = NowNs() - start;
    int64_t seen = tally_->worst_stall_ns;
    while (seen < ns &&
           !tally_->worst_stall_ns.compare_exchange_weak(seen, ns)) {
    }
  }

  shmipc_region_t *region_;
  Board *board_;
  Tally *tally_;
  std::mt19937_64 random_;
  std::vector<Block> blocks_;
};

class BlockKillTest : public testing::TestWithParam<shmipc_backend_t> {
 protected:
  Process Start(int number) {
    uint64_t seed = seed_++;
    return Process([this, number, seed] {
      shmipc_region_t *region = own_.AttachInChild();
      if (region == nullptr) {
        tally_->errors++;
        return 1;
      }
      Worker worker(region, &*tally_, seed);
      while (tally_->is_over == 0) {
        worker.Round();
        tally_->rounds[number]++;
      }
      worker.FreeAll();
      return 0;
    });
  }

  // Nobody is left: everything can be had again.
  void ExpectWhole() {
    EXPECT_EQ(tally_->double_owned, 0u);
    EXPECT_EQ(tally_->errors, 0u) << shmipc_strerror(tally_->last_error);
    EXPECT_EQ(Problems(region_), "");
    Board *board = own_.data<Board>();
    for (std::atomic<uint64_t> &place : board->places) {
      uint64_t offset = place.exchange(0);
      if (offset != 0) {
        void *block = shmipc_block_get(region_, shmipc_ref_t{offset}, 1);
        ASSERT_NE(block, nullptr);
        EXPECT_EQ(shmipc_block_take(region_, block), 0);
        EXPECT_EQ(shmipc_block_free(region_, block), 0);
      }
    }
    EXPECT_GE(shmipc_heap_reclaim(region_, SHMIPC_RECLAIM_IN_FLIGHT), 0);
    for (int i = 0; i < 8; i++) {
      shmipc_ref_t ref;
      if (shmipc_root_remove(region_, ("root" + std::to_string(i)).c_str(),
                             &ref) == 0) {
        EXPECT_EQ(
            shmipc_block_free(region_, shmipc_block_get(region_, ref, 200)), 0);
      }
    }
    shmipc_heap_stats_t stats;
    ASSERT_EQ(shmipc_heap_stats_get(region_, &stats), 0);
    EXPECT_EQ(stats.num_live, 0u);
    std::vector<void *> blocks;
    while (void *block = shmipc_block_alloc(region_, 512)) {
      blocks.push_back(block);
    }
    size_t expected = kPages * shmipc_classes[shmipc_class_of(512)].count;
    EXPECT_EQ(blocks.size(), expected);
    printf("  %zu of %zu blocks can be had\n", blocks.size(), expected);
    for (void *block : blocks) {
      EXPECT_EQ(shmipc_block_free(region_, block), 0);
    }
    EXPECT_GE(shmipc_region_recover(region_), 0);
    EXPECT_EQ(Problems(region_), "");
  }

  void Report(const char *what, uint64_t count) {
    printf("%s %s: %" PRIu64 " times, %" PRIu64 " allocations, %" PRIu64
           " handed over, %" PRIu64 " of the dead reclaimed, %" PRIu64
           " times full, %" PRIu64 " double-owned, %" PRIu64
           " errors, worst stall %.2f ms, of bare loops in their place %.2f "
           "ms\n",
           NameOf(GetParam()), what, count, tally_->allocs.load(),
           tally_->received.load(), tally_->reclaimed.load(),
           tally_->full.load(), tally_->double_owned.load(),
           tally_->errors.load(),
           static_cast<double>(tally_->worst_stall_ns) * 1e-6,
           static_cast<double>(WorstGapNs(kWorkers, count, kPauseNs)) * 1e-6);
  }

  uint64_t num_kills_ = NumKills(GetParam(), 300);
  Watchdog watchdog_{static_cast<unsigned int>(60 + num_kills_ / 20)};
  Shared<Tally> tally_;
  uint64_t seed_ = Seed();
  TestRegion own_{GetParam(), sizeof(Board), [](auto *o) {
                    o->heap_bytes = kPages * kPage;
                    if (o->backend != SHMIPC_SYSV) {
                      o->heap_capacity_bytes = o->heap_bytes;
                      o->heap_bytes = 16 * kPage;
                    }
                  }};
  shmipc_region_t *region_ = own_.region();
};

INSTANTIATE_TEST_SUITE_P(All, BlockKillTest, testing::ValuesIn(Backends()),
                         [](const testing::TestParamInfo<shmipc_backend_t> &i) {
                           return std::string(NameOf(i.param));
                         });

TEST_P(BlockKillTest, KilledAnywhere) {
  std::mt19937_64 random(Seed());
  std::vector<Process> workers;
  for (int i = 0; i < kWorkers; i++) {
    workers.push_back(Start(i));
  }
  for (uint64_t i = 0; i < num_kills_; i++) {
    struct timespec pause = {0,
                             static_cast<long>(random() % uint64_t{kPauseNs})};
    nanosleep(&pause, nullptr);
    size_t victim = random() % kWorkers;
    ASSERT_EQ(workers[victim].Kill(), -SIGKILL);
    workers[victim] = Start(static_cast<int>(victim));
  }
  tally_->is_over = 1;
  for (Process &worker : workers) {
    EXPECT_EQ(worker.Wait(), 0);
  }
  Report("killed", num_kills_);
  EXPECT_GT(tally_->allocs, 1000u);
  EXPECT_GT(tally_->reclaimed, 0u) << "nobody was killed while it had blocks";
  ExpectWhole();
}

// Small heaps, each of which grows to its end while all who use it are killed.
TEST_P(BlockKillTest, KilledWhileTheHeapGrows) {
  if (GetParam() == SHMIPC_SYSV) {
    GTEST_SKIP() << "does not grow";
  }
  constexpr size_t kMost = 400;
  std::mt19937_64 random(Seed());
  const uint64_t num_heaps = num_kills_ / 10;
  uint64_t growing = 0;
  for (uint64_t i = 0; i < num_heaps; i++) {
    TestRegion own(GetParam(), 4096, [](auto *o) {
      o->heap_bytes = 2 * kPage;
      o->heap_capacity_bytes = kMost * kPage;
    });
    std::vector<Process> workers;
    for (int j = 0; j < kWorkers; j++) {
      uint64_t seed = random();
      workers.emplace_back([&own, seed] {
        std::mt19937_64 mine(seed);
        shmipc_region_t *region = own.AttachInChild();
        while (region != nullptr) {
          size_t size = 1 + mine() % (mine() % 8 == 0 ? 200000 : 3000);
          auto *block = static_cast<char *>(shmipc_block_alloc(region, size));
          if (block != nullptr) {
            block[size - 1] = 1;
          }
        }
        return 1;
      });
    }
    shmipc_heap_stats_t stats;
    do {
      ASSERT_EQ(shmipc_heap_stats_get(own.region(), &stats), 0);
    } while (stats.heap_bytes == 2 * kPage);
    for (Process &worker : workers) {
      struct timespec pause = {0, static_cast<long>(random() % 200000)};
      nanosleep(&pause, nullptr);
      worker.Kill();
      ASSERT_EQ(shmipc_heap_stats_get(own.region(), &stats), 0);
      growing += stats.heap_bytes < kMost * kPage;
    }
    ASSERT_EQ(Problems(own.region()), "");
    ASSERT_GE(shmipc_heap_reclaim(own.region(), 0), 0);
    std::vector<void *> blocks;
    while (void *block = shmipc_block_alloc(own.region(), 32768)) {
      blocks.push_back(block);
    }
    ASSERT_EQ(blocks.size(), 2 * kMost) << "heap " << i;
    for (void *block : blocks) {
      ASSERT_EQ(shmipc_block_free(own.region(), block), 0);
    }
    ASSERT_GE(shmipc_region_recover(own.region()), 0);
    ASSERT_EQ(Problems(own.region()), "");
  }
  printf("%s: %" PRIu64 " heaps, %" PRIu64 " of %" PRIu64
         " kills while they grew from 2 to %zu pages, 0 bytes lost\n",
         NameOf(GetParam()), num_heaps, growing, num_heaps * kWorkers, kMost);
  // On a busy machine there may be none.
}

TEST_P(BlockKillTest, AStoppedProcessStopsNobody) {
  uint64_t count = std::min<uint64_t>(num_kills_ / 10, 300);
  tally_->without_roots = 1;
  std::mt19937_64 random(Seed());
  std::vector<Process> workers;
  for (int i = 0; i < kWorkers; i++) {
    workers.push_back(Start(i));
  }
  // One that is stopped while it attaches keeps others from attaching.
  for (const std::atomic<uint64_t> &rounds : tally_->rounds) {
    while (rounds == 0) {
      struct timespec pause = {0, 1000000};
      nanosleep(&pause, nullptr);
    }
  }
  for (uint64_t i = 0; i < count; i++) {
    struct timespec pause = {0, static_cast<long>(random() % 2000000)};
    nanosleep(&pause, nullptr);
    int victim = static_cast<int>(random() % kWorkers);
    workers[static_cast<size_t>(victim)].Signal(SIGSTOP);
    for (int j = 0; j < kWorkers; j++) {
      // The watchdog says when they do not.
      uint64_t before = tally_->rounds[j];
      while (j != victim && tally_->rounds[j] < before + 20) {
        nanosleep(&pause, nullptr);
      }
    }
    workers[static_cast<size_t>(victim)].Signal(SIGCONT);
  }
  tally_->is_over = 1;
  for (Process &worker : workers) {
    EXPECT_EQ(worker.Wait(), 0);
  }
  Report("stopped", count);
  ExpectWhole();
}

}  // namespace
