// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// Cells are recorded at three sizes at once, because whether the finest keeps
// to its budget is only known at the end: a heap of which every part changes
// all the time needs larger cells. Each record that overflows costs nothing
// from then on, and the coarsest cannot overflow.

#include "viz/timeline.h"

#include <algorithm>
#include <map>
#include <numeric>
#include <utility>

namespace viz {
namespace {

constexpr size_t kPrefetchEvents = 12;

struct Level {
  unsigned log2_join;
  size_t frames_min;
};

constexpr Level kLevels[] = {{0, 1024}, {2, 768}, {4, 1}};

uint64_t BlockEnd(uint64_t address, const Block &block) {
  return RangeEnd(address, std::max<uint64_t>(block.usable_bytes, 1));
}

}  // namespace

Timeline::Timeline(const Survey &survey, const StackSlots &slots,
                   const TimelineLimits &limits)
    : survey_(survey),
      slots_(slots),
      limits_(limits),
      slot_recorder_(slots.slots().size(), limits.slot_changes, limits.frames,
                     1) {
  const AddressLayout finest(survey.touched().Ranges(), limits.cells);
  for (const Level &level : kLevels) {
    layouts_.push_back(finest.Joined(level.log2_join));
  }
  for (size_t i = 0; i < layouts_.size(); ++i) {
    cells_.push_back(
        std::make_unique<CellRecorder>(&layouts_[i], limits.cell_changes,
                                       limits.frames, kLevels[i].frames_min));
  }
  RankThreads();
}

void Timeline::RankThreads() {
  const std::vector<uint64_t> &allocations = survey_.thread_allocations();
  std::vector<uint32_t> order(allocations.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](uint32_t a, uint32_t b) {
    return allocations[a] > allocations[b];
  });
  order.resize(std::min(order.size(), kOwnerThreads - 1));
  thread_owner_.assign(allocations.size(), kOwnerThreads - 1);
  for (size_t i = 0; i < order.size(); ++i) {
    thread_owner_[order[i]] = static_cast<uint8_t>(i);
  }
  owner_threads_ = order;
}

uint64_t Timeline::BinOf(const heaplog_event_t &event) const {
  const Totals &totals = survey_.totals();
  const double done = static_cast<double>(now_.events);
  if (totals.events <= limits_.frames) {
    return now_.events;
  }
  double part = done / static_cast<double>(totals.events);
  if (totals.end_time_ns > 0) {
    part = 0.5 * part + 0.5 * static_cast<double>(event.time_ns) /
                            static_cast<double>(totals.end_time_ns);
  }
  return static_cast<uint64_t>(part * static_cast<double>(limits_.frames));
}

void Timeline::Add(const heaplog_event_t *events, size_t count) {
  const Totals &totals = survey_.totals();
  for (size_t i = 0; i < count && now_.events < totals.events; ++i) {
    if (i + kPrefetchEvents < count) {
      ledger_.Prefetch(events[i + kPrefetchEvents]);
      footprint_.Prefetch(events[i + kPrefetchEvents].address);
    }
    const heaplog_event_t &event = events[i];
    const uint64_t bin = BinOf(event);
    if (frame_is_open_ && bin != open_bin_ && event.time_ns > now_.time_ns) {
      EndFrame(false);
    }
    if (!frame_is_open_) {
      open_bin_ = bin;
      frame_is_open_ = true;
    }
    ++now_.events;
    now_.time_ns = event.time_ns;
    ledger_.Apply(event, this);
    AddOther(event);
    now_.highest_live_bytes =
        std::max(now_.highest_live_bytes, now_.live_bytes);
    if (now_.events == totals.peak_event_count) {
      EndFrame(true);
    }
  }
}

void Timeline::AddOther(const heaplog_event_t &event) {
  const uint64_t end = RangeEnd(event.address, event.size_bytes);
  switch (event.kind) {
    case HEAPLOG_MAP:
      mapped_.Add(event.address, end, [this](uint64_t a, uint64_t b) {
        for (auto &cells : cells_) {
          cells->AddMapped(a, b);
        }
      });
      now_.mapped_bytes = mapped_.bytes();
      break;
    case HEAPLOG_UNMAP:
      mapped_.Remove(event.address, end, [this](uint64_t a, uint64_t b) {
        for (auto &cells : cells_) {
          cells->RemoveMapped(a, b);
        }
      });
      now_.mapped_bytes = mapped_.bytes();
      break;
    case HEAPLOG_SAMPLE:
      now_.resident_bytes = event.size_bytes;
      break;
    default:
      break;
  }
}

