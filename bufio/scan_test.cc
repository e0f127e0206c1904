// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

#include "bufio/scan.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "bufio/bufio_testing.h"
#include "gtest/gtest.h"

namespace {

class ScanTest : public testing::TestWithParam<bufio_scan_level_t> {
 protected:
  void SetUp() override {
    before_ = bufio_scan_current();
    if (!bufio_scan_use(GetParam())) {
      GTEST_SKIP() << "this processor has no such instructions";
    }
    EXPECT_EQ(bufio_scan_current(), GetParam());
  }

  void TearDown() override {
    bufio_scan_use(before_);
  }

  // All offsets, by as many calls as it takes.
  static std::vector<uint32_t> Index(const unsigned char *bytes, size_t len,
                                     unsigned char wanted, size_t capacity) {
    std::vector<uint32_t> all;
    std::vector<uint32_t> offsets(capacity);
    size_t done = 0;
    while (done < len) {
      size_t scanned = 0;
      size_t count = bufio_scan_index(bytes + done, len - done, wanted,
                                      offsets.data(), capacity, &scanned);
      EXPECT_LE(count, capacity);
      EXPECT_GE(scanned, 1u);
      EXPECT_LE(scanned, len - done);
      for (size_t i = 0; i < count; i++) {
        EXPECT_LT(offsets[i], scanned);
        all.push_back(static_cast<uint32_t>(done) + offsets[i]);
      }
      done += scanned;
    }
    return all;
  }

  static std::vector<uint32_t> Expected(const unsigned char *bytes, size_t len,
                                        unsigned char wanted) {
    std::vector<uint32_t> all;
    for (size_t i = 0; i < len; i++) {
      if (bytes[i] == wanted) {
        all.push_back(static_cast<uint32_t>(i));
      }
    }
    return all;
  }

 private:
  bufio_scan_level_t before_ = BUFIO_SCAN_PORTABLE;
};

TEST_P(ScanTest, FindsNothingInNothing) {
  uint32_t offsets[BUFIO_SCAN_CAPACITY_MIN];
  size_t scanned = 1;
  EXPECT_EQ(bufio_scan_index(nullptr, 0, '\n', offsets, 64, &scanned), 0u);
  EXPECT_EQ(scanned, 0u);
  EXPECT_EQ(bufio_scan_count(nullptr, 0, '\n'), 0u);
}

TEST_P(ScanTest, FindsEachByteAtEachPlaceOfEachLength) {
  for (size_t len = 1; len <= 200; len++) {
    std::vector<unsigned char> bytes(len, 'x');
    for (size_t at = 0; at < len; at++) {
      bytes[at] = '\n';
      EXPECT_EQ(Index(bytes.data(), len, '\n', 64),
                (std::vector<uint32_t>{static_cast<uint32_t>(at)}));
      EXPECT_EQ(bufio_scan_count(bytes.data(), len, '\n'), 1u);
      bytes[at] = 'x';
    }
  }
}

TEST_P(ScanTest, TellsAllByteValuesApart) {
  std::vector<unsigned char> bytes;
  for (int i = 0; i < 1024; i++) {
    bytes.push_back(static_cast<unsigned char>(i));
  }
  for (int wanted = 0; wanted < 256; wanted++) {
    auto byte = static_cast<unsigned char>(wanted);
    EXPECT_EQ(Index(bytes.data(), bytes.size(), byte, 64),
              Expected(bytes.data(), bytes.size(), byte));
  }
}

TEST_P(ScanTest, StopsWhereOffsetsHaveNoRoomAndGoesOn) {
  std::vector<unsigned char> bytes(1000, '\n');
  for (size_t capacity : {64, 65, 127, 128, 200, 2000}) {
    EXPECT_EQ(Index(bytes.data(), bytes.size(), '\n', capacity).size(), 1000u);
  }
}

TEST_P(ScanTest, NeverReadsOutside) {
  // The bytes end where the mapping does.
  size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  void *memory =
      mmap(nullptr, 3 * page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  ASSERT_NE(memory, MAP_FAILED);
  unsigned char *middle = static_cast<unsigned char *>(memory) + page;
  ASSERT_EQ(mprotect(middle, page, PROT_READ | PROT_WRITE), 0);
  memset(middle, '\n', page);
  for (size_t len = 0; len <= 130; len++) {
    EXPECT_EQ(Index(middle + page - len, len, '\n', 64).size(), len);
    EXPECT_EQ(Index(middle, len, '\n', 64).size(), len);
    EXPECT_EQ(bufio_scan_count(middle + page - len, len, '\n'), len);
  }
  munmap(memory, 3 * page);
}

TEST_P(ScanTest, AgreesWithALoopOnRandomBytes) {
  std::mt19937_64 random(bufio_testing::Seed());
  for (int round = 0; round < 300; round++) {
    size_t len = random() % 5000;
    unsigned density = 1u << random() % 8;
    std::vector<unsigned char> bytes(len);
    for (unsigned char &byte : bytes) {
      byte =
          random() % density == 0 ? 0x8a : static_cast<unsigned char>(random());
    }
    size_t from = std::min<size_t>(random() % 64, len);
    EXPECT_EQ(Index(bytes.data() + from, len - from, 0x8a, 64 + random() % 999),
              Expected(bytes.data() + from, len - from, 0x8a));
    EXPECT_EQ(bufio_scan_count(bytes.data() + from, len - from, 0x8a),
              Expected(bytes.data() + from, len - from, 0x8a).size());
  }
}

INSTANTIATE_TEST_SUITE_P(Levels, ScanTest,
                         testing::Values(BUFIO_SCAN_PORTABLE, BUFIO_SCAN_SSE2,
                                         BUFIO_SCAN_AVX2, BUFIO_SCAN_AVX512));

}  // namespace
