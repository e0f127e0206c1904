// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

#include "viz/address_map.h"

#include <cstdint>
#include <map>
#include <random>

#include "gtest/gtest.h"

namespace viz {
namespace {

TEST(AddressMapTest, FindsWhatWasInserted) {
  AddressMap<int> map;
  EXPECT_EQ(map.Find(7), nullptr);
  EXPECT_EQ(map.Insert(7), 0);
  map.Insert(7) = 70;
  EXPECT_EQ(*map.Find(7), 70);
  EXPECT_EQ(map.Insert(7), 70);
  EXPECT_EQ(map.size(), 1u);
}

TEST(AddressMapTest, ErasedEntriesAreGone) {
  AddressMap<int> map;
  map.Insert(1) = 10;
  EXPECT_TRUE(map.Erase(1));
  EXPECT_FALSE(map.Erase(1));
  EXPECT_EQ(map.Find(1), nullptr);
  EXPECT_EQ(map.Insert(1), 0) << "a new entry starts from nothing";
}

TEST(AddressMapTest, GreatestKeyIsLikeAnyOther) {
  AddressMap<int> map;
  map.Insert(UINT64_MAX) = 1;
  EXPECT_EQ(*map.Find(UINT64_MAX), 1);
}

TEST(AddressMapTest, BehavesLikeStdMap) {
  std::mt19937_64 random(1);
  AddressMap<uint64_t> map;
  std::map<uint64_t, uint64_t> expected;
  for (int i = 0; i < 300000; ++i) {
    // Keys like addresses: few, and multiples of 16.
    const uint64_t key = (1 + random() % (1 + i / 50)) * 16;
    switch (random() % 3) {
      case 0:
        map.Insert(key) = expected[key] = random();
        break;
      case 1:
        ASSERT_EQ(map.Erase(key), expected.erase(key) == 1);
        break;
      default: {
        const uint64_t *value = map.Find(key);
        const auto found = expected.find(key);
        ASSERT_EQ(value != nullptr, found != expected.end());
        ASSERT_TRUE(value == nullptr || *value == found->second);
        break;
      }
    }
    ASSERT_EQ(map.size(), expected.size());
  }
  std::map<uint64_t, uint64_t> all;
  map.ForEach([&all](uint64_t key, uint64_t value) { all[key] = value; });
  EXPECT_EQ(all, expected);
}

}  // namespace
}  // namespace viz
