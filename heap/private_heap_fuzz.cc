// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// A program of calls, read from the input, is run on a heap with a strategy and
// options that the input chooses, in a buffer. Blocks keep their contents,
// heap_check_in() is content all the while, and all is free in the end.

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "heap/private_heap.h"

namespace {

constexpr size_t kBufferBytes = 256 << 10;
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
  // A size of any length in bits up to that of the buffer.
  size_t Size() {
    const unsigned bits = Byte() % 19;
    const size_t value = size_t{Byte()} << 10 | size_t{Byte()} << 2;
    return value & ((size_t{1} << bits) - 1);
  }

 private:
  const uint8_t *data_;
  size_t left_bytes_;
};

void Require(bool condition) {
  if (!condition) {
    std::abort();
  }
}

struct Block {
  unsigned char *ptr;
  size_t size_bytes;
  unsigned char id;
};

class Program {
 public:
  explicit Program(heap_t *heap) : heap_(heap) {
  }

  void Add(void *ptr, size_t size_bytes, size_t align_bytes) {
    if (ptr == nullptr) {
      return;
    }
    Require(reinterpret_cast<uintptr_t>(ptr) % align_bytes == 0);
    Require(heap_usable_size_in(heap_, ptr) >= size_bytes);
    blocks_.push_back({static_cast<unsigned char *>(ptr), size_bytes, ++id_});
    memset(ptr, id_, size_bytes);
  }

  void Resize(size_t index, size_t size_bytes) {
    if (blocks_.empty()) {
      return;
    }
    Block &block = blocks_[index % blocks_.size()];
    RequireFilled(block, block.size_bytes);
    void *ptr = heap_realloc_in(heap_, block.ptr, size_bytes);
    if (ptr == nullptr) {
      Require(size_bytes > block.size_bytes);
      RequireFilled(block, block.size_bytes);
      return;
    }
    block.ptr = static_cast<unsigned char *>(ptr);
    RequireFilled(
        block, size_bytes < block.size_bytes ? size_bytes : block.size_bytes);
    block.size_bytes = size_bytes;
    memset(ptr, block.id, size_bytes);
  }

  void Free(size_t index) {
    if (blocks_.empty()) {
      return;
    }
    Block &block = blocks_[index % blocks_.size()];
    RequireFilled(block, block.size_bytes);
    heap_free_in(heap_, block.ptr);
    block = blocks_.back();
    blocks_.pop_back();
  }

  void Forget() {
    heap_reset(heap_);
    blocks_.clear();
  }

  void Check() {
    heap_private_stats_t stats;
    Require(heap_check_in(heap_) == nullptr);
    heap_stats_get_in(heap_, &stats);
    Require(stats.num_live == blocks_.size());
  }

  void FreeAll() {
    while (!blocks_.empty()) {
      Free(0);
    }
    Check();
  }

 private:
  static void RequireFilled(const Block &block, size_t size_bytes) {
    for (size_t i = 0; i < size_bytes; ++i) {
      Require(block.ptr[i] == block.id);
    }
  }

  heap_t *const heap_;
  std::vector<Block> blocks_;
  unsigned char id_ = 0;
};

void Step(heap_t *heap, Program *program, Input *input) {
  const uint8_t operation = input->Byte();
  switch (operation % 8) {
    case 0:
    case 1: {
      const size_t size = input->Size();
      program->Add(heap_alloc_in(heap, size), size, 16);
      break;
    }
    case 2: {
      const size_t size = input->Size();
      program->Add(heap_calloc_in(heap, 1, size), size, 16);
      break;
    }
    case 3: {
      const size_t align = size_t{1} << (operation / 8 % 14);
      const size_t size = input->Size();
      program->Add(heap_aligned_alloc_in(heap, align, size), size, align);
      break;
    }
    case 4: {
      const size_t index = input->Byte();
      program->Resize(index, input->Size());
      break;
    }
    case 5:
      if (operation == 253) {
        program->Forget();
      }
      break;
    default:
      program->Free(input->Byte());
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size_bytes) {
  static std::vector<unsigned char> memory(kBufferBytes);
  Input input(data, size_bytes);
  heap_options_t options = {};
  options.strategy =
      static_cast<heap_strategy_t>(input.Byte() % HEAP_STRATEGY_COUNT);
  const uint8_t tuning = input.Byte();
  options.granule_bytes = size_t{16} << (tuning % 4);
  if (options.strategy == HEAP_SEGREGATED) {
    options.granule_bytes = 0;
    options.span_bytes = tuning % 8 == 7 ? 0 : size_t{1024} << (tuning % 8);
  }
  options.split_bytes = size_t{16} << (tuning / 4 % 8);
  options.tlsf_lists_log2 = 1 + tuning / 32 % 5;
  options.single_threaded = true;
  options.buffer = memory.data();
  options.buffer_bytes = kBufferBytes - tuning;
  heap_t *heap = heap_create(&options);
  Require(heap != nullptr);
  Program program(heap);
  for (int step = 1; !input.IsAtEnd(); ++step) {
    Step(heap, &program, &input);
    if (step % kStepsBetweenChecks == 0) {
      program.Check();
    }
  }
  program.Check();
  program.FreeAll();
  heap_destroy(heap);
  return 0;
}
