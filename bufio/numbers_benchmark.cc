// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// What does a double as text cost, next to printf and to the C++ library?

#include <charconv>
#include <cstdio>
#include <random>
#include <string>
#include <vector>

#include "bufio/bufio_benchmark.h"
#include "bufio/format.h"

namespace bufio_benchmark {
namespace {

std::vector<double> MakeNumbers(bool are_computed) {
  std::mt19937_64 random(3);
  std::vector<double> numbers;
  for (int i = 0; i < 1 << 14; i++) {
    auto integer = static_cast<double>(random() % 10000000);
    numbers.push_back(are_computed ? integer / 700 : integer / 100);
  }
  return numbers;
}

template <typename Function>
double Format(const std::vector<double> &numbers, size_t count,
              Function function) {
  return Timed([&] {
    char text[64];
    for (size_t i = 0; i < count; i++) {
      sink += function(text, numbers[i & (numbers.size() - 1)]);
    }
  });
}

void OneKind(const char *title, size_t count, bool are_computed) {
  std::vector<double> numbers = MakeNumbers(are_computed);
  Compare(
      title, "ns/number", static_cast<double>(count),
      {
          {"snprintf %.17g",
           [&] {
             return Format(numbers, count, [](char *text, double value) {
               return static_cast<size_t>(snprintf(text, 64, "%.17g", value));
             });
           }},
          {"std::to_chars",
           [&] {
             return Format(numbers, count, [](char *text, double value) {
               return static_cast<size_t>(
                   std::to_chars(text, text + 64, value).ptr - text);
             });
           }},
          {"bufio_text_double",
           [&] {
             return Format(numbers, count, bufio_text_double);
           }},
      },
      {});
}

}  // namespace

void Numbers(size_t count) {
  OneKind("Doubles of two decimals", count, false);
  OneKind("Doubles of 16 and 17 digits", count, true);
}

}  // namespace bufio_benchmark