Owner Timeline::OwnerOf(const Block &block, uint32_t slot) const {
  const uint32_t site = slots_.slots()[slot].site;
  Owner owner;
  owner.site = static_cast<uint8_t>(std::min<size_t>(site, kOwnerSites - 1));
  owner.thread = block.thread_index < thread_owner_.size()
                     ? thread_owner_[block.thread_index]
                     : kOwnerThreads - 1;
  owner.size = static_cast<uint8_t>(OwnerSize(block.size_bytes));
  return owner;
}

void Timeline::Place(uint64_t address, const Block &block, uint32_t slot) {
  ++now_.live_blocks;
  now_.live_bytes += block.size_bytes;
  now_.usable_bytes += block.usable_bytes;
  footprint_.Add(address, BlockEnd(address, block));
  const Owner owner = OwnerOf(block, slot);
  for (auto &cells : cells_) {
    cells->AddBlock(address, block.size_bytes, owner);
  }
}

void Timeline::Displace(uint64_t address, const Block &block, uint32_t slot) {
  --now_.live_blocks;
  now_.live_bytes -= block.size_bytes;
  now_.usable_bytes -= block.usable_bytes;
  footprint_.Remove(address, BlockEnd(address, block));
  const Owner owner = OwnerOf(block, slot);
  for (auto &cells : cells_) {
    cells->RemoveBlock(address, block.size_bytes, owner);
  }
}

void Timeline::OnBirth(uint64_t address, const Block &block) {
  ++now_.allocations;
  const uint32_t slot = slots_.SlotOf(block.stack_id);
  slot_recorder_.Allocate(slot, block.size_bytes);
  Place(address, block, slot);
}

void Timeline::OnDeath(uint64_t address, const Block &block,
                       const heaplog_event_t &event, bool temporary) {
  now_.frees += event.kind == HEAPLOG_FREE;
  const uint32_t slot = slots_.SlotOf(block.stack_id);
  slot_recorder_.Shrink(slot, block.size_bytes);
  if (temporary) {
    ++now_.temporary;
    slot_recorder_.Temporary(slot);
  }
  Displace(address, block, slot);
}

void Timeline::OnResize(uint64_t address, const Block &before,
                        const Block &after) {
  const uint32_t old_slot = slots_.SlotOf(before.stack_id);
  const uint32_t slot = slots_.SlotOf(after.stack_id);
  slot_recorder_.Shrink(old_slot, before.size_bytes);
  slot_recorder_.Grow(slot, after.size_bytes);
  if (after.size_bytes > before.size_bytes) {
    slot_recorder_.Extend(slot, after.size_bytes - before.size_bytes);
  }
  Displace(address, before, old_slot);
  Place(address, after, slot);
}

void Timeline::EndFrame(bool keep) {
  const auto number = static_cast<uint32_t>(frames_.size());
  now_.footprint_bytes = footprint_.bytes();
  frames_.push_back(now_);
  for (auto &cells : cells_) {
    cells->EndFrame(number, keep);
  }
  slot_recorder_.EndFrame(number, keep);
  now_.highest_live_bytes = now_.live_bytes;
  frame_is_open_ = false;
}

void Timeline::Finish() {
  // An empty log has one frame all the same: the empty heap at its start.
  if (frame_is_open_ || frames_.empty()) {
    EndFrame(true);
  }
  for (auto &cells : cells_) {
    cells->Finish();
  }
  slot_recorder_.Finish();
  while (cells_.size() > 1 && cells_.front()->log().overflowed()) {
    cells_.erase(cells_.begin());
  }
  cells_.resize(1);
  FindKept();
}

void Timeline::FindKept() {
  std::map<std::pair<uint32_t, uint32_t>, uint64_t> kept;
  ledger_.blocks().ForEach([&](uint64_t, const Block &block) {
    const auto frame = std::lower_bound(
        frames_.begin(), frames_.end(), block.birth_ns,
        [](const TimelineFrame &f, uint64_t time) { return f.time_ns < time; });
    const auto number = static_cast<uint32_t>(frame - frames_.begin());
    kept[{number, slots_.SlotOf(block.stack_id)}] += block.size_bytes;
  });
  for (const auto &[key, bytes] : kept) {
    kept_.push_back({key.first, key.second, bytes});
  }
}

}  // namespace viz
