// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// The process heap next to a model of it: every live block with its range and
// contents. Each operation is done on both and the results compared; the
// process aborts, saying why, where they differ. For tests and fuzz targets.

#ifndef MY_ALLOC_HEAP_HEAP_MODEL_H_
#define MY_ALLOC_HEAP_HEAP_MODEL_H_

#include <cstddef>
#include <cstdint>
#include <map>
#include <vector>

namespace heap_testing {

class HeapModel {
 public:
  // Requests that would bring the live bytes above `max_live_bytes` are not
  // made.
  explicit HeapModel(size_t max_live_bytes);
  ~HeapModel();  // Frees what is left.
  HeapModel(const HeapModel &) = delete;
  HeapModel &operator=(const HeapModel &) = delete;

  size_t live_count() const {
    return blocks_.size();
  }

  void Alloc(size_t size_bytes);
  void Calloc(size_t count, size_t size_bytes);
  void AlignedAlloc(size_t align_bytes, size_t size_bytes);

  // These take the live block number `index` modulo their count; they do
  // nothing when there is none.
  void Realloc(size_t index, size_t size_bytes);
  void Free(size_t index);
  void UsableSize(size_t index) const;

  // Returns an address that is not the start of a live block: `index` and
  // `offset` choose among addresses inside of live blocks and of blocks that
  // were freed.
  void *BadPointer(size_t index, size_t offset) const;

  // Verifies the heap's invariants and the contents of all live blocks.
  void Check() const;

 private:
  struct Block {
    unsigned char *ptr;
    size_t usable_bytes;
    uint64_t id;  // Of its contents.
  };

  bool HasRoom(size_t size_bytes) const;
  void Add(void *ptr, size_t align_bytes, size_t size_bytes, int error);
  void Remove(size_t index);
  void CheckContents(const Block &block, size_t size_bytes) const;

  const size_t max_live_bytes_;
  size_t live_bytes_ = 0;
  uint64_t next_id_ = 0;
  std::vector<Block> blocks_;
  std::map<uintptr_t, uintptr_t> ranges_;  // Start to end of live blocks.
  std::vector<uintptr_t> freed_;           // Starts of the blocks freed last.
};

// Makes `steps` random calls of all kinds, of sizes below 2^max_log2 bytes, and
// frees what is left.
void RunHeapModel(uint64_t seed, unsigned max_log2, int steps = 600);

}  // namespace heap_testing

#endif  // MY_ALLOC_HEAP_HEAP_MODEL_H_
