// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// The second pass over a log: the state of the heap at each of some thousand
// moments, the *frames*. A frame is the exact state after a number of events;
// frames end between events of different times, so a frame with time T is the
// state after all events up to T. (The frame of the peak is the one exception:
// it ends with the event that made the peak.)
//
// Frames are spread evenly over half the sum of time and events, so neither a
// burst of work nor a long sleep takes all of them; a log of few events gets a
// frame for each.

#ifndef MY_ALLOC_VIZ_TIMELINE_H_
#define MY_ALLOC_VIZ_TIMELINE_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "leakcheck/heaplog.h"
#include "viz/address_layout.h"
#include "viz/address_range.h"
#include "viz/cell_recorder.h"
#include "viz/footprint.h"
#include "viz/ledger.h"
#include "viz/mapped_ranges.h"
#include "viz/slot_recorder.h"
#include "viz/stack_slots.h"
#include "viz/survey.h"

namespace viz {

struct TimelineLimits {
  size_t frames = 4096;
  size_t cells = 32768;
  size_t cell_changes = 800000;
  size_t slot_changes = 200000;
};

struct TimelineFrame {
  uint64_t time_ns = 0;
  uint64_t events = 0;  // Up to and with this frame; so are the next three.
  uint64_t allocations = 0;
  uint64_t frees = 0;
  uint64_t temporary = 0;
  uint64_t live_blocks = 0;
  uint64_t live_bytes = 0;          // Requested.
  uint64_t highest_live_bytes = 0;  // Since the last frame.
  uint64_t usable_bytes = 0;        // With what sizes were rounded up by.
  uint64_t footprint_bytes = 0;     // Pages with a byte of a live block.
  uint64_t mapped_bytes = 0;
  uint64_t resident_bytes = 0;  // As last sampled.
};

// Bytes that are still live at the end, by the frame in which they were
// allocated and the slot.
struct KeptBytes {
  uint32_t frame;
  uint32_t slot;
  uint64_t bytes;
};

class Timeline {
 public:
  Timeline(const Survey &survey, const StackSlots &slots,
           const TimelineLimits &limits);

  // To be given the events that the survey saw; more are ignored.
  void Add(const heaplog_event_t *events, size_t count);
  void Finish();

  const std::vector<TimelineFrame> &frames() const {
    return frames_;
  }
  // The finest record of cells that kept to its budget.
  const CellRecorder &cells() const {
    return *cells_.front();
  }
  const SlotRecorder &slots() const {
    return slot_recorder_;
  }
  // In order of frame and slot.
  const std::vector<KeptBytes> &kept() const {
    return kept_;
  }
  // Thread indices with an owner number of their own, in order of it.
  const std::vector<uint32_t> &owner_threads() const {
    return owner_threads_;
  }

  // For Ledger.
  void OnBirth(uint64_t address, const Block &block);
  void OnDeath(uint64_t address, const Block &block,
               const heaplog_event_t &event, bool temporary);
  void OnResize(uint64_t address, const Block &before, const Block &after);

 private:
  void RankThreads();
  void AddOther(const heaplog_event_t &event);
  uint64_t BinOf(const heaplog_event_t &event) const;
  Owner OwnerOf(const Block &block, uint32_t slot) const;
  void Place(uint64_t address, const Block &block, uint32_t slot);
  void Displace(uint64_t address, const Block &block, uint32_t slot);
  void EndFrame(bool keep);
  void FindKept();

  const Survey &survey_;
  const StackSlots &slots_;
  const TimelineLimits limits_;
  std::vector<AddressLayout> layouts_;
  std::vector<std::unique_ptr<CellRecorder>> cells_;  // Finest first.
  SlotRecorder slot_recorder_;
  Ledger ledger_;
  Footprint footprint_;
  MappedRanges mapped_;
  std::vector<uint32_t> owner_threads_;
  std::vector<uint8_t> thread_owner_;  // By thread index.
  std::vector<TimelineFrame> frames_;
  TimelineFrame now_;
  bool frame_is_open_ = false;  // Events came since the last frame.
  uint64_t open_bin_ = 0;
  std::vector<KeptBytes> kept_;
};

}  // namespace viz

#endif  // MY_ALLOC_VIZ_TIMELINE_H_
