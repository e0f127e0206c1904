// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// The part of the address space that a map of the heap shows, cut into cells.
//
// A heap is a few dense clumps in a vast nothing. TouchedAddresses collects,
// in bounded memory, which addresses ever belonged to a block. AddressLayout
// makes *segments* of the clumps: address ranges kept whole, with the gaps
// between them left out. Segments are cut into cells of one power-of-two size,
// the smallest with which the cells of all segments are no more than asked for.
//
//   address   ..|■■ ■■■|......................|■■■■ ■|.......|■|...
//   segments    [  0   ]                      [  1   ]       [2]
//   cells       0 1 2 3                       4 5 6 7        8 9

#ifndef MY_ALLOC_VIZ_ADDRESS_LAYOUT_H_
#define MY_ALLOC_VIZ_ADDRESS_LAYOUT_H_

#include <cstddef>
#include <cstdint>
#include <vector>

#include "viz/address_map.h"
#include "viz/address_range.h"

namespace viz {

class TouchedAddresses {
 public:
  // The ranges that Ranges() returns may be widened to multiples of this, or
  // of more when the addresses are many and far apart.
  static constexpr unsigned kGranuleBits = 12;

  void Add(uint64_t address, uint64_t size_bytes);

  // Returns disjoint ranges in ascending order which cover all added.
  std::vector<AddressRange> Ranges() const;

 private:
  static constexpr size_t kGranulesMax = 1u << 18;
  static constexpr size_t kRangesMax = 4096;
  static constexpr uint64_t kWideGranules = 16;

  struct Nothing {};

  void AddGranule(uint64_t granule);
  void AddRange(AddressRange range);
  void Coarsen();

  unsigned granule_bits_ = kGranuleBits;
  uint64_t last_granule_ = UINT64_MAX;
  AddressMap<Nothing> granules_;      // Key: granule number + 1.
  std::vector<AddressRange> ranges_;  // Of wide blocks.
  size_t last_range_ = 0;             // Where the last one was found.
};

class AddressLayout {
 public:
  struct Segment {
    uint64_t start;
    uint64_t end;
    size_t first_cell;
  };

  // Segments start and end at multiples of this many cells, so that cells can
  // be joined by 2, 4, 8 or 16.
  static constexpr unsigned kAlignCellsLog2 = 4;
  static constexpr unsigned kCellBitsMin = 4;
  static constexpr size_t kSegmentsMax = 200;
  // Gaps up to this many cells stay part of a segment.
  static constexpr uint64_t kGapCells = 64;
  static constexpr size_t kNoCell = SIZE_MAX;

  // `ranges`: as from TouchedAddresses. `cells_max` must be at least 4096.
  AddressLayout(const std::vector<AddressRange> &ranges, size_t cells_max);

  // The same segments with 2^log2_join cells joined to one, log2_join <=
  // kAlignCellsLog2.
  AddressLayout Joined(unsigned log2_join) const;

  const std::vector<Segment> &segments() const {
    return segments_;
  }
  unsigned cell_bits() const {
    return cell_bits_;
  }
  size_t cell_count() const {
    return cell_count_;
  }

  // Returns the segment that holds `address`, or the first one after it, or
  // the number of segments. `hint` is a guess.
  size_t SegmentAt(uint64_t address, size_t hint) const;

 private:
  AddressLayout() = default;
  bool TryCellBits(const std::vector<AddressRange> &ranges, unsigned cell_bits,
                   size_t cells_max);

  std::vector<Segment> segments_;
  unsigned cell_bits_ = kCellBitsMin;
  size_t cell_count_ = 0;
};

}  // namespace viz

#endif  // MY_ALLOC_VIZ_ADDRESS_LAYOUT_H_
