// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// A heaplog as a flat array of calls, so that a replay reads nothing but that:
// every address has become a slot, in which the replay keeps whatever pointer
// its allocator gives. The log is not believed; what cannot be replayed is an
// error.
//
//   ReplayProgram program;
//   const std::string error = CompileReplay("run.heaplog", {}, &program);
//
// Its memory does not come from malloc, which may be what is measured.

#ifndef MY_ALLOC_LEAKCHECK_REPLAY_PROGRAM_H_
#define MY_ALLOC_LEAKCHECK_REPLAY_PROGRAM_H_

#include <sys/mman.h>

#include <cstddef>
#include <cstdint>
#include <new>
#include <string>
#include <vector>

namespace leakcheck {

// Memory from the kernel, for std::vector and maps.
template <typename T>
struct MappedAllocator {
  using value_type = T;

  MappedAllocator() = default;
  template <typename U>
  explicit MappedAllocator(const MappedAllocator<U> &) {
  }
  T *allocate(size_t count) {
    void *ptr = count > SIZE_MAX / sizeof(T)
                    ? MAP_FAILED
                    : mmap(nullptr, count * sizeof(T), PROT_READ | PROT_WRITE,
                           MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (ptr == MAP_FAILED) {
      throw std::bad_alloc();
    }
    return static_cast<T *>(ptr);
  }
  void deallocate(T *ptr, size_t count) {
    munmap(ptr, count * sizeof(T));
  }
  bool operator==(const MappedAllocator &) const {
    return true;
  }
  bool operator!=(const MappedAllocator &) const {
    return false;
  }
};

template <typename T>
using MappedVector = std::vector<T, MappedAllocator<T>>;

enum ReplayKind : unsigned {
  kReplayAlloc,   // A block of `size_bytes` comes into `to_slot`.
  kReplayFree,    // The block in `slot` goes.
  kReplayResize,  // That in `slot` gets `size_bytes`, and goes into `to_slot`.
};

inline constexpr uint64_t kReplaySizeMax = (uint64_t{1} << 48) - 1;
// A log with more threads has them share these.
inline constexpr uint32_t kReplayThreadsMax = 256;

struct ReplayOperation {
  uint32_t slot;
  uint32_t to_slot;
  uint64_t size_bytes : 48;
  uint64_t thread : 12;  // Below kReplayThreadsMax.
  uint64_t kind : 4;
};
static_assert(sizeof(ReplayOperation) == 16, "they are many");

struct ReplayProgram {
  MappedVector<ReplayOperation> operations;
  MappedVector<uint64_t> times_ns;  // Of each, since the log's start.
  uint32_t slot_count = 0;
  MappedVector<uint32_t> leftovers;  // Slots of what is live at the end.
  uint32_t thread_count = 0;
  size_t alloc_count = 0;
  size_t free_count = 0;
  size_t resize_count = 0;
  // Of the sizes that the program asked for.
  uint64_t peak_bytes = 0;
  uint64_t peak_count = 0;  // Blocks then.
  size_t peak_index = 0;    // The operation that made it so.
  // Where a log says that events are lost: those it cannot be without.
  uint64_t lost_count = 0;
  uint64_t skipped_count = 0;
};

struct ReplayCompileOptions {
  // Slots are not used again: threads that run at once depend on each other by
  // the blocks they share alone.
  bool is_concurrent = false;
  uint64_t limit_bytes = uint64_t{4} << 30;  // Live at once.
  size_t operations_max = 100'000'000;
};

// Returns "" or what is wrong with the log, in one line.
std::string CompileReplay(const std::string &path,
                          const ReplayCompileOptions &options,
                          ReplayProgram *out_program);

}  // namespace leakcheck

#endif  // MY_ALLOC_LEAKCHECK_REPLAY_PROGRAM_H_
