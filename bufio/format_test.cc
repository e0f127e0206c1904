// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

#include "bufio/format.h"

#include <unistd.h>

#include <charconv>
#include <cinttypes>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <random>
#include <string>

#include "bufio/bufio_testing.h"
#include "bufio/writer.h"
#include "gtest/gtest.h"

namespace {

std::string U64(uint64_t value) {
  char text[BUFIO_TEXT_U64_BYTES];
  return std::string(text, bufio_text_u64(text, value));
}

std::string I64(int64_t value) {
  char text[BUFIO_TEXT_I64_BYTES];
  return std::string(text, bufio_text_i64(text, value));
}

std::string Hex(uint64_t value, unsigned min_digits) {
  char text[BUFIO_TEXT_HEX_BYTES];
  return std::string(text, bufio_text_hex(text, value, min_digits));
}

std::string Double(double value) {
  char text[BUFIO_TEXT_DOUBLE_BYTES];
  return std::string(text, bufio_text_double(text, value));
}

std::string Fixed(double value, unsigned decimals) {
  char text[BUFIO_TEXT_FIXED_BYTES];
  return std::string(text, bufio_text_fixed(text, value, decimals));
}

std::string PrintedFixed(int decimals, double value) {
  char text[400];
  snprintf(text, sizeof(text), "%.*f", decimals, value);
  return text;
}

std::string PrintedGeneral(int digits, double value) {
  char text[400];
  snprintf(text, sizeof(text), "%.*g", digits, value);
  return text;
}

TEST(FormatTest, IntegersAtEveryPowerOfTenAndOfTwo) {
  EXPECT_EQ(U64(0), "0");
  EXPECT_EQ(U64(UINT64_MAX), "18446744073709551615");
  EXPECT_EQ(I64(INT64_MIN), "-9223372036854775808");
  EXPECT_EQ(I64(INT64_MAX), "9223372036854775807");
  uint64_t ten = 1;
  for (int i = 0; i < 20; i++, ten *= 10) {
    for (uint64_t value : {ten - 1, ten, ten + 1, uint64_t{1} << 3 * i,
                           (uint64_t{1} << 3 * i) - 1}) {
      EXPECT_EQ(U64(value), std::to_string(value));
      auto as_signed = static_cast<int64_t>(value);
      EXPECT_EQ(I64(as_signed), std::to_string(as_signed));
    }
  }
}

TEST(FormatTest, RandomIntegersOfAnyLength) {
  std::mt19937_64 random(bufio_testing::Seed());
  for (int i = 0; i < 100000; i++) {
    uint64_t value = random() >> random() % 64;
    EXPECT_EQ(U64(value), std::to_string(value));
    auto as_signed = static_cast<int64_t>(value << 1 ^ value);
    EXPECT_EQ(I64(as_signed), std::to_string(as_signed));
    char text[32];
    snprintf(text, sizeof(text), "%" PRIx64, value);
    EXPECT_EQ(Hex(value, 0), text);
    snprintf(text, sizeof(text), "%08" PRIx64, value);
    EXPECT_EQ(Hex(value, 8), text);
  }
  EXPECT_EQ(Hex(0, 0), "0");
  EXPECT_EQ(Hex(0, 99), "0000000000000000");
}

TEST(FormatTest, DoublesThatPeopleWrite) {
  EXPECT_EQ(Double(0), "0");
  EXPECT_EQ(Double(-0.0), "-0");
  EXPECT_EQ(Double(0.1), "0.1");
  EXPECT_EQ(Double(-0.5), "-0.5");
  EXPECT_EQ(Double(12), "12");
  EXPECT_EQ(Double(100), "100");
  EXPECT_EQ(Double(3.14159), "3.14159");
  EXPECT_EQ(Double(0.000123), "0.000123");
  EXPECT_EQ(Double(99999.99), "99999.99");
  EXPECT_EQ(Double(1e100), "1e+100");
  EXPECT_EQ(Double(5e-324), "4.940656458412465e-324");
  EXPECT_EQ(Double(std::numeric_limits<double>::infinity()), "inf");
  EXPECT_EQ(Double(-std::numeric_limits<double>::infinity()), "-inf");
  EXPECT_EQ(Double(std::numeric_limits<double>::quiet_NaN()), "nan");
}

TEST(FormatTest, EveryDoubleReadsBackAsItself) {
  std::mt19937_64 random(bufio_testing::Seed());
  for (int i = 0; i < 200000; i++) {
    uint64_t bits = random();
    double value;
    memcpy(&value, &bits, sizeof(value));
    if (i % 2 == 0) {
      value = static_cast<double>(random() % 1000000000) /
              std::pow(10, static_cast<double>(random() % 10));
    } else if (i % 3 == 0) {
      value = static_cast<double>(random()) * 0x1p-64;
    }
    if (std::isnan(value)) {
      continue;
    }
    std::string text = Double(value);
    ASSERT_LE(text.size(), size_t{BUFIO_TEXT_DOUBLE_BYTES});
    double back = strtod(text.c_str(), nullptr);
    ASSERT_EQ(memcmp(&back, &value, sizeof(back)), 0) << text;
  }
}

TEST(FormatTest, DecimalsOfFewDigitsAreShortest) {
  std::mt19937_64 random(bufio_testing::Seed());
  for (int i = 0; i < 100000; i++) {
    int decimals = static_cast<int>(random() % 7);
    double value =
        static_cast<double>(random() % 100000000) / std::pow(10, decimals);
    std::string shortest;
    for (int digits = 1; digits <= 17; digits++) {
      shortest = PrintedGeneral(digits, value);
      if (strtod(shortest.c_str(), nullptr) == value) {
        break;
      }
    }
    if (shortest.find('e') == std::string::npos) {
      ASSERT_EQ(Double(value), shortest);
    }
  }
}

// As libstdc++'s, which is the shortest and of those the closest; between the
// numbers for which it is promised.
void ExpectShortest(double value) {
  if (value < 1e-5 || value >= 0x1p53) {
    return;
  }
  char text[64];
  std::to_chars_result result =
      std::to_chars(text, text + sizeof(text), value, std::chars_format::fixed);
  ASSERT_EQ(Double(value), std::string(text, result.ptr));
}

TEST(FormatTest, ComputedDoublesAreShortest) {
  std::mt19937_64 random(bufio_testing::Seed());
  for (int i = 0; i < 400000; i++) {
    // Any mantissa, exponents from 1e-5 to 2^53.
    uint64_t bits =
        (random() & 0xfffffffffffff) | (1023 - 16 + random() % (16 + 53)) << 52;
    double value;
    memcpy(&value, &bits, sizeof(value));
    ExpectShortest(value);
    ExpectShortest(std::floor(value) / 3);
    ExpectShortest(1 / (1 + value));
  }
}

TEST(FormatTest, DoublesAtTheEdgesAreShortest) {
  for (int exponent = -16; exponent <= 53; exponent++) {
    double power = std::ldexp(1, exponent);
    double value = power;
    for (int i = 0; i < 50; i++) {
      value = std::nextafter(value, 0);
      ExpectShortest(value);
    }
    value = exponent == 53 ? 1 : power;
    for (int i = 0; i < 50; i++, value = std::nextafter(value, 1e300)) {
      ExpectShortest(value);
    }
  }
  for (int exponent = -5; exponent <= 15; exponent++) {
    double value = std::pow(10, exponent);
    for (int i = 0; i < 100; i++, value = std::nextafter(value, 1e300)) {
      ExpectShortest(value);
    }
    value = std::pow(10, exponent + 1);
    for (int i = 0; i < 100; i++) {
      value = std::nextafter(value, 0);
      ExpectShortest(value);
    }
  }
  EXPECT_EQ(Double(9007199254740991), "9007199254740991");
  EXPECT_EQ(Double(0.1 + 0.2), "0.30000000000000004");
  EXPECT_EQ(Double(2.0 / 3), "0.6666666666666666");
  EXPECT_EQ(Double(1e-5), "0.00001");
}

TEST(FormatTest, FixedRoundsAsPrintfDoes) {
  std::mt19937_64 random(bufio_testing::Seed());
  for (int i = 0; i < 200000; i++) {
    auto decimals = static_cast<unsigned>(random() % 10);
    double value;
    switch (i % 4) {
      case 0:  // Ties and their neighbours.
        value = static_cast<double>(random() % 100000) +
                static_cast<double>(random() % 1024) / 1024;
        if (random() % 2 == 0) {
          value = std::nextafter(value, 1e300);
        }
        break;
      case 1:
        value = static_cast<double>(random() % 1000000) / 1000;
        break;
      case 2:
        value = static_cast<double>(random()) * 0x1p-64;
        break;
      default: {
        uint64_t bits = random();
        memcpy(&value, &bits, sizeof(value));
        if (!std::isfinite(value)) {
          value = 0;
        }
        break;
      }
    }
    if (random() % 2 == 0) {
      value = -value;
    }
    ASSERT_EQ(Fixed(value, decimals),
              PrintedFixed(static_cast<int>(decimals), value));
  }
  EXPECT_EQ(Fixed(0.125, 2), "0.12");
  EXPECT_EQ(Fixed(0.375, 2), "0.38");
  EXPECT_EQ(Fixed(1e300, 0), PrintedFixed(0, 1e300));
  EXPECT_EQ(Fixed(1, 99), "1.000000000");
}

TEST(FormatTest, IntoAWriterOfAnySize) {
  for (size_t memory_bytes : {16, 20, 100, 100000}) {
    std::string path = bufio_testing::TempPath("format");
    std::string memory(memory_bytes, '\0');
    bufio_writer_options_t options = {};
    options.memory = &memory[0];
    options.memory_bytes = memory_bytes;
    bufio_writer_t writer;
    ASSERT_EQ(bufio_writer_open(&writer, path.c_str(), &options), 0);
    for (int i = 0; i < 20; i++) {
      EXPECT_EQ(bufio_writer_put_u64(&writer, UINT64_MAX), 0);
      EXPECT_EQ(bufio_writer_put_i64(&writer, -17), 0);
      EXPECT_EQ(bufio_writer_put_hex(&writer, 0xabc, 4), 0);
      EXPECT_EQ(bufio_writer_put_double(&writer, -0.25), 0);
      EXPECT_EQ(bufio_writer_put_fixed(&writer, 2.5, 3), 0);
    }
    EXPECT_EQ(bufio_writer_close(&writer), 0);
    std::string expected;
    for (int i = 0; i < 20; i++) {
      expected += "18446744073709551615-170abc-0.252.500";
    }
    EXPECT_EQ(bufio_testing::ReadFile(path), expected);
    unlink(path.c_str());
  }
}

}  // namespace
