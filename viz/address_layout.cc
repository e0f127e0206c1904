// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// TouchedAddresses keeps two collections: a set of granules for small blocks,
// where most addresses hit the granule of the one before, and ranges for wide
// blocks, which would fill the set at once. When either outgrows its limit,
// granules get twice as big and entries that now agree become one. A heap of
// any size thus costs at most kGranulesMax entries, and is seen as coarsely as
// the map will show it anyway.

#include "viz/address_layout.h"

#include <algorithm>
#include <cassert>

namespace viz {
namespace {

bool StartsBefore(const AddressRange &a, const AddressRange &b) {
  return a.start < b.start;
}

// Sorts, and joins ranges with less than `gap_bytes` between them.
void Unite(std::vector<AddressRange> *ranges, uint64_t gap_bytes) {
  std::sort(ranges->begin(), ranges->end(), StartsBefore);
  size_t count = 0;
  for (const AddressRange &range : *ranges) {
    if (count > 0 &&
        range.start <= RangeEnd((*ranges)[count - 1].end, gap_bytes)) {
      AddressRange &last = (*ranges)[count - 1];
      last.end = std::max(last.end, range.end);
    } else {
      (*ranges)[count++] = range;
    }
  }
  ranges->resize(count);
}

uint64_t AlignDown(uint64_t address, unsigned bits) {
  return bits >= 64 ? 0 : address >> bits << bits;
}

uint64_t AlignUp(uint64_t address, unsigned bits) {
  const uint64_t down = AlignDown(address, bits);
  if (down == address) {
    return address;
  }
  return bits >= 64 ? UINT64_MAX : RangeEnd(down, uint64_t{1} << bits);
}

}  // namespace

void TouchedAddresses::Add(uint64_t address, uint64_t size_bytes) {
  if (size_bytes == 0) {
    size_bytes = 1;
  }
  const uint64_t last_byte = RangeEnd(address, size_bytes - 1);
  const uint64_t first = address >> granule_bits_;
  const uint64_t last = last_byte >> granule_bits_;
  if (last - first >= kWideGranules) {
    AddRange({address, RangeEnd(last_byte, 1)});
    return;
  }
  // Coarsen() may change granule_bits_ on the way: `first` and `last` would
  // then be in old granules, so ask again.
  for (uint64_t granule = first; granule <= last; ++granule) {
    if (granule != last_granule_) {
      const unsigned bits = granule_bits_;
      AddGranule(granule);
      if (granule_bits_ != bits) {
        Add(address, size_bytes);
        return;
      }
    }
  }
}

void TouchedAddresses::AddGranule(uint64_t granule) {
  last_granule_ = granule;
  granules_.Insert(granule + 1);
  while (granules_.size() > kGranulesMax) {
    Coarsen();
  }
}

void TouchedAddresses::AddRange(AddressRange range) {
  for (size_t i : {last_range_, last_range_ + 1}) {
    if (i < ranges_.size() && ranges_[i].start <= range.start &&
        range.end <= ranges_[i].end) {
      last_range_ = i;
      return;
    }
  }
  ranges_.push_back(range);
  last_range_ = ranges_.size() - 1;
  if (ranges_.size() < 2 * kRangesMax) {
    return;
  }
  Unite(&ranges_, 0);
  while (ranges_.size() > kRangesMax) {
    Coarsen();
  }
}

void TouchedAddresses::Coarsen() {
  assert(granule_bits_ < 63);
  ++granule_bits_;
  last_granule_ = UINT64_MAX;
  AddressMap<Nothing> coarse;
  granules_.ForEach([&coarse](uint64_t key, const Nothing &) {
    coarse.Insert(((key - 1) >> 1) + 1);
  });
  granules_ = std::move(coarse);
  Unite(&ranges_, uint64_t{1} << granule_bits_);
}

std::vector<AddressRange> TouchedAddresses::Ranges() const {
  std::vector<AddressRange> ranges;
  granules_.ForEach([this, &ranges](uint64_t key, const Nothing &) {
    const uint64_t start = (key - 1) << granule_bits_;
    ranges.push_back({start, RangeEnd(start, uint64_t{1} << granule_bits_)});
  });
  for (const AddressRange &range : ranges_) {
    ranges.push_back({AlignDown(range.start, granule_bits_),
                      AlignUp(range.end, granule_bits_)});
  }
  Unite(&ranges, 0);
  return ranges;
}

AddressLayout::AddressLayout(const std::vector<AddressRange> &ranges,
                             size_t cells_max) {
  assert(cells_max >= 4096);
  for (unsigned bits = kCellBitsMin; bits < 64; ++bits) {
    if (TryCellBits(ranges, bits, cells_max)) {
      return;
    }
  }
  assert(false);
}

bool AddressLayout::TryCellBits(const std::vector<AddressRange> &ranges,
                                unsigned cell_bits, size_t cells_max) {
  segments_.clear();
  cell_bits_ = cell_bits;
  cell_count_ = 0;
  const unsigned align_bits = cell_bits + kAlignCellsLog2;
  const uint64_t gap_bytes =
      cell_bits > 57 ? UINT64_MAX : kGapCells << cell_bits;
  for (const AddressRange &range : ranges) {
    const uint64_t start = AlignDown(range.start, align_bits);
    // The last byte of the address space is nobody's: keep the end below it.
    const uint64_t end = AlignUp(range.end, align_bits);
    if (!segments_.empty() &&
        start <= RangeEnd(segments_.back().end, gap_bytes)) {
      segments_.back().end = std::max(segments_.back().end, end);
    } else {
      segments_.push_back({start, end, 0});
    }
  }
  if (segments_.size() > kSegmentsMax) {
    return false;
  }
  uint64_t cells = 0;
  for (Segment &segment : segments_) {
    segment.first_cell = cells;
    // Only a segment at the very top of the address space is not a multiple.
    cells += ((segment.end - 1 - segment.start) >> cell_bits) + 1;
    if (cells > cells_max) {
      return false;
    }
  }
  cell_count_ = cells;
  return true;
}

AddressLayout AddressLayout::Joined(unsigned log2_join) const {
  assert(log2_join <= kAlignCellsLog2);
  AddressLayout joined;
  joined.segments_ = segments_;
  joined.cell_bits_ = cell_bits_ + log2_join;
  for (Segment &segment : joined.segments_) {
    segment.first_cell >>= log2_join;
  }
  joined.cell_count_ = cell_count_ >> log2_join;
  return joined;
}

size_t AddressLayout::SegmentAt(uint64_t address, size_t hint) const {
  if (hint < segments_.size() && segments_[hint].start <= address &&
      address < segments_[hint].end) {
    return hint;
  }
  const auto found = std::upper_bound(
      segments_.begin(), segments_.end(), address,
      [](uint64_t a, const Segment &segment) { return a < segment.end; });
  return static_cast<size_t>(found - segments_.begin());
}

}  // namespace viz
