// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// Records how the cells of an AddressLayout change from frame to frame. A frame
// is a moment of the log; the record holds, for each frame, the cells that are
// different from the frame before, so adding up all frames up to one gives the
// exact state at that moment.
//
// A cell's state is a function of the blocks and mapped ranges of that moment,
// and not of how it came about:
//   bytes    requested bytes of live blocks that lie in the cell
//   blocks   live blocks with a byte in the cell (an empty block has its
//            address)
//   mapped   bytes of the cell that the heap has from the kernel
//   owner    which site, thread and size class have most of those bytes
//            (ties: the lowest number; none in a cell without bytes)
// How the record stays bounded is told in frame_log.h.

#ifndef MY_ALLOC_VIZ_CELL_RECORDER_H_
#define MY_ALLOC_VIZ_CELL_RECORDER_H_

#include <cstddef>
#include <cstdint>
#include <vector>

#include "viz/address_layout.h"
#include "viz/frame_log.h"

namespace viz {

// What owner categories there are: the first ones each, and the rest together
// in the last.
constexpr size_t kOwnerSites = 12;
constexpr size_t kOwnerThreads = 8;
constexpr size_t kOwnerSizes = 12;

// Size classes of the map: up to 16, 32, ... 4096 bytes, then 16 and 128 KiB,
// and above.
size_t OwnerSize(uint64_t size_bytes);

struct Owner {
  uint8_t site;
  uint8_t thread;
  uint8_t size;
};

struct CellChange {
  uint64_t cell : 32;
  uint64_t owner : 16;  // 0: unchanged; 1: none; else 2 + PackOwner().
  int64_t bytes;        // The rest are differences.
  int64_t mapped;
  int32_t blocks;

  uint64_t Key() const {
    return cell;
  }
  void Join(const CellChange &later) {
    bytes += later.bytes;
    mapped += later.mapped;
    blocks += later.blocks;
    owner = later.owner != 0 ? later.owner : owner;
  }
  bool IsNothing() const {
    return bytes == 0 && mapped == 0 && blocks == 0 && owner == 0;
  }
};

inline uint16_t PackOwner(Owner owner) {
  return static_cast<uint16_t>(
      (owner.site * kOwnerThreads + owner.thread) * kOwnerSizes + owner.size);
}

class CellRecorder {
 public:
  // `layout` must outlive this. The rest is for FrameLog.
  CellRecorder(const AddressLayout *layout, size_t changes_max,
               size_t frames_expected, size_t frames_min);

  void AddBlock(uint64_t address, uint64_t size_bytes, Owner owner) {
    Block(address, size_bytes, owner, 1);
  }
  void RemoveBlock(uint64_t address, uint64_t size_bytes, Owner owner) {
    Block(address, size_bytes, owner, -1);
  }
  void AddMapped(uint64_t start, uint64_t end) {
    Spread(start, end, kMappedColumns, 1);
  }
  void RemoveMapped(uint64_t start, uint64_t end) {
    Spread(start, end, kMappedColumns, -1);
  }

  // Ends the frame with number `frame`; numbers ascend. `keep`: never drop it.
  void EndFrame(uint32_t frame, bool keep);

  // The last frame must have been ended with `keep`.
  void Finish() {
    log_.Finish();
  }

  const AddressLayout &layout() const {
    return *layout_;
  }
  // Once it overflowed, this ignores what it is told.
  const FrameLog<CellChange> &log() const {
    return log_;
  }

 private:
  // The columns of a cell: what is added up for each.
  static constexpr size_t kBytes = 0;
  static constexpr size_t kBlocks = 1;
  static constexpr size_t kMapped = 2;
  static constexpr size_t kSites = 3;
  static constexpr size_t kThreads = kSites + kOwnerSites;
  static constexpr size_t kSizes = kThreads + kOwnerThreads;
  static constexpr size_t kColumns = kSizes + kOwnerSizes;

  struct Cell {
    int64_t column[kColumns];
  };
  struct Shown {  // As of the last frame.
    int64_t bytes;
    int64_t mapped;
    int32_t blocks;
    uint16_t owner;
  };

  // Byte columns that a range of addresses is added to.
  struct Columns {
    size_t count;
    size_t column[4];
  };
  static constexpr Columns kMappedColumns = {1, {kMapped}};
  // From this many whole cells on, a range is a span.
  static constexpr size_t kSpanCells = 32;

  void Block(uint64_t address, uint64_t size_bytes, Owner owner, int sign);
  void Spread(uint64_t start, uint64_t end, const Columns &columns, int sign);
  void SpreadInSegment(const AddressLayout::Segment &segment, uint64_t start,
                       uint64_t end, const Columns &columns, int sign);
  void AddToCell(size_t cell, const Columns &columns, int64_t bytes, int sign);
  void AddSpan(size_t first, size_t end, const Columns &columns, int sign);
  void ApplySpans();
  void Touch(size_t cell);
  void EmitCell(size_t cell);
  uint16_t OwnerOf(const Cell &cell) const;

  const AddressLayout *layout_;
  FrameLog<CellChange> log_;
  size_t segment_hint_ = 0;
  std::vector<Cell> cells_;
  std::vector<Shown> shown_;
  std::vector<uint8_t> is_touched_;
  std::vector<uint32_t> touched_;

  // Wide blocks are added to the differences between neighbouring cells, and
  // summed up when the frame ends. One row a column.
  std::vector<std::vector<int64_t>> spans_;
  size_t span_first_ = SIZE_MAX;
  size_t span_end_ = 0;
};

}  // namespace viz

#endif  // MY_ALLOC_VIZ_CELL_RECORDER_H_
