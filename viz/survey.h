// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// The first pass over a log: everything about the run as a whole. What it finds
// out (how long, how many events, which addresses, when the peak was, which
// stacks matter) decides how finely the second pass (timeline.h) looks.
//
//   Survey survey;
//   survey.Add(events, count);  // Again and again.
//   survey.Finish();
//
// Memory: the live blocks, and a record for each stack that allocated.

#ifndef MY_ALLOC_VIZ_SURVEY_H_
#define MY_ALLOC_VIZ_SURVEY_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "leakcheck/heaplog.h"
#include "viz/address_layout.h"
#include "viz/ledger.h"

namespace viz {

// Sizes go by powers of two: bucket 0 is 0 and 1 byte, bucket k is (2^(k-1),
// 2^k].
constexpr size_t kSizeBuckets = 42;
size_t SizeBucket(uint64_t size_bytes);

// Lifetimes go by 1-2-5 steps from 100 ns on; the last bucket is for blocks
// that still live.
constexpr size_t kLifetimeBuckets = 33;
size_t LifetimeBucket(uint64_t lifetime_ns);
// The first lifetime that is too long for `bucket` (not the last two).
uint64_t LifetimeBucketEndNs(size_t bucket);

struct Totals {
  uint64_t events = 0;
  uint64_t allocations = 0;
  uint64_t frees = 0;    // Of known blocks.
  uint64_t resizes = 0;  // Of known blocks.
  uint64_t temporary = 0;
  uint64_t allocated_bytes = 0;  // With what resizes added.
  uint64_t live_bytes = 0;
  uint64_t live_blocks = 0;
  uint64_t peak_live_bytes = 0;
  uint64_t peak_event_count = 0;  // Events up to and with the peak's; 0: none.
  uint64_t peak_time_ns = 0;
  uint64_t peak_live_blocks = 0;  // At the peak of bytes.
  uint64_t end_time_ns = 0;       // Of the last event.
  uint64_t peak_resident_bytes = 0;
  uint64_t samples = 0;
  uint64_t maps = 0;
  uint64_t lost_events = 0;
  Ledger::Anomalies anomalies;
};

struct StackTotals {
  uint32_t stack_id = 0;
  uint64_t first_ns = 0;
  uint64_t allocations = 0;
  uint64_t allocated_bytes = 0;
  uint64_t temporary = 0;
  uint64_t live_blocks = 0;
  uint64_t live_bytes = 0;
  uint64_t at_peak_bytes = 0;  // Live at the peak of the whole process.

  uint32_t peak_number = 0;  // Of the Survey: which peak at_peak_bytes is of.
};

struct HistogramCell {
  uint64_t blocks = 0;
  uint64_t bytes = 0;
};

class Survey {
 public:
  void Add(const heaplog_event_t *events, size_t count);
  void Finish();

  // Returns the index in stacks() of a stack id, SIZE_MAX if it never
  // allocated.
  size_t StackIndex(uint32_t stack_id) const;

  const Totals &totals() const {
    return totals_;
  }
  const std::vector<StackTotals> &stacks() const {
    return stacks_;
  }
  const TouchedAddresses &touched() const {
    return touched_;
  }
  // Blocks by the size they died with (or have), and how long they lived.
  const HistogramCell &histogram(size_t size_bucket,
                                 size_t lifetime_bucket) const {
    return histogram_[size_bucket][lifetime_bucket];
  }
  // Allocations by thread index.
  const std::vector<uint64_t> &thread_allocations() const {
    return thread_allocations_;
  }

  // For Ledger.
  void OnBirth(uint64_t address, const Block &block);
  void OnDeath(uint64_t address, const Block &block,
               const heaplog_event_t &event, bool temporary);
  void OnResize(uint64_t address, const Block &before, const Block &after);

 private:
  void AddOther(const heaplog_event_t &event);
  StackTotals *Stack(uint32_t stack_id, uint64_t now_ns);
  void Grow(StackTotals *stack, uint64_t size_bytes);
  void Shrink(StackTotals *stack, uint64_t size_bytes);
  void SettlePeak(StackTotals *stack);

  Ledger ledger_;
  Totals totals_;
  TouchedAddresses touched_;
  std::vector<uint32_t> stack_index_;  // By stack id: index + 1, or 0.
  std::vector<StackTotals> stacks_;
  std::vector<uint64_t> thread_allocations_;
  std::array<std::array<HistogramCell, kLifetimeBuckets>, kSizeBuckets>
      histogram_{};
  uint64_t now_ns_ = 0;
  uint32_t peak_number_ = 0;
  bool at_peak_ = false;  // No block shrank or died since the last peak.
};

}  // namespace viz

#endif  // MY_ALLOC_VIZ_SURVEY_H_
