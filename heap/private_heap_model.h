// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// A private heap against what it should have, by address: random calls, each
// checked by what a program can see.

#ifndef MY_ALLOC_HEAP_PRIVATE_HEAP_MODEL_H_
#define MY_ALLOC_HEAP_PRIVATE_HEAP_MODEL_H_

#include <cstddef>
#include <cstdint>
#include <map>

#include "heap/heap_patterns.h"
#include "heap/private_heap.h"

namespace heap_testing {

class PrivateHeapModel {
 public:
  explicit PrivateHeapModel(heap_t *heap, size_t granule_bytes = 16)
      : heap_(heap), granule_bytes_(granule_bytes) {
  }

  // One random call.
  void Step(Random *random, unsigned max_log2);
  // Compares all there is.
  void Check();
  void FreeAll();

  size_t refused() const {
    return refused_;
  }
  size_t served() const {
    return served_;
  }

 private:
  struct Block {
    size_t size_bytes;
    uint64_t id;
  };

  void Add(void *ptr, size_t size, size_t align, bool is_zeroed);
  std::map<void *, Block>::iterator Choose(Random *random);
  void Free(Random *random);
  void Resize(Random *random, size_t size);

  heap_t *const heap_;
  const size_t granule_bytes_;
  std::map<void *, Block> blocks_;
  size_t live_bytes_ = 0;
  uint64_t last_id_ = 0;
  size_t refused_ = 0;
  size_t served_ = 0;
};

// Makes a heap, runs `steps` calls on it, and frees all.
void RunPrivateHeapModel(const heap_options_t &options, uint64_t seed,
                         int steps, unsigned max_log2, int check_every);

}  // namespace heap_testing

#endif  // MY_ALLOC_HEAP_PRIVATE_HEAP_MODEL_H_
