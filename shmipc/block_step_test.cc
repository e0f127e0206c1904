// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// SIGKILL at every instruction of the heap's calls: a child is single-stepped
// by ptrace and killed after k steps, for each k. After each kill the survivor
// allocates at once, reclaims what the dead one had, and then must find the
// heap whole: nothing live, and as many blocks to be had as in a new one.
//
// All instructions of an allocation and a free, some of the others, another set
// each time; SHMIPC_STRIDE=1 for all (hours), or every so many. Skipped where
// ptrace is not permitted.

#include <unistd.h>

#include <algorithm>
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
#include "shmipc/block_internal.h"
#include "shmipc/root.h"
#include "shmipc/shared_heap.h"
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
using shmipc_testing::Shared;
using shmipc_testing::StepAndKill;
using shmipc_testing::TestRegion;
using shmipc_testing::Watchdog;

constexpr size_t kPage = SHMIPC_PAGE_BYTES;
constexpr uint32_t kPages = 8;

class BlockStepTest : public testing::TestWithParam<shmipc_backend_t> {
 protected:
  using Operation = std::function<void(shmipc_region_t *region)>;

  // `prepare` and `operation` run in the child, attached; only the second is
  // stepped. `before` runs in the survivor, before each child.
  void EveryStep(const char *what, uint64_t stride, const Operation &prepare,
                 const Operation &operation,
                 const std::function<void()> &before = {}) {
    stride = std::max<uint64_t>(1, Count("SHMIPC_STRIDE", stride));
    std::mt19937_64 random(Seed());
    uint64_t kills = 0;
    int64_t worst_stall_ns = 0;
    uint64_t step = stride > 1 ? random() % stride : 0;
    for (;; step += stride) {
      if (before) {
        before();
      }
      Outcome outcome = StepAndKill(step, [&] {
        shmipc_region_t *region = own_.AttachInChild();
        // So that the thread has its record and its cache.
        (void)shmipc_block_free(region, shmipc_block_alloc(region, 2000));
        prepare(region);
        raise(SIGSTOP);
        operation(region);
      });
      if (outcome == Outcome::kNotPermitted) {
        GTEST_SKIP() << "ptrace is not permitted";
      }
      int64_t start = NowNs();
      void *block = shmipc_block_alloc(region_, 2000);
      worst_stall_ns = std::max(worst_stall_ns, NowNs() - start);
      ASSERT_NE(block, nullptr) << "killed after " << step << " steps";
      ASSERT_EQ(shmipc_block_free(region_, block), 0);
      ASSERT_EQ(MakeWhole(kills % 2 == 0), "")
          << "killed after " << step << " steps";
      if (outcome == Outcome::kCameThrough) {
        break;
      }
      kills++;
    }
    EXPECT_GE(kills, 3u);
    printf("%s %s: killed at %" PRIu64 " of %" PRIu64
           " instructions, 0 hangs, 0 bytes lost, worst stall %.2f ms\n",
           NameOf(GetParam()), what, kills, step,
           static_cast<double>(worst_stall_ns) * 1e-6);
  }

  // What is wrong after everything was reclaimed. Slots are recovered before or
  // after, so that both ways of finding the dead are used.
  std::string MakeWhole(bool recovers_first) {
    if (recovers_first && shmipc_region_recover(region_) < 0) {
      return "cannot recover";
    }
    if (shmipc_heap_reclaim(region_, SHMIPC_RECLAIM_IN_FLIGHT) < 0) {
      return "cannot reclaim";
    }
    shmipc_ref_t ref;
    if (shmipc_root_remove(region_, "root", &ref) == 0 &&
        shmipc_block_free(region_, shmipc_block_get(region_, ref, 1)) != 0) {
      return "the root leads nowhere";
    }
    // Shared ones are the survivor's to free.
    shmipc_heap_walk(
        region_,
        [](void *context, const shmipc_block_info_t *block) {
          auto *region = static_cast<shmipc_region_t *>(context);
          if (block->state == SHMIPC_BLOCK_SHARED) {
            shmipc_block_free(region, shmipc_block_get(region, block->ref, 1));
          }
          return 0;
        },
        region_);
    shmipc_heap_stats_t stats;
    if (shmipc_heap_stats_get(region_, &stats) != 0 || stats.num_live != 0) {
      return std::to_string(stats.num_live) + " blocks are left";
    }
    std::string wrong = Fill();
    if (!wrong.empty()) {
      return wrong;
    }
    if (shmipc_region_recover(region_) < 0 || shmipc_heap_trim(region_) < 0 ||
        shmipc_heap_stats_get(region_, &stats) != 0 ||
        stats.free_page_bytes != kPages * kPage) {
      return "pages are lost";
    }
    return Problems(region_);
  }

