// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// heap_check_in() sees what is broken in a segregated private heap.

#include <cstddef>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "heap/private_heap.h"
#include "heap/private_heap_testing.h"
#include "heap/segregated.h"

namespace {

using heap_testing::Create;
using heap_testing::Heap;
using heap_testing::Options;

class SegregatedCheckTest : public testing::Test {
 protected:
  SegregatedCheckTest() : heap_(Create(Options(HEAP_SEGREGATED))) {
    for (int i = 0; i < 100; ++i) {
      blocks_.push_back(heap_alloc_in(heap_.get(), 100));
    }
    for (int i = 0; i < 40; ++i) {
      heap_free_in(heap_.get(), blocks_[static_cast<size_t>(i)]);
    }
    own_ = heap_->segregated;
    heap_free_in(heap_.get(), heap_alloc_in(heap_.get(), 500000));
    page_ = own_->spans[heap_class_of_size(100)].current;
  }
  void ExpectBroken(const char *part) {
    const char *broken = heap_check_in(heap_.get());
    ASSERT_NE(broken, nullptr) << part;
    EXPECT_NE(std::string(broken).find(part), std::string::npos) << broken;
  }
  Heap heap_;
  std::vector<void *> blocks_;
  heap_segregated_t *own_;
  heap_page_t *page_;
};

TEST_F(SegregatedCheckTest, Nothing) {
  EXPECT_STREQ(heap_check_in(heap_.get()), nullptr);
}

TEST_F(SegregatedCheckTest, LostSpan) {
  own_->spans[heap_class_of_size(100)].current = nullptr;
  own_->bins[heap_class_of_size(100)].mask = 0;
  ExpectBroken("a span on no list");
}

TEST_F(SegregatedCheckTest, StaleDescriptor) {
  page_[1] = page_[0];
  ExpectBroken("a span on no list, or on two");
}

TEST_F(SegregatedCheckTest, WrongDescriptor) {
  ++page_->reciprocal;
  ExpectBroken("pages of a span that differ");
}

TEST_F(SegregatedCheckTest, WrongCountOfASpan) {
  ++page_->frees_to_go;
  ExpectBroken("a span that does not know what is free in it");
}

TEST_F(SegregatedCheckTest, ImpossibleState) {
  page_->states[3] = 77;
  ExpectBroken("impossible state");
}

TEST_F(SegregatedCheckTest, CachedBlockInNoSlot) {
  page_->states[99] = HEAP_BLOCK_CACHED;
  ExpectBroken("a cached block in no slot");
}

TEST_F(SegregatedCheckTest, WrongCounts) {
  ++heap_->live_count;
  ExpectBroken("live blocks are not counted right");
  --heap_->live_count;
  ++heap_->live_length;
  ExpectBroken("live blocks are not counted right");
}

TEST_F(SegregatedCheckTest, BrokenRuns) {
  ++own_->map.free_units;
  ExpectBroken("run map");
}

}  // namespace
