// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// Computes figures of a log the plain way, straight from the reader and with
// std::map, for the page's test to compare with. It shares nothing with viz.
//
//   log_figures LOG [TIME_NS[:START:END]]...
//
// prints JSON: totals; for each TIME_NS the state after all events up to then,
// and how many of its live bytes lie in [START, END); and sums by the innermost
// instruction pointer.

#include <algorithm>
#include <cinttypes>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "leakcheck/heaplog_reader.h"

namespace {

struct Block {
  uint64_t size;
  uint64_t usable;
  uint32_t stack;
  uint32_t thread;
};

struct Moment {
  uint64_t time;
  uint64_t start;
  uint64_t end;
};

struct Leaf {
  uint64_t allocations = 0;
  uint64_t bytes = 0;
  uint64_t live = 0;
};

std::map<uint64_t, Block> blocks;
std::map<uint32_t, uint64_t> newest;  // By thread.
std::map<uint32_t, Leaf> stacks;
uint64_t events, allocations, frees, temporary, live, peak, peak_time,
    last_time, peak_resident;

void Apply(const heaplog_event_t &event) {
  const auto found = blocks.find(event.address);
  switch (event.kind) {
    case HEAPLOG_ALLOC:
      if (found != blocks.end()) {
        live -= found->second.size;
      }
      blocks[event.address] = {event.size_bytes, event.usable_bytes,
                               event.stack_id, event.thread_index};
      newest[event.thread_index] = event.address;
      ++allocations;
      ++stacks[event.stack_id].allocations;
      stacks[event.stack_id].bytes += event.size_bytes;
      live += event.size_bytes;
      break;
    case HEAPLOG_FREE:
      if (found != blocks.end()) {
        ++frees;
        if (newest[event.thread_index] == event.address) {
          temporary += found->second.thread == event.thread_index;
          newest[event.thread_index] = 0;
        }
        live -= found->second.size;
        blocks.erase(found);
      }
      break;
    case HEAPLOG_RESIZE:
      if (found != blocks.end()) {
        Block &block = found->second;
        if (event.stack_id != 0) {
          block.stack = event.stack_id;
        }
        if (event.size_bytes > block.size) {
          stacks[block.stack].bytes += event.size_bytes - block.size;
        }
        live += event.size_bytes - block.size;
        block.size = event.size_bytes;
        block.usable = event.usable_bytes;
      }
      break;
    case HEAPLOG_SAMPLE:
      peak_resident = std::max(peak_resident, event.size_bytes);
      break;
    default:
      break;
  }
  if (live > peak) {
    peak = live;
    peak_time = event.time_ns;
  }
}

void PrintMoment(const Moment &moment, bool is_first) {
  uint64_t bytes = 0;
  uint64_t inside = 0;
  std::set<uint64_t> pages;
  for (const auto &[address, block] : blocks) {
    bytes += block.size;
    const uint64_t from = std::max(address, moment.start);
    const uint64_t to = std::min(address + block.size, moment.end);
    inside += to > from ? to - from : 0;
    const uint64_t last = address + std::max<uint64_t>(block.usable, 1) - 1;
    for (uint64_t page = address >> 12; page <= last >> 12; ++page) {
      pages.insert(page);
    }
  }
  printf("%s\n  {\"time\": %" PRIu64 ", \"live\": %" PRIu64
         ", \"blocks\": %zu, \"footprint\": %zu, \"inside\": %" PRIu64
         ", \"events\": %" PRIu64 ", \"allocations\": %" PRIu64
         ", \"temporary\": %" PRIu64 "}",
         is_first ? "" : ",", moment.time, bytes, blocks.size(),
         pages.size() * 4096, inside, events, allocations, temporary);
}

std::vector<Moment> ParseMoments(int count, char **texts) {
  std::vector<Moment> moments;
  for (int i = 0; i < count; ++i) {
    char *end = texts[i];
    Moment moment = {strtoull(end, &end, 0), 0, UINT64_MAX};
    if (*end == ':') {
      moment.start = strtoull(end + 1, &end, 0);
      moment.end = *end == ':' ? strtoull(end + 1, &end, 0) : UINT64_MAX;
    }
    moments.push_back(moment);
  }
  std::stable_sort(
      moments.begin(), moments.end(),
      [](const Moment &a, const Moment &b) { return a.time < b.time; });
  return moments;
}

void PrintLeaves(const heaplog_reader_t *reader) {
  for (const auto &[address, block] : blocks) {
    stacks[block.stack].live += block.size;
  }
  std::map<uint64_t, Leaf> leaves;
  for (const auto &[stack, sums] : stacks) {
    uint64_t innermost = 0;
    heaplog_reader_stack(reader, stack, &innermost, 1);
    leaves[innermost].allocations += sums.allocations;
    leaves[innermost].bytes += sums.bytes;
    leaves[innermost].live += sums.live;
  }
  const char *separator = "";
  printf("\"leaves\": {");
  for (const auto &[address, sums] : leaves) {
    printf("%s\n  \"0x%" PRIx64 "\": {\"allocations\": %" PRIu64
           ", \"bytes\": %" PRIu64 ", \"live\": %" PRIu64 "}",
           separator, address, sums.allocations, sums.bytes, sums.live);
    separator = ",";
  }
  printf("\n}");
}

}  // namespace

int main(int argc, char **argv) {
  heaplog_reader_t *reader = nullptr;
  heaplog_error_t error;
  if (argc < 2 || heaplog_reader_open(argv[1], &reader, &error) != 0) {
    fprintf(stderr, "usage: log_figures LOG [TIME_NS[:START:END]]...\n");
    return 1;
  }
  const std::vector<Moment> moments = ParseMoments(argc - 2, argv + 2);
  size_t next = 0;
  printf("{\"moments\": [");
  heaplog_event_t event;
  while (heaplog_reader_next(reader, &event)) {
    while (next < moments.size() && moments[next].time < event.time_ns) {
      PrintMoment(moments[next], next == 0);
      ++next;
    }
    ++events;
    last_time = event.time_ns;
    Apply(event);
  }
  for (; next < moments.size(); ++next) {
    PrintMoment(moments[next], next == 0);
  }
  printf("],\n");
  PrintLeaves(reader);
  printf(",\n\"totals\": {\"events\": %" PRIu64 ", \"allocations\": %" PRIu64
         ", \"frees\": %" PRIu64 ", \"temporary\": %" PRIu64
         ", \"liveBytes\": %" PRIu64
         ", \"liveBlocks\": %zu"
         ", \"peakLiveBytes\": %" PRIu64 ", \"peakTimeNs\": %" PRIu64
         ", \"durationNs\": %" PRIu64 ", \"peakResidentBytes\": %" PRIu64
         ", \"threads\": %zu, \"whole\": %s}}\n",
         events, allocations, frees, temporary, live, blocks.size(), peak,
         peak_time, last_time, peak_resident,
         heaplog_reader_thread_count(reader),
         heaplog_reader_status(reader, &error) == 0 ? "true" : "false");
  heaplog_reader_close(reader);
  return 0;
}
