// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// Memory that is refused: each operation is run again and again with the
// first, second, third... request failing, until none is left to fail; once on
// a source of the caller's, once on the kernel. After each failure the cache is
// whole, and nothing is lost.

#include <pthread.h>

#include <atomic>
#include <cerrno>
#include <cstdint>
#include <cstdlib>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "gtest/gtest.h"
#include "slab/slab.h"
#include "slab/slab_internal.h"
#include "slab/slab_testing.h"

namespace {

using slab_testing::CacheModel;
using slab_testing::FakeSource;

// The kernel's calls, counted and refused.
struct FakeKernel {
  int calls = 0;
  int fail_from = 0;
  int fail_count = 0;
  int failures = 0;
  size_t mapped_bytes = 0;
  size_t reserve_bytes_max = SIZE_MAX;
};

FakeKernel kernel;

bool IsRefused() {
  ++kernel.calls;
  const bool is_refused = kernel.calls >= kernel.fail_from &&
                          kernel.calls - kernel.fail_from < kernel.fail_count;
  kernel.failures += is_refused;
  return is_refused;
}

void *FakeMap(size_t size_bytes) {
  void *ptr = IsRefused() ? nullptr : slab_kernel_default.map(size_bytes);
  kernel.mapped_bytes += ptr == nullptr ? 0 : size_bytes;
  return ptr;
}

void FakeUnmap(void *ptr, size_t size_bytes) {
  kernel.mapped_bytes -= size_bytes;
  slab_kernel_default.unmap(ptr, size_bytes);
}

void *FakeReserve(size_t size_bytes) {
  const bool is_refused = IsRefused() || size_bytes > kernel.reserve_bytes_max;
  void *ptr = is_refused ? nullptr : slab_kernel_default.reserve(size_bytes);
  kernel.mapped_bytes += ptr == nullptr ? 0 : size_bytes;
  return ptr;
}

bool FakeAllowReads(void *ptr, size_t size_bytes) {
  return !IsRefused() && slab_kernel_default.allow_reads(ptr, size_bytes);
}

bool FakeAllowWrites(void *ptr, size_t size_bytes) {
  return !IsRefused() && slab_kernel_default.allow_writes(ptr, size_bytes);
}

void FakeAdviseHuge(void *, size_t) {
}

const slab_kernel_t kFakeKernel = {FakeMap,         FakeUnmap,
                                   FakeReserve,     FakeAllowReads,
                                   FakeAllowWrites, slab_kernel_default.discard,
                                   FakeAdviseHuge};

slab_options_t Options(size_t object_bytes, unsigned flags) {
  slab_options_t options = {};
  options.name = "failing";
  options.object_bytes = object_bytes;
  options.flags = flags;
  return options;
}

// Something to do with a model; false if it was refused memory.
struct Operation {
  std::string name;
  std::function<bool(CacheModel *)> run;
};

std::vector<Operation> Operations() {
  return {
      {"alloc of the first",
       [](CacheModel *model) {
         return model->Alloc();
       }},
      {"many allocs",
       [](CacheModel *model) {
         for (int i = 0; i < 3000; ++i) {
           if (!model->Alloc()) {
             return false;
           }
         }
         return true;
       }},
      {"bulk",
       [](CacheModel *model) {
         return model->AllocBulk(2500);
       }},
      {"more than fits the table",
       [](CacheModel *model) {
         return model->AllocBulk(6000) && model->AllocBulk(6000);
       }},
      {"frees of another thread's",
       [](CacheModel *model) {
         if (!model->AllocBulk(2000)) {
           return false;
         }
         // These may need memory, but never fail.
         std::thread([&] { model->FreeBulk(0, 1900); }).join();
         model->Check();
         std::thread([&] {
           while (model->num_live() > 50) {
             model->Free(0);
           }
         }).join();
         return true;
       }},
      {"reap and again",
       [](CacheModel *model) {
         if (!model->AllocBulk(3000)) {
           return false;
         }
         model->FreeAll();
         model->Reap();
         return model->Alloc();
       }},
  };
}

class SlabFailureTest : public testing::Test {
 protected:
  // Runs each operation with calls from number 1, 2, 3... on failing.
  // `fail(from, count)` starts failing, `failures()` says how many did.
  void FailEach(const slab_options_t &options, int count,
                const std::function<void(int, int)> &fail,
                const std::function<int()> &failures) {
    for (const Operation &operation : Operations()) {
      bool has_failed = true;
      bool succeeded = false;
      for (int from = 1; has_failed; ++from) {
        SCOPED_TRACE(operation.name + ", failing from " + std::to_string(from));
        {
          CacheModel model(options);
          fail(from, count);
          succeeded = operation.run(&model);
          has_failed = failures() > 0;
          fail(0, 0);
          model.Check();
          // It goes on as if nothing had happened.
          ASSERT_TRUE(model.AllocBulk(500));
          model.Check();
        }
      }
      EXPECT_TRUE(succeeded) << operation.name;
    }
  }

