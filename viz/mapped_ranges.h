// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// The address ranges that the heap has from the kernel at a point of the log.
// Ranges may be mapped twice or unmapped in part; what is told to the visitor
// is what really changed, so sums over it are exact.

#ifndef MY_ALLOC_VIZ_MAPPED_RANGES_H_
#define MY_ALLOC_VIZ_MAPPED_RANGES_H_

#include <algorithm>
#include <cstdint>
#include <iterator>
#include <map>

namespace viz {

class MappedRanges {
 public:
  uint64_t bytes() const {
    return bytes_;
  }

  // Maps [start, end); calls visit(a, b) for each part that was not mapped.
  template <typename Visit>
  void Add(uint64_t start, uint64_t end, Visit visit) {
    if (start >= end) {
      return;
    }
    auto it = ranges_.upper_bound(start);
    if (it != ranges_.begin() && std::prev(it)->second >= start) {
      --it;
    }
    uint64_t merged_start = start;
    uint64_t merged_end = end;
    uint64_t unseen = start;
    while (it != ranges_.end() && it->first <= end) {
      if (unseen < it->first) {
        Mapped(unseen, it->first, visit);
      }
      unseen = std::max(unseen, it->second);
      merged_start = std::min(merged_start, it->first);
      merged_end = std::max(merged_end, it->second);
      it = ranges_.erase(it);
    }
    if (unseen < end) {
      Mapped(unseen, end, visit);
    }
    ranges_[merged_start] = merged_end;
  }

  // Unmaps [start, end); calls visit(a, b) for each part that was mapped.
  template <typename Visit>
  void Remove(uint64_t start, uint64_t end, Visit visit) {
    if (start >= end) {
      return;
    }
    auto it = ranges_.upper_bound(start);
    if (it != ranges_.begin()) {
      --it;
    }
    while (it != ranges_.end() && it->first < end) {
      const uint64_t a = std::max(start, it->first);
      const uint64_t b = std::min(end, it->second);
      if (a >= b) {
        ++it;
        continue;
      }
      const uint64_t old_end = it->second;
      if (it->first < a) {
        it->second = a;
        ++it;
      } else {
        it = ranges_.erase(it);
      }
      if (b < old_end) {
        ranges_[b] = old_end;
      }
      bytes_ -= b - a;
      visit(a, b);
    }
  }

 private:
  template <typename Visit>
  void Mapped(uint64_t start, uint64_t end, Visit visit) {
    bytes_ += end - start;
    visit(start, end);
  }

  std::map<uint64_t, uint64_t> ranges_;  // Start to end; disjoint.
  uint64_t bytes_ = 0;
};

}  // namespace viz

#endif  // MY_ALLOC_VIZ_MAPPED_RANGES_H_
