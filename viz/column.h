// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// Columns of whole numbers as a page carries them: variable-length bytes (seven
// bits each, the low ones first, the top bit set on all but the last), signed
// ones zigzagged, then deflated as a whole. Similar values next to each other
// deflate well, which is why tables are stored by column.

#ifndef MY_ALLOC_VIZ_COLUMN_H_
#define MY_ALLOC_VIZ_COLUMN_H_

#include <cstddef>
#include <cstdint>
#include <string>

#include "absl/strings/string_view.h"

namespace viz {

class Column {
 public:
  void Put(uint64_t value) {
    ++count_;
    while (value >= 0x80) {
      bytes_ += static_cast<char>(value | 0x80);
      value >>= 7;
    }
    bytes_ += static_cast<char>(value);
  }

  // 0, -1, 1, -2, 2 ... as 0, 1, 2, 3, 4 ...
  void PutSigned(int64_t value) {
    const auto bits = static_cast<uint64_t>(value);
    Put((bits << 1) ^ (value < 0 ? UINT64_MAX : 0));
  }

  // The difference to the value before (0 at first), signed.
  void PutDelta(uint64_t value) {
    PutSigned(static_cast<int64_t>(value - last_));
    last_ = value;
  }

  size_t count() const {
    return count_;
  }
  const std::string &bytes() const {
    return bytes_;
  }

 private:
  std::string bytes_;
  size_t count_ = 0;
  uint64_t last_ = 0;
};

// In zlib's format.
std::string Deflate(absl::string_view bytes);

}  // namespace viz

#endif  // MY_ALLOC_VIZ_COLUMN_H_
