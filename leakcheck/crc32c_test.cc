// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

#include "leakcheck/crc32c.h"

#include <algorithm>
#include <random>
#include <string>

#include "gtest/gtest.h"

namespace {

uint32_t Crc(bool hardware, const std::string &data) {
  return heaplog_crc32c_value(heaplog_crc32c_extend(
      hardware, HEAPLOG_CRC32C_INITIAL_STATE, data.data(), data.size()));
}

// By the definition, bit by bit.
uint32_t SlowCrc(const std::string &data) {
  uint32_t state = HEAPLOG_CRC32C_INITIAL_STATE;
  for (unsigned char byte : data) {
    state ^= byte;
    for (int bit = 0; bit < 8; bit++) {
      state = (state >> 1) ^ ((state & 1) != 0 ? 0x82f63b78u : 0);
    }
  }
  return ~state;
}

std::string RandomBytes(size_t size) {
  std::mt19937_64 random(size);
  std::string bytes(size, '\0');
  for (char &byte : bytes) {
    byte = static_cast<char>(random());
  }
  return bytes;
}

class Crc32cTest : public ::testing::TestWithParam<bool> {
 protected:
  // Without the instructions there is one way only.
  bool hardware_ = GetParam() && heaplog_crc32c_has_hardware();
};

INSTANTIATE_TEST_SUITE_P(PortableAndHardware, Crc32cTest, ::testing::Bool());

// RFC 3720, appendix B.4, and the customary check value.
TEST_P(Crc32cTest, KnownValues) {
  EXPECT_EQ(Crc(hardware_, ""), 0u);
  EXPECT_EQ(Crc(hardware_, "123456789"), 0xe3069283u);
  EXPECT_EQ(Crc(hardware_, std::string(32, '\0')), 0x8a9136aau);
  EXPECT_EQ(Crc(hardware_, std::string(32, '\xff')), 0x62a8ab43u);
  std::string up;
  for (int i = 0; i < 32; i++) {
    up.push_back(static_cast<char>(i));
  }
  EXPECT_EQ(Crc(hardware_, up), 0x46dd794eu);
}

TEST_P(Crc32cTest, EveryByteValueAgreesWithTheDefinition) {
  for (int byte = 0; byte < 256; byte++) {
    std::string data(1, static_cast<char>(byte));
    EXPECT_EQ(Crc(hardware_, data), SlowCrc(data)) << byte;
  }
}

TEST_P(Crc32cTest, EveryLengthAndAlignmentAgreesWithTheDefinition) {
  std::string bytes = RandomBytes(80);
  for (size_t start = 0; start < 8; start++) {
    for (size_t length = 0; start + length <= bytes.size(); length++) {
      std::string data = bytes.substr(start, length);
      uint32_t state = heaplog_crc32c_extend(
          hardware_, HEAPLOG_CRC32C_INITIAL_STATE, &bytes[start], length);
      ASSERT_EQ(heaplog_crc32c_value(state), SlowCrc(data))
          << start << " " << length;
    }
  }
}

TEST_P(Crc32cTest, PiecesGiveTheSameAsTheWhole) {
  std::string bytes = RandomBytes(3000);
  std::mt19937_64 random(1);
  uint32_t state = HEAPLOG_CRC32C_INITIAL_STATE;
  for (size_t done = 0; done < bytes.size();) {
    size_t piece = std::min<size_t>(random() % 20, bytes.size() - done);
    state = heaplog_crc32c_extend(hardware_, state, &bytes[done], piece);
    done += piece;
  }
  EXPECT_EQ(heaplog_crc32c_value(state), SlowCrc(bytes));
}

TEST_P(Crc32cTest, EverySingleBitChangeIsSeen) {
  std::string bytes = RandomBytes(100);
  uint32_t crc = Crc(hardware_, bytes);
  for (size_t bit = 0; bit < bytes.size() * 8; bit++) {
    bytes[bit / 8] ^= static_cast<char>(1 << bit % 8);
    EXPECT_NE(Crc(hardware_, bytes), crc) << bit;
    bytes[bit / 8] ^= static_cast<char>(1 << bit % 8);
  }
}

}  // namespace
