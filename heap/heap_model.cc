// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

#include "heap/heap_model.h"

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <iterator>

#include "heap/heap.h"
#include "heap/heap_patterns.h"

// Compares without googletest, which fuzz targets do not have.
#define MODEL_CHECK(condition)                                         \
  do {                                                                 \
    if (!(condition)) {                                                \
      std::fprintf(stderr, "%s:%d: heap differs from its model: %s\n", \
                   __FILE__, __LINE__, #condition);                    \
      std::abort();                                                    \
    }                                                                  \
  } while (false)

namespace heap_testing {
namespace {

// A request of more may be refused by the kernel.
constexpr size_t kSurelyGranted = size_t{1} << 30;
constexpr size_t kFreedKept = 256;

}  // namespace

HeapModel::HeapModel(size_t max_live_bytes) : max_live_bytes_(max_live_bytes) {
}

HeapModel::~HeapModel() {
  while (!blocks_.empty()) {
    Free(0);
  }
}

bool HeapModel::HasRoom(size_t size_bytes) const {
  return size_bytes > kSurelyGranted ||
         size_bytes <= max_live_bytes_ - live_bytes_;
}

void HeapModel::Alloc(size_t size_bytes) {
  if (HasRoom(size_bytes)) {
    errno = 0;
    void *ptr = heap_alloc(size_bytes);
    Add(ptr, HEAP_MIN_ALIGN_BYTES, size_bytes, errno);
  }
}

void HeapModel::Calloc(size_t count, size_t size_bytes) {
  size_t total_bytes;
  if (__builtin_mul_overflow(count, size_bytes, &total_bytes)) {
    total_bytes = SIZE_MAX;
  }
  if (!HasRoom(total_bytes)) {
    return;
  }
  errno = 0;
  void *ptr = heap_calloc(count, size_bytes);
  const int error = errno;
  MODEL_CHECK(ptr == nullptr || IsZero(ptr, total_bytes));
  Add(ptr, HEAP_MIN_ALIGN_BYTES, total_bytes, error);
}

void HeapModel::AlignedAlloc(size_t align_bytes, size_t size_bytes) {
  if (!HasRoom(size_bytes)) {
    return;
  }
  errno = 0;
  void *ptr = heap_aligned_alloc(align_bytes, size_bytes);
  if (align_bytes == 0 || (align_bytes & (align_bytes - 1)) != 0) {
    MODEL_CHECK(ptr == nullptr && errno == EINVAL);
    return;
  }
  const bool is_granted =
      align_bytes <= kSurelyGranted && size_bytes <= kSurelyGranted;
  MODEL_CHECK(ptr != nullptr || !is_granted);
  if (ptr == nullptr) {
    MODEL_CHECK(errno == ENOMEM);
    return;
  }
  Add(ptr, align_bytes, size_bytes, errno);
}

void HeapModel::Add(void *ptr, size_t align_bytes, size_t size_bytes,
                    int error) {
  if (ptr == nullptr) {
    MODEL_CHECK(error == ENOMEM);
    MODEL_CHECK(size_bytes > kSurelyGranted);
    return;
  }
  MODEL_CHECK(size_bytes <= PTRDIFF_MAX);
  const auto start = reinterpret_cast<uintptr_t>(ptr);
  const size_t usable_bytes = heap_usable_size(ptr);
  const uintptr_t end = start + usable_bytes;
  MODEL_CHECK(start % HEAP_MIN_ALIGN_BYTES == 0);
  MODEL_CHECK(start % align_bytes == 0);
  MODEL_CHECK(usable_bytes >= size_bytes);
  const auto next = ranges_.lower_bound(start);
  MODEL_CHECK(next == ranges_.end() || next->first >= end);
  MODEL_CHECK(next == ranges_.begin() || std::prev(next)->second <= start);
  ranges_.emplace_hint(next, start, end);
  const Block block = {static_cast<unsigned char *>(ptr), usable_bytes,
                       ++next_id_};
  // To its usable end: those bytes are the caller's too.
  if (size_bytes <= kSurelyGranted) {
    Fill(ptr, usable_bytes, block.id);
  }
  live_bytes_ += usable_bytes;
  blocks_.push_back(block);
  if (size_bytes > kSurelyGranted) {
    Free(blocks_.size() - 1);
  }
}

void HeapModel::CheckContents(const Block &block, size_t size_bytes) const {
  MODEL_CHECK(heap_usable_size(block.ptr) == block.usable_bytes);
  MODEL_CHECK(block.usable_bytes > kSurelyGranted ||
              IsFilled(block.ptr, size_bytes, block.usable_bytes, block.id));
}

void HeapModel::Remove(size_t index) {
  const Block &block = blocks_[index];
  const auto start = reinterpret_cast<uintptr_t>(block.ptr);
  ranges_.erase(start);
  live_bytes_ -= block.usable_bytes;
  if (freed_.size() < kFreedKept) {
    freed_.push_back(start);
  } else {
    freed_[next_id_ % kFreedKept] = start;
  }
  blocks_[index] = blocks_.back();
  blocks_.pop_back();
}

void HeapModel::Realloc(size_t index, size_t size_bytes) {
  if (blocks_.empty() || !HasRoom(size_bytes)) {
    return;
  }
  index %= blocks_.size();
  const Block block = blocks_[index];
  CheckContents(block, block.usable_bytes);
  errno = 0;
  void *ptr = heap_realloc(block.ptr, size_bytes);
  const int error = errno;
  if (ptr == nullptr) {
    MODEL_CHECK(size_bytes > kSurelyGranted && error == ENOMEM);
    CheckContents(block, block.usable_bytes);
    return;
  }
  MODEL_CHECK(IsFilled(ptr, size_bytes, block.usable_bytes, block.id));
  Remove(index);
  Add(ptr, HEAP_MIN_ALIGN_BYTES, size_bytes, error);
}

void HeapModel::Free(size_t index) {
  if (blocks_.empty()) {
    return;
  }
  index %= blocks_.size();
  CheckContents(blocks_[index], blocks_[index].usable_bytes);
  void *ptr = blocks_[index].ptr;
  Remove(index);
  errno = EDOM;
  heap_free(ptr);
  MODEL_CHECK(errno == EDOM);
}

void HeapModel::UsableSize(size_t index) const {
  if (!blocks_.empty()) {
    const Block &block = blocks_[index % blocks_.size()];
    MODEL_CHECK(heap_usable_size(block.ptr) == block.usable_bytes);
  }
}

void *HeapModel::BadPointer(size_t index, size_t offset) const {
  uintptr_t address = 16 + offset;  // Of nobody.
  if (index % 2 == 0 && !freed_.empty()) {
    address = freed_[index / 2 % freed_.size()] + (offset % 4 == 0) * offset;
  } else if (!blocks_.empty()) {
    const Block &block = blocks_[index / 2 % blocks_.size()];
    address = reinterpret_cast<uintptr_t>(block.ptr) + 1 +
              offset % (block.usable_bytes + 16);
  }
  // Meanwhile a block may start there.
  return reinterpret_cast<void *>(address + ranges_.count(address));
}

void HeapModel::Check() const {
  const char *broken = heap_check();
  if (broken != nullptr) {
    std::fprintf(stderr, "heap_check: %s\n", broken);
    std::abort();
  }
  for (const Block &block : blocks_) {
    CheckContents(block, block.usable_bytes);
  }
}

void RunHeapModel(uint64_t seed, unsigned max_log2, int steps) {
  Random random(seed);
  HeapModel model(64 << 20);
  for (int step = 0; step < steps; ++step) {
    const size_t index = random.Next();
    const size_t size = random.SkewedSize(max_log2);
    switch (random.Below(8)) {
      case 0:
        model.Calloc(1, size);
        break;
      case 1:
        model.AlignedAlloc(size_t{1} << random.Below(18), size);
        break;
      case 2:
        model.Realloc(index, size);
        break;
      case 3:
      case 4:
      case 5:
        model.Free(index);
        break;
      default:
        model.Alloc(size);
    }
    if (random.OneIn(100)) {
      heap_trim(random.OneIn(2) ? 0 : random.Below(8 << 20));
    }
    if (step % 50 == 0) {
      model.Check();
    }
  }
  model.Check();
}

}  // namespace heap_testing
