// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

#include "heap/private_heap_model.h"

#include <algorithm>
#include <cerrno>
#include <iterator>
#include <utility>

#include "gtest/gtest.h"
#include "heap/private_heap_testing.h"

namespace heap_testing {

void PrivateHeapModel::Add(void *ptr, size_t size, size_t align,
                           bool is_zeroed) {
  if (ptr == nullptr) {
    EXPECT_EQ(errno, ENOMEM);
    ++refused_;
    return;
  }
  ++served_;
  EXPECT_EQ(reinterpret_cast<uintptr_t>(ptr) % std::max(align, granule_bytes_),
            0u);
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

std::map<void *, PrivateHeapModel::Block>::iterator PrivateHeapModel::Choose(
    Random *random) {
  auto it = blocks_.begin();
  std::advance(it, static_cast<std::ptrdiff_t>(random->Below(blocks_.size())));
  return it;
}

void PrivateHeapModel::Free(Random *random) {
  if (blocks_.empty()) {
    return;
  }
  const auto it = Choose(random);
  EXPECT_TRUE(IsFilled(it->first, it->second.size_bytes, it->second.size_bytes,
                       it->second.id));
  live_bytes_ -= it->second.size_bytes;
  heap_free_in(heap_, it->first);
  blocks_.erase(it);
}

void PrivateHeapModel::Resize(Random *random, size_t size) {
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
  EXPECT_TRUE(IsFilled(ptr, std::min(size, block.size_bytes), block.size_bytes,
                       block.id));
  live_bytes_ -= block.size_bytes;
  blocks_.erase(it);
  Add(ptr, size, 1, false);
}

void PrivateHeapModel::Step(Random *random, unsigned max_log2) {
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

void PrivateHeapModel::Check() {
  ASSERT_STREQ(heap_check_in(heap_), nullptr);
  auto expected = blocks_.begin();
  std::pair<PrivateHeapModel *, decltype(expected) *> context{this, &expected};
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

void PrivateHeapModel::FreeAll() {
  for (const auto &[ptr, block] : blocks_) {
    EXPECT_TRUE(IsFilled(ptr, block.size_bytes, block.size_bytes, block.id));
    heap_free_in(heap_, ptr);
  }
  blocks_.clear();
  live_bytes_ = 0;
}

void RunPrivateHeapModel(const heap_options_t &options, uint64_t seed,
                         int steps, unsigned max_log2, int check_every) {
  const Heap heap = Create(options);
  Random random(seed);
  PrivateHeapModel model(
      heap.get(), options.granule_bytes == 0 ? 16 : options.granule_bytes);
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
  heap_trim_in(heap.get());  // Size classes keep what was freed last.
  model.Check();
  if (options.strategy != HEAP_BUDDY) {
    EXPECT_LE(Stats(heap).num_free, 1u);
  }
}

}  // namespace heap_testing
