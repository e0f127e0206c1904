// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// Counts the 4 KiB pages that hold at least one byte of a live block. Only a
// page that a block covers in part can be shared with others, so only the first
// and last page of a block are looked up in a table; those between are its own.

#ifndef MY_ALLOC_VIZ_FOOTPRINT_H_
#define MY_ALLOC_VIZ_FOOTPRINT_H_

#include <cstdint>

#include "viz/address_map.h"

namespace viz {

class Footprint {
 public:
  static constexpr unsigned kPageBits = 12;

  uint64_t bytes() const {
    return pages_ << kPageBits;
  }

  // Starts loading what adding a block at `address` needs.
  void Prefetch(uint64_t address) const {
    sharers_.Prefetch((address >> kPageBits) + 1);
  }

  // Adds, or removes, the block [start, end), which must not be empty.
  void Add(uint64_t start, uint64_t end) {
    Change(start, end, true);
  }
  void Remove(uint64_t start, uint64_t end) {
    Change(start, end, false);
  }

 private:
  static constexpr uint64_t kPageMask = (uint64_t{1} << kPageBits) - 1;

  void Change(uint64_t start, uint64_t end, bool add) {
    uint64_t first = start >> kPageBits;
    uint64_t last = (end - 1) >> kPageBits;
    const bool whole_last = (end & kPageMask) == 0;
    if ((start & kPageMask) != 0 || (first == last && !whole_last)) {
      SharePage(first, add);
      if (first == last) {
        return;
      }
      ++first;
    }
    if (!whole_last) {
      SharePage(last, add);
      --last;
    }
    const uint64_t whole = last + 1 - first;  // Zero when last < first.
    pages_ += add ? whole : -whole;
  }

  void SharePage(uint64_t page, bool add) {
    uint32_t &blocks = sharers_.Insert(page + 1);
    if (add) {
      pages_ += blocks++ == 0;
    } else if (--blocks == 0) {
      --pages_;
      sharers_.EraseFound(&blocks);
    }
  }

  uint64_t pages_ = 0;
  AddressMap<uint32_t> sharers_;  // Key: page number + 1; blocks in the page.
};

}  // namespace viz

#endif  // MY_ALLOC_VIZ_FOOTPRINT_H_
