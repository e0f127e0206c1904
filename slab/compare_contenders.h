// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// What slab_compare compares: each contender is a type with Alloc and Free, of
// objects of 64 bytes.

#ifndef MY_ALLOC_SLAB_COMPARE_CONTENDERS_H_
#define MY_ALLOC_SLAB_COMPARE_CONTENDERS_H_

#include <cstddef>
#include <cstdlib>
#include <memory>
#include <string>

#if __has_include(<boost/pool/pool.hpp>)
#include <boost/pool/pool.hpp>
#define HAS_BOOST_POOL 1
#else
#define HAS_BOOST_POOL 0
#endif

#include "heap/heap.h"
#include "slab/intrusive_list.h"
#include "slab/pointer_stack.h"
#include "slab/slab.h"
#include "slab/slab_inline.h"

namespace compare {

constexpr size_t kObjectBytes = 64;
constexpr size_t kStackCapacity = 1 << 20;

slab_cache_t *MakeCache(size_t object_bytes = kObjectBytes);

struct List {
  static constexpr bool kManyThreads = false;
  static constexpr const char *kName = "intrusive list";
  intrusive_list_t list = {nullptr, nullptr, nullptr, kObjectBytes};
  void *Alloc() {
    return intrusive_list_alloc(&list);
  }
  void Free(void *object) {
    intrusive_list_free(&list, object);
  }
};

// The floor: what a call costs that does nothing but pop a pointer, or push it.
struct Stack {
  static constexpr bool kManyThreads = false;
  static constexpr const char *kName = "pointer stack";
  pointer_stack_t stack = pointer_stack_create(kObjectBytes, kStackCapacity);
  void *Alloc() {
    return pointer_stack_alloc(&stack);
  }
  void Free(void *object) {
    pointer_stack_free(&stack, object);
  }
};

struct StackInline {
  static constexpr bool kManyThreads = false;
  static constexpr const char *kName = "pointer stack, inline";
  pointer_stack_t stack = pointer_stack_create(kObjectBytes, kStackCapacity);
  void *Alloc() {
    return pointer_stack_alloc_inline(&stack);
  }
  void Free(void *object) {
    pointer_stack_free_inline(&stack, object);
  }
};

struct Slab {
  static constexpr bool kManyThreads = true;
  static constexpr const char *kName = "slab";
  slab_cache_t *cache = MakeCache();
  void *Alloc() {
    return slab_alloc(cache);
  }
  void Free(void *object) {
    slab_free(cache, object);
  }
};

struct SlabInline {
  static constexpr bool kManyThreads = true;
  static constexpr const char *kName = "slab inline";
  slab_cache_t *cache = MakeCache();
  void *Alloc() {
    return slab_alloc_inline(cache);
  }
  void Free(void *object) {
    slab_free_inline(cache, object);
  }
};

#if HAS_BOOST_POOL
struct BoostPool {
  static constexpr bool kManyThreads = false;
  static constexpr const char *kName = "boost::pool (inline)";
  boost::pool<> pool{kObjectBytes};
  void *Alloc() {
    return pool.malloc();
  }
  void Free(void *object) {
    pool.free(object);
  }
};
#endif

struct Glibc {
  static constexpr bool kManyThreads = true;
  static constexpr const char *kName = "glibc malloc";
  void *Alloc() {
    return std::malloc(kObjectBytes);
  }
  void Free(void *object) {
    std::free(object);
  }
};

struct Heap {
  static constexpr bool kManyThreads = true;
  static constexpr const char *kName = "heap";
  void *Alloc() {
    return heap_alloc(kObjectBytes);
  }
  void Free(void *object) {
    heap_free(object);
  }
};

// Functions of shared objects, NULL where they are not installed.
struct Loaded {
  void *(*je_malloc)(size_t) = nullptr;
  void (*je_free)(void *) = nullptr;
  void *(*mi_heap_malloc_small)(void *, size_t) = nullptr;
  void *(*mi_heap_get_default)() = nullptr;
  void (*mi_free)(void *) = nullptr;
  void *(*g_slice_alloc)(size_t) = nullptr;
  void (*g_slice_free1)(size_t, void *) = nullptr;
};

inline Loaded loaded;

struct Jemalloc {
  static constexpr bool kManyThreads = true;
  static constexpr const char *kName = "jemalloc";
  void *Alloc() {
    return loaded.je_malloc(kObjectBytes);
  }
  void Free(void *object) {
    loaded.je_free(object);
  }
};

struct Mimalloc {
  static constexpr bool kManyThreads = true;
  static constexpr const char *kName = "mi_heap_malloc_small";
  static inline thread_local void *heap = nullptr;
  void *Alloc() {
    if (heap == nullptr) {
      heap = loaded.mi_heap_get_default();
    }
    return loaded.mi_heap_malloc_small(heap, kObjectBytes);
  }
  void Free(void *object) {
    loaded.mi_free(object);
  }
};

struct GSlice {
  static constexpr bool kManyThreads = true;
  static constexpr const char *kName = "GSlice";
  void *Alloc() {
    return loaded.g_slice_alloc(kObjectBytes);
  }
  void Free(void *object) {
    loaded.g_slice_free1(kObjectBytes, object);
  }
};

// Allocators that the command line names. A type each, so that calls to them
// are compiled as those to the others are.
constexpr size_t kPeersMax = 4;

struct PeerFunctions {
  std::string name;
  void *(*malloc)(size_t) = nullptr;
  void (*free)(void *) = nullptr;
};

inline PeerFunctions peers[kPeersMax];

// `NAME=FILE`, a shared object with malloc and free. Exits if it is none.
void AddPeer(const std::string &name_and_file);

template <size_t kIndex>
struct Peer {
  static constexpr bool kManyThreads = true;
  void *Alloc() {
    return peers[kIndex].malloc(kObjectBytes);
  }
  void Free(void *object) {
    peers[kIndex].free(object);
  }
};

// Calls `use` with a null pointer to each kind of contender that is there, and
// its name.
template <typename Use>
void ForEachContender(Use use) {
  auto call = [&](auto pointer, bool is_there) {
    if (is_there) {
      use(pointer, decltype(pointer)::element_type::kName);
    }
  };
  call(std::shared_ptr<List>(), true);
  call(std::shared_ptr<Stack>(), true);
  call(std::shared_ptr<StackInline>(), true);
  call(std::shared_ptr<Slab>(), true);
  call(std::shared_ptr<SlabInline>(), true);
#if HAS_BOOST_POOL
  call(std::shared_ptr<BoostPool>(), true);
#endif
  call(std::shared_ptr<Heap>(), true);
  call(std::shared_ptr<Glibc>(), true);
  call(std::shared_ptr<Jemalloc>(), loaded.je_free != nullptr);
  call(std::shared_ptr<Mimalloc>(), loaded.mi_free != nullptr);
  call(std::shared_ptr<GSlice>(), loaded.g_slice_free1 != nullptr);
  auto call_peer = [&](auto pointer, size_t index) {
    if (peers[index].free != nullptr) {
      use(pointer, peers[index].name.c_str());
    }
  };
  call_peer(std::shared_ptr<Peer<0>>(), 0);
  call_peer(std::shared_ptr<Peer<1>>(), 1);
  call_peer(std::shared_ptr<Peer<2>>(), 2);
  call_peer(std::shared_ptr<Peer<3>>(), 3);
}

// Looks for the shared objects, those of the command line aside.
void Load();

}  // namespace compare

#endif  // MY_ALLOC_SLAB_COMPARE_CONTENDERS_H_
