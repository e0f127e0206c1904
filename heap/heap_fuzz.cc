// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// A program of calls, read from the input, is run on the heap and on its model:
// blocks of the sizes and alignments that were asked for, apart from each
// other, with their contents kept, and heap_check() content all the while. Bad
// pointers must be reported and change nothing.

#include <fcntl.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>

#include "heap/heap.h"
#include "heap/heap_model.h"

namespace {

constexpr size_t kMaxLiveBytes = size_t{16} << 20;
constexpr int kStepsBetweenChecks = 16;

// Reads numbers from the input, zeros behind its end.
class Input {
 public:
  Input(const uint8_t *data, size_t size_bytes)
      : data_(data), left_bytes_(size_bytes) {
  }

  bool IsAtEnd() const {
    return left_bytes_ == 0;
  }

  uint8_t Byte() {
    if (left_bytes_ == 0) {
      return 0;
    }
    --left_bytes_;
    return *data_++;
  }

  // A size of any length in bits: an exponent, then the bits below it. One that
  // is more than may be live becomes one that is more than can be.
  size_t Size() {
    const uint8_t head = Byte();
    const unsigned bits = head % 65;
    size_t size = head / 65;
    for (unsigned i = 0; i < bits; i += 8) {
      size = size << 8 | Byte();
    }
    size &= bits == 64 ? SIZE_MAX : (size_t{1} << bits) - 1;
    return size > kMaxLiveBytes ? ~(size >> 1) : size;
  }

 private:
  const uint8_t *data_;
  size_t left_bytes_;
};

// Passes a pointer that is no block to the heap; each call must count one more
// misuse.
void MisuseOnce(unsigned kind, void *ptr) {
  heap_stats_t before;
  heap_stats_t after;
  heap_stats_get(&before);
  const int saved_fd = dup(STDERR_FILENO);
  const int null_fd = open("/dev/null", O_WRONLY);
  dup2(null_fd, STDERR_FILENO);
  switch (kind % 4) {
    case 0:
      heap_free(ptr);
      break;
    case 1:
      if (heap_realloc(ptr, 100) != nullptr) {
        std::abort();
      }
      break;
    case 2:
      heap_free_sized(ptr, 0, 100);
      break;
    default:
      if (heap_usable_size(ptr) != 0) {
        std::abort();
      }
  }
  dup2(saved_fd, STDERR_FILENO);
  close(saved_fd);
  close(null_fd);
  heap_stats_get(&after);
  if (after.num_misuses != before.num_misuses + 1) {
    std::abort();
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size_bytes) {
  setenv("HEAP_ON_ERROR", "report", 1);
  heap_testing::HeapModel model(kMaxLiveBytes);
  Input input(data, size_bytes);
  for (int step = 1; !input.IsAtEnd(); ++step) {
    const uint8_t operation = input.Byte();
    const size_t index = input.Byte();
    switch (operation % 8) {
      case 0:
      case 1:
        model.Alloc(input.Size());
        break;
      case 2:
        model.Calloc(operation / 8, input.Size());
        break;
      case 3:
        model.AlignedAlloc(size_t{1} << (operation / 8), input.Size());
        break;
      case 4:
        model.Realloc(index, input.Size());
        break;
      case 5:
        model.UsableSize(index);
        break;
      case 6:
        MisuseOnce(operation / 8, model.BadPointer(index, input.Byte()));
        break;
      default:
        model.Free(index);
        if (operation == 255) {
          heap_trim(input.Size());
        }
    }
    if (step % kStepsBetweenChecks == 0) {
      model.Check();
    }
  }
  model.Check();
  return 0;
}
