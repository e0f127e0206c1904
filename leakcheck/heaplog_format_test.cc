// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

#include "leakcheck/heaplog_format.h"

#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "gtest/gtest.h"
#include "leakcheck/heaplog.h"

namespace {

std::vector<uint64_t> Samples() {
  std::vector<uint64_t> samples = {0, std::numeric_limits<uint64_t>::max()};
  std::mt19937_64 random(1);
  for (int bit = 0; bit < 64; bit++) {
    uint64_t power = uint64_t{1} << bit;
    samples.insert(samples.end(), {power - 1, power, power + 1, ~power,
                                   random() >> bit, random()});
  }
  return samples;
}

// The numbers that docs/heaplog.md gives.
TEST(HeaplogFormatTest, LayoutIsAsDocumented) {
  EXPECT_EQ(std::memcmp("\x8aheaplog",
                        std::vector<uint64_t>{HEAPLOG_MAGIC}.data(), 8),
            0);
  EXPECT_EQ(sizeof(heaplog_file_header_t), 80u);
  EXPECT_EQ(offsetof(heaplog_file_header_t, version_major), 8u);
  EXPECT_EQ(offsetof(heaplog_file_header_t, version_minor), 10u);
  EXPECT_EQ(offsetof(heaplog_file_header_t, header_bytes), 12u);
  EXPECT_EQ(offsetof(heaplog_file_header_t, chunk_bytes), 16u);
  EXPECT_EQ(offsetof(heaplog_file_header_t, page_bytes), 20u);
  EXPECT_EQ(offsetof(heaplog_file_header_t, pid), 24u);
  EXPECT_EQ(offsetof(heaplog_file_header_t, start_monotonic_ns), 32u);
  EXPECT_EQ(offsetof(heaplog_file_header_t, start_unix_ns), 40u);
  EXPECT_EQ(offsetof(heaplog_file_header_t, crc), 60u);
  EXPECT_EQ(offsetof(heaplog_file_header_t, chunk_count), 64u);
  EXPECT_EQ(offsetof(heaplog_file_header_t, lost_count), 72u);
  EXPECT_EQ(sizeof(heaplog_chunk_header_t), 64u);
  EXPECT_EQ(offsetof(heaplog_chunk_header_t, index), 8u);
  EXPECT_EQ(offsetof(heaplog_chunk_header_t, lane), 12u);
  EXPECT_EQ(offsetof(heaplog_chunk_header_t, sequence), 16u);
  EXPECT_EQ(offsetof(heaplog_chunk_header_t, horizon_ns), 24u);
  EXPECT_EQ(offsetof(heaplog_chunk_header_t, base_ns), 32u);
  EXPECT_EQ(offsetof(heaplog_chunk_header_t, header_crc), 60u);
  EXPECT_EQ(HEAPLOG_PAYLOAD_BYTES_MAX, 65464u);
}

TEST(HeaplogFormatTest, CounterWordsShowAnyChangeOfOneHalf) {
  EXPECT_EQ(heaplog_counter_word(0), 0xffffffff00000000u);
  EXPECT_EQ(heaplog_counter_word(3), 0xfffffffc00000003u);
  uint64_t word = heaplog_counter_word(0x12345678);
  for (int bit = 0; bit < 64; bit++) {
    uint64_t changed = word ^ uint64_t { 1 } << bit;
    EXPECT_NE(changed, heaplog_counter_word(static_cast<uint32_t>(changed)));
  }
}

TEST(HeaplogFormatTest, CommitWordHoldsLengthTagAndChecksum) {
  EXPECT_EQ(heaplog_commit_word(0x1234, 0xdeadbeef), 0xdeadbeefc3001234u);
}

TEST(HeaplogFormatTest, ZigzagKeepsSmallMagnitudesSmall) {
  EXPECT_EQ(heaplog_zigzag(0), 0u);
  EXPECT_EQ(heaplog_zigzag(static_cast<uint64_t>(-1)), 1u);
  EXPECT_EQ(heaplog_zigzag(1), 2u);
  EXPECT_EQ(heaplog_zigzag(static_cast<uint64_t>(-64)), 127u);
  EXPECT_EQ(heaplog_zigzag(64), 128u);
}

TEST(HeaplogFormatTest, ZigzagRoundTrips) {
  for (uint64_t value : Samples()) {
    EXPECT_EQ(heaplog_unzigzag(heaplog_zigzag(value)), value);
    EXPECT_EQ(heaplog_zigzag(heaplog_unzigzag(value)), value);
  }
}

TEST(HeaplogFormatTest, VarintRoundTrips) {
  for (uint64_t value : Samples()) {
    unsigned char bytes[HEAPLOG_VARINT_BYTES_MAX];
    unsigned char *end = heaplog_varint_put(bytes, value);
    size_t expected = 1;
    for (uint64_t rest = value; rest >= 0x80; rest >>= 7) {
      expected++;
    }
    EXPECT_EQ(static_cast<size_t>(end - bytes), expected) << value;
    uint64_t read = ~value;
    EXPECT_EQ(heaplog_varint_get(bytes, &read), end);
    EXPECT_EQ(read, value);
  }
}

TEST(HeaplogFormatTest, VarintIsLittleEndianBaseOneHundredTwentyEight) {
  unsigned char bytes[HEAPLOG_VARINT_BYTES_MAX];
  ASSERT_EQ(heaplog_varint_put(bytes, 300) - bytes, 2);
  EXPECT_EQ(bytes[0], 0xac);
  EXPECT_EQ(bytes[1], 0x02);
}

TEST(HeaplogFormatTest, VarintMayHaveLeadingZeroGroups) {
  const unsigned char bytes[HEAPLOG_VARINT_BYTES_MAX] = {0x85, 0x80, 0x00};
  uint64_t value = 0;
  EXPECT_EQ(heaplog_varint_get(bytes, &value), bytes + 3);
  EXPECT_EQ(value, 5u);
}

TEST(HeaplogFormatTest, VarintBeyondSixtyFourBitsIsRefused) {
  unsigned char bytes[HEAPLOG_VARINT_BYTES_MAX];
  uint64_t value = 0;
  std::memset(bytes, 0xff, sizeof(bytes));
  EXPECT_EQ(heaplog_varint_get(bytes, &value), nullptr);
  bytes[9] = 0x02;
  EXPECT_EQ(heaplog_varint_get(bytes, &value), nullptr);
  bytes[9] = 0x01;
  EXPECT_EQ(heaplog_varint_get(bytes, &value), bytes + 10);
  EXPECT_EQ(value, std::numeric_limits<uint64_t>::max());
}

}  // namespace