  // Takes every block there is, and frees it.
  std::string Fill() {
    // Of 1 KiB: fewer.
    std::vector<uint32_t *> blocks;
    for (;;) {
      auto *block = static_cast<uint32_t *>(shmipc_block_alloc(region_, 1024));
      if (block == nullptr) {
        break;
      }
      *block = static_cast<uint32_t>(blocks.size());
      blocks.push_back(block);
    }
    size_t expected = kPages * shmipc_classes[shmipc_class_of(1024)].count;
    std::string wrong;
    if (blocks.size() != expected) {
      wrong = std::to_string(blocks.size()) + " blocks, not " +
              std::to_string(expected);
    }
    for (size_t i = 0; i < blocks.size(); i++) {
      if (*blocks[i] != i) {
        wrong = "a block was given out twice";
      }
      if (shmipc_block_free(region_, blocks[i]) != 0) {
        wrong = "a block cannot be freed";
      }
    }
    return wrong;
  }

  // What does not depend on the kind of region, and is long.
  static bool IsForLater() {
    return GetParam() != SHMIPC_MEMFD && Count("SHMIPC_STRIDE", 0) == 0;
  }

  static void Nothing(shmipc_region_t *) {
  }

  Watchdog watchdog_{static_cast<unsigned int>(
      Count("SHMIPC_STRIDE", 1000) < 300 ? 7200 : 240)};
  TestRegion own_{GetParam(), 4096, [](auto *o) {
                    o->heap_bytes = kPages * kPage;
                    o->max_processes = 8;
                    o->max_threads = 8;
                  }};
  shmipc_region_t *region_ = own_.region();
};

INSTANTIATE_TEST_SUITE_P(All, BlockStepTest, testing::ValuesIn(Backends()),
                         [](const testing::TestParamInfo<shmipc_backend_t> &i) {
                           return std::string(NameOf(i.param));
                         });

TEST_P(BlockStepTest, AllocAndFree) {
  EveryStep(
      "alloc and free", 1,
      [](auto *region) {
        shmipc_block_free(region, shmipc_block_alloc(region, 64));
      },
      [](auto *region) {
        void *block = shmipc_block_alloc(region, 64);
        memset(block, 0xff, 64);
        shmipc_block_free(region, block);
      });
}

TEST_P(BlockStepTest, AllocThatTakesAPage) {
  if (IsForLater()) {
    GTEST_SKIP() << "memfd; all kinds with SHMIPC_STRIDE";
  }
  EveryStep("alloc of a new page", 211, Nothing, [](auto *region) {
    (void)!shmipc_block_alloc(region, 1200);
    (void)!shmipc_block_alloc(region, 9000);
  });
}

