// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// What is freed and is no live object of the cache: each kind ends the process
// with its line, on every kind of cache and through every function.

#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

#include "gtest/gtest.h"
#include "slab/slab.h"
#include "slab/slab_inline.h"
#include "slab/slab_internal.h"

namespace {

constexpr size_t kObjectBytes = 48;

// How to free, and what the report calls it.
struct Way {
  const char *function;
  void (*free)(slab_cache_t *cache, void *object);
};

const Way kWays[] = {
    {"slab_free", slab_free},
    {"slab_free", slab_free_inline},
    {"slab_free_bulk",
     [](slab_cache_t *cache, void *object) {
       slab_free_bulk(cache, 1, &object);
     }},
};

class SlabMisuseTest : public testing::TestWithParam<unsigned> {
 protected:
  void SetUp() override {
    GTEST_FLAG_SET(death_test_style, "threadsafe");
  }

  slab_cache_t *Create(const char *name = "nodes") {
    slab_options_t options = {};
    options.name = name;
    options.object_bytes = kObjectBytes;
    options.flags = GetParam();
    slab_cache_t *cache = slab_cache_create(&options);
    EXPECT_NE(cache, nullptr);
    return cache;
  }
};

INSTANTIATE_TEST_SUITE_P(Flags, SlabMisuseTest,
                         testing::Values(0u, unsigned{SLAB_NO_MAGAZINES},
                                         unsigned{SLAB_DEBUG}));

std::string Line(const Way &way, const char *what) {
  return std::string("^slab: ") + way.function + ": " + what +
         ": 0x[0-9a-f]+.*, cache \"nodes\".*, thread [0-9]+.*, called from "
         "0x[0-9a-f]+";
}

void *At(void *ptr, ptrdiff_t offset) {
  return static_cast<char *>(ptr) + offset;
}

TEST_P(SlabMisuseTest, DoubleFreeDies) {
  for (const Way &way : kWays) {
    slab_cache_t *cache = Create();
    EXPECT_EXIT(
        {
          void *object = slab_alloc(cache);
          slab_free(cache, object);
          way.free(cache, object);
        },
        testing::KilledBySignal(SIGABRT), Line(way, "double free"));
    slab_cache_destroy(cache, 0);
  }
}

TEST_P(SlabMisuseTest, DoubleFreeAfterManyOthersDies) {
  for (const Way &way : kWays) {
    slab_cache_t *cache = Create();
    EXPECT_EXIT(
        {
          std::vector<void *> objects(20000);
          for (void *&object : objects) {
            object = slab_alloc(cache);
          }
          for (void *object : objects) {
            slab_free(cache, object);
          }
          way.free(cache, objects[50]);
        },
        testing::KilledBySignal(SIGABRT), Line(way, "double free"));
    slab_cache_destroy(cache, 0);
  }
}

TEST_P(SlabMisuseTest, DoubleFreeByAnotherThreadDies) {
  for (const Way &way : kWays) {
    slab_cache_t *cache = Create();
    EXPECT_EXIT(
        {
          void *object = slab_alloc(cache);
          std::thread([&] { slab_free(cache, object); }).join();
          way.free(cache, object);
        },
        testing::KilledBySignal(SIGABRT), Line(way, "double free"));
    slab_cache_destroy(cache, 0);
  }
}

TEST_P(SlabMisuseTest, FreeOfObjectThatWasReapedDies) {
  for (const Way &way : kWays) {
    slab_cache_t *cache = Create();
    EXPECT_EXIT(
        {
          void *object = slab_alloc(cache);
          slab_free(cache, object);
          slab_reap(cache);
          way.free(cache, object);
        },
        testing::KilledBySignal(SIGABRT),
        Line(way, "invalid pointer \\(no object of any cache\\)"));
    slab_cache_destroy(cache, 0);
  }
}

TEST_P(SlabMisuseTest, EveryInteriorPointerDies) {
  for (const Way &way : kWays) {
    slab_cache_t *cache = Create();
    void *object = slab_alloc(cache);
    for (ptrdiff_t offset : {1, 2, 8, 16, 24, 47}) {
      EXPECT_EXIT(way.free(cache, At(object, offset)),
                  testing::KilledBySignal(SIGABRT),
                  Line(way,
                       "invalid pointer \\(not the start of its "
                       "object\\)"));
    }
    slab_free(cache, object);
    slab_cache_destroy(cache, 0);
  }
}

TEST_P(SlabMisuseTest, ForeignPointersDie) {
  static char global[64];
  char local[64];
  void *mapped =
      mmap(nullptr, 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  void *block = malloc(100);
  std::vector<void *> pointers = {
      global,
      local,
      mapped,
      block,
      reinterpret_cast<void *>(1),
      reinterpret_cast<void *>(uintptr_t{65536}),
      reinterpret_cast<void *>(uintptr_t{1} << 21),
      reinterpret_cast<void *>(uintptr_t{1} << 47),
      reinterpret_cast<void *>(uintptr_t{1} << 63),
      reinterpret_cast<void *>(~uintptr_t{0}),
      reinterpret_cast<void *>(~uintptr_t{65535}),
  };
  for (const Way &way : kWays) {
    slab_cache_t *cache = Create();
    pointers.push_back(cache);
    void *object = slab_alloc(cache);
    for (void *pointer : pointers) {
      EXPECT_EXIT(way.free(cache, pointer), testing::KilledBySignal(SIGABRT),
                  Line(way, "invalid pointer \\(no object of any cache\\)"));
    }
    pointers.pop_back();
    slab_free(cache, object);
    slab_cache_destroy(cache, 0);
  }
  free(block);
  munmap(mapped, 4096);
}

TEST_P(SlabMisuseTest, ForeignPointerInAnUnusedCacheDies) {
  int number = 0;
  for (const Way &way : kWays) {
    slab_cache_t *cache = Create();
    EXPECT_EXIT(way.free(cache, &number), testing::KilledBySignal(SIGABRT),
                Line(way, "invalid pointer \\(no object of any cache\\)"));
    slab_cache_destroy(cache, 0);
  }
}

TEST_P(SlabMisuseTest, ObjectNeverAllocatedDies) {
  for (const Way &way : kWays) {
    slab_cache_t *cache = Create();
    void *object = slab_alloc(cache);
    slab_stats_t stats;
    slab_stats(cache, &stats);
    EXPECT_EXIT(
        way.free(cache,
                 At(object, static_cast<ptrdiff_t>(stats.stride_bytes) * 500)),
        testing::KilledBySignal(SIGABRT),
        Line(way, "invalid pointer \\(an object never allocated\\)"));
    slab_free(cache, object);
    slab_cache_destroy(cache, 0);
  }
}

TEST_P(SlabMisuseTest, ObjectOfAnotherCacheDies) {
  for (const Way &way : kWays) {
    slab_cache_t *cache = Create();
    slab_cache_t *other = Create("edges");
    void *object = slab_alloc(other);
    EXPECT_EXIT(way.free(cache, object), testing::KilledBySignal(SIGABRT),
                std::string("^slab: ") + way.function +
                    ": wrong cache: 0x[0-9a-f]+, object 0x[0-9a-f]+ of 48 "
                    "bytes, cache \"nodes\", not its own cache \"edges\", "
                    "thread [0-9]+, called from 0x");
    EXPECT_EXIT(way.free(cache, At(object, 5)),
                testing::KilledBySignal(SIGABRT), "wrong cache");
    slab_free(other, object);
    slab_cache_destroy(other, 0);
    slab_cache_destroy(cache, 0);
  }
}

TEST_P(SlabMisuseTest, LaterObjectsOfABulkAreCheckedToo) {
  slab_cache_t *cache = Create();
  void *objects[10];
  ASSERT_EQ(slab_alloc_bulk(cache, 10, objects), 0);
  void *twice[] = {objects[0], objects[1], objects[2], objects[1]};
  EXPECT_EXIT(slab_free_bulk(cache, 4, twice), testing::KilledBySignal(SIGABRT),
              "^slab: slab_free_bulk: double free: ");
  slab_free_bulk(cache, 10, objects);
  slab_cache_destroy(cache, 0);
}

TEST_P(SlabMisuseTest, ReportIsOneLine) {
  GTEST_FLAG_SET(death_test_style, "fast");  // The same addresses.
  slab_cache_t *cache = Create();
  void *object = slab_alloc(cache);
  char address[32];
  snprintf(address, sizeof(address), "%p", object);
  EXPECT_EXIT(
      {
        slab_free(cache, object);
        slab_free(cache, object);
      },
      testing::KilledBySignal(SIGABRT),
      std::string("^slab: slab_free: double free: ") + address + ", object " +
          address +
          " of 48 bytes, cache \"nodes\", thread [0-9]+, called from "
          "0x[^\n]*\n$");
  slab_free(cache, object);
  slab_cache_destroy(cache, 0);
}

// Two threads free one object at once; whatever the interleaving, the process
// does not survive that and the end of the threads.
TEST_P(SlabMisuseTest, DoubleFreeByTwoThreadsAtOnceDies) {
  slab_cache_t *cache = Create();
  for (int who = 0; who < 20; ++who) {
    EXPECT_EXIT(
        {
          std::atomic<int> num_ready{0};
          void *object = slab_alloc(cache);
          auto free_it = [&] {
            slab_free(cache, slab_alloc(cache));
            ++num_ready;
            while (num_ready != 2) {
              std::this_thread::yield();
            }
            slab_free(cache, object);
          };
          std::thread first(free_it);
          if (who % 2 == 0) {
            std::thread(free_it).join();
          } else {
            free_it();
          }
          first.join();
          slab_cache_destroy(cache, 0);
        },
        testing::KilledBySignal(SIGABRT), "double free");
  }
  slab_cache_destroy(cache, 0);
}

// ---- debug variant ----

class SlabDebugTest : public testing::Test {
 protected:
  void SetUp() override {
    GTEST_FLAG_SET(death_test_style, "threadsafe");
    slab_options_t options = {};
    options.name = "nodes";
    options.object_bytes = kObjectBytes;
    options.flags = SLAB_DEBUG;
    cache_ = slab_cache_create(&options);
    ASSERT_NE(cache_, nullptr);
  }
  void TearDown() override {
    EXPECT_EQ(slab_cache_destroy(cache_, 0), 0);
  }

  slab_cache_t *cache_;
};

TEST_F(SlabDebugTest, WriteOutsideIsFoundByFree) {
  auto *object = static_cast<volatile char *>(slab_alloc(cache_));
  for (ptrdiff_t offset : {-16, -1, 48, 63}) {
    EXPECT_EXIT(
        {
          object[offset] = 1;
          slab_free(cache_, const_cast<char *>(object));
        },
        testing::KilledBySignal(SIGABRT),
        "^slab: slab_free: written outside of the object: .*allocated from 0x");
  }
  EXPECT_STREQ(slab_check(cache_), nullptr);
  const char old = object[48];
  object[48] = 1;
  EXPECT_STREQ(slab_check(cache_), "slab: written outside of an object");
  object[48] = old;
  slab_free(cache_, const_cast<char *>(object));
}

TEST_F(SlabDebugTest, WriteAfterFreeIsFoundByAlloc) {
  EXPECT_EXIT(
      {
        auto *object = static_cast<volatile char *>(slab_alloc(cache_));
        slab_free(cache_, const_cast<char *>(object));
        object[7] = 1;
        const char *broken = slab_check(cache_);
        if (broken == nullptr ||
            strcmp(broken, "slab: an object was written while it was free") !=
                0) {
          _exit(1);
        }
        void *again = slab_alloc(cache_);
        slab_free(cache_, again);
      },
      testing::KilledBySignal(SIGABRT),
      "^slab: slab_alloc: written after free: .*, last freed from 0x");
}

TEST_F(SlabDebugTest, ConstructedObjectsKeepTheirBytes) {
  slab_options_t options = {};
  options.object_bytes = kObjectBytes;
  options.flags = SLAB_DEBUG;
  options.construct = [](void *object, void *) {
    memset(object, 0x33, kObjectBytes);
  };
  slab_cache_t *cache = slab_cache_create(&options);
  void *object = slab_alloc(cache);
  slab_free(cache, object);
  ASSERT_EQ(slab_alloc(cache), object);
  EXPECT_EQ(static_cast<char *>(object)[kObjectBytes - 1], 0x33);
  slab_free(cache, object);
  EXPECT_EQ(slab_cache_destroy(cache, 0), 0);
}

TEST_F(SlabDebugTest, DoubleFreeNamesBothSites) {
  EXPECT_EXIT(
      {
        void *object = slab_alloc(cache_);
        slab_free(cache_, object);
        slab_free(cache_, object);
      },
      testing::KilledBySignal(SIGABRT),
      "double free: .*, called from 0x[0-9a-f]+, allocated from 0x[0-9a-f]+, "
      "last freed from 0x[0-9a-f]+\n");
}

}  // namespace
