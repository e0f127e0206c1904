// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// The obvious way to compute what viz computes cleverly: keep all events, and
// for any moment replay them from the start into plain maps. Shares no code
// with the analysis; tests compare the two.

#ifndef MY_ALLOC_VIZ_ANALYSIS_ORACLE_H_
#define MY_ALLOC_VIZ_ANALYSIS_ORACLE_H_

#include <cstddef>
#include <cstdint>
#include <map>
#include <vector>

#include "leakcheck/heaplog.h"

namespace viz {

struct OracleBlock {
  uint64_t size_bytes = 0;
  uint64_t usable_bytes = 0;
  uint64_t birth_ns = 0;
  uint32_t stack_id = 0;
  uint32_t thread_index = 0;
};

struct OracleStack {
  uint64_t allocations = 0;
  uint64_t allocated_bytes = 0;
  uint64_t temporary = 0;
  uint64_t live_bytes = 0;

  bool operator==(const OracleStack &other) const {
    return allocations == other.allocations &&
           allocated_bytes == other.allocated_bytes &&
           temporary == other.temporary && live_bytes == other.live_bytes;
  }
};

// The state after some events.
struct OracleState {
  std::map<uint64_t, OracleBlock> blocks;
  std::map<uint64_t, uint64_t> mapped_pages;  // Page number to 1.
  std::map<uint32_t, OracleStack> stacks;
  uint64_t allocations = 0;
  uint64_t frees = 0;
  uint64_t resizes = 0;
  uint64_t temporary = 0;
  uint64_t allocated_bytes = 0;
  uint64_t resident_bytes = 0;

  uint64_t LiveBytes() const;
  uint64_t UsableBytes() const;
  // Bytes of the 4 KiB pages with a usable byte of a block.
  uint64_t FootprintBytes() const;
  uint64_t MappedBytes() const;
};

class Oracle {
 public:
  explicit Oracle(std::vector<heaplog_event_t> events);

  // The state after the first `count` events.
  OracleState After(size_t count) const;

  // Live bytes after the first 0, 1, 2 ... events.
  std::vector<uint64_t> LiveBytesAfterEach() const;

  const std::vector<heaplog_event_t> &events() const {
    return events_;
  }

 private:
  void Apply(const heaplog_event_t &event, OracleState *state,
             std::map<uint32_t, uint64_t> *last_allocation) const;

  std::vector<heaplog_event_t> events_;
};

}  // namespace viz

#endif  // MY_ALLOC_VIZ_ANALYSIS_ORACLE_H_
