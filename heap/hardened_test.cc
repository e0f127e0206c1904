// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// The hardened variant as a whole: what HEAP_HARDEN says, canaries, requested
// sizes, threads. What it finds in programs is in malloc_misuse_test.cc.

#include <pthread.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <map>
#include <string>
#include <thread>
#include <vector>

#include "gtest/gtest.h"
#include "heap/canary.h"
#include "heap/harden.h"
#include "heap/hardened_testing.h"
#include "heap/heap.h"
#include "heap/heap_model.h"
#include "heap/heap_testing.h"

namespace {

using heap_testing::AddressOf;
using heap_testing::ReportSilently;
using heap_testing::RunHardened;

// HEAP_HARDEN.

TEST(HardenOptionTest, ListIsReadFromTheLeft) {
  const struct {
    const char *value;
    uint32_t defences;
  } cases[] = {
      {nullptr, HEAP_HARDEN_ALL},
      {"", HEAP_HARDEN_ALL},
      {"all", HEAP_HARDEN_ALL},
      {"none", 0},
      {"none,canary", HEAP_HARDEN_CANARY},
      {"all,-quarantine", HEAP_HARDEN_ALL & ~HEAP_HARDEN_QUARANTINE},
      {"-guard,-zero",
       HEAP_HARDEN_ALL & ~HEAP_HARDEN_GUARD & ~HEAP_HARDEN_ZERO},
      {"none,empty,sized,-empty", HEAP_HARDEN_SIZED},
      {"-limit,all", HEAP_HARDEN_ALL},
      {"none,reuse,random,,guard",
       HEAP_HARDEN_REUSE | HEAP_HARDEN_RANDOM | HEAP_HARDEN_GUARD},
  };
  for (const auto &test : cases) {
    const char *unknown;
    EXPECT_EQ(heap_harden_parse(test.value, &unknown).defences, test.defences)
        << test.value;
    EXPECT_EQ(unknown, nullptr);
  }
}

TEST(HardenOptionTest, SeedIsANumber) {
  const char *unknown;
  heap_harden_choice_t choice = heap_harden_parse("seed=42,-zero", &unknown);
  EXPECT_TRUE(choice.has_seed);
  EXPECT_EQ(choice.seed, 42u);
  for (const char *value :
       {"seed", "seed=", "seed=x", "seed=99999999999999999999"}) {
    choice = heap_harden_parse(value, &unknown);
    EXPECT_FALSE(choice.has_seed) << value;
    EXPECT_STREQ(unknown, value);
  }
}

TEST(HardenOptionTest, UnknownWordIsNamedAndChangesNothing) {
  const char *unknown;
  const heap_harden_choice_t choice =
      heap_harden_parse("all,-quarantin,-zero", &unknown);
  EXPECT_EQ(choice.defences, HEAP_HARDEN_ALL & ~HEAP_HARDEN_ZERO);
  char buffer[512];
  heap_text_t text = {buffer, sizeof(buffer), 0};
  heap_harden_add_complaint(unknown, &text);
  EXPECT_EQ(std::string(buffer, text.length),
            "my_alloc heap: HEAP_HARDEN: -quarantin is ignored; it can be all, "
            "none, seed=NUMBER, and with or without a - before it canary, "
            "zero, reuse, quarantine, random, guard, empty, sized, limit\n");
  for (const char *value : {"-", "ALL", "-all", "no", "canary zero"}) {
    heap_harden_parse(value, &unknown);
    EXPECT_STREQ(unknown, value);
  }
}

// Canaries.

TEST(CanaryTest, NoChangeOfOneByteIsAnotherCanary) {
  RunHardened("all", [] {
    const uintptr_t end = AddressOf(heap_alloc(100)) + 112;
    for (size_t slack = 8; slack <= HEAP_SLACK_MAX_BYTES;
         slack += slack < 600 ? 1 : 1023) {
      const uint64_t canary = heap_canary_make(end, slack);
      ASSERT_EQ(heap_canary_slack(end, canary), slack);
      for (unsigned shift = 0; shift < 64; shift += 8) {
        for (uint64_t change = 1; change < 256; ++change) {
          ASSERT_GT(heap_canary_slack(end, canary ^ change << shift),
                    HEAP_SLACK_MAX_BYTES);
        }
      }
      // Neither the end of a string, text, -1 nor 0x80 is a mark.
      EXPECT_GT(canary & 0xff, 0x80u);
      EXPECT_LT(canary & 0xff, 0xffu);
      EXPECT_EQ(canary & 1, 0u);
    }
  });
}

TEST(HardenedTest, UsableSizeIsTheRequestedOne) {
  for (const char *list : {"all", "all,-empty"}) {
    RunHardened(list, [] {
      for (size_t size : heap_testing::EdgeSizes()) {
        void *ptr = heap_alloc(size);
        EXPECT_EQ(heap_usable_size(ptr), size);
        ptr = heap_realloc(ptr, size / 2 + 1);
        EXPECT_EQ(heap_usable_size(ptr), size / 2 + 1);
        ptr = heap_realloc(ptr, size + 1);
        EXPECT_EQ(heap_usable_size(ptr), size + 1);
        heap_free(ptr);
      }
    });
  }
}

// The walk too: nobody may write further.
TEST(HardenedTest, WalkTellsTheUsableSize) {
  for (const char *list : {"all", "-canary"}) {
    RunHardened(list, [] {
      std::map<void *, size_t> blocks;
      for (size_t size : {0, 5, 1000, 40000, 40 << 20}) {
        void *ptr = heap_alloc(size);
        blocks[ptr] = heap_usable_size(ptr);
      }
      EXPECT_TRUE(heap_walk(
          [](void *context, void *ptr, size_t usable_bytes) {
            auto *all = static_cast<std::map<void *, size_t> *>(context);
            EXPECT_EQ(all->at(ptr), usable_bytes);
            all->erase(ptr);
            return true;
          },
          &blocks));
      EXPECT_TRUE(blocks.empty());
    });
  }
}

// With every defence, and without each.
TEST(HardenedTest, RandomCallsOfAllKinds) {
  for (const char *list :
       {"all", "none", "-canary", "-zero", "-reuse", "-quarantine", "-random",
        "-guard", "-empty", "-sized", "-canary,-zero", "none,canary"}) {
    RunHardened(list, [] {
      const uint64_t seed = heap_testing::Seed();
      for (uint64_t i = 0; i < 6; ++i) {
        heap_testing::RunHeapModel(seed + i, i == 5 ? 27 : 10 + 3 * i);
      }
      heap_trim(0);
    });
  }
}

// Several threads.

// Lets threads that spin here go on together.
class StartLine {
 public:
  explicit StartLine(int count) : missing_(count) {
  }
  void Wait() {
    --missing_;
    while (missing_ > 0) {
    }
  }

