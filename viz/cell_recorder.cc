// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// A block of a few cells is added to each of them. A wide block would make an
// event cost as much as the whole map, so it goes into a row of differences (+1
// where it starts, -1 where it ends), and one running sum over the row when the
// frame ends adds all of the frame's wide blocks at once.
//
// Whether a cell changed is found by comparing with what the last recorded
// frame showed, so cells that went back to what they were cost nothing, and
// frames that are left out need no care at all.

#include "viz/cell_recorder.h"

#include <algorithm>
#include <cassert>
#include <iterator>

namespace viz {
namespace {

uint64_t CellBytes(unsigned cell_bits) {
  return uint64_t{1} << cell_bits;
}

}  // namespace

size_t OwnerSize(uint64_t size_bytes) {
  if (size_bytes <= 16) {
    return 0;
  }
  const unsigned bits =
      64 - static_cast<unsigned>(__builtin_clzll(size_bytes - 1));
  if (bits <= 12) {
    return bits - 4;
  }
  return bits <= 14 ? 9 : bits <= 17 ? 10 : 11;
}

constexpr CellRecorder::Columns CellRecorder::kMappedColumns;

CellRecorder::CellRecorder(const AddressLayout *layout, size_t changes_max,
                           size_t frames_expected, size_t frames_min)
    : layout_(layout),
      log_(changes_max, frames_expected, frames_min),
      cells_(layout->cell_count()),
      shown_(layout->cell_count()),
      is_touched_(layout->cell_count()),
      spans_(kColumns) {
  for (Shown &shown : shown_) {
    shown.owner = 1;
  }
}

void CellRecorder::Block(uint64_t address, uint64_t size_bytes, Owner owner,
                         int sign) {
  const Columns columns = {4,
                           {kBytes, kSites + owner.site,
                            kThreads + owner.thread, kSizes + owner.size}};
  if (size_bytes > 0) {
    Spread(address, RangeEnd(address, size_bytes), columns, sign);
    return;
  }
  // No byte, but still a block.
  segment_hint_ = layout_->SegmentAt(address, segment_hint_);
  if (segment_hint_ < layout_->segments().size()) {
    const AddressLayout::Segment &segment = layout_->segments()[segment_hint_];
    if (segment.start <= address && !log_.overflowed()) {
      const size_t cell = segment.first_cell +
                          ((address - segment.start) >> layout_->cell_bits());
      AddToCell(cell, columns, 0, sign);
    }
  }
}

void CellRecorder::Spread(uint64_t start, uint64_t end, const Columns &columns,
                          int sign) {
  if (log_.overflowed()) {
    return;
  }
  segment_hint_ = layout_->SegmentAt(start, segment_hint_);
  for (size_t i = segment_hint_; i < layout_->segments().size(); ++i) {
    const AddressLayout::Segment &segment = layout_->segments()[i];
    if (end <= segment.start) {
      break;
    }
    SpreadInSegment(segment, std::max(start, segment.start),
                    std::min(end, segment.end), columns, sign);
  }
}

void CellRecorder::SpreadInSegment(const AddressLayout::Segment &segment,
                                   uint64_t start, uint64_t end,
                                   const Columns &columns, int sign) {
  const unsigned bits = layout_->cell_bits();
  const uint64_t cell_bytes = CellBytes(bits);
  size_t cell = segment.first_cell + ((start - segment.start) >> bits);
  const size_t last = segment.first_cell + ((end - 1 - segment.start) >> bits);
  if (cell == last) {
    AddToCell(cell, columns, static_cast<int64_t>(end - start), sign);
    return;
  }
  const uint64_t head =
      cell_bytes - ((start - segment.start) & (cell_bytes - 1));
  AddToCell(cell++, columns, static_cast<int64_t>(head), sign);
  if (last - cell >= kSpanCells) {
    AddSpan(cell, last, columns, sign);
  } else {
    for (; cell < last; ++cell) {
      AddToCell(cell, columns, static_cast<int64_t>(cell_bytes), sign);
    }
  }
  const uint64_t tail = ((end - 1 - segment.start) & (cell_bytes - 1)) + 1;
  AddToCell(last, columns, static_cast<int64_t>(tail), sign);
}

void CellRecorder::AddToCell(size_t cell, const Columns &columns, int64_t bytes,
                             int sign) {
  int64_t *column = cells_[cell].column;
  for (size_t i = 0; i < columns.count; ++i) {
    column[columns.column[i]] += sign * bytes;
  }
  if (columns.column[0] == kBytes) {
    column[kBlocks] += sign;
  }
  Touch(cell);
}

void CellRecorder::AddSpan(size_t first, size_t end, const Columns &columns,
                           int sign) {
  for (size_t i = 0; i < columns.count; ++i) {
    std::vector<int64_t> &span = spans_[columns.column[i]];
    span.resize(cells_.size() + 1);
    span[first] += sign;
    span[end] -= sign;
  }
  span_first_ = std::min(span_first_, first);
  span_end_ = std::max(span_end_, end);
}

void CellRecorder::ApplySpans() {
  if (span_first_ >= span_end_) {
    return;
  }
  const auto cell_bytes = static_cast<int64_t>(CellBytes(layout_->cell_bits()));
  for (size_t i = 0; i < kColumns; ++i) {
    if (spans_[i].empty()) {
      continue;
    }
    int64_t depth = 0;
    for (size_t cell = span_first_; cell < span_end_; ++cell) {
      depth += spans_[i][cell];
      spans_[i][cell] = 0;
      if (depth == 0) {
        continue;
      }
      cells_[cell].column[i] += depth * cell_bytes;
      if (i == kBytes) {
        cells_[cell].column[kBlocks] += depth;
      }
      Touch(cell);
    }
    spans_[i][span_end_] = 0;
  }
  span_first_ = SIZE_MAX;
  span_end_ = 0;
}

void CellRecorder::Touch(size_t cell) {
  if (!is_touched_[cell]) {
    is_touched_[cell] = 1;
    touched_.push_back(static_cast<uint32_t>(cell));
  }
}

uint16_t CellRecorder::OwnerOf(const Cell &cell) const {
  if (cell.column[kBytes] <= 0) {
    return 1;
  }
  const auto most = [&cell](size_t first, size_t count) {
    const int64_t *begin = cell.column + first;
    return static_cast<uint8_t>(std::max_element(begin, begin + count) - begin);
  };
  return static_cast<uint16_t>(
      2 + PackOwner({most(kSites, kOwnerSites), most(kThreads, kOwnerThreads),
                     most(kSizes, kOwnerSizes)}));
}

void CellRecorder::EmitCell(size_t index) {
  const Cell &cell = cells_[index];
  Shown &shown = shown_[index];
  const uint16_t owner = OwnerOf(cell);
  const auto blocks = static_cast<int32_t>(cell.column[kBlocks]);
  CellChange change;
  change.cell = index & UINT32_MAX;
  change.owner = owner == shown.owner ? 0 : owner;
  change.bytes = cell.column[kBytes] - shown.bytes;
  change.mapped = cell.column[kMapped] - shown.mapped;
  change.blocks = blocks - shown.blocks;
  if (!change.IsNothing()) {
    log_.Push(change);
    shown = {cell.column[kBytes], cell.column[kMapped], blocks, owner};
  }
}

void CellRecorder::EndFrame(uint32_t frame, bool keep) {
  if (!log_.IsRecorded(frame, keep)) {
    return;
  }
  ApplySpans();
  std::sort(touched_.begin(), touched_.end());
  for (const uint32_t cell : touched_) {
    EmitCell(cell);
    is_touched_[cell] = 0;
  }
  touched_.clear();
  log_.EndFrame(frame, keep);
  if (log_.overflowed()) {
    std::vector<Cell>().swap(cells_);
    std::vector<Shown>().swap(shown_);
    std::vector<std::vector<int64_t>>().swap(spans_);
  }
}

}  // namespace viz
