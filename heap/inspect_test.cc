// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <map>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "heap/heap.h"
#include "heap/page_table.h"

namespace {

using Blocks = std::map<void *, size_t>;

struct Visit {
  Blocks blocks;
  size_t left = SIZE_MAX;
};

// Fixed storage: the walk must not allocate from the heap it walks, and this
// program's malloc is another one.
bool Add(void *context, void *ptr, size_t usable_bytes) {
  auto *visit = static_cast<Visit *>(context);
  visit->blocks[ptr] = usable_bytes;
  return --visit->left > 0;
}

// One block of every kind and of many classes.
std::vector<void *> SomeBlocks() {
  std::vector<void *> blocks;
  for (size_t size : {0, 1, 16, 17, 100, 1000, 8192, 8193, 32768, 32769, 100000,
                      4 << 20, (4 << 20) + 1, 10 << 20}) {
    blocks.push_back(heap_alloc(size));
    EXPECT_NE(blocks.back(), nullptr);
  }
  blocks.push_back(heap_aligned_alloc(1 << 16, 5));
  blocks.push_back(heap_aligned_alloc(1 << 21, 5));
  return blocks;
}

TEST(InspectTest, WalkVisitsExactlyTheLiveBlocks) {
  std::vector<void *> blocks = SomeBlocks();
  Visit before;
  EXPECT_TRUE(heap_walk(Add, &before));
  for (void *block : blocks) {
    ASSERT_EQ(before.blocks.count(block), 1u);
    EXPECT_EQ(before.blocks[block], heap_usable_size(block));
  }
  for (void *block : blocks) {
    heap_free(block);
  }
  Visit after;
  EXPECT_TRUE(heap_walk(Add, &after));
  EXPECT_EQ(after.blocks.size() + blocks.size(), before.blocks.size());
  for (void *block : blocks) {
    EXPECT_EQ(after.blocks.count(block), 0u);
  }
}

TEST(InspectTest, WalkEndsWhenTheVisitorSaysSo) {
  std::vector<void *> blocks = SomeBlocks();
  for (size_t limit = 1; limit <= blocks.size(); ++limit) {
    Visit visit;
    visit.left = limit;
    EXPECT_FALSE(heap_walk(Add, &visit));
    EXPECT_EQ(visit.blocks.size(), limit);
  }
  for (void *block : blocks) {
    heap_free(block);
  }
}

TEST(InspectTest, StatsAgreeWithTheWalk) {
  std::vector<void *> blocks = SomeBlocks();
  Visit visit;
  EXPECT_TRUE(heap_walk(Add, &visit));
  size_t bytes = 0;
  for (const auto &block : visit.blocks) {
    bytes += block.second;
  }
  heap_stats_t stats;
  heap_stats_get(&stats);
  EXPECT_EQ(stats.num_live, visit.blocks.size());
  EXPECT_EQ(stats.live_bytes, bytes);
  size_t num_spans = 0;
  size_t free_bytes = 0;
  for (const heap_class_stats_t &size_class : stats.classes) {
    num_spans += size_class.num_spans;
    free_bytes += size_class.num_free * size_class.block_bytes;
  }
  EXPECT_EQ(stats.num_spans, num_spans);
  EXPECT_EQ(stats.span_free_bytes, free_bytes);
  EXPECT_LE(stats.live_bytes + stats.free_run_bytes + stats.span_free_bytes,
            stats.mapped_bytes);
  EXPECT_LE(stats.idle_bytes, stats.free_run_bytes);
  for (void *block : blocks) {
    heap_free(block);
  }
}

TEST(InspectTest, StatsAreCutToTheBuffer) {
  heap_stats_t stats;
  heap_stats_get(&stats);
  for (heap_stats_format_t format : {HEAP_STATS_TEXT, HEAP_STATS_JSON}) {
    size_t length = heap_stats_format(&stats, format, nullptr, 0);
    std::string whole(length + 1, 'x');
    EXPECT_EQ(heap_stats_format(&stats, format, &whole[0], length + 1), length);
    EXPECT_EQ(strlen(whole.c_str()), length);
    for (size_t capacity = 1; capacity <= length; ++capacity) {
      std::string part(length + 1, 'x');
      EXPECT_EQ(heap_stats_format(&stats, format, &part[0], capacity), length);
      EXPECT_EQ(part.substr(0, capacity),
                whole.substr(0, capacity - 1) + std::string(1, '\0'));
      EXPECT_EQ(part[capacity], 'x');
    }
  }
}

TEST(InspectTest, StatsAsJsonNameEveryFigure) {
  heap_stats_t stats = {};
  stats.live_bytes = 123;
  stats.num_misuses = 7;
  stats.classes[2] = {48, 1, 2, 1363};
  char json[4096];
  heap_stats_format(&stats, HEAP_STATS_JSON, json, sizeof(json));
  EXPECT_STREQ(
      json,
      "{\"live_bytes\":123,\"num_live\":0,\"mapped_bytes\":0,"
      "\"dirty_bytes\":0,\"idle_bytes\":0,\"free_run_bytes\":0,"
      "\"largest_free_run_bytes\":0,"
      "\"span_free_bytes\":0,\"huge_bytes\":0,\"num_huge\":0,\"metadata_"
      "bytes\":0,"
      "\"num_spans\":0,\"num_refills\":0,\"sampled_request_bytes\":0,"
      "\"sampled_block_bytes\":0,\"num_kernel_calls\":0,"
      "\"num_misuses\":7,"
      "\"classes\":[{\"block_bytes\":48,\"num_spans\":1,\"num_live\":2,"
      "\"num_free\":1363}]}\n");
}

TEST(InspectTest, TrimLeavesNothingIdle) {
  std::vector<void *> blocks;
  for (int i = 0; i < 100; ++i) {
    blocks.push_back(heap_alloc(100 << 10));
    memset(blocks.back(), 1, 100 << 10);
  }
  for (void *block : blocks) {
    heap_free(block);
  }
  heap_trim(0);
  heap_stats_t stats;
  heap_stats_get(&stats);
  EXPECT_EQ(stats.idle_bytes, 0u);
  EXPECT_EQ(heap_check(), nullptr);
  EXPECT_EQ(heap_trim(0), 0u);
}

TEST(InspectTest, CheckSeesEachWrongMappedBlock) {
  char *ptr = static_cast<char *>(heap_alloc(40 << 20));
  void *other = heap_alloc(40 << 20);
  heap_page_t *page = heap_page_of(reinterpret_cast<uintptr_t>(ptr));
  const heap_page_t sound = *page;
  const auto expect_after = [&](const char *message) {
    EXPECT_STREQ(heap_check(), message);
    *page = sound;
    EXPECT_EQ(heap_check(), nullptr);
  };
  page->start += HEAP_PAGE_BYTES;
  expect_after("mapped: a block whose descriptor is wrong");
  page->mapping_start += HEAP_PAGE_BYTES;
  expect_after("mapped: a block whose descriptor is wrong");
  page->kind = HEAP_PAGE_NONE;
  expect_after("mapped: a block whose descriptor is wrong");
  page->reciprocal = 1;
  expect_after("mapped: a block whose descriptor is wrong");
  page->mapping_bytes += HEAP_PAGE_BYTES;
  expect_after("mapped: wrong sum of mappings");
  page->next = nullptr;
  expect_after("mapped: a list of blocks that is broken");
  heap_free(ptr);
  heap_free(other);
}

TEST(InspectTest, FreedMemoryIsGivenBackWithoutBeingAsked) {
  std::vector<void *> blocks;
  for (int i = 0; i < 1000; ++i) {
    blocks.push_back(heap_alloc(64 << 10));
    memset(blocks.back(), 1, 64 << 10);
  }
  for (void *block : blocks) {
    heap_free(block);
  }
  heap_stats_t stats;
  heap_stats_get(&stats);
  EXPECT_LE(stats.idle_bytes, 4u << 20);
  EXPECT_EQ(heap_check(), nullptr);
}

}  // namespace
