// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// One model for all strategies and sources; what each strategy places where;
// and what a heap says of pointers that are none of its blocks. Limits of all
// kinds are in private_heap_limits_test.cc.

#include "heap/private_heap.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <climits>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "gtest/gtest.h"
#include "heap/fake_kernel.h"
#include "heap/heap_testing.h"
#include "heap/private_heap_testing.h"

namespace {

using heap_testing::Create;
using heap_testing::fake;
using heap_testing::Fill;
using heap_testing::Heap;
using heap_testing::IsFilled;
using heap_testing::IsZero;
using heap_testing::kStrategies;
using heap_testing::Options;
using heap_testing::Random;
using heap_testing::RunInChild;
using heap_testing::Stats;
using heap_testing::UseFakeKernel;

// What a heap should have, by address.
class Model {
 public:
  explicit Model(heap_t *heap, size_t granule_bytes)
      : heap_(heap), granule_bytes_(granule_bytes) {
  }

  // One random call.
  void Step(Random *random, unsigned max_log2) {
    const size_t size = random->SkewedSize(max_log2);
    switch (random->Below(8)) {
      case 0:
        Add(heap_calloc_in(heap_, 1, size), size, 1, true);
        break;
      case 1: {
        const size_t align = size_t{1} << random->Below(13);
        Add(heap_aligned_alloc_in(heap_, align, size), size, align, false);
        break;
      }
      case 2:
        Resize(random, size);
        break;
      case 3:
      case 4:
      case 5:
        Free(random);
        break;
      default:
        Add(heap_alloc_in(heap_, size), size, 1, false);
    }
  }

  void Check() {
    ASSERT_STREQ(heap_check_in(heap_), nullptr);
    auto expected = blocks_.begin();
    std::pair<Model *, decltype(expected) *> context{this, &expected};
    heap_walk_in(
        heap_,
        [](void *data, void *ptr, size_t usable) {
          auto *pair = static_cast<decltype(context) *>(data);
          auto &next = *pair->second;
          EXPECT_NE(next, pair->first->blocks_.end());
          EXPECT_EQ(ptr, next->first);
          EXPECT_GE(usable, next->second.size_bytes);
          ++next;
          return true;
        },
        &context);
    EXPECT_EQ(expected, blocks_.end());
    heap_private_stats_t stats;
    heap_stats_get_in(heap_, &stats);
    EXPECT_EQ(stats.num_live, blocks_.size());
    EXPECT_GE(stats.live_bytes, live_bytes_);
    EXPECT_EQ(stats.live_bytes + stats.free_bytes, stats.mapped_bytes);
  }

  void FreeAll() {
    for (const auto &[ptr, block] : blocks_) {
      EXPECT_TRUE(IsFilled(ptr, block.size_bytes, block.size_bytes, block.id));
      heap_free_in(heap_, ptr);
    }
    blocks_.clear();
    live_bytes_ = 0;
  }

  size_t refused() const {
    return refused_;
  }
  size_t served() const {
    return served_;
  }

 private:
  struct Block {
    size_t size_bytes;
    uint64_t id;
  };

  void Add(void *ptr, size_t size, size_t align, bool is_zeroed) {
    if (ptr == nullptr) {
      EXPECT_EQ(errno, ENOMEM);
      ++refused_;
      return;
    }
    ++served_;
    EXPECT_EQ(
        reinterpret_cast<uintptr_t>(ptr) % std::max(align, granule_bytes_), 0u);
    EXPECT_GE(heap_usable_size_in(heap_, ptr), size);
    if (is_zeroed) {
      EXPECT_TRUE(IsZero(ptr, size));
    }
    const auto next = blocks_.lower_bound(ptr);
    if (next != blocks_.end()) {
      EXPECT_LE(static_cast<char *>(ptr) + size, next->first);
    }
    if (next != blocks_.begin()) {
      const auto &prev = *std::prev(next);
      EXPECT_LE(static_cast<char *>(prev.first) + prev.second.size_bytes, ptr);
    }
    blocks_[ptr] = {size, ++last_id_};
    live_bytes_ += size;
    Fill(ptr, size, last_id_);
  }

  std::map<void *, Block>::iterator Choose(Random *random) {
    auto it = blocks_.begin();
    std::advance(it,
                 static_cast<std::ptrdiff_t>(random->Below(blocks_.size())));
    return it;
  }

