// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

#include "heap/bit_tree.h"

#include <cstddef>
#include <cstdint>
#include <iterator>
#include <set>
#include <vector>

#include "gtest/gtest.h"
#include "heap/heap_patterns.h"

namespace {

using heap_testing::Random;

class Tree {
 public:
  explicit Tree(uint32_t capacity)
      : words_(heap_bit_tree_bytes(capacity) / sizeof(uint64_t)) {
    heap_bit_tree_init(&tree_, words_.data(), capacity, &steps_);
  }
  heap_bit_tree_t *get() {
    return &tree_;
  }
  uint64_t steps() const {
    return steps_;
  }

 private:
  std::vector<uint64_t> words_;
  heap_bit_tree_t tree_ = {};
  uint64_t steps_ = 0;
};

TEST(BitTreeTest, AgreesWithASet) {
  const uint64_t seed = heap_testing::Seed();
  for (uint32_t capacity : {1u, 63u, 64u, 65u, 4096u, 4097u, 300000u}) {
    Random random(seed + capacity);
    Tree tree(capacity);
    std::set<uint32_t> model;
    for (int i = 0; i < 20000; ++i) {
      // Dense in some places, and empty for long stretches in others.
      const auto number = static_cast<uint32_t>(
          random.OneIn(2) ? random.Below(capacity)
                          : random.Below(capacity < 200 ? capacity : 200));
      if (random.OneIn(2)) {
        heap_bit_tree_add(tree.get(), number);
        model.insert(number);
      } else {
        heap_bit_tree_remove(tree.get(), number);
        model.erase(number);
      }
      const auto probe = static_cast<uint32_t>(random.Below(capacity));
      const auto next = model.lower_bound(probe);
      ASSERT_EQ(heap_bit_tree_next(tree.get(), probe),
                next == model.end() ? HEAP_BIT_NONE : *next);
      const auto above = model.upper_bound(probe);
      ASSERT_EQ(heap_bit_tree_prev(tree.get(), probe),
                above == model.begin() ? HEAP_BIT_NONE : *std::prev(above));
      ASSERT_EQ(heap_bit_tree_has(tree.get(), probe), model.count(probe) > 0);
    }
    EXPECT_TRUE(heap_bit_tree_is_sound(tree.get(), capacity));
    heap_bit_tree_clear(tree.get(), capacity);
    EXPECT_TRUE(heap_bit_tree_is_sound(tree.get(), capacity));
    EXPECT_EQ(heap_bit_tree_next(tree.get(), 0), HEAP_BIT_NONE);
  }
}

TEST(BitTreeTest, FarNeighboursTakeFewSteps) {
  constexpr uint32_t kCapacity = 1 << 24;  // Four levels.
  Tree tree(kCapacity);
  heap_bit_tree_add(tree.get(), 0);
  heap_bit_tree_add(tree.get(), kCapacity - 1);
  const uint64_t before = tree.steps();
  EXPECT_EQ(before, 4u) << "two levels above the lowest, twice";
  EXPECT_EQ(heap_bit_tree_next(tree.get(), 1), kCapacity - 1);
  EXPECT_EQ(tree.steps() - before, 6u) << "three levels up and down";
  EXPECT_EQ(heap_bit_tree_prev(tree.get(), kCapacity - 2), 0u);
  EXPECT_EQ(tree.steps() - before, 12u);
}

// A tree without summaries knows its elements, and counts no steps.
TEST(BitTreeTest, FlatTreeHasItsElements) {
  std::vector<uint64_t> words(heap_bit_tree_bytes(10000) / sizeof(uint64_t));
  uint64_t steps = 0;
  heap_bit_tree_t tree = {};
  heap_bit_tree_init_flat(&tree, words.data(), 10000, &steps);
  heap_bit_tree_add(&tree, 9999);
  heap_bit_tree_add(&tree, 64);
  EXPECT_TRUE(heap_bit_tree_has(&tree, 9999));
  EXPECT_TRUE(heap_bit_tree_is_sound(&tree, 10000));
  EXPECT_FALSE(heap_bit_tree_is_sound(&tree, 9999));
  heap_bit_tree_remove(&tree, 9999);
  EXPECT_FALSE(heap_bit_tree_has(&tree, 9999));
  EXPECT_TRUE(heap_bit_tree_has(&tree, 64));
  heap_bit_tree_clear(&tree, 65);
  EXPECT_EQ(std::vector<uint64_t>(words.size()), words);
  EXPECT_EQ(steps, 0u);
}

TEST(BitTreeTest, WrongSummariesAreSeen) {
  Tree tree(10000);
  heap_bit_tree_add(tree.get(), 5000);
  EXPECT_TRUE(heap_bit_tree_is_sound(tree.get(), 10000));
  EXPECT_TRUE(heap_bit_tree_is_sound(tree.get(), 5001));
  EXPECT_FALSE(heap_bit_tree_is_sound(tree.get(), 5000)) << "one at the end";
  tree.get()->levels[0][1] = 1;
  EXPECT_FALSE(heap_bit_tree_is_sound(tree.get(), 10000));
  tree.get()->levels[0][1] = 0;
  tree.get()->levels[0][5000 / 64] = 0;
  EXPECT_FALSE(heap_bit_tree_is_sound(tree.get(), 10000));
}

}  // namespace
