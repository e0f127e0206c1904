// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

#include "viz/fake_source.h"

#include <iterator>
#include <random>

namespace viz {
namespace {

constexpr uint64_t kClumps[] = {0x10000, 0x555500000000, 0x555540000000,
                                0x7fff00000000};

class Generator {
 public:
  explicit Generator(const RandomEventsOptions &options)
      : options_(options), random_(options.seed) {
  }

  std::vector<heaplog_event_t> Run() {
    while (events_.size() < options_.count) {
      // Several events may share a time.
      time_ns_ += Random(3) == 0 ? 0 : 1 + Random(1000);
      switch (Random(16)) {
        case 0:
          Map();
          break;
        case 1:
          Push(HEAPLOG_SAMPLE, 0, Random(1 << 24));
          break;
        case 2:
          Resize();
          break;
        case 3:
          Lossy();
          break;
        default:
          Block();
          break;
      }
    }
    return events_;
  }

 private:
  uint64_t Random(uint64_t end) {
    return random_() % end;
  }

  heaplog_event_t *Push(heaplog_kind_t kind, uint64_t address, uint64_t size) {
    heaplog_event_t event = {};
    event.kind = kind;
    event.time_ns = time_ns_;
    event.address = address;
    event.size_bytes = size;
    event.thread_index = static_cast<uint32_t>(Random(options_.threads));
    events_.push_back(event);
    return &events_.back();
  }

  uint32_t AnyStack() {
    return static_cast<uint32_t>(Random(options_.stacks + 1));
  }

  // Phases of growth and decline.
  void Block() {
    const bool grow = events_.size() / (options_.count / 5 + 1) % 2 == 0;
    if (live_.empty() || Random(10) < (grow ? 7 : 3)) {
      Alloc();
    } else {
      Free();
    }
  }

  void Alloc() {
    const uint64_t kind = Random(20);
    const uint64_t size = kind == 0   ? 0
                          : kind == 1 ? Random(options_.size_max * 40)
                                      : Random(options_.size_max);
    const uint64_t usable = (size + 15) / 16 * 16;
    const uint64_t address = kClumps[Random(std::size(kClumps))] +
                             Random(options_.clump_bytes / 16) * 16;
    if (Overlaps(address, std::max<uint64_t>(usable, 16))) {
      return;
    }
    heaplog_event_t *event = Push(HEAPLOG_ALLOC, address, size);
    event->usable_bytes = usable;
    event->stack_id = AnyStack();
    live_[address] = std::max<uint64_t>(usable, 16);
  }

  bool Overlaps(uint64_t address, uint64_t bytes) const {
    auto next = live_.lower_bound(address);
    if (next != live_.end() && next->first < address + bytes) {
      return true;
    }
    return next != live_.begin() &&
           std::prev(next)->first + std::prev(next)->second > address;
  }

  std::map<uint64_t, uint64_t>::iterator AnyLive() {
    return std::next(live_.begin(),
                     static_cast<std::ptrdiff_t>(Random(live_.size())));
  }

  void Free() {
    const auto block = AnyLive();
    const bool newest = !events_.empty() && Random(3) == 0 &&
                        events_.back().kind == HEAPLOG_ALLOC;
    const uint64_t address = newest ? events_.back().address : block->first;
    const uint32_t thread = events_.back().thread_index;
    heaplog_event_t *event = Push(HEAPLOG_FREE, address, 0);
    if (newest) {
      event->thread_index = thread;
    }
    live_.erase(address);
  }

  void Resize() {
    if (!live_.empty()) {
      const auto block = AnyLive();
      heaplog_event_t *event =
          Push(HEAPLOG_RESIZE, block->first, Random(block->second + 1));
      event->usable_bytes = block->second;
      event->stack_id = AnyStack();
    }
  }

  void Map() {
    const uint64_t page = kClumps[Random(std::size(kClumps))] +
                          Random(options_.clump_bytes / 4096 + 64) * 4096;
    Push(Random(3) == 0 ? HEAPLOG_UNMAP : HEAPLOG_MAP, page, Random(64) * 4096);
  }

  void Lossy() {
    if (!options_.is_lossy || live_.empty()) {
      return;
    }
    const auto block = AnyLive();
    switch (Random(4)) {
      case 0:
        Push(HEAPLOG_FREE, 0x123450, 0);
        break;
      case 1:
        Push(HEAPLOG_RESIZE, 0x123450, 16);
        break;
      case 2:
        Push(HEAPLOG_LOST, 0, 1 + Random(5));
        break;
      default: {
        heaplog_event_t *event =
            Push(HEAPLOG_ALLOC, block->first, Random(block->second + 1));
        event->usable_bytes = block->second;
        event->stack_id = AnyStack();
        break;
      }
    }
  }

  const RandomEventsOptions &options_;
  std::mt19937_64 random_;
  uint64_t time_ns_ = 0;
  std::map<uint64_t, uint64_t> live_;  // Address to bytes.
  std::vector<heaplog_event_t> events_;
};

}  // namespace

std::vector<heaplog_event_t> RandomEvents(const RandomEventsOptions &options) {
  return Generator(options).Run();
}

}  // namespace viz
