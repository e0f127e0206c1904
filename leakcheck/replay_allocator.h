// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// What a replay can drive: each strategy of private heaps, and malloc, which is
// whatever is linked or preloaded.

#ifndef MY_ALLOC_LEAKCHECK_REPLAY_ALLOCATOR_H_
#define MY_ALLOC_LEAKCHECK_REPLAY_ALLOCATOR_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "heap/private_heap.h"

namespace leakcheck {

// What only private heaps tell of their free memory.
struct ReplayPieces {
  uint64_t free_bytes;
  uint64_t free_count;
  uint64_t largest_free_bytes;
  uint64_t longest_steps;  // Of a call.
};

class ReplayAllocator {
 public:
  virtual ~ReplayAllocator() = default;

  // NULL: refused.
  virtual void *Alloc(size_t size_bytes) = 0;
  virtual void *Resize(void *ptr, size_t size_bytes) = 0;
  virtual void Free(void *ptr) = 0;
  virtual size_t UsableBytes(void *ptr) = 0;
  // Frees all blocks; false: it cannot, they must be freed one by one.
  virtual bool Reset() = 0;
  // False: it does not know.
  virtual bool GetPieces(ReplayPieces *out_pieces) = 0;
};

// "first_fit", ..., "malloc".
const std::vector<std::string> &ReplayAllocatorNames();

// Makes one of these, private heaps with these options; "loop" is one that does
// nothing, to see what the replay itself takes. NULL: no such name, or, with
// `errno` set, none could be made.
std::unique_ptr<ReplayAllocator> MakeReplayAllocator(
    const std::string &name, const heap_options_t &options);

// Returns where malloc comes from: the path of the object that has it.
std::string ReplayMallocOrigin();

}  // namespace leakcheck

#endif  // MY_ALLOC_LEAKCHECK_REPLAY_ALLOCATOR_H_
