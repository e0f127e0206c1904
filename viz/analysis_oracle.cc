// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

#include "viz/analysis_oracle.h"

#include <algorithm>
#include <set>
#include <utility>

namespace viz {

uint64_t OracleState::LiveBytes() const {
  uint64_t sum = 0;
  for (const auto &[address, block] : blocks) {
    sum += block.size_bytes;
  }
  return sum;
}

uint64_t OracleState::UsableBytes() const {
  uint64_t sum = 0;
  for (const auto &[address, block] : blocks) {
    sum += block.usable_bytes;
  }
  return sum;
}

uint64_t OracleState::FootprintBytes() const {
  std::set<uint64_t> pages;
  for (const auto &[address, block] : blocks) {
    const uint64_t bytes = std::max<uint64_t>(block.usable_bytes, 1);
    for (uint64_t page = address / 4096; page <= (address + bytes - 1) / 4096;
         ++page) {
      pages.insert(page);
    }
  }
  return pages.size() * 4096;
}

uint64_t OracleState::MappedBytes() const {
  return mapped_pages.size() * 4096;
}

Oracle::Oracle(std::vector<heaplog_event_t> events)
    : events_(std::move(events)) {
}

OracleState Oracle::After(size_t count) const {
  OracleState state;
  std::map<uint32_t, uint64_t> last_allocation;
  for (size_t i = 0; i < count; ++i) {
    Apply(events_[i], &state, &last_allocation);
  }
  for (const auto &[address, block] : state.blocks) {
    state.stacks[block.stack_id].live_bytes += block.size_bytes;
  }
  return state;
}

std::vector<uint64_t> Oracle::LiveBytesAfterEach() const {
  OracleState state;
  std::map<uint32_t, uint64_t> last_allocation;
  std::vector<uint64_t> live = {0};
  for (const heaplog_event_t &event : events_) {
    Apply(event, &state, &last_allocation);
    live.push_back(state.LiveBytes());
  }
  return live;
}

// Mapped ranges are whole pages here.
void Oracle::Apply(const heaplog_event_t &event, OracleState *state,
                   std::map<uint32_t, uint64_t> *last_allocation) const {
  const auto found = state->blocks.find(event.address);
  switch (event.kind) {
    case HEAPLOG_ALLOC:
      state->blocks[event.address] = {event.size_bytes, event.usable_bytes,
                                      event.time_ns, event.stack_id,
                                      event.thread_index};
      (*last_allocation)[event.thread_index] = event.address;
      ++state->allocations;
      ++state->stacks[event.stack_id].allocations;
      state->allocated_bytes += event.size_bytes;
      state->stacks[event.stack_id].allocated_bytes += event.size_bytes;
      break;
    case HEAPLOG_FREE:
      if (found == state->blocks.end()) {
        break;
      }
      ++state->frees;
      if ((*last_allocation)[event.thread_index] == event.address) {
        (*last_allocation)[event.thread_index] = 0;
        if (found->second.thread_index == event.thread_index) {
          ++state->temporary;
          ++state->stacks[found->second.stack_id].temporary;
        }
      }
      state->blocks.erase(found);
      break;
    case HEAPLOG_RESIZE:
      if (found == state->blocks.end()) {
        break;
      }
      ++state->resizes;
      if (event.stack_id != 0) {
        found->second.stack_id = event.stack_id;
      }
      if (event.size_bytes > found->second.size_bytes) {
        const uint64_t growth = event.size_bytes - found->second.size_bytes;
        state->allocated_bytes += growth;
        state->stacks[found->second.stack_id].allocated_bytes += growth;
      }
      found->second.size_bytes = event.size_bytes;
      found->second.usable_bytes = event.usable_bytes;
      break;
    case HEAPLOG_MAP:
      for (uint64_t page = 0; page < event.size_bytes / 4096; ++page) {
        state->mapped_pages[event.address / 4096 + page] = 1;
      }
      break;
    case HEAPLOG_UNMAP:
      for (uint64_t page = 0; page < event.size_bytes / 4096; ++page) {
        state->mapped_pages.erase(event.address / 4096 + page);
      }
      break;
    case HEAPLOG_SAMPLE:
      state->resident_bytes = event.size_bytes;
      break;
    default:
      break;
  }
}

}  // namespace viz
