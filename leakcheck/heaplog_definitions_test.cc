// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// The maps from the file's ids to indices: what hostile ids cost. What records
// define is tested through the reader, in heaplog_decode_test.cc.

#include <gtest/gtest.h>

#include <cstdint>
#include <vector>

#include "leakcheck/heaplog_reader_internal.h"

namespace {

constexpr uint32_t kGolden = 2654435769u;

class HeaplogDefinitionsTest : public ::testing::Test {
 protected:
  ~HeaplogDefinitionsTest() override {
    heaplog_definitions_clear(&definitions_);
  }

  uint32_t AddThread(uint32_t id) {
    heaplog_thread_t thread = {};
    uint32_t index = UINT32_MAX;
    EXPECT_EQ(
        heaplog_definitions_add_thread(&definitions_, id, &thread, &index),
        HEAPLOG_OK);
    return index;
  }

  // Adds threads with these ids, and asks for each again.
  void AddTwice(const std::vector<uint32_t> &ids) {
    for (int round = 0; round < 2; round++) {
      for (uint32_t i = 0; i < ids.size(); i++) {
        ASSERT_EQ(AddThread(ids[i]), i);
      }
    }
    ASSERT_EQ(definitions_.thread_count, ids.size());
  }

  // Three looks are usual for each of: not there, adding, moving, there.
  void ExpectFewProbes(size_t num_ids) const {
    EXPECT_LT(definitions_.thread_ids.num_probes, num_ids * 24);
  }

  heaplog_definitions_t definitions_ = {};
};

// `product` times the inverse of kGolden.
uint32_t IdOfProduct(uint32_t product) {
  uint32_t inverse = kGolden;
  for (int i = 0; i < 5; i++) {
    inverse *= 2 - kGolden * inverse;
  }
  return product * inverse;
}

TEST_F(HeaplogDefinitionsTest, IdsThatAFixedMultiplierMapsToOneSlotSpread) {
  // Bits 7 to 23 of id * kGolden are 0: one slot of 2^17, were that the hash.
  std::vector<uint32_t> ids;
  for (uint32_t i = 0; i < 1u << 15; i++) {
    ids.push_back(IdOfProduct((i >> 7) << 24 | (i & 127)));
    ASSERT_EQ((ids.back() * kGolden >> 7) & 0x1ffff, 0u);
  }
  AddTwice(ids);
  ExpectFewProbes(ids.size());
}

TEST_F(HeaplogDefinitionsTest, RegularIdsSpread) {
  for (uint32_t distance : {1u, 2u, 64u, 65536u, 65537u}) {
    heaplog_definitions_clear(&definitions_);
    std::vector<uint32_t> ids;
    for (uint32_t i = 0; i < 1u << 15; i++) {
      ids.push_back(i * distance);
    }
    AddTwice(ids);
    ExpectFewProbes(ids.size());
  }
}

TEST_F(HeaplogDefinitionsTest, EachMapHasItsOwnSeed) {
  AddThread(1);
  uint64_t seed = definitions_.thread_ids.seed;
  heaplog_definitions_clear(&definitions_);
  AddThread(1);
  EXPECT_NE(definitions_.thread_ids.seed, seed);
}

}  // namespace
