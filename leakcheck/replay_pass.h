// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// Runs a replay's operations on an allocator, from the first to the last, for
// the time or for the memory they take.

#ifndef MY_ALLOC_LEAKCHECK_REPLAY_PASS_H_
#define MY_ALLOC_LEAKCHECK_REPLAY_PASS_H_

#include <cstddef>
#include <cstdint>

#include "leakcheck/replay_allocator.h"
#include "leakcheck/replay_program.h"

namespace leakcheck {

struct ReplayTimes {
  uint64_t cpu_ns = 0;   // Of the calls and the loop around them.
  uint64_t wall_ns = 0;  // The same, and waiting for other threads.
  uint64_t refused_count = 0;
};

// The state after an operation.
struct ReplaySample {
  uint64_t operation;  // How many were done.
  uint64_t time_ns;    // When it was so in the log.
  uint64_t requested_bytes;
  uint64_t usable_bytes;    // Of live blocks.
  uint64_t resident_bytes;  // Of the allocator, its tables included.
  bool has_pieces;
  ReplayPieces pieces;
};

class ReplayPass {
 public:
  // The threads of a concurrent one run at once, each its own operations in
  // their order; who needs a block waits until it is there. Otherwise all
  // operations are done by the calling thread.
  ReplayPass(const ReplayProgram &program, bool is_concurrent);

  // All passes free what is live at the end.

  // A program writes to its blocks: so does this, once.
  ReplayTimes Time(ReplayAllocator *allocator);

  // Lowers what `call_ns`, by operation, says to what this call took.
  void TimeCalls(ReplayAllocator *allocator, uint32_t *call_ns);

  // Writes to each page of each block; takes samples, after the operations
  // whose indices `sample_at` has, in ascending order. `idle_bytes` were
  // resident before the allocator was made.
  void Sample(ReplayAllocator *allocator, const size_t *sample_at,
              size_t sample_count, uint64_t idle_bytes,
              ReplaySample *out_samples);

 private:
  template <typename Calls>
  ReplayTimes Run(const Calls &calls);
  template <typename Calls>
  ReplayTimes RunInOrder(const Calls &calls);
  template <typename Calls>
  ReplayTimes RunThreads(const Calls &calls);
  void FreeAll(ReplayAllocator *allocator);

  const ReplayProgram &program_;
  const bool is_concurrent_;
  MappedVector<void *> slots_;
  MappedVector<uint64_t> sizes_;  // Requested, by slot.
  // Of each thread those of its own, one after the other.
  MappedVector<size_t> thread_operations_;
  MappedVector<size_t> thread_ends_;
};

// Private memory of this process that is in use, in bytes.
uint64_t ReplayResidentBytes();

}  // namespace leakcheck

#endif  // MY_ALLOC_LEAKCHECK_REPLAY_PASS_H_
