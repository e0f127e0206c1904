// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0
//
// The C++ face of slab: a cache of objects of a type, a std::pmr resource and
// an allocator for the standard containers. C++17, header only.
//
//   slab::Cache<Node> nodes("node");
//   Node *node = nodes.New(1, 2);     // Constructed; std::bad_alloc.
//   nodes.Delete(node);               // Destroyed.
//   auto owner = nodes.Make(3, 4);    // std::unique_ptr.
//
//   slab::Resource resource(64);      // Nodes of up to 64 bytes from a cache,
//   std::pmr::list<int> list(&resource);  // others from upstream.
//
//   std::map<int, int, std::less<int>,
//            slab::Allocator<std::pair<const int, int>>> map;
//
// Each is as safe for threads as the cache that it stands on, and every free is
// checked as slab_free checks it.

#ifndef MY_ALLOC_SLAB_SLAB_HPP_
#define MY_ALLOC_SLAB_SLAB_HPP_

#include <atomic>
#include <cstddef>
#include <memory>
#include <memory_resource>
#include <new>
#include <type_traits>
#include <utility>

#include "slab/slab.h"
#include "slab/slab_inline.h"

namespace slab {

// A cache of `T`s: raw memory for them in a `slab_cache_t`, constructed by New
// and destroyed by Delete. To construct objects once for many uses (Bonwick),
// use slab.h, whose options have a constructor.
template <typename T>
class Cache {
  static_assert(sizeof(T) <= SLAB_OBJECT_BYTES_MAX &&
                    alignof(T) <= SLAB_ALIGN_BYTES_MAX,
                "slab has no objects of this size");

 public:
  // Throws std::bad_alloc if there is no memory.
  explicit Cache(const char *name = "") : Cache(MakeOptions(name)) {
  }

  // With a source, a limit, flags...; size and alignment are those of `T`, or
  // more, and there is no constructor. std::bad_alloc as well if `options` are
  // not valid.
  explicit Cache(slab_options_t options) {
    if (options.object_bytes < sizeof(T)) {
      options.object_bytes = sizeof(T);
    }
    if (options.align_bytes < alignof(T)) {
      options.align_bytes = alignof(T);
    }
    options.construct = nullptr;
    options.destruct = nullptr;
    cache_ = slab_cache_create(&options);
    if (cache_ == nullptr) {
      throw std::bad_alloc();
    }
  }

  // Objects that are live are named on stderr; their memory goes, their
  // destructors do not run.
  ~Cache() {
    slab_cache_destroy(cache_, SLAB_DESTROY_LIVE);
  }

  Cache(const Cache &) = delete;
  Cache &operator=(const Cache &) = delete;

  template <typename... Args>
  T *New(Args &&...args) {
    void *object = slab_alloc_inline(cache_);
    if (object == nullptr) {
      throw std::bad_alloc();
    }
    if constexpr (std::is_nothrow_constructible_v<T, Args &&...>) {
      return ::new (object) T(std::forward<Args>(args)...);
    } else {
      try {
        return ::new (object) T(std::forward<Args>(args)...);
      } catch (...) {
        slab_free_inline(cache_, object);
        throw;
      }
    }
  }

  // nullptr is a no-op.
  void Delete(T *object) noexcept {
    if (object != nullptr) {
      object->~T();
      slab_free_inline(cache_, const_cast<std::remove_cv_t<T> *>(object));
    }
  }

  class Deleter {
   public:
    explicit Deleter(Cache *cache = nullptr) : cache_(cache) {
    }
    void operator()(T *object) const noexcept {
      cache_->Delete(object);
    }

   private:
    Cache *cache_;
  };
  using Pointer = std::unique_ptr<T, Deleter>;

  template <typename... Args>
  Pointer Make(Args &&...args) {
    return Pointer(New(std::forward<Args>(args)...), Deleter(this));
  }

  // The cache itself, for slab_stats, slab_reap, slab_walk...
  slab_cache_t *get() const {
    return cache_;
  }

 private:
  static slab_options_t MakeOptions(const char *name) {
    slab_options_t options = {};
    options.name = name;
    return options;
  }

