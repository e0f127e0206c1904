// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// Where a report's events and definitions come from: a log on disk
// (heaplog_source.h), or a vector in a test. The report reads the events twice,
// and asks for definitions after the first time.

#ifndef MY_ALLOC_VIZ_EVENT_SOURCE_H_
#define MY_ALLOC_VIZ_EVENT_SOURCE_H_

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "leakcheck/heaplog.h"

namespace viz {

struct Module {
  std::string path;
  std::string build_id;  // Raw bytes; empty when the module has none.
  uint64_t start_address = 0;
  uint64_t end_address = 0;
  uint64_t load_bias = 0;
  uint64_t load_time_ns = 0;
  uint64_t unload_time_ns = UINT64_MAX;
};

struct ProcessInfo {
  uint64_t pid = 0;
  uint64_t start_unix_ns = 0;
  uint64_t file_bytes = 0;
  uint64_t lost_count = 0;
  std::string executable;
  std::vector<std::string> arguments;
  bool clean_end = false;
};

class EventSource {
 public:
  virtual ~EventSource() = default;

  // Stores up to `capacity` events. Fewer only at the end or at an error.
  virtual size_t Read(heaplog_event_t *out_events, size_t capacity) = 0;

  // Starts over. Returns false when that failed; then Error() says why.
  virtual bool Rewind() = 0;

  // "" while the log is whole, else one line that tells what is wrong where.
  virtual std::string Error() const = 0;

  // Valid once Read() came to the end, until Rewind().
  virtual ProcessInfo Process() const = 0;
  virtual std::vector<Module> Modules() const = 0;
  virtual std::vector<heaplog_thread_t> Threads() const = 0;

  // One node of the tree of stacks: its frame, and the stack that called it
  // (0: none). Returns false for an unknown id.
  virtual bool StackNode(uint32_t stack_id, uint64_t *out_instruction_pointer,
                         uint32_t *out_parent_id) const = 0;
};

}  // namespace viz

#endif  // MY_ALLOC_VIZ_EVENT_SOURCE_H_
