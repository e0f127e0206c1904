// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// Ranges of addresses. Addresses and sizes come from logs and may be anything,
// so their sums must not wrap.

#ifndef MY_ALLOC_VIZ_ADDRESS_RANGE_H_
#define MY_ALLOC_VIZ_ADDRESS_RANGE_H_

#include <cstdint>

namespace viz {

struct AddressRange {
  uint64_t start;
  uint64_t end;  // One past the last byte.
};

// One past the last byte of a range, not wrapping.
inline uint64_t RangeEnd(uint64_t address, uint64_t size_bytes) {
  uint64_t end;
  return __builtin_add_overflow(address, size_bytes, &end) ? UINT64_MAX : end;
}

}  // namespace viz

#endif  // MY_ALLOC_VIZ_ADDRESS_RANGE_H_
