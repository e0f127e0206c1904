// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// A generator of random numbers that is the same everywhere, and patterns to
// recognise a block's contents by. Without googletest, for fuzz targets.

#ifndef MY_ALLOC_HEAP_HEAP_PATTERNS_H_
#define MY_ALLOC_HEAP_HEAP_PATTERNS_H_

#include <cstddef>
#include <cstdint>

namespace heap_testing {

// Returns the seed of this run, HEAP_TEST_SEED or a constant, and prints it.
uint64_t Seed();

// SplitMix64.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {
  }

  uint64_t Next() {
    uint64_t z = (state_ += UINT64_C(0x9E3779B97F4A7C15));
    z = (z ^ (z >> 30)) * UINT64_C(0xBF58476D1CE4E5B9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94D049BB133111EB);
    return z ^ (z >> 31);
  }

  // Returns a number below `limit`, which is not 0.
  uint64_t Below(uint64_t limit) {
    return Next() % limit;
  }

  bool OneIn(uint64_t n) {
    return Below(n) == 0;
  }

  // Returns a size below 2^`max_log2`, every power of two as likely.
  size_t SkewedSize(unsigned max_log2) {
    const uint64_t bits = Below(max_log2 + 1);
    return bits == 0 ? 0 : static_cast<size_t>(Next() >> (64 - bits));
  }

 private:
  uint64_t state_;
};

// Writes bytes derived from `id` to a block: to all of it, or, where it is
// long, to its first and last KiB and to a few of each 4 KiB in between.
void Fill(void *ptr, size_t size_bytes, uint64_t id);

// Tells whether the first `size_bytes` of a block, filled with `id` when it had
// `filled_bytes`, are still as `Fill` left them.
bool IsFilled(const void *ptr, size_t size_bytes, size_t filled_bytes,
              uint64_t id);

// Tells whether all bytes are zero.
bool IsZero(const void *ptr, size_t size_bytes);

}  // namespace heap_testing

#endif  // MY_ALLOC_HEAP_HEAP_PATTERNS_H_
