// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// What the tests of slab share: a seed, a source of memory that can be told to
// fail, and a model of a cache that checks each operation.

#ifndef MY_ALLOC_SLAB_SLAB_TESTING_H_
#define MY_ALLOC_SLAB_SLAB_TESTING_H_

#include <cstddef>
#include <cstdint>
#include <map>
#include <vector>

#include "slab/slab.h"

namespace slab_testing {

// Returns the seed of this run, SLAB_TEST_SEED or a constant, and prints it.
uint64_t Seed();

// Options of a cache of such objects, and no others.
slab_options_t Options(size_t object_bytes = 64, size_t align_bytes = 0);

slab_stats_t Stats(slab_cache_t *cache);

std::vector<void *> AllocMany(slab_cache_t *cache, size_t count);

// Hands out memory of the C library, filled with rubbish, and counts.
class FakeSource {
 public:
  slab_source_t Get();

  // Fails calls of `alloc` from number `from` (1 is the next) on, `count` of
  // them.
  void FailFrom(int from, int count);
  int failures() const {
    return failures_;
  }
  // Bytes that were handed out and are not back.
  size_t live_bytes() const {
    return live_bytes_;
  }
  size_t most_bytes() const {
    return most_bytes_;
  }

 private:
  static void *Alloc(void *context, size_t size_bytes, size_t align_bytes);
  static void Free(void *context, void *ptr, size_t size_bytes);

  std::map<void *, size_t> blocks_;
  size_t live_bytes_ = 0;
  size_t most_bytes_ = 0;
  int calls_ = 0;
  int fail_from_ = 0;
  int fail_count_ = 0;
  int failures_ = 0;
};

// A cache and what should be in it. Every object is filled with a pattern of
// its own, which is verified before it is freed. Aborts on any difference, as
// fuzz targets have no googletest.
class CacheModel {
 public:
  // Objects must be of 1 byte at least; the model does the constructing if
  // `options` has no constructor of its own.
  explicit CacheModel(const slab_options_t &options);
  ~CacheModel();
  CacheModel(const CacheModel &) = delete;
  CacheModel &operator=(const CacheModel &) = delete;

  slab_cache_t *cache() const {
    return cache_;
  }
  size_t num_live() const {
    return objects_.size();
  }
  // Returns whether there was one.
  bool Alloc();
  bool AllocZeroed();
  bool AllocBulk(size_t count);
  void Free(size_t index);
  void FreeBulk(size_t index, size_t count);
  void FreeAll();
  void Reap();
  // Verifies the cache by itself, and that it agrees: walk, statistics.
  void Check() const;

 private:
  struct Object {
    unsigned char *ptr;
    uint64_t id;
  };

  void Add(void *ptr, bool is_zero);
  void VerifyAndForget(size_t index);

  slab_cache_t *cache_;
  size_t object_bytes_;
  size_t align_bytes_;
  std::vector<Object> objects_;
  std::map<uintptr_t, uint64_t> ids_;  // By address.
  uint64_t next_id_ = 0;
};

}  // namespace slab_testing

#endif  // MY_ALLOC_SLAB_SLAB_TESTING_H_
