// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// The blocks that are live at a point of the log, and the one place that says
// what an event does to them. Both passes of a report feed their events through
// a Ledger and are told what happened to which block, so they cannot disagree.
//
// What the log of a damaged or lossy run may contain is given a meaning here:
// - an allocation at the address of a live block: that block died unseen;
// - a free or resize of an unknown block: counted, without effect;
// - an allocation at address 0: counted, without effect.
//
// A resize moves the block's bytes to the stack that resized it (as realloc to
// a new place does); its age and its count as one allocation stay.
//
// A block is *temporary* when the thread that allocated it freed it before it
// allocated anything else.

#ifndef MY_ALLOC_VIZ_LEDGER_H_
#define MY_ALLOC_VIZ_LEDGER_H_

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "leakcheck/heaplog.h"
#include "viz/address_map.h"

namespace viz {

struct Block {
  uint64_t size_bytes;    // As requested.
  uint64_t usable_bytes;  // >= size_bytes.
  uint64_t birth_ns;
  uint32_t stack_id;
  uint32_t thread_index;  // That allocated it.
};

class Ledger {
 public:
  // What the log asked for and could not be true.
  struct Anomalies {
    uint64_t unknown_frees = 0;
    uint64_t unknown_resizes = 0;
    uint64_t overwritten_blocks = 0;
    uint64_t null_allocations = 0;
  };

  // Applies an event, and calls of `observer`:
  //   OnBirth(address, block)
  //   OnDeath(address, block, event, temporary)
  //   OnResize(address, before, after)
  // The block table holds the new state when they are called. Events that are
  // not about blocks have no effect.
  template <typename Observer>
  void Apply(const heaplog_event_t &event, Observer *observer) {
    switch (event.kind) {
      case HEAPLOG_ALLOC:
        Alloc(event, observer);
        break;
      case HEAPLOG_FREE:
        Free(event, observer);
        break;
      case HEAPLOG_RESIZE:
        Resize(event, observer);
        break;
      default:
        break;
    }
  }

  void Prefetch(const heaplog_event_t &event) const {
    blocks_.Prefetch(event.address);
  }

  const AddressMap<Block> &blocks() const {
    return blocks_;
  }

  const Anomalies &anomalies() const {
    return anomalies_;
  }

 private:
  // More threads than any log has; only here against a broken source.
  static constexpr size_t kThreadsMax = 1u << 20;

  template <typename Observer>
  void Alloc(const heaplog_event_t &event, Observer *observer) {
    if (event.address == 0) {
      ++anomalies_.null_allocations;
      return;
    }
    const size_t live = blocks_.size();
    Block *block = &blocks_.Insert(event.address);
    if (blocks_.size() == live) {
      ++anomalies_.overwritten_blocks;
      const Block dead = *block;
      blocks_.EraseFound(block);
      observer->OnDeath(event.address, dead, event, false);
      block = &blocks_.Insert(event.address);
    }
    block->size_bytes = event.size_bytes;
    block->usable_bytes = std::max(event.usable_bytes, event.size_bytes);
    block->birth_ns = event.time_ns;
    block->stack_id = event.stack_id;
    block->thread_index = event.thread_index;
    if (uint64_t *last = LastAllocation(event.thread_index)) {
      *last = event.address;
    }
    observer->OnBirth(event.address, *block);
  }

  template <typename Observer>
  void Free(const heaplog_event_t &event, Observer *observer) {
    Block *block = event.address == 0 ? nullptr : blocks_.Find(event.address);
    if (block == nullptr) {
      ++anomalies_.unknown_frees;
      return;
    }
    const Block dead = *block;
    blocks_.EraseFound(block);
    bool temporary = false;
    uint64_t *last = LastAllocation(event.thread_index);
    if (last != nullptr && *last == event.address) {
      temporary = dead.thread_index == event.thread_index;
      *last = 0;
    }
    observer->OnDeath(event.address, dead, event, temporary);
  }

  template <typename Observer>
  void Resize(const heaplog_event_t &event, Observer *observer) {
    Block *block = event.address == 0 ? nullptr : blocks_.Find(event.address);
    if (block == nullptr) {
      ++anomalies_.unknown_resizes;
      return;
    }
    const Block before = *block;
    block->size_bytes = event.size_bytes;
    block->usable_bytes = std::max(event.usable_bytes, event.size_bytes);
    if (event.stack_id != 0) {
      block->stack_id = event.stack_id;
    }
    observer->OnResize(event.address, before, *block);
  }

  uint64_t *LastAllocation(uint32_t thread_index) {
    if (thread_index >= last_allocation_.size()) {
      if (thread_index >= kThreadsMax) {
        return nullptr;
      }
      last_allocation_.resize(thread_index + 1);
    }
    return &last_allocation_[thread_index];
  }

  AddressMap<Block> blocks_;
  std::vector<uint64_t> last_allocation_;  // By thread; 0: none, or freed.
  Anomalies anomalies_;
};

}  // namespace viz

#endif  // MY_ALLOC_VIZ_LEDGER_H_
