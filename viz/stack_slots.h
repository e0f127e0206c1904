// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// Which call stacks a report shows. A log may have a million; a page with a
// million of them is neither small nor readable. The stacks that matter by any
// measure (bytes allocated, live at the end, live at the peak, allocations,
// temporary ones) get a *slot* of their own; the others share slots, by the
// deepest caller that is shown and by allocation site, so that all sums stay
// exact.
//
//   main ─┬─ load ─┬─ parse ── malloc   slot 0
//         │        └─ (smaller)         slot 1: stacks below load, site A
//         └─ run ──── malloc            slot 2
//
// A stack's *site* is its innermost frame that is not a mere wrapper: neither
// one by its name (operator new and its like, the C++ standard library), nor a
// function that much of the program gets its memory through.

#ifndef MY_ALLOC_VIZ_STACK_SLOTS_H_
#define MY_ALLOC_VIZ_STACK_SLOTS_H_

#include <cstddef>
#include <cstdint>
#include <functional>
#include <vector>

#include "viz/event_source.h"
#include "viz/survey.h"

namespace viz {

// What a node or site is when it is not an instruction pointer.
enum class Place : uint8_t {
  kAddress,
  kRoot,     // The whole program.
  kUnknown,  // The log has no stack.
  kSmaller,  // Stacks too small to be shown, or sites.
  kOmitted,  // The middle of a very deep stack, or what was not recorded.
};

struct StackNode {
  Place place;
  uint32_t parent;  // Index of a node; the root's is itself.
  uint64_t instruction_pointer;
  uint64_t first_ns;  // When it was first seen.
};

struct Site {
  Place place;
  uint64_t instruction_pointer;
  uint64_t first_ns;
  uint64_t at_peak_bytes;
  uint64_t live_bytes;
  uint64_t allocated_bytes;
};

struct Slot {
  uint32_t node;
  uint32_t site;
  uint64_t stacks = 0;  // How many share it.
  uint64_t allocations = 0;
  uint64_t allocated_bytes = 0;
  uint64_t temporary = 0;
  uint64_t live_blocks = 0;
  uint64_t live_bytes = 0;
  uint64_t at_peak_bytes = 0;
};

struct StackSlotsLimits {
  size_t stacks = 6000;
  size_t nodes = 40000;
  size_t sites = 4000;
  size_t shared_slots = 4000;  // And then one a site.
  size_t depth = 400;
};

class StackSlots {
 public:
  // Tells whether a frame is a wrapper by its name.
  using IsWrapper =
      std::function<bool(uint64_t instruction_pointer, uint64_t time_ns)>;

  // Tells which address stands for a site: the same for all of one line of
  // code. Without this, each address is a site of its own.
  using SiteAddress =
      std::function<uint64_t(uint64_t instruction_pointer, uint64_t time_ns)>;

  StackSlots(const Survey &survey, const EventSource &source,
             const IsWrapper &is_wrapper, const StackSlotsLimits &limits,
             const SiteAddress &site_address = nullptr);

  // In order of their numbers; parents come before children. Node 0 is the
  // root.
  const std::vector<StackNode> &nodes() const {
    return nodes_;
  }
  // The most important first.
  const std::vector<Site> &sites() const {
    return sites_;
  }
  const std::vector<Slot> &slots() const {
    return slots_;
  }
  // Returns the slot of a stack id of the log. Ids that the survey did not see
  // go to the slot of stacks without a record.
  uint32_t SlotOf(uint32_t stack_id) const {
    return stack_id < slot_of_.size() ? slot_of_[stack_id] : unknown_slot_;
  }

 private:
  class Builder;

  std::vector<StackNode> nodes_;
  std::vector<Site> sites_;
  std::vector<Slot> slots_;
  std::vector<uint32_t> slot_of_;  // By stack id.
  uint32_t unknown_slot_ = 0;
};

}  // namespace viz

#endif  // MY_ALLOC_VIZ_STACK_SLOTS_H_
