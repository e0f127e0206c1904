// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

#include "heap/span.h"

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <set>
#include <vector>

#include "gtest/gtest.h"
#include "heap/arena.h"
#include "heap/central.h"
#include "heap/heap_testing.h"

namespace {

using heap_testing::Random;

// Spans of no thread: nobody looks at the owner here.
heap_thread *const kOwner = nullptr;

class SpanTest : public testing::Test {
 protected:
  void SetUp() override {
    heap_central_lock();
  }
  void TearDown() override {
    EXPECT_EQ(heap_span_count(), 0u);
    EXPECT_EQ(heap_arena_check(), nullptr);
    heap_central_unlock();
  }

  static const char *Check(const heap_page_t *span) {
    uint32_t busy;
    return heap_span_check(span, &busy);
  }

  static uint32_t Busy(const heap_page_t *span) {
    uint32_t busy = UINT32_MAX;
    EXPECT_EQ(heap_span_check(span, &busy), nullptr);
    return busy;
  }
};

TEST_F(SpanTest, NewSpanOfEachClassIsWholeAndFree) {
  for (size_t size_class = 0; size_class < HEAP_CLASS_COUNT; ++size_class) {
    const heap_class_info_t &info = heap_class_info[size_class];
    heap_page_t *span = heap_span_create(size_class, kOwner);
    ASSERT_NE(span, nullptr);
    EXPECT_EQ(heap_span_count(), 1u);
    EXPECT_EQ(Busy(span), 0u);
    EXPECT_EQ(span->start % HEAP_PAGE_BYTES, 0u);
    for (size_t page = 0; page < info.page_count; ++page) {
      heap_page_t *other = heap_page_of(span->start + page * HEAP_PAGE_BYTES);
      EXPECT_EQ(other->kind, HEAP_PAGE_SPAN);
      EXPECT_EQ(other->start, span->start);
      EXPECT_EQ(other->reciprocal, info.reciprocal);
      EXPECT_EQ(heap_span_of(other), span);
    }
    // The free masks name each block once and no padding.
    uint32_t free_count = 0;
    for (size_t group = 0; group < heap_span_group_count(span); ++group) {
      EXPECT_NE(heap_span_free_mask(span, group), 0u);
      free_count += static_cast<uint32_t>(
          __builtin_popcountll(heap_span_free_mask(span, group)));
    }
    EXPECT_EQ(free_count, info.block_count);
    memset(reinterpret_cast<void *>(span->start), 0xAB,
           size_t{info.page_count} * HEAP_PAGE_BYTES);
    heap_span_destroy(span);
    EXPECT_EQ(heap_page_of(span->start)->kind, HEAP_PAGE_NONE);
    EXPECT_EQ(heap_page_of(span->start)->reciprocal, 0u);
  }
}

TEST_F(SpanTest, BlocksAreFreshOnlyWhileTheirMemoryIs) {
  heap_page_t *span = heap_span_create(0, kOwner);
  const auto *bytes = reinterpret_cast<const unsigned char *>(span->start);
  if (span->states[0] == HEAP_BLOCK_FRESH) {
    EXPECT_TRUE(heap_testing::IsZero(bytes, HEAP_PAGE_BYTES));
  }
  memset(reinterpret_cast<void *>(span->start), 1, HEAP_PAGE_BYTES);
  const uintptr_t start = span->start;
  heap_span_destroy(span);
  span = heap_span_create(1, kOwner);
  ASSERT_EQ(span->start, start) << "the memory given back last is lowest";
  EXPECT_EQ(span->states[0], HEAP_BLOCK_FREED);
  heap_span_destroy(span);
}

TEST_F(SpanTest, MaskAndCountSayWhichBlocksAreBusy) {
  Random random(heap_testing::Seed());
  for (size_t size_class : {0, 2, 17, 40, HEAP_CLASS_COUNT - 1}) {
    heap_page_t *span = heap_span_create(size_class, kOwner);
    const uint32_t blocks = heap_class_info[size_class].block_count;
    for (int round = 0; round < 50; ++round) {
      const uint8_t states[] = {HEAP_BLOCK_FRESH, HEAP_BLOCK_LIVE,
                                HEAP_BLOCK_FREED, HEAP_BLOCK_CACHED};
      uint32_t busy = 0;
      for (uint32_t i = 0; i < blocks; ++i) {
        // In some rounds few are free, so that whole groups are busy.
        const bool any = round % 2 == 0 || random.OneIn(200);
        span->states[i] =
            any ? states[random.Below(4)] : uint8_t{HEAP_BLOCK_LIVE};
        busy += span->states[i] == HEAP_BLOCK_LIVE ||
                span->states[i] == HEAP_BLOCK_CACHED;
      }
      EXPECT_EQ(heap_span_recount(span), busy);
      EXPECT_EQ(Busy(span), busy);
      for (uint32_t group = 0; group < heap_span_group_count(span); ++group) {
        const uint64_t mask = heap_span_free_mask(span, group);
        EXPECT_EQ((span->free_groups >> group & 1) != 0, mask != 0);
        for (uint32_t bit = 0; bit < HEAP_GROUP_BLOCKS; ++bit) {
          const uint32_t i = group * HEAP_GROUP_BLOCKS + bit;
          const bool is_free =
              i < blocks && (span->states[i] == HEAP_BLOCK_FRESH ||
                             span->states[i] == HEAP_BLOCK_FREED);
          ASSERT_EQ((mask >> bit & 1) != 0, is_free) << "block " << i;
        }
      }
    }
    memset(span->states, HEAP_BLOCK_FREED, blocks);
    heap_span_destroy(span);
  }
}

TEST_F(SpanTest, CheckNoticesEveryImpossibleState) {
  heap_page_t *span = heap_span_create(2, kOwner);  // 48 bytes: with padding.
  const uint32_t blocks = heap_class_info[2].block_count;
  const uint32_t end = heap_span_group_count(span) * HEAP_GROUP_BLOCKS;
  ASSERT_LT(blocks, end);
  for (uint32_t i : {0u, blocks - 1, blocks, end - 1}) {
    const uint8_t old_state = span->states[i];
    for (int state = 0; state < 256; ++state) {
      const bool is_padding = state == HEAP_BLOCK_PADDING;
      const bool is_known =
          state <= HEAP_BLOCK_PADDING || state == HEAP_BLOCK_CACHED;
      span->states[i] = static_cast<uint8_t>(state);
      if (is_known && is_padding == (i >= blocks)) {
        EXPECT_EQ(Check(span), nullptr);
      } else {
        EXPECT_STREQ(Check(span), "span: impossible state of a block");
      }
    }
    span->states[i] = old_state;
  }
  heap_span_destroy(span);
}

TEST_F(SpanTest, CheckNoticesAWrongDescriptor) {
  heap_page_t *span = heap_span_create(70, kOwner);  // Of two pages.
  ASSERT_EQ(heap_class_info[70].page_count, 2u);
  const heap_page_t sound = *span;
  const auto expect_after = [&](const char *message) {
    EXPECT_STREQ(Check(span), message);
    *span = sound;
    EXPECT_EQ(Check(span), nullptr);
  };
  span->kind = HEAP_PAGE_MAPPED;
  expect_after("span: not a span");
  span->start += HEAP_PAGE_BYTES;
  expect_after("span: not where its descriptor says");
  span->size_class = 0;
  expect_after("span: not where its descriptor says");
  ++span->reciprocal;
  expect_after("span: wrong reciprocal");
  span->bin_offset += HEAP_BIN_BYTES;
  expect_after("span: wrong bin");
  // The second page must say the same as the first.
  heap_page_t *second = heap_page_of(span->start + HEAP_PAGE_BYTES);
  const heap_page_t sound_second = *second;
  const auto expect_after_second = [&] {
    EXPECT_STREQ(Check(span), "span: pages that differ");
    *second = sound_second;
    EXPECT_EQ(Check(span), nullptr);
  };
  second->kind = HEAP_PAGE_NONE;
  expect_after_second();
  second->start += 16;
  expect_after_second();
  second->states += 1;
  expect_after_second();
  second->reciprocal = 0;
  expect_after_second();
  second->index = 0;
  expect_after_second();
  second->bin_offset = 0;
  expect_after_second();
  second->size_class = 69;
  expect_after_second();
  second->owner = reinterpret_cast<heap_thread *>(64);
  expect_after_second();
  heap_span_destroy(span);
}

TEST_F(SpanTest, ListKeepsItsOrder) {
  heap_page_t pages[4] = {};
  heap_page_list_t list = {};
  const auto contents = [&] {
    std::vector<long> order;
    const heap_page_t *prev = nullptr;
    for (const heap_page_t *page = list.first; page != nullptr;
         page = page->next) {
      EXPECT_EQ(page->prev, prev);
      prev = page;
      order.push_back(page - pages);
    }
    EXPECT_EQ(list.last, prev);
    return order;
  };
  heap_page_list_push_back(&list, &pages[1]);
  heap_page_list_push_back(&list, &pages[2]);
  heap_page_list_push_front(&list, &pages[0]);
  heap_page_list_push_back(&list, &pages[3]);
  EXPECT_EQ(contents(), (std::vector<long>{0, 1, 2, 3}));
  heap_page_list_remove(&list, &pages[2]);
  EXPECT_EQ(contents(), (std::vector<long>{0, 1, 3}));
  heap_page_list_remove(&list, &pages[0]);
  EXPECT_EQ(contents(), (std::vector<long>{1, 3}));
  heap_page_list_remove(&list, &pages[3]);
  EXPECT_EQ(contents(), (std::vector<long>{1}));
  heap_page_list_remove(&list, &pages[1]);
  EXPECT_EQ(contents(), (std::vector<long>{}));
}

TEST_F(SpanTest, SpansDoNotShareMemoryOrStates) {
  std::vector<heap_page_t *> spans;
  std::set<std::pair<uintptr_t, uintptr_t>> ranges;
  for (size_t i = 0; i < 300; ++i) {
    heap_page_t *span = heap_span_create(i % HEAP_CLASS_COUNT, kOwner);
    ASSERT_NE(span, nullptr);
    const auto states = reinterpret_cast<uintptr_t>(span->states);
    const heap_class_info_t &info = heap_class_info[span->size_class];
    ranges.emplace(span->start,
                   span->start + size_t{info.page_count} * HEAP_PAGE_BYTES);
    ranges.emplace(states, states + heap_span_group_count(span) *
                                        size_t{HEAP_GROUP_BLOCKS});
    spans.push_back(span);
  }
  uintptr_t end = 0;
  for (const auto &range : ranges) {
    EXPECT_LE(end, range.first);
    end = range.second;
  }
  for (heap_page_t *span : spans) {
    heap_span_destroy(span);
  }
}

}  // namespace
