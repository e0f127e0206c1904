// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

#include "heap/heap_patterns.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace heap_testing {
namespace {

constexpr size_t kEndBytes = 1024;   // Filled at both ends of a long block.
constexpr size_t kStepBytes = 4096;  // One cell of each in between.
constexpr size_t kCellBytes = 64;    // Filled and compared at once.

void MakeCell(uint64_t id, size_t offset, unsigned char *out_cell) {
  Random random(id * UINT64_C(0x9E3779B97F4A7C15) ^ offset);
  for (size_t i = 0; i < kCellBytes; i += sizeof(uint64_t)) {
    const uint64_t word = random.Next();
    std::memcpy(out_cell + i, &word, sizeof(word));
  }
}

// Calls `visit(offset)` for each cell that `Fill` writes; stops at the first
// false.
template <typename Visitor>
bool ForEachCell(size_t size_bytes, Visitor visit) {
  const bool is_long = size_bytes > 8 * kEndBytes;
  const size_t head_end = is_long ? kEndBytes : size_bytes;
  const size_t tail_start =
      is_long ? (size_bytes - kEndBytes) / kCellBytes * kCellBytes : size_bytes;
  for (size_t i = 0; i < head_end; i += kCellBytes) {
    if (!visit(i)) {
      return false;
    }
  }
  for (size_t i = kStepBytes; i < tail_start; i += kStepBytes) {
    if (!visit(i)) {
      return false;
    }
  }
  for (size_t i = tail_start; i < size_bytes; i += kCellBytes) {
    if (!visit(i)) {
      return false;
    }
  }
  return true;
}

}  // namespace

uint64_t Seed() {
  const char *text = std::getenv("HEAP_TEST_SEED");
  const uint64_t seed =
      text == nullptr ? 20110 : std::strtoull(text, nullptr, 0);
  std::printf("HEAP_TEST_SEED=%llu\n", static_cast<unsigned long long>(seed));
  std::fflush(stdout);
  return seed;
}

void Fill(void *ptr, size_t size_bytes, uint64_t id) {
  auto *bytes = static_cast<unsigned char *>(ptr);
  ForEachCell(size_bytes, [=](size_t offset) {
    unsigned char cell[kCellBytes];
    MakeCell(id, offset, cell);
    std::memcpy(bytes + offset, cell,
                std::min(kCellBytes, size_bytes - offset));
    return true;
  });
}

bool IsFilled(const void *ptr, size_t size_bytes, size_t filled_bytes,
              uint64_t id) {
  const auto *bytes = static_cast<const unsigned char *>(ptr);
  const size_t end = std::min(size_bytes, filled_bytes);
  return ForEachCell(filled_bytes, [=](size_t offset) {
    unsigned char cell[kCellBytes];
    MakeCell(id, offset, cell);
    return offset >= end ||
           std::memcmp(bytes + offset, cell,
                       std::min(kCellBytes, end - offset)) == 0;
  });
}

bool IsZero(const void *ptr, size_t size_bytes) {
  const auto *bytes = static_cast<const unsigned char *>(ptr);
  return size_bytes == 0 ||
         (bytes[0] == 0 && std::memcmp(bytes, bytes + 1, size_bytes - 1) == 0);
}

}  // namespace heap_testing