 private:
  std::atomic<int> missing_;
};

// The test's own threads are made by libc's malloc. To read the list takes long
// enough for all of them to be there meanwhile.
TEST(HardenedTest, FirstAllocationsMayBeOfSeveralThreads) {
  std::string list = "all";
  for (int i = 0; i < 10000; ++i) {
    list += ",canary";
  }
  for (int run = 0; run < 10; ++run) {
    RunHardened(list.c_str(), [] {
      StartLine line(4);
      StartLine all_have_some(4);
      std::vector<std::thread> threads;
      for (int i = 0; i < 4; ++i) {
        threads.emplace_back([&] {
          std::vector<void *> blocks(50);
          line.Wait();
          for (void *&ptr : blocks) {
            ptr = heap_alloc(32);
          }
          all_have_some.Wait();
          for (void *ptr : blocks) {
            EXPECT_EQ(heap_usable_size(ptr), 32u);
            heap_free(ptr);
          }
        });
      }
      for (std::thread &thread : threads) {
        thread.join();
      }
    });
  }
}

// Each pair of frees at once is one too many, whoever the block's owner is.
TEST(HardenedTest, OneOfTwoFreesAtOnceIsReported) {
  for (const char *list : {"all", "all,-quarantine", "none"}) {
    RunHardened(list, [] {
      constexpr uint64_t kTurns = 20000;
      ReportSilently();
      std::atomic<void *> current{nullptr};
      std::atomic<uint64_t> turn{0};
      std::atomic<uint64_t> done{0};
      std::thread other([&] {
        for (uint64_t i = 1; i <= kTurns; ++i) {
          while (turn < i) {
          }
          heap_free(current);
          done = i;
        }
      });
      for (uint64_t i = 1; i <= kTurns; ++i) {
        current = heap_alloc(24);
        turn = i;
        for (volatile uint64_t k = 0; k < i % 60; k = k + 1) {
        }
        heap_free(current);
        while (done < i) {
        }
      }
      other.join();
      EXPECT_EQ(heap_misuse_count(), kTurns);
    });
  }
}

TEST(HardenedTest, NoAllocationIsACancellationPoint) {
  RunHardened("all", [] {
    std::atomic<void *> got{nullptr};
    std::thread thread([&got] {
      pthread_cancel(pthread_self());
      got = heap_alloc(20);
      heap_free(got);
      pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, nullptr);
    });
    thread.join();
    EXPECT_NE(got, nullptr);
  });
}

// Others' frees, while owners come and go.
TEST(HardenedTest, ThreadsFreeEachOthersBlocks) {
  RunHardened("all", [] {
    std::vector<std::vector<unsigned char *>> passed(4);
    for (int round = 0; round < 200; ++round) {
      std::vector<std::thread> threads;
      for (size_t i = 0; i < passed.size(); ++i) {
        threads.emplace_back([&, i] {
          for (unsigned char *ptr : passed[i]) {
            heap_free(ptr);
          }
          passed[i].clear();
          for (size_t j = 0; j < 300; ++j) {
            const size_t size =
                1 + (j * 7919 + i) % (j % 50 == 0 ? 50000 : 900);
            auto *ptr = static_cast<unsigned char *>(heap_alloc(size));
            memset(ptr, static_cast<int>(j), size);
            passed[i].push_back(ptr);
          }
        });
      }
      for (std::thread &thread : threads) {
        thread.join();
      }
      std::rotate(passed.begin(), passed.begin() + 1, passed.end());
    }
    for (const auto &blocks : passed) {
      for (unsigned char *ptr : blocks) {
        heap_free(ptr);
      }
    }
  });
}

}  // namespace
