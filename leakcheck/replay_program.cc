// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// One pass over the events with a map of what is live. In a log that lost
// nothing each event must fit to those before; in one that did, those that do
// not are left out and counted.

#include "leakcheck/replay_program.h"

#include <algorithm>
#include <functional>
#include <iterator>
#include <memory>
#include <new>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "leakcheck/heaplog_reader.h"

namespace leakcheck {

namespace {

struct CloseReader {
  void operator()(heaplog_reader_t *reader) const {
    heaplog_reader_close(reader);
  }
};

class Compiler {
 public:
  Compiler(const ReplayCompileOptions &options, ReplayProgram *program)
      : options_(options), program_(*program) {
  }

  // Returns "" or what is wrong.
  std::string Add(const heaplog_event_t &event) {
    std::string wrong = AddAny(event);
    if (program_.operations.size() > options_.operations_max) {
      return absl::StrCat("more than ", options_.operations_max, " operations");
    }
    return wrong;
  }

  // Tells whether every event fitted to those before.
  std::string End(uint64_t lost_count) {
    program_.lost_count = lost_count;
    program_.slot_count = next_slot_;
    for (const auto &[address, block] : blocks_) {
      program_.leftovers.push_back(block.slot);
    }
    if (lost_count == 0 && !contradiction_.empty()) {
      return contradiction_;
    }
    return program_.operations.empty() ? "no allocations in it" : "";
  }

 private:
  struct Block {
    uint32_t slot;
    uint64_t size_bytes;
  };

  std::string AddAny(const heaplog_event_t &event) {
    switch (event.kind) {
      case HEAPLOG_ALLOC:
        return AddAlloc(event);
      case HEAPLOG_FREE:
        return AddFree(event);
      case HEAPLOG_RESIZE:
        return AddResize(event);
      default:
        return "";
    }
  }

  std::string AddAlloc(const heaplog_event_t &event) {
    const auto [block, is_new] =
        blocks_.try_emplace(event.address, Block{0, event.size_bytes});
    if (!is_new) {
      return Contradict(event, "hands out", "which is live");
    }
    block->second.slot = TakeSlot();
    ++program_.alloc_count;
    Push(event, kReplayAlloc, 0, block->second.slot);
    return Grow(event, event.size_bytes, 1);
  }

  std::string AddFree(const heaplog_event_t &event) {
    const auto block = blocks_.find(event.address);
    if (block == blocks_.end()) {
      return Contradict(event, "frees", "which is not live");
    }
    Push(event, kReplayFree, block->second.slot, block->second.slot);
    ++program_.free_count;
    live_bytes_ -= block->second.size_bytes;
    --live_count_;
    GiveSlot(block->second.slot);
    blocks_.erase(block);
    return "";
  }

  std::string AddResize(const heaplog_event_t &event) {
    const auto block = blocks_.find(event.address);
    if (block == blocks_.end()) {
      return Contradict(event, "resizes", "which is not live");
    }
    const uint32_t slot = block->second.slot;
    // Whoever frees it must not take what was there before.
    block->second.slot = options_.is_concurrent ? TakeSlot() : slot;
    ++program_.resize_count;
    Push(event, kReplayResize, slot, block->second.slot);
    live_bytes_ -= block->second.size_bytes;
    block->second.size_bytes = event.size_bytes;
    return Grow(event, event.size_bytes, 0);
  }

  void Push(const heaplog_event_t &event, ReplayKind kind, uint32_t slot,
            uint32_t to_slot) {
    ReplayOperation operation = {};
    operation.slot = slot;
    operation.to_slot = to_slot;
    // Grow() refuses a larger one.
    operation.size_bytes = event.size_bytes & kReplaySizeMax;
    operation.thread = event.thread_index % kReplayThreadsMax;
    operation.kind = kind;
    program_.thread_count = std::max(
        program_.thread_count, static_cast<uint32_t>(operation.thread) + 1);
    program_.operations.push_back(operation);
    program_.times_ns.push_back(event.time_ns);
  }

  std::string Grow(const heaplog_event_t &event, uint64_t size_bytes,
                   uint64_t count) {
    if (size_bytes > options_.limit_bytes - live_bytes_) {
      return absl::StrFormat(
          "at %d ns thread %d: a block of %d bytes makes more than %d live",
          event.time_ns, event.thread_index, event.size_bytes,
          options_.limit_bytes);
    }
    live_bytes_ += size_bytes;
    live_count_ += count;
    if (live_bytes_ > program_.peak_bytes) {
      program_.peak_bytes = live_bytes_;
      program_.peak_count = live_count_;
      program_.peak_index = program_.operations.size() - 1;
    }
    return "";
  }

  std::string Contradict(const heaplog_event_t &event, const char *does,
                         const char *what) {
    ++program_.skipped_count;
    if (contradiction_.empty()) {
      contradiction_ =
          absl::StrFormat("at %d ns thread %d %s block %#x, %s", event.time_ns,
                          event.thread_index, does, event.address, what);
    }
    return "";
  }

  uint32_t TakeSlot() {
    if (free_slots_.empty()) {
      return next_slot_++;
    }
    const uint32_t slot = free_slots_.back();
    free_slots_.pop_back();
    return slot;
  }

  void GiveSlot(uint32_t slot) {
    if (!options_.is_concurrent) {
      free_slots_.push_back(slot);
    }
  }

  const ReplayCompileOptions options_;
  ReplayProgram &program_;
  absl::flat_hash_map<uint64_t, Block, absl::Hash<uint64_t>,
                      std::equal_to<uint64_t>,
                      MappedAllocator<std::pair<const uint64_t, Block>>>
      blocks_;
  MappedVector<uint32_t> free_slots_;
  uint32_t next_slot_ = 0;
  uint64_t live_bytes_ = 0;
  uint64_t live_count_ = 0;
  std::string contradiction_;
};

std::string Compile(heaplog_reader_t *reader,
                    const ReplayCompileOptions &options,
                    ReplayProgram *out_program) {
  Compiler compiler(options, out_program);
  heaplog_event_t events[256];
  size_t count;
  do {
    count = heaplog_reader_read(reader, events, std::size(events));
    for (size_t i = 0; i < count; ++i) {
      std::string wrong = compiler.Add(events[i]);
      if (!wrong.empty()) {
        return wrong;
      }
    }
  } while (count == std::size(events));
  heaplog_error_t error;
  if (heaplog_reader_status(reader, &error) != 0) {
    return absl::StrFormat("byte %d: %s", error.byte_offset, error.text);
  }
  return compiler.End(heaplog_reader_info(reader)->lost_count);
}

}  // namespace

std::string CompileReplay(const std::string &path,
                          const ReplayCompileOptions &options,
                          ReplayProgram *out_program) {
  heaplog_reader_t *opened = nullptr;
  heaplog_error_t error;
  if (heaplog_reader_open(path.c_str(), &opened, &error) != 0) {
    return absl::StrFormat("byte %d: %s", error.byte_offset, error.text);
  }
  const std::unique_ptr<heaplog_reader_t, CloseReader> reader(opened);
  try {
    return Compile(reader.get(), options, out_program);
  } catch (const std::bad_alloc &) {
    return "no memory for its operations";
  }
}

}  // namespace leakcheck