  void FailEachOfSource(size_t object_bytes, unsigned flags, int count) {
    FakeSource source;
    slab_options_t options = Options(object_bytes, flags);
    options.source = source.Get();
    FailEach(
        options, count, [&](int from, int num) { source.FailFrom(from, num); },
        [&] { return source.failures(); });
    EXPECT_EQ(source.live_bytes(), 0u);
  }

  // No range is longer than `range_bytes`, so that much is outside of it.
  void FailEachOfKernel(size_t object_bytes, unsigned flags, int count,
                        size_t range_bytes = SIZE_MAX) {
    kernel = {};
    kernel.reserve_bytes_max = range_bytes;
    slab_kernel = &kFakeKernel;
    FailEach(
        Options(object_bytes, flags), count,
        [](int from, int num) {
          kernel.calls = 0;
          kernel.failures = 0;
          kernel.fail_from = from;
          kernel.fail_count = num;
        },
        [] { return kernel.failures; });
    slab_kernel = &slab_kernel_default;
  }
};

TEST_F(SlabFailureTest, EachRequestToASourceMayFailOnce) {
  FailEachOfSource(64, 0, 1);
}

TEST_F(SlabFailureTest, EachRequestToASourceAndAllAfterItMayFail) {
  FailEachOfSource(64, 0, 1 << 30);
}

TEST_F(SlabFailureTest, RequestsMayFailWithoutMagazines) {
  FailEachOfSource(64, SLAB_NO_MAGAZINES, 1);
  FailEachOfSource(64, SLAB_NO_MAGAZINES, 1 << 30);
}

TEST_F(SlabFailureTest, RequestsMayFailInTheDebugVariant) {
  FailEachOfSource(64, SLAB_DEBUG, 1);
  FailEachOfSource(64, SLAB_DEBUG, 1 << 30);
}

TEST_F(SlabFailureTest, EachMappingMayFailOnce) {
  FailEachOfKernel(64, 0, 1);
}

TEST_F(SlabFailureTest, EachMappingAndAllAfterItMayFail) {
  FailEachOfKernel(64, 0, 1 << 30);
}

TEST_F(SlabFailureTest, MappingsMayFailOutsideOfTheRange) {
  FailEachOfKernel(64, 0, 1, 0);
  FailEachOfKernel(64, 0, 1 << 30, 0);
  FailEachOfKernel(64, SLAB_DEBUG, 1);
}

// Most of the objects are in the range: it gets a part of this.
constexpr size_t kScarce = 40 << 20;

TEST_F(SlabFailureTest, MappingsMayFailWhenTheRangeIsFull) {
  FailEachOfKernel(200, 0, 1, kScarce);
  FailEachOfKernel(200, 0, 1 << 30, kScarce);
  slab_kernel = &kFakeKernel;
  {
    CacheModel model(Options(200, 0));
    ASSERT_TRUE(model.AllocBulk(12000));
    EXPECT_GT(model.cache()->range.next_bytes, 1u << 20);
    EXPECT_GT(model.cache()->num_outside, 0u);
  }
  slab_kernel = &slab_kernel_default;
}

// A source under whose `alloc` another thread asks for an object of a cache
// whose limit the slab in the making has reached already.
struct RivalSource {
  slab_cache_t *cache = nullptr;
  bool is_refusing = false;
  std::thread rival;
  void *object = nullptr;
  std::atomic<bool> has_rival{false};
  std::atomic<bool> is_done{false};

