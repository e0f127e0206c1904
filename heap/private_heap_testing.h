// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// What the tests of private heaps share.

#ifndef MY_ALLOC_HEAP_PRIVATE_HEAP_TESTING_H_
#define MY_ALLOC_HEAP_PRIVATE_HEAP_TESTING_H_

#include <cerrno>
#include <memory>

#include "gtest/gtest.h"
#include "heap/private_heap.h"

namespace heap_testing {

constexpr heap_strategy_t kStrategies[] = {HEAP_FIRST_FIT, HEAP_NEXT_FIT,
                                           HEAP_BEST_FIT,  HEAP_TLSF,
                                           HEAP_BUDDY,     HEAP_SEGREGATED};

inline bool KeepsLinksInFreeBlocks(heap_strategy_t strategy) {
  return strategy == HEAP_BEST_FIT || strategy == HEAP_TLSF ||
         strategy == HEAP_BUDDY;
}

struct Destroy {
  void operator()(heap_t *heap) const {
    heap_destroy(heap);
  }
};
using Heap = std::unique_ptr<heap_t, Destroy>;

inline Heap Create(const heap_options_t &options) {
  Heap heap(heap_create(&options));
  EXPECT_NE(heap, nullptr) << "errno " << errno;
  return heap;
}

inline heap_options_t Options(heap_strategy_t strategy) {
  heap_options_t options = {};
  options.strategy = strategy;
  return options;
}

inline heap_private_stats_t Stats(const Heap &heap) {
  heap_private_stats_t stats;
  heap_stats_get_in(heap.get(), &stats);
  return stats;
}

}  // namespace heap_testing

#endif  // MY_ALLOC_HEAP_PRIVATE_HEAP_TESTING_H_