TEST_P(BlockStepTest, FreeGiveTakeAndShareOfAnothersBlocks) {
  if (IsForLater()) {
    GTEST_SKIP() << "memfd; all kinds with SHMIPC_STRIDE";
  }
  Shared<shmipc_ref_t[3]> refs;
  EveryStep(
      "take, give, share, free", 101, Nothing,
      [&](auto *region) {
        for (int i = 0; i < 3; i++) {
          // All of them, but for the last, in place.
          char *block =
              static_cast<char *>(shmipc_block_get(region, (*refs)[i], 1));
          (void)!shmipc_block_take(region, block);
          shmipc_block_give(region, block);
          shmipc_block_share(region, block);
          shmipc_block_free(region, block);
        }
      },
      [&] {
        const size_t sizes[] = {64, 9000, 100000};
        for (int i = 0; i < 3; i++) {
          void *block = shmipc_block_alloc(region_, sizes[i]);
          ASSERT_NE(block, nullptr);
          // Some are the region's by now, so that they are in no dead one's
          // name.
          ASSERT_EQ(shmipc_block_share(region_, block), 0);
          (*refs)[i] = shmipc_ref_of(region_, block);
        }
      });
}

TEST_P(BlockStepTest, LargeBlocks) {
  if (IsForLater()) {
    GTEST_SKIP() << "memfd; all kinds with SHMIPC_STRIDE";
  }
  EveryStep("large alloc, realloc, free", 101, Nothing, [](auto *region) {
    void *block = shmipc_block_alloc(region, 2 * kPage);
    block = shmipc_block_realloc(region, block, 5 * kPage);
    block = shmipc_block_realloc(region, block, 3 * kPage);
    shmipc_block_free(region, block);
  });
}

TEST_P(BlockStepTest, FreeOfALargeBlock) {
  if (IsForLater()) {
    GTEST_SKIP() << "memfd; all kinds with SHMIPC_STRIDE";
  }
  void *block = nullptr;
  EveryStep(
      "free of a run", 1,
      [&](auto *region) { block = shmipc_block_alloc(region, 4 * kPage); },
      [&](auto *region) { shmipc_block_free(region, block); });
}

TEST_P(BlockStepTest, Roots) {
  if (IsForLater()) {
    GTEST_SKIP() << "memfd; all kinds with SHMIPC_STRIDE";
  }
  EveryStep("root", 3001, Nothing, [](auto *region) {
    shmipc_ref_t ref;
    (void)!shmipc_root_create(region, "root", 64, nullptr, nullptr, &ref);
    (void)!shmipc_root_remove(region, "root", &ref);
    shmipc_block_free(region, shmipc_block_get(region, ref, 64));
  });
}

TEST_P(BlockStepTest, Trim) {
  EveryStep(
      "trim", 601,
      [](auto *region) {
        std::vector<void *> blocks;
        for (int i = 0; i < 100; i++) {
          blocks.push_back(shmipc_block_alloc(region, 2000));
        }
        for (void *block : blocks) {
          shmipc_block_free(region, block);
        }
      },
      [](auto *region) { shmipc_heap_trim(region); });
}

TEST_P(BlockStepTest, RecovererIsKilledToo) {
  if (IsForLater()) {
    GTEST_SKIP() << "memfd; all kinds with SHMIPC_STRIDE";
  }
  // The dead one has blocks, pages, and a run that is neither block nor free.
  auto leave = [&](shmipc_region_t *) {
    Process dies([&] {
      shmipc_region_t *region = own_.AttachInChild();
      for (size_t size : {1000, 9000, 70000}) {
        (void)!shmipc_block_alloc(region, size);
      }
      shmipc_block_give(region, shmipc_block_alloc(region, 1000));
      shmipc_ref_t ref;
      (void)!shmipc_root_create(region, "root", 1000, nullptr, nullptr, &ref);
      shmipc_self_t *self;
      return shmipc_cache_of(region, &self) == 0 &&
                     shmipc_run_claim(region, self, 2) != SHMIPC_NO_PAGE
                 ? 0
                 : 1;
    });
    if (dies.Wait() != 0) {
      _exit(1);
    }
  };
  EveryStep("reclaim and trim", 3001, leave, [](auto *region) {
    shmipc_heap_reclaim(region, 0);
    shmipc_heap_trim(region);
  });
}

}  // namespace
