// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// How many bytes of each stack were live at the peak is not known until the
// peak is over, and by then stacks have changed. Copying all stacks at each new
// peak would be quadratic; so peaks are numbered, and a stack that is about to
// change first settles: if it has not changed since the last peak was reached,
// what it holds now is what it held then. While live bytes climb from one
// maximum to the next, that is one peak in the making: it gets its number when
// the first byte is freed.

#include "viz/survey.h"

#include <algorithm>
#include <cassert>

namespace viz {
namespace {

// Far enough ahead for a cache miss, near enough not to be evicted again.
constexpr size_t kPrefetchEvents = 12;
constexpr size_t kThreadsMax = 1u << 20;

constexpr std::array<uint64_t, kLifetimeBuckets> LifetimeEnds() {
  std::array<uint64_t, kLifetimeBuckets> ends{};
  uint64_t decade = 100;
  for (size_t i = 0; i < kLifetimeBuckets; ++i) {
    const size_t step = i % 3;
    ends[i] = decade * (step == 0 ? 1 : step == 1 ? 2 : 5);
    if (step == 2) {
      decade *= 10;
    }
  }
  // The longest lifetimes, and then the blocks that still live.
  ends[kLifetimeBuckets - 2] = UINT64_MAX;
  ends[kLifetimeBuckets - 1] = UINT64_MAX;
  return ends;
}

constexpr std::array<uint64_t, kLifetimeBuckets> kLifetimeEnds = LifetimeEnds();

}  // namespace

size_t SizeBucket(uint64_t size_bytes) {
  if (size_bytes <= 1) {
    return 0;
  }
  const size_t bits = 64 - static_cast<size_t>(__builtin_clzll(size_bytes - 1));
  return std::min(bits, kSizeBuckets - 1);
}

size_t LifetimeBucket(uint64_t lifetime_ns) {
  return static_cast<size_t>(std::upper_bound(kLifetimeEnds.begin(),
                                              kLifetimeEnds.end() - 2,
                                              lifetime_ns) -
                             kLifetimeEnds.begin());
}

uint64_t LifetimeBucketEndNs(size_t bucket) {
  assert(bucket < kLifetimeBuckets);
  return kLifetimeEnds[bucket];
}

void Survey::Add(const heaplog_event_t *events, size_t count) {
  for (size_t i = 0; i < count; ++i) {
    if (i + kPrefetchEvents < count) {
      ledger_.Prefetch(events[i + kPrefetchEvents]);
    }
    const heaplog_event_t &event = events[i];
    ++totals_.events;
    now_ns_ = event.time_ns;
    switch (event.kind) {
      case HEAPLOG_ALLOC:
      case HEAPLOG_FREE:
      case HEAPLOG_RESIZE:
        ledger_.Apply(event, this);
        break;
      default:
        AddOther(event);
        break;
    }
  }
}

void Survey::AddOther(const heaplog_event_t &event) {
  switch (event.kind) {
    case HEAPLOG_MAP:
    case HEAPLOG_UNMAP:
      ++totals_.maps;
      break;
    case HEAPLOG_SAMPLE:
      ++totals_.samples;
      totals_.peak_resident_bytes =
          std::max(totals_.peak_resident_bytes, event.size_bytes);
      break;
    case HEAPLOG_LOST:
      totals_.lost_events += event.size_bytes;
      break;
    default:
      break;
  }
}

void Survey::Finish() {
  totals_.end_time_ns = now_ns_;
  totals_.anomalies = ledger_.anomalies();
  peak_number_ += at_peak_;
  for (StackTotals &stack : stacks_) {
    SettlePeak(&stack);
  }
  ledger_.blocks().ForEach([this](uint64_t, const Block &block) {
    HistogramCell &cell =
        histogram_[SizeBucket(block.size_bytes)][kLifetimeBuckets - 1];
    ++cell.blocks;
    cell.bytes += block.size_bytes;
  });
  ledger_ = Ledger();  // The second pass has one of its own.
}

size_t Survey::StackIndex(uint32_t stack_id) const {
  if (stack_id >= stack_index_.size() || stack_index_[stack_id] == 0) {
    return SIZE_MAX;
  }
  return stack_index_[stack_id] - 1;
}

StackTotals *Survey::Stack(uint32_t stack_id, uint64_t now_ns) {
  stack_id = std::min(stack_id, HEAPLOG_STACK_ID_MAX);
  if (stack_id >= stack_index_.size()) {
    stack_index_.resize(std::max<size_t>(stack_id + 1, 1024));
  }
  uint32_t &index = stack_index_[stack_id];
  if (index == 0) {
    StackTotals stack;
    stack.stack_id = stack_id;
    stack.first_ns = now_ns;
    stack.peak_number = peak_number_;
    stacks_.push_back(stack);
    index = static_cast<uint32_t>(stacks_.size());
  }
  return &stacks_[index - 1];
}

void Survey::SettlePeak(StackTotals *stack) {
  if (stack->peak_number != peak_number_) {
    stack->peak_number = peak_number_;
    stack->at_peak_bytes = stack->live_bytes;
  }
}

void Survey::Grow(StackTotals *stack, uint64_t size_bytes) {
  // A peak in the making moves on with the growth; nothing settles before it
  // is over.
  if (!at_peak_) {
    SettlePeak(stack);
  }
  ++stack->live_blocks;
  stack->live_bytes += size_bytes;
  ++totals_.live_blocks;
  totals_.live_bytes += size_bytes;
  if (totals_.live_bytes > totals_.peak_live_bytes) {
    at_peak_ = true;
    totals_.peak_live_bytes = totals_.live_bytes;
    totals_.peak_live_blocks = totals_.live_blocks;
    totals_.peak_event_count = totals_.events;
    totals_.peak_time_ns = now_ns_;
  }
}

void Survey::Shrink(StackTotals *stack, uint64_t size_bytes) {
  if (at_peak_) {
    at_peak_ = false;
    ++peak_number_;
  }
  SettlePeak(stack);
  --stack->live_blocks;
  stack->live_bytes -= size_bytes;
  --totals_.live_blocks;
  totals_.live_bytes -= size_bytes;
}

void Survey::OnBirth(uint64_t address, const Block &block) {
  touched_.Add(address, block.usable_bytes);
  ++totals_.allocations;
  totals_.allocated_bytes += block.size_bytes;
  if (block.thread_index >= thread_allocations_.size() &&
      block.thread_index < kThreadsMax) {
    thread_allocations_.resize(block.thread_index + 1);
  }
  if (block.thread_index < thread_allocations_.size()) {
    ++thread_allocations_[block.thread_index];
  }
  StackTotals *stack = Stack(block.stack_id, block.birth_ns);
  ++stack->allocations;
  stack->allocated_bytes += block.size_bytes;
  Grow(stack, block.size_bytes);
}

void Survey::OnDeath(uint64_t, const Block &block, const heaplog_event_t &event,
                     bool temporary) {
  // An overwritten block was not freed by this event.
  totals_.frees += event.kind == HEAPLOG_FREE;
  HistogramCell &cell = histogram_[SizeBucket(block.size_bytes)]
                                  [LifetimeBucket(now_ns_ - block.birth_ns)];
  ++cell.blocks;
  cell.bytes += block.size_bytes;
  StackTotals *stack = Stack(block.stack_id, block.birth_ns);
  stack->temporary += temporary;
  totals_.temporary += temporary;
  Shrink(stack, block.size_bytes);
}

void Survey::OnResize(uint64_t address, const Block &before,
                      const Block &after) {
  touched_.Add(address, after.usable_bytes);
  ++totals_.resizes;
  if (after.size_bytes > before.size_bytes) {
    const uint64_t growth = after.size_bytes - before.size_bytes;
    totals_.allocated_bytes += growth;
    Stack(after.stack_id, now_ns_)->allocated_bytes += growth;
  }
  Shrink(Stack(before.stack_id, now_ns_), before.size_bytes);
  Grow(Stack(after.stack_id, now_ns_), after.size_bytes);
}

}  // namespace viz
