// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// An EventSource for tests: events and stacks from memory, and a generator of
// random ones.

#ifndef MY_ALLOC_VIZ_FAKE_SOURCE_H_
#define MY_ALLOC_VIZ_FAKE_SOURCE_H_

#include <algorithm>
#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "viz/event_source.h"

namespace viz {

class FakeSource : public EventSource {
 public:
  explicit FakeSource(std::vector<heaplog_event_t> events)
      : events_(std::move(events)) {
  }

  void SetStack(uint32_t id, uint32_t parent, uint64_t instruction_pointer) {
    stacks_[id] = {instruction_pointer, parent};
  }
  void SetError(const std::string &error) {
    error_ = error;
  }
  ProcessInfo *process() {
    return &process_;
  }
  std::vector<Module> *modules() {
    return &modules_;
  }
  std::vector<heaplog_thread_t> *threads() {
    return &threads_;
  }

  size_t Read(heaplog_event_t *out_events, size_t capacity) override {
    const size_t count = std::min(capacity, events_.size() - at_);
    std::copy_n(events_.begin() + static_cast<std::ptrdiff_t>(at_), count,
                out_events);
    at_ += count;
    return count;
  }
  bool Rewind() override {
    at_ = 0;
    return true;
  }
  std::string Error() const override {
    return error_;
  }
  ProcessInfo Process() const override {
    return process_;
  }
  std::vector<Module> Modules() const override {
    return modules_;
  }
  std::vector<heaplog_thread_t> Threads() const override {
    return threads_;
  }
  bool StackNode(uint32_t stack_id, uint64_t *out_instruction_pointer,
                 uint32_t *out_parent_id) const override {
    const auto found = stacks_.find(stack_id);
    if (found == stacks_.end()) {
      return false;
    }
    *out_instruction_pointer = found->second.first;
    *out_parent_id = found->second.second;
    return true;
  }

 private:
  std::vector<heaplog_event_t> events_;
  size_t at_ = 0;
  std::string error_;
  ProcessInfo process_;
  std::vector<Module> modules_;
  std::vector<heaplog_thread_t> threads_;
  std::map<uint32_t, std::pair<uint64_t, uint32_t>> stacks_;
};

struct RandomEventsOptions {
  size_t count = 2000;
  uint64_t seed = 1;
  uint32_t stacks = 20;
  uint32_t threads = 3;
  uint64_t clump_bytes = 1 << 20;  // Blocks live in four clumps this long.
  uint64_t size_max = 6000;
  bool is_lossy = false;  // With frees of unknown blocks, and unseen frees.
};

// A well-formed history (blocks never overlap) of all kinds of events.
std::vector<heaplog_event_t> RandomEvents(const RandomEventsOptions &options);

}  // namespace viz

#endif  // MY_ALLOC_VIZ_FAKE_SOURCE_H_
