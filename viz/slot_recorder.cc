// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

#include "viz/slot_recorder.h"

#include <algorithm>

namespace viz {

SlotRecorder::SlotRecorder(size_t slot_count, size_t changes_max,
                           size_t frames_expected, size_t frames_min)
    : log_(changes_max, frames_expected, frames_min),
      open_(slot_count),
      is_touched_(slot_count) {
}

SlotChange *SlotRecorder::Touch(uint32_t slot) {
  if (!is_touched_[slot]) {
    is_touched_[slot] = 1;
    touched_.push_back(slot);
    open_[slot] = {slot, 0, 0, 0, 0};
  }
  return &open_[slot];
}

void SlotRecorder::Allocate(uint32_t slot, uint64_t size_bytes) {
  SlotChange *change = Touch(slot);
  ++change->allocations;
  change->allocated_bytes += size_bytes;
  change->live_bytes += static_cast<int64_t>(size_bytes);
}

void SlotRecorder::EndFrame(uint32_t frame, bool keep) {
  if (!log_.IsRecorded(frame, keep)) {
    return;
  }
  std::sort(touched_.begin(), touched_.end());
  for (const uint32_t slot : touched_) {
    if (!open_[slot].IsNothing()) {
      log_.Push(open_[slot]);
    }
    is_touched_[slot] = 0;
  }
  touched_.clear();
  log_.EndFrame(frame, keep);
}

}  // namespace viz
