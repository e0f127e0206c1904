// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// Random operations on blocks against a model, in one thread and in threads
// and processes at once.
//
// SHMIPC_TEST_SEED for other random numbers.

#include "shmipc/block.h"

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdint>
#include <random>
#include <thread>
#include <vector>

#include "gtest/gtest.h"
#include "shmipc/block_testing.h"

namespace {

using shmipc_testing::BackendName;
using shmipc_testing::Backends;
using shmipc_testing::Problems;
using shmipc_testing::Process;
using shmipc_testing::Seed;

class BlockRandomTest : public shmipc_testing::HeapTest {};

INSTANTIATE_TEST_SUITE_P(All, BlockRandomTest, testing::ValuesIn(Backends()),
                         BackendName);

// Random operations against what should be there.
class Model {
 public:
  Model(shmipc_region_t *region, uint64_t seed)
      : region_(region), random_(seed) {
  }

  void Step() {
    uint64_t choice = random_() % 100;
    if (choice < 45 || blocks_.empty()) {
      Alloc();
    } else if (choice < 85) {
      Free();
    } else {
      Realloc();
    }
  }
  void FreeAll() {
    while (!blocks_.empty()) {
      Free();
    }
  }
  size_t count() const {
    return blocks_.size();
  }

 private:
  struct Block {
    unsigned char *start;
    size_t size;
    unsigned char id;
  };

  size_t Size() {
    switch (random_() % 10) {
      case 0:
        return random_() % 200000;
      case 1:
      case 2:
        return random_() % 10000;
      default:
        return random_() % 300;
    }
  }
  void Fill(Block *block) {
    block->id = static_cast<unsigned char>(random_());
    for (size_t i = 0; i < block->size; i++) {
      block->start[i] = static_cast<unsigned char>(block->id + i);
    }
  }
  static void ExpectFilled(const Block &block, size_t size) {
    for (size_t i = 0; i < size; i++) {
      ASSERT_EQ(block.start[i], static_cast<unsigned char>(block.id + i));
    }
  }
  void Alloc() {
    size_t alignment = random_() % 8 == 0 ? size_t{1} << random_() % 13 : 16;
    Block block = {nullptr, Size(), 0};
    block.start = static_cast<unsigned char *>(
        shmipc_block_alloc_aligned(region_, alignment, block.size));
    if (block.start == nullptr) {
      ASSERT_EQ(errno, ENOMEM);
      return;
    }
    ASSERT_EQ(reinterpret_cast<uintptr_t>(block.start) % alignment, 0u);
    Fill(&block);
    blocks_.push_back(block);
  }
  void Free() {
    std::swap(blocks_[random_() % blocks_.size()], blocks_.back());
    Block block = blocks_.back();
    blocks_.pop_back();
    ExpectFilled(block, block.size);
    ASSERT_EQ(shmipc_block_free(region_, block.start), 0);
  }
  void Realloc() {
    Block &block = blocks_[random_() % blocks_.size()];
    size_t size = Size();
    void *moved = shmipc_block_realloc(region_, block.start, size);
    if (moved == nullptr) {
      ASSERT_EQ(errno, ENOMEM);
      return;
    }
    block.start = static_cast<unsigned char *>(moved);
    ExpectFilled(block, std::min(size, block.size));
    block.size = size;
    Fill(&block);
  }

  shmipc_region_t *region_;
  std::mt19937_64 random_;
  std::vector<Block> blocks_;
};

TEST_P(BlockRandomTest, RandomOperationsMatchAModel) {
  Model model(region_, Seed());
  for (int i = 0; i < 12000; i++) {
    model.Step();
    ASSERT_FALSE(HasFatalFailure());
    if (i % 1000 == 0) {
      ASSERT_EQ(Stats().num_live, model.count());
      ASSERT_EQ(Problems(region_), "");
    }
  }
  model.FreeAll();
  ExpectUnused();
}

TEST_P(BlockRandomTest, ThreadsAndProcessesAtOnceMatchTheirModels) {
#ifdef __SANITIZE_THREAD__
  // A page that goes from thread to thread by way of another process is a race
  // to the sanitizer, which sees nothing of what orders them there.
  const int num_processes = 0;
#else
  const int num_processes = 2;
#endif
  std::vector<Process> processes;
  for (int i = 0; i < num_processes; i++) {
    processes.emplace_back([&, i] {
      shmipc_region_t *region = own_.AttachInChild();
      Model model(region, Seed() + 100 + static_cast<uint64_t>(i));
      for (int j = 0; j < 4000 && !HasFailure(); j++) {
        model.Step();
      }
      model.FreeAll();
      return HasFailure() ? 1 : 0;
    });
  }
  std::vector<std::thread> threads;
  for (int i = 0; i < 2; i++) {
    threads.emplace_back([&, i] {
      Model model(region_, Seed() + static_cast<uint64_t>(i));
      for (int j = 0; j < 4000 && !HasFailure(); j++) {
        model.Step();
      }
      model.FreeAll();
    });
  }
  for (std::thread &thread : threads) {
    thread.join();
  }
  for (Process &process : processes) {
    EXPECT_EQ(process.Wait(), 0);
  }
  ExpectUnused();
}

TEST_P(BlockRandomTest, BlocksGoRoundBetweenThreads) {
  // Each puts blocks in a place and frees what it finds there.
  std::atomic<char *> places[64] = {};
  std::vector<std::thread> threads;
  std::atomic<int> wrong{0};
  for (int t = 0; t < 3; t++) {
    threads.emplace_back([&, t] {
      std::mt19937_64 random(Seed() + static_cast<uint64_t>(t));
      for (int i = 0; i < 20000; i++) {
        size_t size = 1 + random() % 2000;
        char *block = static_cast<char *>(shmipc_block_alloc(region_, size));
        if (block != nullptr) {
          block[0] = static_cast<char>(size);
          block[size - 1] = static_cast<char>(size);
        }
        block = places[random() % 64].exchange(block);
        if (block != nullptr) {
          block[0]++;
          wrong += shmipc_block_free(region_, block) != 0;
        }
      }
    });
  }
  for (std::thread &thread : threads) {
    thread.join();
  }
  for (auto &place : places) {
    wrong += shmipc_block_free(region_, place) != 0;
  }
  EXPECT_EQ(wrong, 0);
  ExpectUnused();
}

}  // namespace
