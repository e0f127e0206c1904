// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// One model for all strategies and sources, and what is the same for all of
// them. What a strategy places where is in private_heap_placement_test.cc,
// wrong pointers are in private_heap_misuse_test.cc, limits of all kinds in
// private_heap_limits_test.cc.

#include "heap/private_heap.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <climits>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <thread>
#include <vector>

#include "gtest/gtest.h"
#include "heap/fake_kernel.h"
#include "heap/heap_testing.h"
#include "heap/private_heap_model.h"
#include "heap/private_heap_testing.h"

namespace {

using heap_testing::Create;
using heap_testing::fake;
using heap_testing::Fill;
using heap_testing::Heap;
using heap_testing::IsFilled;
using heap_testing::kStrategies;
using heap_testing::Options;
using heap_testing::PrivateHeapModel;
using heap_testing::Random;
using heap_testing::RunInChild;
using heap_testing::RunPrivateHeapModel;
using heap_testing::Stats;
using heap_testing::UseFakeKernel;

class PrivateHeapTest : public testing::TestWithParam<heap_strategy_t> {};

INSTANTIATE_TEST_SUITE_P(Strategies, PrivateHeapTest,
                         testing::ValuesIn(kStrategies));

TEST_P(PrivateHeapTest, AgreesWithTheModel) {
  const uint64_t seed = heap_testing::Seed();
  heap_options_t options = Options(GetParam());
  // Without a lock some calls take short ways of their own.
  for (const bool is_single : {false, true}) {
    options.single_threaded = is_single;
    RunPrivateHeapModel(options, seed, 20000, 14, 100);
    RunPrivateHeapModel(options, seed + 1, 3000, 8, 1);
    // Pieces that end far away, and the steps of growth between.
    RunPrivateHeapModel(options, seed + 2, 3000, 20, 20);
  }
}

TEST_P(PrivateHeapTest, AgreesWithTheModelWhateverTheOptions) {
  const uint64_t seed = heap_testing::Seed();
  for (size_t granule : {size_t{16}, size_t{64}, size_t{4096}}) {
    for (size_t split : {size_t{0}, size_t{48}, size_t{10000}}) {
      heap_options_t options = Options(GetParam());
      if (GetParam() == HEAP_SEGREGATED) {
        options.span_bytes = granule * 16;  // 256 is too short.
        options.span_bytes += granule == 16 ? 768 : 0;
      } else {
        options.granule_bytes = granule;
      }
      options.split_bytes = split;
      options.tlsf_lists_log2 = granule == 64 ? 1 : 5;
      options.single_threaded = split == 48;
      options.limit_bytes = size_t{16} << 20;
      RunPrivateHeapModel(options, seed + granule + split, 3000, 13, 20);
    }
  }
}

// Free blocks of 8 bytes are nothing but links.
TEST_P(PrivateHeapTest, AgreesWithTheModelInTheSmallestGranules) {
  if (GetParam() == HEAP_SEGREGATED) {
    GTEST_SKIP() << "has size classes";
  }
  const uint64_t seed = heap_testing::Seed();
  heap_options_t options = Options(GetParam());
  options.granule_bytes = 8;
  RunPrivateHeapModel(options, seed, 10000, 12, 50);
  std::vector<unsigned char> memory(24000);
  options.buffer = memory.data() + 3;
  options.buffer_bytes = memory.size() - 3;
  RunPrivateHeapModel(options, seed, 5000, 6, 1);
  const Heap heap = Create(options);
  void *ptr = heap_alloc_in(heap.get(), 1);
  EXPECT_EQ(heap_usable_size_in(heap.get(), ptr), 8u);
}

// So small a heap that all of it can be checked each time. The long form, a
// million operations, is HEAP_TEST_CHECKED_OPERATIONS=1000000.
void CheckEachOperation(heap_strategy_t strategy, bool is_single) {
  const char *wanted = getenv("HEAP_TEST_CHECKED_OPERATIONS");
  const int operations = wanted == nullptr ? 30000 : atoi(wanted);
  // Size classes need more, or there would be none for most sizes.
  std::vector<unsigned char> memory(strategy == HEAP_SEGREGATED ? 60000
                                                                : 24000);
  heap_options_t options = Options(strategy);
  options.single_threaded = is_single;
  options.buffer = memory.data();
  options.buffer_bytes = memory.size();
  const Heap heap = Create(options);
  Random random(heap_testing::Seed());
  PrivateHeapModel model(heap.get());
  for (int i = 0; i < operations; ++i) {
    model.Step(&random, 10);
    ASSERT_STREQ(heap_check_in(heap.get()), nullptr) << "operation " << i;
    if (i % 256 == 0) {
      model.Check();
    }
    ASSERT_FALSE(testing::Test::HasFailure()) << "operation " << i;
  }
  EXPECT_GT(model.refused(), 0u) << "the heap is never full";
  EXPECT_GT(model.served(), static_cast<size_t>(operations) / 3);
  model.FreeAll();
  model.Check();
}

TEST_P(PrivateHeapTest, IsWholeAfterEachOperation) {
  CheckEachOperation(GetParam(), false);
}

TEST_P(PrivateHeapTest, IsWholeAfterEachOperationWithoutALock) {
  CheckEachOperation(GetParam(), true);
}

// No kernel at all: each call to it would fail.
TEST_P(PrivateHeapTest, LivesInABuffer) {
  const uint64_t seed = heap_testing::Seed();
  RunInChild([=] {
    UseFakeKernel();
    fake.fail_from = 1;
    fake.fail_count = INT_MAX;
    for (size_t bytes : {size_t{8192}, size_t{100001}, size_t{3} << 20}) {
      std::vector<unsigned char> memory(bytes + 2, 0xA5);
      heap_options_t options = Options(GetParam());
      options.buffer = memory.data() + 1;
      options.buffer_bytes = bytes;
      RunPrivateHeapModel(options, seed, 5000, bytes > 100000 ? 14 : 8, 20);
      EXPECT_EQ(memory.front(), 0xA5);
      EXPECT_EQ(memory.back(), 0xA5);
      const Heap heap = Create(options);
      // Tables of two bits a granule, and the heap itself; of a segregated heap
      // a byte each for 16 bytes, and 32, and so on, and descriptors of pages.
      const size_t tables =
          GetParam() == HEAP_SEGREGATED ? bytes / 6 : bytes / 20;
      EXPECT_GE(Stats(heap).mapped_bytes + 8192, bytes - tables);
    }
    EXPECT_EQ(fake.calls, 0);
  });
}

TEST_P(PrivateHeapTest, LivesInAFile) {
  const int file = memfd_create("private_heap_test", MFD_CLOEXEC);
  ASSERT_GE(file, 0);
  heap_options_t options = Options(GetParam());
  options.use_file = true;
  options.file = file;
  options.limit_bytes = size_t{64} << 20;
  RunPrivateHeapModel(options, heap_testing::Seed(), 5000, 14, 50);

  Heap heap = Create(options);
  void *ptr = heap_alloc_in(heap.get(), 300000);
  Fill(ptr, 300000, 7);
  struct stat status;
  ASSERT_EQ(fstat(file, &status), 0);
  EXPECT_GE(static_cast<size_t>(status.st_size), Stats(heap).mapped_bytes);
  std::vector<unsigned char> copy(static_cast<size_t>(status.st_size));
  ASSERT_EQ(pread(file, copy.data(), copy.size(), 0), status.st_size);
  EXPECT_EQ(close(file), 0);
  bool is_in_file = false;
  for (size_t i = 0; i + 300000 <= copy.size(); i += 16) {
    is_in_file = is_in_file || IsFilled(&copy[i], 300000, 300000, 7);
  }
  EXPECT_TRUE(is_in_file);
  EXPECT_NE(heap_alloc_in(heap.get(), 5000000), nullptr) << "closed by now";

  options.file = open("/dev/null", O_RDONLY | O_CLOEXEC);
  EXPECT_EQ(heap_create(&options), nullptr);
  EXPECT_NE(errno, ENOMEM);
  EXPECT_EQ(close(options.file), 0);
  EXPECT_EQ(heap_create(&options), nullptr);
  EXPECT_EQ(errno, EBADF);
}

TEST_P(PrivateHeapTest, LimitIsHard) {
  heap_options_t options = Options(GetParam());
  options.limit_bytes = size_t{1} << 20;
  const Heap heap = Create(options);
  for (int round = 0; round < 3; ++round) {
    std::vector<void *> blocks;
    while (void *ptr = heap_alloc_in(heap.get(), 1000)) {
      blocks.push_back(ptr);
    }
    EXPECT_EQ(errno, ENOMEM);
    const bool is_rounded =
        GetParam() == HEAP_BUDDY || GetParam() == HEAP_SEGREGATED;
    EXPECT_EQ(blocks.size(), (size_t{1} << 20) / 16 / (is_rounded ? 64u : 63u));
    EXPECT_EQ(Stats(heap).mapped_bytes, size_t{1} << 20);
    EXPECT_EQ(heap_alloc_in(heap.get(), size_t{2} << 20), nullptr);
    EXPECT_EQ(heap_alloc_in(heap.get(), SIZE_MAX), nullptr);
    EXPECT_EQ(heap_calloc_in(heap.get(), SIZE_MAX / 2, 3), nullptr);
    EXPECT_EQ(heap_aligned_alloc_in(heap.get(), size_t{1} << 63, 1), nullptr);
    EXPECT_STREQ(heap_check_in(heap.get()), nullptr);
    if (round == 1) {
      heap_reset(heap.get());
    } else {
      for (void *ptr : blocks) {
        heap_free_in(heap.get(), ptr);
      }
    }
    EXPECT_EQ(Stats(heap).num_live, 0u);
    EXPECT_STREQ(heap_check_in(heap.get()), nullptr);
  }
  // All of it as one block.
  EXPECT_NE(heap_alloc_in(heap.get(), size_t{1} << 20), nullptr);
}

TEST_P(PrivateHeapTest, EachKernelCallMayFail) {
  const uint64_t seed = heap_testing::Seed();
  for (int fail_from = 1; fail_from < 12; ++fail_from) {
    for (int fail_count : {1, 3, INT_MAX}) {
      RunInChild([=] {
        UseFakeKernel();
        fake.fail_from = fail_from;
        fake.fail_count = fail_count;
        heap_options_t options = Options(GetParam());
        if (fail_from % 2 == 0) {
          options.limit_bytes = size_t{8} << 20;
        }
        Heap heap(heap_create(&options));
        if (heap == nullptr) {
          EXPECT_EQ(errno, ENOMEM);
          EXPECT_EQ(fake.mapped_bytes, fake.lost_bytes);
          return;
        }
        Random random(seed);
        PrivateHeapModel model(heap.get());
        for (int i = 0; i < 1000; ++i) {
          model.Step(&random, 14);
        }
        model.Check();
        model.FreeAll();
        heap_trim_in(heap.get());
        model.Check();
        fake.fail_count = 0;
        heap.reset();
        EXPECT_EQ(fake.mapped_bytes, fake.lost_bytes);
      });
    }
  }
}

TEST_P(PrivateHeapTest, TrimGivesFreePagesBack) {
  const Heap heap = Create(Options(GetParam()));
  std::vector<unsigned char *> blocks;
  for (int i = 0; i < 64; ++i) {
    blocks.push_back(
        static_cast<unsigned char *>(heap_alloc_in(heap.get(), 65536)));
    Fill(blocks.back(), 65536, static_cast<uint64_t>(i));
  }
  for (size_t i = 0; i < blocks.size(); i += 2) {
    heap_free_in(heap.get(), blocks[i]);
  }
  EXPECT_GE(heap_trim_in(heap.get()), 32u * (65536 - 2 * 4096));
  EXPECT_STREQ(heap_check_in(heap.get()), nullptr);
  unsigned char resident[16];
  const auto page =
      (reinterpret_cast<uintptr_t>(blocks[2]) + 8191) & ~uintptr_t{4095};
  ASSERT_EQ(mincore(reinterpret_cast<void *>(page), 4096, resident), 0);
  EXPECT_EQ(resident[0] & 1, 0);
  for (size_t i = 1; i < blocks.size(); i += 2) {
    EXPECT_TRUE(IsFilled(blocks[i], 65536, 65536, i));
  }
}

// In place in both directions, whatever the strategy.
TEST_P(PrivateHeapTest, ReallocIsInPlaceWhereItCanBe) {
  const size_t kBytes = 131072;
  const Heap heap = Create(Options(GetParam()));
  auto *ptr = static_cast<char *>(heap_alloc_in(heap.get(), kBytes));
  void *behind = heap_alloc_in(heap.get(), kBytes);
  ASSERT_EQ(behind, ptr + kBytes);
  Fill(ptr, kBytes, 1);
  EXPECT_EQ(heap_realloc_in(heap.get(), ptr, kBytes / 8), ptr);
  EXPECT_EQ(heap_usable_size_in(heap.get(), ptr), kBytes / 8);
  EXPECT_EQ(heap_realloc_in(heap.get(), ptr, kBytes), ptr);
  heap_free_in(heap.get(), behind);
  EXPECT_EQ(heap_realloc_in(heap.get(), ptr, 2 * kBytes), ptr);
  EXPECT_EQ(heap_usable_size_in(heap.get(), ptr), 2 * kBytes);
  EXPECT_TRUE(IsFilled(ptr, 16, kBytes, 1));
  // So little has another place in a segregated heap.
  void *shrunk = heap_realloc_in(heap.get(), ptr, 0);
  EXPECT_EQ(shrunk == ptr, GetParam() != HEAP_SEGREGATED);
  EXPECT_EQ(heap_usable_size_in(heap.get(), shrunk), 16u);
  EXPECT_EQ(Stats(heap).live_bytes, 16u);
  EXPECT_STREQ(heap_check_in(heap.get()), nullptr);
}

// All pieces that began in one 64 KiB become part of one that began before:
// what says where pieces begin is to say so on every level.
TEST_P(PrivateHeapTest, PiecesJoinAcrossWholeStretches) {
  const size_t kStretch = 65536;
  for (bool single_threaded : {false, true}) {
    heap_options_t options = Options(GetParam());
    options.single_threaded = single_threaded;
    const Heap heap = Create(options);
    void *before = heap_alloc_in(heap.get(), kStretch);
    // To the end of the stretch, beyond it and the next, from its last granule
    // on.
    const size_t lengths[][2] = {
        {1024, kStretch - 1024}, {1024, 2 * kStretch}, {kStretch - 16, 1024}};
    for (const auto &both : lengths) {
      void *first = heap_alloc_in(heap.get(), both[0]);
      void *second = heap_alloc_in(heap.get(), both[1]);
      void *behind = heap_alloc_in(heap.get(), kStretch);
      ASSERT_NE(behind, nullptr);
      heap_free_in(heap.get(), before);
      heap_free_in(heap.get(), second);
      heap_free_in(heap.get(), first);
      EXPECT_STREQ(heap_check_in(heap.get()), nullptr) << both[1];
      heap_free_in(heap.get(), behind);
      before = heap_alloc_in(heap.get(), kStretch);
      EXPECT_STREQ(heap_check_in(heap.get()), nullptr) << both[1];
    }
  }
}

// A moved block leaves its old place free.
TEST_P(PrivateHeapTest, ReallocMovesWhatCannotGrow) {
  const Heap heap = Create(Options(GetParam()));
  void *ptr = heap_alloc_in(heap.get(), 1000);
  ASSERT_NE(heap_alloc_in(heap.get(), 1000), nullptr);
  Fill(ptr, 1000, 1);
  void *moved = heap_realloc_in(heap.get(), ptr, 5000);
  ASSERT_NE(moved, nullptr);
  EXPECT_NE(moved, ptr);
  EXPECT_TRUE(IsFilled(moved, 1000, 1000, 1));
  EXPECT_EQ(Stats(heap).num_live, 2u);
  EXPECT_STREQ(heap_check_in(heap.get()), nullptr);
}

// Threads.

TEST_P(PrivateHeapTest, AnyThreadMayFree) {
  const Heap heap = Create(Options(GetParam()));
  std::atomic<void *> slots[64] = {};
  std::vector<std::thread> threads;
  for (uint64_t i = 0; i < 4; ++i) {
    threads.emplace_back([&, i] {
      Random random(i);
      for (int n = 0; n < 5000; ++n) {
        const size_t size = 16 + random.Below(1000);
        void *ptr = heap_alloc_in(heap.get(), size);
        memset(ptr, static_cast<int>(i), size);
        heap_free_in(heap.get(), slots[random.Below(64)].exchange(ptr));
      }
    });
  }
  for (std::thread &thread : threads) {
    thread.join();
  }
  for (std::atomic<void *> &slot : slots) {
    heap_free_in(heap.get(), slot.load());
  }
  EXPECT_EQ(Stats(heap).num_live, 0u);
  EXPECT_STREQ(heap_check_in(heap.get()), nullptr);
}

}  // namespace
