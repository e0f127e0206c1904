// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0
//
// LogReplay: reads a whole heaplog and follows every block's life, noting what
// cannot be: blocks that overlap, frees of blocks that are not live, blocks
// outside of what the heap had from the kernel. For tests: it keeps all live
// blocks in a map and is not made to be fast.
//
//   leakcheck::LogReplay replay("run.heaplog");
//   EXPECT_THAT(replay.problems(), IsEmpty());
//   EXPECT_EQ(replay.counts().allocs, 3u);

#ifndef MY_ALLOC_LEAKCHECK_LOG_REPLAY_H_
#define MY_ALLOC_LEAKCHECK_LOG_REPLAY_H_

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "leakcheck/heaplog.h"
#include "leakcheck/heaplog_reader.h"

namespace leakcheck {

class LogReplay {
 public:
  struct Block {
    uint64_t size_bytes;
    uint64_t usable_bytes;
    uint64_t time_ns;
    uint32_t stack_id;
    uint32_t thread_index;
  };

  struct Counts {
    uint64_t allocs = 0;
    uint64_t frees = 0;
    uint64_t resizes = 0;
    uint64_t maps = 0;
    uint64_t unmaps = 0;
    uint64_t samples = 0;
    uint64_t lost = 0;
    uint64_t ends = 0;
  };

  explicit LogReplay(const std::string &path);

  // The first of the contradictions, in words; the reader's error is one.
  const std::vector<std::string> &problems() const {
    return problems_;
  }

  const Counts &counts() const {
    return counts_;
  }
  // All events, in the order of the merged log.
  const std::vector<heaplog_event_t> &events() const {
    return events_;
  }
  // At the end, by address.
  const std::map<uint64_t, Block> &live() const {
    return live_;
  }
  uint64_t live_bytes() const {
    return live_bytes_;
  }
  uint64_t peak_live_bytes() const {
    return peak_live_bytes_;
  }
  uint64_t mapped_bytes() const;

  const heaplog_info_t &info() const;
  std::vector<heaplog_module_t> Modules() const;
  std::vector<heaplog_thread_t> Threads() const;
  // Instruction pointers, innermost first.
  std::vector<uint64_t> Stack(uint32_t stack_id) const;

 private:
  void Apply(const heaplog_event_t &event);
  void Alloc(const heaplog_event_t &event);
  void Free(const heaplog_event_t &event);
  void Resize(const heaplog_event_t &event);
  void Map(const heaplog_event_t &event);
  void Unmap(const heaplog_event_t &event);
  bool IsMapped(uint64_t address, uint64_t num_bytes) const;
  void AddProblem(const heaplog_event_t &event, const std::string &what);

  std::unique_ptr<heaplog_reader_t, void (*)(heaplog_reader_t *)> reader_;
  std::vector<std::string> problems_;
  std::vector<heaplog_event_t> events_;
  Counts counts_;
  std::map<uint64_t, Block> live_;
  std::map<uint64_t, uint64_t> mapped_;  // Disjoint, start to end.
  uint64_t live_bytes_ = 0;
  uint64_t peak_live_bytes_ = 0;
};

}  // namespace leakcheck

#endif  // MY_ALLOC_LEAKCHECK_LOG_REPLAY_H_
