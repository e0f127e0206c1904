// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

#include "leakcheck/replay_allocator.h"

#include <dlfcn.h>
#include <malloc.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <iterator>

namespace leakcheck {

namespace {

constexpr const char *kStrategyNames[] = {
    "first_fit", "next_fit", "best_fit", "tlsf", "buddy", "segregated"};
static_assert(std::size(kStrategyNames) == HEAP_STRATEGY_COUNT, "one each");

class PrivateHeap : public ReplayAllocator {
 public:
  explicit PrivateHeap(heap_t *heap) : heap_(heap) {
  }
  ~PrivateHeap() override {
    heap_destroy(heap_);
  }
  PrivateHeap(const PrivateHeap &) = delete;
  PrivateHeap &operator=(const PrivateHeap &) = delete;

  void *Alloc(size_t size_bytes) override {
    return heap_alloc_in(heap_, size_bytes);
  }
  void *Resize(void *ptr, size_t size_bytes) override {
    return heap_realloc_in(heap_, ptr, size_bytes);
  }
  void Free(void *ptr) override {
    heap_free_in(heap_, ptr);
  }
  size_t UsableBytes(void *ptr) override {
    return heap_usable_size_in(heap_, ptr);
  }
  bool Reset() override {
    heap_reset(heap_);
    return true;
  }
  bool GetPieces(ReplayPieces *out_pieces) override {
    heap_private_stats_t stats;
    heap_stats_get_in(heap_, &stats);
    *out_pieces = {stats.free_bytes, stats.num_free, stats.largest_free_bytes,
                   stats.max_steps};
    return true;
  }

 private:
  heap_t *const heap_;
};

class Malloc : public ReplayAllocator {
 public:
  void *Alloc(size_t size_bytes) override {
    return malloc(size_bytes);
  }
  void *Resize(void *ptr, size_t size_bytes) override {
    // realloc(ptr, 0) may free it.
    return realloc(ptr, std::max<size_t>(size_bytes, 1));
  }
  void Free(void *ptr) override {
    free(ptr);
  }
  size_t UsableBytes(void *ptr) override {
    return malloc_usable_size(ptr);
  }
  bool Reset() override {
    return false;
  }
  bool GetPieces(ReplayPieces *out_pieces) override {
    (void)out_pieces;
    return false;
  }
};

class Loop : public ReplayAllocator {
 public:
  void *Alloc(size_t size_bytes) override {
    (void)size_bytes;
    return block_;
  }
  void *Resize(void *ptr, size_t size_bytes) override {
    (void)size_bytes;
    return ptr;
  }
  void Free(void *ptr) override {
    (void)ptr;
  }
  size_t UsableBytes(void *ptr) override {
    (void)ptr;
    return sizeof(block_);
  }
  bool Reset() override {
    return true;
  }
  bool GetPieces(ReplayPieces *out_pieces) override {
    (void)out_pieces;
    return false;
  }

 private:
  alignas(64) unsigned char block_[64];
};

}  // namespace

const std::vector<std::string> &ReplayAllocatorNames() {
  static const auto *const kNames = [] {
    auto *names = new std::vector<std::string>(std::begin(kStrategyNames),
                                               std::end(kStrategyNames));
    names->push_back("malloc");
    return names;
  }();
  return *kNames;
}

std::unique_ptr<ReplayAllocator> MakeReplayAllocator(
    const std::string &name, const heap_options_t &options) {
  errno = 0;
  if (name == "malloc") {
    return std::make_unique<Malloc>();
  }
  if (name == "loop") {
    return std::make_unique<Loop>();
  }
  const auto *strategy =
      std::find(std::begin(kStrategyNames), std::end(kStrategyNames), name);
  if (strategy == std::end(kStrategyNames)) {
    return nullptr;
  }
  heap_options_t own = options;
  own.strategy =
      static_cast<heap_strategy_t>(strategy - std::begin(kStrategyNames));
  if (own.strategy == HEAP_SEGREGATED) {
    own.granule_bytes = 0;  // It has size classes.
  }
  heap_t *heap = heap_create(&own);
  return heap == nullptr ? nullptr : std::make_unique<PrivateHeap>(heap);
}

std::string ReplayMallocOrigin() {
  Dl_info info;
  void *function = dlsym(RTLD_DEFAULT, "malloc");
  return function != nullptr && dladdr(function, &info) != 0 &&
                 info.dli_fname != nullptr
             ? info.dli_fname
             : "this program";
}

}  // namespace leakcheck