  void Free(Random *random) {
    if (blocks_.empty()) {
      return;
    }
    const auto it = Choose(random);
    EXPECT_TRUE(IsFilled(it->first, it->second.size_bytes,
                         it->second.size_bytes, it->second.id));
    live_bytes_ -= it->second.size_bytes;
    heap_free_in(heap_, it->first);
    blocks_.erase(it);
  }

  void Resize(Random *random, size_t size) {
    if (blocks_.empty()) {
      return;
    }
    const auto it = Choose(random);
    void *old = it->first;
    const Block block = it->second;
    void *ptr = heap_realloc_in(heap_, old, size);
    if (ptr == nullptr) {
      EXPECT_EQ(errno, ENOMEM);
      EXPECT_GT(size, block.size_bytes);
      EXPECT_TRUE(IsFilled(old, block.size_bytes, block.size_bytes, block.id));
      ++refused_;
      return;
    }
    EXPECT_TRUE(IsFilled(ptr, std::min(size, block.size_bytes),
                         block.size_bytes, block.id));
    live_bytes_ -= block.size_bytes;
    blocks_.erase(it);
    Add(ptr, size, 1, false);
  }

  heap_t *const heap_;
  const size_t granule_bytes_;
  std::map<void *, Block> blocks_;
  size_t live_bytes_ = 0;
  uint64_t last_id_ = 0;
  size_t refused_ = 0;
  size_t served_ = 0;
};

void RunModel(const heap_options_t &options, uint64_t seed, int steps,
              unsigned max_log2, int check_every) {
  const Heap heap = Create(options);
  Random random(seed);
  Model model(heap.get(),
              options.granule_bytes == 0 ? 16 : options.granule_bytes);
  for (int i = 0; i < steps; ++i) {
    model.Step(&random, max_log2);
    if (i % check_every == 0) {
      model.Check();
    }
    if (testing::Test::HasFailure()) {
      return;
    }
  }
  EXPECT_GT(model.served(), model.refused());
  model.FreeAll();
  model.Check();
  const heap_private_stats_t stats = Stats(heap);
  EXPECT_EQ(stats.free_bytes, stats.mapped_bytes);
  EXPECT_EQ(stats.num_live, 0u);
  if (options.strategy != HEAP_BUDDY) {
    EXPECT_LE(stats.num_free, 1u);
  }
}

class PrivateHeapTest : public testing::TestWithParam<heap_strategy_t> {};

INSTANTIATE_TEST_SUITE_P(Strategies, PrivateHeapTest,
                         testing::ValuesIn(kStrategies));

TEST_P(PrivateHeapTest, AgreesWithTheModel) {
  const uint64_t seed = heap_testing::Seed();
  RunModel(Options(GetParam()), seed, 20000, 14, 100);
  RunModel(Options(GetParam()), seed + 1, 3000, 8, 1);
}

TEST_P(PrivateHeapTest, AgreesWithTheModelWhateverTheOptions) {
  const uint64_t seed = heap_testing::Seed();
  for (size_t granule : {size_t{16}, size_t{64}, size_t{4096}}) {
    for (size_t split : {size_t{0}, size_t{48}, size_t{10000}}) {
      heap_options_t options = Options(GetParam());
      options.granule_bytes = granule;
      options.split_bytes = split;
      options.tlsf_lists_log2 = granule == 64 ? 1 : 5;
      options.single_threaded = split == 48;
      options.limit_bytes = size_t{16} << 20;
      RunModel(options, seed + granule + split, 3000, 13, 20);
    }
  }
}

// So small a heap that all of it can be checked each time. The long form, a
// million operations, is HEAP_TEST_CHECKED_OPERATIONS=1000000.
TEST_P(PrivateHeapTest, IsWholeAfterEachOperation) {
  const char *wanted = getenv("HEAP_TEST_CHECKED_OPERATIONS");
  const int operations = wanted == nullptr ? 30000 : atoi(wanted);
  std::vector<unsigned char> memory(24000);
  heap_options_t options = Options(GetParam());
  options.buffer = memory.data();
  options.buffer_bytes = memory.size();
  const Heap heap = Create(options);
  Random random(heap_testing::Seed());
  Model model(heap.get(), 16);
  for (int i = 0; i < operations; ++i) {
    model.Step(&random, 10);
    ASSERT_STREQ(heap_check_in(heap.get()), nullptr) << "operation " << i;
    if (i % 256 == 0) {
      model.Check();
    }
    ASSERT_FALSE(HasFailure()) << "operation " << i;
  }
  EXPECT_GT(model.refused(), 0u) << "the heap is never full";
  EXPECT_GT(model.served(), static_cast<size_t>(operations) / 3);
  model.FreeAll();
  model.Check();
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
      RunModel(options, seed, 5000, bytes > 100000 ? 14 : 8, 20);
      EXPECT_EQ(memory.front(), 0xA5);
      EXPECT_EQ(memory.back(), 0xA5);
      const Heap heap = Create(options);
      // Tables of two bits a granule, and the heap itself.
      EXPECT_GE(Stats(heap).mapped_bytes + 8192, bytes - bytes / 20);
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
  RunModel(options, heap_testing::Seed(), 5000, 14, 50);

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
    EXPECT_EQ(blocks.size(),
              (size_t{1} << 20) / 16 / (GetParam() == HEAP_BUDDY ? 64u : 63u));
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
          if (fail_count == 1) {  // Otherwise the unmapping failed as well.
            EXPECT_EQ(fake.mapped_bytes, 0u);
          }
          return;
        }
        Random random(seed);
        Model model(heap.get(), 16);
        for (int i = 0; i < 1000; ++i) {
          model.Step(&random, 14);
        }
        model.Check();
        model.FreeAll();
        heap_trim_in(heap.get());
        model.Check();
        fake.fail_count = 0;
        heap.reset();
        EXPECT_EQ(fake.mapped_bytes, 0u);
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

// Placement.

// Frees holes of the given sizes, with live blocks between; returns where they
// are.
std::vector<void *> MakeHoles(heap_t *heap, const std::vector<size_t> &sizes) {
  std::vector<void *> holes;
  for (size_t size : sizes) {
    holes.push_back(heap_alloc_in(heap, size));
    EXPECT_NE(heap_alloc_in(heap, 16), nullptr);
  }
  for (void *hole : holes) {
    heap_free_in(heap, hole);
  }
  return holes;
}

TEST(PlacementTest, FirstFitTakesTheLowest) {
  const Heap heap = Create(Options(HEAP_FIRST_FIT));
  const auto holes = MakeHoles(heap.get(), {32, 4096, 512, 500000});
  EXPECT_EQ(heap_alloc_in(heap.get(), 500), holes[1]);
  EXPECT_EQ(heap_alloc_in(heap.get(), 20), holes[0]);
  EXPECT_EQ(heap_alloc_in(heap.get(), 500),
            static_cast<char *>(holes[1]) + 512);
}

TEST(PlacementTest, NextFitGoesOn) {
  // All of the heap is taken, so that a search that reaches the end starts at
  // the low end again.
  heap_options_t options = Options(HEAP_NEXT_FIT);
  options.limit_bytes = 65536;
  const Heap heap = Create(options);
  const auto holes = MakeHoles(heap.get(), {512, 512, 1024, 512});
  void *rest = heap_alloc_in(heap.get(), Stats(heap).largest_free_bytes);
  ASSERT_NE(rest, nullptr);
  // The search ended at the end.
  auto *first = static_cast<char *>(heap_alloc_in(heap.get(), 256));
  EXPECT_EQ(first, holes[0]);
  EXPECT_EQ(heap_alloc_in(heap.get(), 512), holes[1]) << "too large for it";
  // First fit would take the rest of holes[0].
  EXPECT_EQ(heap_alloc_in(heap.get(), 256), holes[2]);
  heap_free_in(heap.get(), first);
  EXPECT_EQ(heap_alloc_in(heap.get(), 256), static_cast<char *>(holes[2]) + 256)
      << "not the hole just made";
  EXPECT_EQ(heap_alloc_in(heap.get(), 512),
            static_cast<char *>(holes[2]) + 512);
  EXPECT_EQ(heap_alloc_in(heap.get(), 512), holes[3]);
  EXPECT_EQ(heap_alloc_in(heap.get(), 16), holes[0]) << "from the low end";
}

TEST(PlacementTest, BestFitTakesTheSmallest) {
  const Heap heap = Create(Options(HEAP_BEST_FIT));
  const auto holes = MakeHoles(heap.get(), {4096, 528, 512, 2048, 512, 8192});
  EXPECT_EQ(heap_alloc_in(heap.get(), 500), holes[2]);
  EXPECT_EQ(heap_alloc_in(heap.get(), 500), holes[4]);
  EXPECT_EQ(heap_alloc_in(heap.get(), 500), holes[1]);
  EXPECT_EQ(heap_alloc_in(heap.get(), 500), holes[3]);
  EXPECT_EQ(heap_alloc_in(heap.get(), 3000), holes[0]);
}

TEST(PlacementTest, TlsfTakesOneThatIsSurelyLargeEnough) {
  const Heap heap = Create(Options(HEAP_TLSF));
  const auto holes = MakeHoles(heap.get(), {8192, 1040, 1024, 1600});
  // Lengths of 64 to 67 granules are one range: of the two holes in it the one
  // freed last comes first, whichever is smaller.
  EXPECT_EQ(heap_alloc_in(heap.get(), 1024), holes[2]);
  EXPECT_EQ(heap_alloc_in(heap.get(), 1024), holes[1]);
  EXPECT_EQ(heap_alloc_in(heap.get(), 1500), holes[3]);
  EXPECT_EQ(heap_alloc_in(heap.get(), 1500), holes[0]);
}

TEST(PlacementTest, BuddiesAreHalves) {
  const Heap heap = Create(Options(HEAP_BUDDY));
  auto *first = static_cast<char *>(heap_alloc_in(heap.get(), 4096));
  auto *second = static_cast<char *>(heap_alloc_in(heap.get(), 1000));
  auto *third = static_cast<char *>(heap_alloc_in(heap.get(), 1024));
  EXPECT_EQ(second, first + 4096);
  EXPECT_EQ(third, second + 1024);
  EXPECT_EQ(heap_usable_size_in(heap.get(), second), 1024u);
  EXPECT_EQ(heap_realloc_in(heap.get(), second, 100), second);
  EXPECT_EQ(heap_usable_size_in(heap.get(), second), 128u);
  heap_free_in(heap.get(), third);
  EXPECT_EQ(heap_realloc_in(heap.get(), second, 4096), second);
  EXPECT_EQ(heap_usable_size_in(heap.get(), second), 4096u);
  EXPECT_STREQ(heap_check_in(heap.get()), nullptr);
  EXPECT_EQ(heap_aligned_alloc_in(heap.get(), size_t{1} << 20, 16), nullptr);
  EXPECT_NE(heap_aligned_alloc_in(heap.get(), 65536, 16), nullptr);
}

TEST(PlacementTest, LittleIsNotSplitOff) {
  heap_options_t options = Options(HEAP_BEST_FIT);
  options.split_bytes = 128;
  const Heap heap = Create(options);
  const auto holes = MakeHoles(heap.get(), {1024});
  void *ptr = heap_alloc_in(heap.get(), 1024 - 112);
  EXPECT_EQ(ptr, holes[0]);
  EXPECT_EQ(heap_usable_size_in(heap.get(), ptr), 1024u);
  EXPECT_EQ(heap_realloc_in(heap.get(), ptr, 1024 - 128), ptr);
  EXPECT_EQ(heap_usable_size_in(heap.get(), ptr), 1024u - 128);
  // What is free behind it and what it gives up are too little together.
  void *next = heap_alloc_in(heap.get(), 128);
  ASSERT_EQ(next, static_cast<char *>(ptr) + 1024 - 128);
  EXPECT_EQ(heap_realloc_in(heap.get(), ptr, 1024 - 128 - 112), ptr);
  EXPECT_EQ(heap_usable_size_in(heap.get(), ptr), 1024u - 128);
}

// In place in both directions, whatever the strategy.
TEST_P(PrivateHeapTest, ReallocIsInPlaceWhereItCanBe) {
  const Heap heap = Create(Options(GetParam()));
  auto *ptr = static_cast<char *>(heap_alloc_in(heap.get(), 1024));
  void *behind = heap_alloc_in(heap.get(), 1024);
  ASSERT_EQ(behind, ptr + 1024);
  Fill(ptr, 1024, 1);
  EXPECT_EQ(heap_realloc_in(heap.get(), ptr, 64), ptr);
  EXPECT_EQ(heap_usable_size_in(heap.get(), ptr), 64u);
  EXPECT_EQ(heap_realloc_in(heap.get(), ptr, 1024), ptr);
  heap_free_in(heap.get(), behind);
  EXPECT_EQ(heap_realloc_in(heap.get(), ptr, 2048), ptr);
  EXPECT_EQ(heap_usable_size_in(heap.get(), ptr), 2048u);
  EXPECT_EQ(heap_realloc_in(heap.get(), ptr, 0), ptr);
  EXPECT_EQ(heap_usable_size_in(heap.get(), ptr), 16u);
  EXPECT_TRUE(IsFilled(ptr, 16, 1024, 1));
  EXPECT_EQ(Stats(heap).live_bytes, 16u);
  EXPECT_STREQ(heap_check_in(heap.get()), nullptr);
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

// Misuse.

std::string ReportOf(const std::function<void()> &body) {
  std::string text;
  setenv("HEAP_ON_ERROR", "report", 1);
  heap_testing::CapturedStderr captured;
  body();
  text = captured.Take();
  unsetenv("HEAP_ON_ERROR");
  return text;
}

bool Has(const std::string &text, const char *part) {
  return text.find(part) != std::string::npos;
}

TEST_P(PrivateHeapTest, WrongPointersAreReported) {
  const Heap heap = Create(Options(GetParam()));
  const Heap other = Create(Options(GetParam()));
  auto *ptr = static_cast<char *>(heap_alloc_in(heap.get(), 100));
  auto *freed = static_cast<char *>(heap_alloc_in(heap.get(), 100));
  void *others = heap_alloc_in(other.get(), 100);
  int on_stack = 0;
  heap_free_in(heap.get(), freed);
  const char *const kForeign = "invalid pointer (no block of this heap)";
  const char *const kInterior = "invalid pointer (not the start of its block)";
  const char *const kFreed = "double free or freed pointer";
  const struct {
    void *ptr;
    const char *text;
  } cases[] = {{freed, kFreed},
               {freed + 16, kFreed},
               {ptr + 16, kInterior},
               {ptr + 1, kInterior},
               {others, kForeign},
               {&on_stack, kForeign},
               {reinterpret_cast<void *>(1), kForeign}};
  for (const auto &wrong : cases) {
    EXPECT_TRUE(Has(ReportOf([&] { heap_free_in(heap.get(), wrong.ptr); }),
                    wrong.text));
    EXPECT_TRUE(Has(ReportOf([&] {
                      EXPECT_EQ(heap_usable_size_in(heap.get(), wrong.ptr), 0u);
                    }),
                    wrong.text));
    EXPECT_TRUE(Has(ReportOf([&] {
                      errno = 0;
                      EXPECT_EQ(heap_realloc_in(heap.get(), wrong.ptr, 10),
                                nullptr);
                      EXPECT_EQ(errno, EINVAL);
                    }),
                    wrong.text));
    EXPECT_STREQ(heap_check_in(heap.get()), nullptr);
  }
  EXPECT_EQ(ReportOf([&] { heap_free_in(heap.get(), ptr); }), "");
  EXPECT_DEATH(heap_free_in(heap.get(), ptr), "double free");
}

// A free block's links are somebody's bytes.
TEST_P(PrivateHeapTest, WritesAfterFreeAreFoundAndMended) {
  if (GetParam() == HEAP_FIRST_FIT || GetParam() == HEAP_NEXT_FIT) {
    GTEST_SKIP() << "keeps nothing in free blocks";
  }
  const uint64_t seed = heap_testing::Seed();
  Random random(seed);
  int found = 0;
  for (int round = 0; round < 300; ++round) {
    const Heap heap = Create(Options(GetParam()));
    std::vector<void *> blocks;
    for (int i = 0; i < 200; ++i) {
      blocks.push_back(heap_alloc_in(heap.get(), 16 + random.Below(300)));
      Fill(blocks.back(), 16, static_cast<uint64_t>(i));
    }
    const std::string text = ReportOf([&] {
      for (size_t i = 0; i < blocks.size(); i += 2) {
        heap_free_in(heap.get(), blocks[i]);
      }
      // Somebody still writes into one of them: anything, or what looks right.
      const uint32_t values[] = {0, 1, static_cast<uint32_t>(random.Below(200)),
                                 UINT32_MAX,
                                 static_cast<uint32_t>(random.Next())};
      auto *links = static_cast<uint32_t *>(blocks[2 * random.Below(100)]);
      links[0] = values[random.Below(5)];
      links[1] = values[random.Below(5)];
      std::vector<void *> more;
      for (int i = 0; i < 300; ++i) {
        more.push_back(heap_alloc_in(heap.get(), 16 + random.Below(300)));
      }
      for (size_t i = 1; i < blocks.size(); i += 2) {
        EXPECT_TRUE(IsFilled(blocks[i], 16, 16, i));
        heap_free_in(heap.get(), blocks[i]);
      }
      for (void *ptr : more) {
        heap_free_in(heap.get(), ptr);
      }
    });
    found += Has(text, "free block was written to");
    EXPECT_EQ(Stats(heap).num_live, 0u) << text;
    EXPECT_STREQ(heap_check_in(heap.get()), nullptr) << text;
  }
  EXPECT_GT(found, 100);
}

}  // namespace
