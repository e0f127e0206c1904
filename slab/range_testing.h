// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// A cache on a kernel that may have less to give.

#ifndef MY_ALLOC_SLAB_RANGE_TESTING_H_
#define MY_ALLOC_SLAB_RANGE_TESTING_H_

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "gtest/gtest.h"
#include "slab/slab.h"
#include "slab/slab_internal.h"

namespace slab_testing {

inline uintptr_t Address(const void *ptr) {
  return reinterpret_cast<uintptr_t>(ptr);
}

class RangeTest : public testing::Test {
 protected:
  void SetUp() override {
    GTEST_FLAG_SET(death_test_style, "threadsafe");
    scarce_ = slab_kernel_default;
    scarce_.reserve = ScarceReserve;
    num_refused_ = 0;
    refused_bytes_least_ = SIZE_MAX;
  }
  void TearDown() override {
    slab_kernel = &slab_kernel_default;
    if (cache_ != nullptr) {
      EXPECT_STREQ(slab_check(cache_), nullptr);
      EXPECT_EQ(slab_cache_destroy(cache_, 0), 0);
    }
  }

  void Create(const slab_options_t &options) {
    cache_ = slab_cache_create(&options);
    ASSERT_NE(cache_, nullptr);
  }
  // From now on no more than `bytes` can be reserved at once.
  void Limit(size_t bytes) {
    reserve_bytes_max_ = bytes;
    slab_kernel = &scarce_;
  }
  std::vector<void *> AllocMany(size_t count) {
    std::vector<void *> objects(count);
    EXPECT_EQ(slab_alloc_bulk(cache_, count, objects.data()), 0);
    return objects;
  }
  void FreeAll(const std::vector<void *> &objects) {
    slab_free_bulk(cache_, objects.size(), objects.data());
  }
  bool IsInRange(const void *object) const {
    return Address(object) - cache_->fast.base < cache_->fast.limit_bytes;
  }

  slab_cache_t *cache_ = nullptr;
  // Reservations that were refused, and the shortest of them.
  static inline size_t num_refused_ = 0;
  static inline size_t refused_bytes_least_ = SIZE_MAX;

 private:
  static void *ScarceReserve(size_t size_bytes) {
    if (size_bytes > reserve_bytes_max_) {
      ++num_refused_;
      refused_bytes_least_ = std::min(refused_bytes_least_, size_bytes);
      return nullptr;
    }
    return slab_kernel_default.reserve(size_bytes);
  }

  static inline size_t reserve_bytes_max_ = SIZE_MAX;
  slab_kernel_t scarce_;
};

}  // namespace slab_testing

#endif  // MY_ALLOC_SLAB_RANGE_TESTING_H_