  // Ends when the rival waits, or when it did not and has its answer.
  void RunRival() {
    rival = std::thread([this] {
      object = slab_alloc(cache);
      is_done = true;
    });
    for (size_t num_waiting = 0; num_waiting == 0 && !is_done;) {
      std::this_thread::yield();
      pthread_mutex_lock(&cache->lock);
      num_waiting = cache->num_waiting;
      pthread_mutex_unlock(&cache->lock);
    }
  }

  static void *Alloc(void *context, size_t size_bytes, size_t align_bytes) {
    auto *source = static_cast<RivalSource *>(context);
    bool is_refused = false;
    if (size_bytes >= 65536 && !source->has_rival.exchange(true)) {
      source->RunRival();
      is_refused = source->is_refusing;
    }
    void *ptr = nullptr;
    return is_refused || posix_memalign(&ptr, align_bytes, size_bytes) != 0
               ? nullptr
               : ptr;
  }

  static void Free(void *, void *ptr, size_t) {
    std::free(ptr);
  }
};

// Returns how many objects two threads got at once from a cache of 500, which
// are one slab of any variant.
int CountOfTwoThreads(unsigned flags, bool is_refusing) {
  RivalSource source;
  source.is_refusing = is_refusing;
  slab_options_t options = Options(64, flags);
  options.max_objects = 500;
  options.source = {RivalSource::Alloc, RivalSource::Free, &source};
  source.cache = slab_cache_create(&options);
  void *object = slab_alloc(source.cache);
  source.rival.join();
  const int count = (object != nullptr) + (source.object != nullptr);
  slab_free(source.cache, object);
  slab_free(source.cache, source.object);
  EXPECT_STREQ(slab_check(source.cache), nullptr);
  EXPECT_EQ(slab_cache_destroy(source.cache, 0), 0);
  return count;
}

TEST_F(SlabFailureTest, SlabInTheMakingIsNotALimit) {
  for (const unsigned flags :
       {0u, unsigned{SLAB_NO_MAGAZINES}, unsigned{SLAB_DEBUG}}) {
    EXPECT_EQ(CountOfTwoThreads(flags, false), 2);
  }
}

TEST_F(SlabFailureTest, SlabThatIsNotMadeLeavesTheLimitToOthers) {
  for (const unsigned flags :
       {0u, unsigned{SLAB_NO_MAGAZINES}, unsigned{SLAB_DEBUG}}) {
    EXPECT_EQ(CountOfTwoThreads(flags, true), 1);
  }
}

TEST_F(SlabFailureTest, CreateFailsCleanly) {
  FakeSource source;
  slab_options_t options = Options(64, 0);
  options.source = source.Get();
  slab_cache_t *cache = nullptr;
  for (int from = 1; cache == nullptr; ++from) {
    source.FailFrom(from, 1);
    errno = 0;
    cache = slab_cache_create(&options);
    if (cache == nullptr) {
      EXPECT_EQ(errno, ENOMEM);
      EXPECT_EQ(source.live_bytes(), 0u);
    }
  }
  EXPECT_EQ(slab_cache_destroy(cache, 0), 0);
  EXPECT_EQ(source.live_bytes(), 0u);
}

TEST_F(SlabFailureTest, MappingsGoBackWithTheCache) {
  kernel = {};
  slab_kernel = &kFakeKernel;
  {
    // The pool of small metadata and this thread's region stay.
    CacheModel model(Options(64, 0));
    model.AllocBulk(1000);
  }
  const size_t before = kernel.mapped_bytes;
  for (int round = 0; round < 3; ++round) {
    CacheModel model(Options(4000, 0));
    ASSERT_TRUE(model.AllocBulk(10000));
    model.FreeBulk(3, 5000);
    model.Reap();
  }
  EXPECT_LE(kernel.mapped_bytes, before + 65536);
  slab_kernel = &slab_kernel_default;
}

}  // namespace
