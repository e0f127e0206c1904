// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// Records what each slot of StackSlots did from frame to frame: what it
// allocated, and how its live bytes changed. A page can then tell, for any
// range of time, who allocated in it, who grew, and who allocated in it what
// was never freed.

#ifndef MY_ALLOC_VIZ_SLOT_RECORDER_H_
#define MY_ALLOC_VIZ_SLOT_RECORDER_H_

#include <cstddef>
#include <cstdint>
#include <vector>

#include "viz/frame_log.h"

namespace viz {

struct SlotChange {
  uint32_t slot;
  uint32_t allocations;
  uint32_t temporary;  // Blocks that died as such in this frame.
  uint64_t allocated_bytes;
  int64_t live_bytes;  // A difference.

  uint64_t Key() const {
    return slot;
  }
  void Join(const SlotChange &later) {
    allocations += later.allocations;
    temporary += later.temporary;
    allocated_bytes += later.allocated_bytes;
    live_bytes += later.live_bytes;
  }
  bool IsNothing() const {
    return allocations == 0 && temporary == 0 && allocated_bytes == 0 &&
           live_bytes == 0;
  }
};

class SlotRecorder {
 public:
  // The rest of the arguments is for FrameLog.
  SlotRecorder(size_t slot_count, size_t changes_max, size_t frames_expected,
               size_t frames_min);

  void Allocate(uint32_t slot, uint64_t size_bytes);
  // Bytes that a resize added; to be told beside Grow() and Shrink().
  void Extend(uint32_t slot, uint64_t size_bytes) {
    Touch(slot)->allocated_bytes += size_bytes;
  }
  void Grow(uint32_t slot, uint64_t size_bytes) {
    Touch(slot)->live_bytes += static_cast<int64_t>(size_bytes);
  }
  void Shrink(uint32_t slot, uint64_t size_bytes) {
    Touch(slot)->live_bytes -= static_cast<int64_t>(size_bytes);
  }
  void Temporary(uint32_t slot) {
    ++Touch(slot)->temporary;
  }

  // As in CellRecorder.
  void EndFrame(uint32_t frame, bool keep);
  void Finish() {
    log_.Finish();
  }

  const FrameLog<SlotChange> &log() const {
    return log_;
  }

 private:
  SlotChange *Touch(uint32_t slot);

  FrameLog<SlotChange> log_;
  std::vector<SlotChange> open_;     // By slot: since the last frame.
  std::vector<uint8_t> is_touched_;  // By slot.
  std::vector<uint32_t> touched_;
};

}  // namespace viz

#endif  // MY_ALLOC_VIZ_SLOT_RECORDER_H_
