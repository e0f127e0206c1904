// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

#include "leakcheck/log_replay.h"

#include <algorithm>
#include <cinttypes>
#include <cstdio>
#include <iterator>

namespace leakcheck {
namespace {

constexpr size_t kProblemsMax = 20;
constexpr size_t kFramesMax = 1024;

}  // namespace

LogReplay::LogReplay(const std::string &path)
    : reader_(nullptr, heaplog_reader_close) {
  heaplog_reader_t *reader = nullptr;
  heaplog_error_t error;
  if (heaplog_reader_open(path.c_str(), &reader, &error) != 0) {
    problems_.push_back(path + ": " + error.text);
    return;
  }
  reader_.reset(reader);
  heaplog_event_t event;
  while (heaplog_reader_next(reader, &event)) {
    events_.push_back(event);
    Apply(event);
  }
  if (heaplog_reader_status(reader, &error) != 0) {
    problems_.push_back(path + ": byte " + std::to_string(error.byte_offset) +
                        ": " + error.text);
  }
}

void LogReplay::AddProblem(const heaplog_event_t &event,
                           const std::string &what) {
  if (problems_.size() < kProblemsMax) {
    char text[200];
    snprintf(text, sizeof(text),
             "%" PRIu64 " ns, thread %" PRIu32 ", 0x%" PRIx64 ", %" PRIu64
             " bytes: ",
             event.time_ns, event.thread_index, event.address,
             event.size_bytes);
    problems_.push_back(text + what);
  }
}

void LogReplay::Apply(const heaplog_event_t &event) {
  switch (event.kind) {
    case HEAPLOG_ALLOC:
      counts_.allocs++;
      Alloc(event);
      break;
    case HEAPLOG_FREE:
      counts_.frees++;
      Free(event);
      break;
    case HEAPLOG_RESIZE:
      counts_.resizes++;
      Resize(event);
      break;
    case HEAPLOG_MAP:
      counts_.maps++;
      Map(event);
      break;
    case HEAPLOG_UNMAP:
      counts_.unmaps++;
      Unmap(event);
      break;
    case HEAPLOG_SAMPLE:
      counts_.samples++;
      break;
    case HEAPLOG_LOST:
      counts_.lost += event.size_bytes;
      break;
    case HEAPLOG_END:
      counts_.ends++;
      break;
    default:
      AddProblem(event, "unknown kind of event");
      break;
  }
}

void LogReplay::Alloc(const heaplog_event_t &event) {
  if (event.usable_bytes < event.size_bytes) {
    AddProblem(event, "less is usable than was asked for");
  }
  // Size 0 is a block too.
  uint64_t num_bytes = std::max<uint64_t>(event.usable_bytes, 1);
  auto next = live_.lower_bound(event.address);
  if (next != live_.end() && next->first < event.address + num_bytes) {
    AddProblem(event, "overlaps a live block above");
    return;
  }
  if (next != live_.begin()) {
    auto previous = std::prev(next);
    if (previous->first + previous->second.usable_bytes > event.address) {
      AddProblem(event, "overlaps a live block below");
      return;
    }
  }
  if (!IsMapped(event.address, event.usable_bytes)) {
    AddProblem(event, "allocated outside of what the heap has");
  }
  live_.emplace_hint(next, event.address,
                     Block{event.size_bytes, event.usable_bytes, event.time_ns,
                           event.stack_id, event.thread_index});
  live_bytes_ += event.size_bytes;
  peak_live_bytes_ = std::max(peak_live_bytes_, live_bytes_);
}

void LogReplay::Free(const heaplog_event_t &event) {
  auto block = live_.find(event.address);
  if (block == live_.end()) {
    AddProblem(event, "freed, but not live");
    return;
  }
  live_bytes_ -= block->second.size_bytes;
  live_.erase(block);
}

void LogReplay::Resize(const heaplog_event_t &event) {
  auto block = live_.find(event.address);
  if (block == live_.end()) {
    AddProblem(event, "resized, but not live");
    return;
  }
  auto next = std::next(block);
  if (next != live_.end() && next->first < event.address + event.usable_bytes) {
    AddProblem(event, "grown over a live block");
  }
  if (!IsMapped(event.address, event.usable_bytes)) {
    AddProblem(event, "grown outside of what the heap has");
  }
  live_bytes_ += event.size_bytes - block->second.size_bytes;
  peak_live_bytes_ = std::max(peak_live_bytes_, live_bytes_);
  block->second.size_bytes = event.size_bytes;
  block->second.usable_bytes = event.usable_bytes;
}

void LogReplay::Map(const heaplog_event_t &event) {
  uint64_t start = event.address;
  uint64_t end = start + event.size_bytes;
  auto next = mapped_.lower_bound(start);
  if (next != mapped_.end() && next->first < end) {
    AddProblem(event, "mapped over what the heap has above");
    return;
  }
  if (next != mapped_.end() && next->first == end) {
    end = next->second;
    next = mapped_.erase(next);
  }
  if (next != mapped_.begin()) {
    auto previous = std::prev(next);
    if (previous->second > start) {
      AddProblem(event, "mapped over what the heap has below");
      return;
    }
    if (previous->second == start) {
      previous->second = end;
      return;
    }
  }
  mapped_.emplace_hint(next, start, end);
}

void LogReplay::Unmap(const heaplog_event_t &event) {
  uint64_t start = event.address;
  uint64_t end = start + event.size_bytes;
  if (!IsMapped(start, event.size_bytes)) {
    AddProblem(event, "given back, but the heap did not have it");
    return;
  }
  auto block = live_.lower_bound(start);
  if (block != live_.end() && block->first < end) {
    AddProblem(event, "given back under a live block");
  }
  auto range = std::prev(mapped_.upper_bound(start));
  uint64_t range_end = range->second;
  if (range->first == start) {
    mapped_.erase(range);
  } else {
    range->second = start;
  }
  if (end < range_end) {
    mapped_.emplace(end, range_end);
  }
}

bool LogReplay::IsMapped(uint64_t address, uint64_t num_bytes) const {
  auto next = mapped_.upper_bound(address);
  return next != mapped_.begin() &&
         std::prev(next)->second >= address + num_bytes;
}

uint64_t LogReplay::mapped_bytes() const {
  uint64_t total = 0;
  for (const auto &range : mapped_) {
    total += range.second - range.first;
  }
  return total;
}

const heaplog_info_t &LogReplay::info() const {
  static const heaplog_info_t kEmpty = [] {
    heaplog_info_t empty = {};
    empty.executable = "";
    empty.command_line = "";
    return empty;
  }();
  return reader_ == nullptr ? kEmpty : *heaplog_reader_info(reader_.get());
}

std::vector<heaplog_module_t> LogReplay::Modules() const {
  std::vector<heaplog_module_t> modules;
  heaplog_module_t module;
  while (reader_ != nullptr &&
         heaplog_reader_module(reader_.get(), modules.size(), &module)) {
    modules.push_back(module);
  }
  return modules;
}

std::vector<heaplog_thread_t> LogReplay::Threads() const {
  std::vector<heaplog_thread_t> threads;
  heaplog_thread_t thread;
  while (reader_ != nullptr &&
         heaplog_reader_thread(reader_.get(), threads.size(), &thread)) {
    threads.push_back(thread);
  }
  return threads;
}

std::vector<uint64_t> LogReplay::Stack(uint32_t stack_id) const {
  std::vector<uint64_t> frames(kFramesMax);
  frames.resize(reader_ == nullptr
                    ? 0
                    : heaplog_reader_stack(reader_.get(), stack_id,
                                           frames.data(), frames.size()));
  return frames;
}

}  // namespace leakcheck
