// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// The EventSource that reads a heaplog.

#ifndef MY_ALLOC_VIZ_HEAPLOG_SOURCE_H_
#define MY_ALLOC_VIZ_HEAPLOG_SOURCE_H_

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "leakcheck/heaplog_reader.h"
#include "viz/event_source.h"

namespace viz {

class HeaplogSource : public EventSource {
 public:
  // Fails, with a message that names the path, when nothing of the log can be
  // read.
  static absl::StatusOr<std::unique_ptr<HeaplogSource>> Open(
      const std::string &path);

  ~HeaplogSource() override;
  HeaplogSource(const HeaplogSource &) = delete;
  HeaplogSource &operator=(const HeaplogSource &) = delete;

  size_t Read(heaplog_event_t *out_events, size_t capacity) override;
  bool Rewind() override;
  std::string Error() const override;
  ProcessInfo Process() const override;
  std::vector<Module> Modules() const override;
  std::vector<heaplog_thread_t> Threads() const override;
  bool StackNode(uint32_t stack_id, uint64_t *out_instruction_pointer,
                 uint32_t *out_parent_id) const override;

 private:
  explicit HeaplogSource(heaplog_reader_t *reader);

  heaplog_reader_t *reader_;
};

}  // namespace viz

#endif  // MY_ALLOC_VIZ_HEAPLOG_SOURCE_H_