  slab_cache_t *cache_;
};

// Requests of up to `object_bytes` are objects of one cache, all others go to
// `upstream`: for containers whose nodes have one size.
class Resource : public std::pmr::memory_resource {
 public:
  explicit Resource(
      std::size_t object_bytes,
      std::pmr::memory_resource *upstream = std::pmr::get_default_resource())
      : upstream_(upstream), object_bytes_(object_bytes) {
    slab_options_t options = {};
    options.name = "slab::Resource";
    options.object_bytes = object_bytes;
    options.align_bytes = alignof(std::max_align_t);
    cache_ = slab_cache_create(&options);
    if (cache_ == nullptr) {
      throw std::bad_alloc();
    }
  }

  ~Resource() override {
    slab_cache_destroy(cache_, SLAB_DESTROY_LIVE);
  }

  Resource(const Resource &) = delete;
  Resource &operator=(const Resource &) = delete;

  slab_cache_t *get() const {
    return cache_;
  }

 private:
  bool Fits(std::size_t bytes, std::size_t align_bytes) const {
    return bytes <= object_bytes_ && align_bytes <= alignof(std::max_align_t);
  }

  void *do_allocate(std::size_t bytes, std::size_t align_bytes) override {
    if (!Fits(bytes, align_bytes)) {
      return upstream_->allocate(bytes, align_bytes);
    }
    void *object = slab_alloc_inline(cache_);
    if (object == nullptr) {
      throw std::bad_alloc();
    }
    return object;
  }

  void do_deallocate(void *ptr, std::size_t bytes,
                     std::size_t align_bytes) override {
    if (!Fits(bytes, align_bytes)) {
      upstream_->deallocate(ptr, bytes, align_bytes);
      return;
    }
    slab_free_inline(cache_, ptr);
  }

  bool do_is_equal(
      const std::pmr::memory_resource &other) const noexcept override {
    return this == &other;
  }

  std::pmr::memory_resource *upstream_;
  std::size_t object_bytes_;
  slab_cache_t *cache_;
};

namespace internal {

// The process's cache for this size and alignment, whatever shared object asks;
// each of these remembers it, hidden from others, since it may have been linked
// to a slab of its own. nullptr: no memory.
template <std::size_t kBytes, std::size_t kAlignBytes>
__attribute__((visibility("hidden"))) slab_cache_t *SharedCache() {
  static std::atomic<slab_cache_t *> known{nullptr};
  slab_cache_t *cache = known.load(std::memory_order_acquire);
  if (cache == nullptr) {
    cache = slab_shared_cache(kBytes, kAlignBytes);
    known.store(cache, std::memory_order_release);
  }
  return cache;
}

}  // namespace internal

// Single objects are from a cache that all allocators for that size share;
// arrays, and what is too large, from operator new. Stateless: all are equal.
template <typename T>
class Allocator {
 public:
  using value_type = T;
  using is_always_equal = std::true_type;

  Allocator() noexcept = default;
  template <typename U>
  Allocator(const Allocator<U> &) noexcept {  // NOLINT: as the standard wants.
  }

  T *allocate(std::size_t count) {
    if (!IsObject(count)) {
      if (count > static_cast<std::size_t>(-1) / sizeof(T)) {
        throw std::bad_array_new_length();
      }
      return static_cast<T *>(
          ::operator new(count * sizeof(T), std::align_val_t(alignof(T))));
    }
    slab_cache_t *cache = internal::SharedCache<sizeof(T), alignof(T)>();
    void *object = cache == nullptr ? nullptr : slab_alloc_inline(cache);
    if (object == nullptr) {
      throw std::bad_alloc();
    }
    return static_cast<T *>(object);
  }

  void deallocate(T *ptr, std::size_t count) noexcept {
    if (!IsObject(count)) {
      ::operator delete(ptr, std::align_val_t(alignof(T)));
      return;
    }
    slab_free_inline(internal::SharedCache<sizeof(T), alignof(T)>(), ptr);
  }

 private:
  static constexpr bool IsObject(std::size_t count) {
    return count == 1 && sizeof(T) <= SLAB_OBJECT_BYTES_MAX &&
           alignof(T) <= SLAB_ALIGN_BYTES_MAX;
  }
};

template <typename T, typename U>
bool operator==(const Allocator<T> &, const Allocator<U> &) noexcept {
  return true;
}

template <typename T, typename U>
bool operator!=(const Allocator<T> &, const Allocator<U> &) noexcept {
  return false;
}

}  // namespace slab

#endif  // MY_ALLOC_SLAB_SLAB_HPP_
