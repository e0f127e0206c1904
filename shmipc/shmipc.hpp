// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0
//
// The C++ face of shmipc: a region, objects and roots in it, locks that are
// left by scope, a pointer for structures in the region, an allocator for
// containers in it. C++17, header only.
//
//   struct Board {
//     explicit Board(const shmipc::Allocator<int> &allocator)
//         : scores(allocator) {}
//     shmipc_mutex_t mutex = {};
//     std::vector<int, shmipc::Allocator<int>> scores;
//   };
//
//   shmipc_region_options_t options = {};
//   options.size_bytes = 1;
//   options.heap_bytes = 16 << 20;
//   auto region = shmipc::Region::CreateOrOpen("/game", options);
//   auto *board = region.FindOrCreate<Board>("board", region.allocator<int>());
//
//   shmipc::MutexGuard guard(region.get(), &board->mutex);
//   if (guard.owner_died()) {
//     ...                       // Repair what it may have left half changed,
//     guard.MakeConsistent();   // then say so.
//   }
//   board->scores.push_back(7);
//
// What fails throws std::system_error with the positive errno and a text of
// what to do; want of memory std::bad_alloc.
//
// A process may be killed at any instruction; the library's own state survives
// that, as its headers say. A *container* does not: it is data. Killed in the
// middle of push_back, a process leaves it half changed, and maybe a block that
// nothing leads to. Whoever gets the lock next is told by owner_died and makes
// it anew, or stops using it. Nor do containers and OffsetPtr check what they
// read: they are for processes that trust each other's code. For bytes that may
// be anything use ref.h and block.h.
//
// No virtual functions, references and plain pointers in shared objects: they
// mean something in one process only.

#ifndef MY_ALLOC_SHMIPC_SHMIPC_HPP_
#define MY_ALLOC_SHMIPC_SHMIPC_HPP_

#include <cerrno>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>
#include <system_error>
#include <type_traits>
#include <utility>

#include "shmipc/block.h"
#include "shmipc/mutex.h"
#include "shmipc/ref.h"
#include "shmipc/region.h"
#include "shmipc/root.h"
#include "shmipc/rwlock.h"
#include "shmipc/shmipc.h"

namespace shmipc {

// Throws what a negative status means.
[[noreturn]] inline void ThrowStatus(int status, const char *call) {
  throw std::system_error(-status, std::generic_category(),
                          std::string(call) + ": " + shmipc_strerror(status));
}

// Does so unless it is 0 or more, which is returned.
inline int Check(int status, const char *call) {
  if (status < 0) {
    ThrowStatus(status, call);
  }
  return status;
}

// A pointer that lies in a region and leads to something in the same region: it
// holds the distance from itself. Like a plain one in all else: it is a random
// access iterator, the null pointer of its type, convertible to a base or to
// void. All bytes zero is null; copying it changes its bytes, so memcpy of a
// structure with one in it is wrong.
template <typename T>
class OffsetPtr {
  template <typename U>
  using Reference = std::add_lvalue_reference_t<U>;
  template <typename U>
  using IfConverts =
      std::enable_if_t<std::is_convertible_v<U *, T *> && !std::is_same_v<U, T>,
                       int>;

 public:
  using element_type = T;
  using value_type = std::remove_cv_t<T>;
  using difference_type = std::ptrdiff_t;
  using pointer = OffsetPtr;
  using reference = Reference<T>;
  using iterator_category = std::random_access_iterator_tag;
  template <typename U>
  using rebind = OffsetPtr<U>;

  OffsetPtr() noexcept = default;
  OffsetPtr(std::nullptr_t) noexcept {
  }
  OffsetPtr(T *target) noexcept {
    Set(target);
  }
  OffsetPtr(const OffsetPtr &other) noexcept {
    Set(other.get());
  }
  template <typename U, IfConverts<U> = 0>
  OffsetPtr(const OffsetPtr<U> &other) noexcept {
    Set(other.get());
  }
  // What static_cast may do, it does when asked to.
  template <typename U,
            typename = decltype(static_cast<T *>(std::declval<U *>())),
            std::enable_if_t<!std::is_convertible_v<U *, T *>, int> = 0>
  explicit OffsetPtr(const OffsetPtr<U> &other) noexcept {
    Set(static_cast<T *>(other.get()));
  }
  OffsetPtr &operator=(const OffsetPtr &other) noexcept {
    Set(other.get());
    return *this;
  }
  OffsetPtr &operator=(T *target) noexcept {
    Set(target);
    return *this;
  }
  OffsetPtr &operator=(std::nullptr_t) noexcept {
    distance_ = 0;
    return *this;
  }

  template <typename U = T>
  static OffsetPtr pointer_to(Reference<U> target) noexcept {
    return OffsetPtr(std::addressof(target));
  }

  // The plain pointer, in this process.
  T *get() const noexcept {
    return distance_ == 0
               ? nullptr
               : reinterpret_cast<T *>(reinterpret_cast<std::uintptr_t>(this) +
                                       distance_ - 1);
  }

  T *operator->() const noexcept {
    return get();
  }
  template <typename U = T>
  Reference<U> operator*() const noexcept {
    return *get();
  }
  template <typename U = T>
  Reference<U> operator[](difference_type index) const noexcept {
    return get()[index];
  }
  explicit operator bool() const noexcept {
    return distance_ != 0;
  }

  OffsetPtr &operator+=(difference_type count) noexcept {
    Set(get() + count);
    return *this;
  }
  OffsetPtr &operator-=(difference_type count) noexcept {
    Set(get() - count);
    return *this;
  }
  OffsetPtr &operator++() noexcept {
    return *this += 1;
  }
  OffsetPtr &operator--() noexcept {
    return *this -= 1;
  }
  OffsetPtr operator++(int) noexcept {
    OffsetPtr before(*this);
    ++*this;
    return before;
  }
  OffsetPtr operator--(int) noexcept {
    OffsetPtr before(*this);
    --*this;
    return before;
  }
  friend OffsetPtr operator+(const OffsetPtr &ptr,
                             difference_type count) noexcept {
    return OffsetPtr(ptr.get() + count);
  }
  friend OffsetPtr operator+(difference_type count,
                             const OffsetPtr &ptr) noexcept {
    return OffsetPtr(ptr.get() + count);
  }
  friend OffsetPtr operator-(const OffsetPtr &ptr,
                             difference_type count) noexcept {
    return OffsetPtr(ptr.get() - count);
  }

 private:
  // One more than the distance in bytes, so that a pointer may lead to itself
  // (the end of an empty list) and zeroed memory is null. It cannot lead to the
  // byte before itself.
  void Set(T *target) noexcept {
    distance_ = target == nullptr
                    ? 0
                    : reinterpret_cast<std::uintptr_t>(target) -
                          reinterpret_cast<std::uintptr_t>(this) + 1;
  }

  std::uintptr_t distance_ = 0;
};

template <typename T, typename U>
auto operator-(const OffsetPtr<T> &left, const OffsetPtr<U> &right) noexcept
    -> decltype(left.get() - right.get()) {
  return left.get() - right.get();
}

#define SHMIPC_COMPARE_(op)                                               \
  template <typename T, typename U>                                       \
  auto operator op(                                                       \
      const OffsetPtr<T> &left,                                           \
      const OffsetPtr<U> &right) noexcept->decltype(left.get()            \
                                                        op right.get()) { \
    return left.get() op right.get();                                     \
  }
SHMIPC_COMPARE_(==)
SHMIPC_COMPARE_(!=)
SHMIPC_COMPARE_(<)
SHMIPC_COMPARE_(<=)
SHMIPC_COMPARE_(>)
SHMIPC_COMPARE_(>=)
#undef SHMIPC_COMPARE_

template <typename T>
bool operator==(const OffsetPtr<T> &ptr, std::nullptr_t) noexcept {
  return !ptr;
}
template <typename T>
bool operator==(std::nullptr_t, const OffsetPtr<T> &ptr) noexcept {
  return !ptr;
}
template <typename T>
bool operator!=(const OffsetPtr<T> &ptr, std::nullptr_t) noexcept {
  return static_cast<bool>(ptr);
}
template <typename T>
bool operator!=(std::nullptr_t, const OffsetPtr<T> &ptr) noexcept {
  return static_cast<bool>(ptr);
}

// Memory of a region's heap for containers that lie in the region, or not. The
// blocks are the region's, not the process's: they live as long as the
// container, whoever made it. Containers must use the allocator's pointer type
// for all that they store: of libstdc++ these are vector and deque (its list,
// map and unordered_map store plain pointers, its strings do not compile); all
// of Boost.Container do.
template <typename T>
class Allocator {
 public:
  using value_type = T;
  using pointer = OffsetPtr<T>;
  using const_pointer = OffsetPtr<const T>;
  using void_pointer = OffsetPtr<void>;
  using const_void_pointer = OffsetPtr<const void>;
  using size_type = std::size_t;
  using difference_type = std::ptrdiff_t;
  using propagate_on_container_copy_assignment = std::true_type;
  using propagate_on_container_move_assignment = std::true_type;
  using propagate_on_container_swap = std::true_type;
  using is_always_equal = std::false_type;
  template <typename U>
  struct rebind {
    using other = Allocator<U>;
  };

  // The region has a heap.
  explicit Allocator(const shmipc_region_t *region) noexcept
      : data_(static_cast<const unsigned char *>(shmipc_region_data(region))) {
  }
  template <typename U>
  Allocator(const Allocator<U> &other) noexcept : data_(other.data()) {
  }

  // Throws std::bad_alloc also if this process has no attachment to the region
  // there (any more): after fork, for example.
  pointer allocate(size_type count) {
    shmipc_region_t *region = shmipc_region_containing(data_.get());
    if (region == nullptr) {
      throw std::bad_alloc();
    }
    if (count > SIZE_MAX / sizeof(T)) {
      throw std::bad_array_new_length();
    }
    void *block =
        shmipc_block_alloc_aligned(region, alignof(T), count * sizeof(T));
    if (block == nullptr) {
      throw std::bad_alloc();
    }
    // It is ours and live; nothing here can fail.
    (void)shmipc_block_share(region, block);
    return pointer(static_cast<T *>(block));
  }

  // What is no block of the region, which only damage can bring about, is left.
  void deallocate(const pointer &block, size_type) noexcept {
    shmipc_region_t *region = shmipc_region_containing(data_.get());
    if (region != nullptr) {
      (void)shmipc_block_free(region, block.get());
    }
  }

  // The region's first byte of data, in this process.
  const unsigned char *data() const noexcept {
    return data_.get();
  }

 private:
  OffsetPtr<const unsigned char> data_;
};

template <typename T, typename U>
bool operator==(const Allocator<T> &left, const Allocator<U> &right) noexcept {
  return left.data() == right.data();
}
template <typename T, typename U>
bool operator!=(const Allocator<T> &left, const Allocator<U> &right) noexcept {
  return !(left == right);
}

// An attachment to a region; closed at the end.
class Region {
 public:
  static Region Create(const char *name,
                       const shmipc_region_options_t &options) {
    shmipc_region_t *region = nullptr;
    Check(shmipc_region_create(name, &options, &region),
          "shmipc_region_create");
    return Region(region);
  }
  static Region Open(const char *name,
                     const shmipc_region_options_t &options = {}) {
    shmipc_region_t *region = nullptr;
    Check(shmipc_region_open(name, &options, &region), "shmipc_region_open");
    return Region(region);
  }
  static Region CreateOrOpen(const char *name,
                             const shmipc_region_options_t &options) {
    shmipc_region_t *region = nullptr;
    Check(shmipc_region_create_or_open(name, &options, &region),
          "shmipc_region_create_or_open");
    return Region(region);
  }

  // Takes an open one over; NULL is none.
  explicit Region(shmipc_region_t *region = nullptr) noexcept
      : region_(region) {
  }
  Region(Region &&other) noexcept
      : region_(std::exchange(other.region_, nullptr)) {
  }
  Region &operator=(Region &&other) noexcept {
    if (this != &other) {
      shmipc_region_close(region_);
      region_ = std::exchange(other.region_, nullptr);
    }
    return *this;
  }
  ~Region() {
    shmipc_region_close(region_);
  }

  shmipc_region_t *get() const noexcept {
    return region_;
  }
  explicit operator bool() const noexcept {
    return region_ != nullptr;
  }
  template <typename T>
  Allocator<T> allocator() const noexcept {
    return Allocator<T>(region_);
  }

  // The data as a T; std::length_error if it is shorter than one.
  template <typename T>
  T *data() const {
    if (shmipc_region_size(region_) < sizeof(T)) {
      throw std::length_error("the region's data is shorter than the type");
    }
    return static_cast<T *>(shmipc_region_data(region_));
  }

  // A new object in a block of this process.
  template <typename T, typename... Args>
  T *New(Args &&...args) {
    void *block = shmipc_block_alloc_aligned(region_, alignof(T), sizeof(T));
    if (block == nullptr) {
      if (errno == ENOMEM) {
        throw std::bad_alloc();
      }
      ThrowStatus(-errno, "shmipc_block_alloc_aligned");
    }
    try {
      return ::new (block) T(std::forward<Args>(args)...);
    } catch (...) {
      (void)shmipc_block_free(region_, block);
      throw;
    }
  }

  // Destroys and frees it, whosever its block is. nullptr is a no-op; what is
  // no live block is not touched and throws.
  template <typename T>
  void Delete(T *object) {
    if (object == nullptr) {
      return;
    }
    if (shmipc_block_usable_size(region_, object) < sizeof(T)) {
      ThrowStatus(-EINVAL, "shmipc::Region::Delete");
    }
    object->~T();
    Check(shmipc_block_free(region_, object), "shmipc_block_free");
  }

  // The object of that name, or nullptr. std::length_error if its block is too
  // short for a T; what type it really has nobody knows.
  template <typename T>
  T *Find(const char *name) {
    shmipc_ref_t ref;
    int status = shmipc_root_find(region_, name, &ref);
    if (status == -ENOENT) {
      return nullptr;
    }
    Check(status, "shmipc_root_find");
    void *block = shmipc_block_get(region_, ref, sizeof(T));
    if (block == nullptr) {
      throw std::length_error("the block of that name is too short");
    }
    return static_cast<T *>(block);
  }

  // The same, constructed if there is none yet: of any number of processes that
  // do this at once, the object of one remains.
  template <typename T, typename... Args>
  T *FindOrCreate(const char *name, Args &&...args) {
    for (;;) {
      T *found = Find<T>(name);
      if (found != nullptr) {
        return found;
      }
      // Not forwarded: a loser whose winner's root was removed tries again.
      T *created = New<T>(args...);
      int status = shmipc_root_add(region_, name, created);
      if (status == 0) {
        return created;
      }
      Delete(created);
      if (status != -EEXIST) {
        ThrowStatus(status, "shmipc_root_add");
      }
    }
  }

 private:
  shmipc_region_t *region_;
};

// Holds a lock as long as it lives. Guards belong to their thread.
template <typename Kind>
class Guard {
 public:
  using Lock = typename Kind::Lock;

  // Waits for it.
  Guard(shmipc_region_t *region, Lock *lock)
      : Guard(region, lock, std::chrono::nanoseconds(SHMIPC_FOREVER)) {
  }
  // Waits at most `timeout`, 0 only tries; look at owns_lock.
  Guard(shmipc_region_t *region, Lock *lock, std::chrono::nanoseconds timeout)
      : region_(region), lock_(lock) {
    int status = Kind::Take(region, lock, timeout.count());
    owner_died_ = status == -EOWNERDEAD;
    owns_lock_ = status == 0 || owner_died_;
    if (!owns_lock_ && status != -ETIMEDOUT) {
      ThrowStatus(status, Kind::kTake);
    }
  }
  ~Guard() {
    if (owns_lock_) {
      (void)Kind::Leave(region_, lock_);
    }
  }
  Guard(const Guard &) = delete;
  Guard &operator=(const Guard &) = delete;

  bool owns_lock() const noexcept {
    return owns_lock_;
  }
  explicit operator bool() const noexcept {
    return owns_lock_;
  }

  // The last owner died with it: the data may be half changed. A mutex that is
  // left without MakeConsistent then can never be taken again.
  bool owner_died() const noexcept {
    return owner_died_;
  }
  // The data is whole again. Not for ReadGuard.
  void MakeConsistent() {
    Check(Kind::MakeConsistent(region_, lock_), "shmipc: MakeConsistent");
    owner_died_ = false;
  }

  // Before the guard's end.
  void Unlock() {
    owns_lock_ = false;
    Check(Kind::Leave(region_, lock_), "shmipc: Unlock");
  }

 private:
  shmipc_region_t *region_;
  Lock *lock_;
  bool owns_lock_ = false;
  bool owner_died_ = false;
};

struct MutexKind {
  using Lock = shmipc_mutex_t;
  static constexpr const char *kTake = "shmipc_mutex_lock";
  static int Take(shmipc_region_t *region, Lock *lock, int64_t timeout_ns) {
    return shmipc_mutex_lock(region, lock, timeout_ns);
  }
  static int Leave(shmipc_region_t *region, Lock *lock) {
    return shmipc_mutex_unlock(region, lock);
  }
  static int MakeConsistent(shmipc_region_t *region, Lock *lock) {
    return shmipc_mutex_consistent(region, lock);
  }
};

struct ReadKind {
  using Lock = shmipc_rwlock_t;
  static constexpr const char *kTake = "shmipc_rwlock_read_lock";
  static int Take(shmipc_region_t *region, Lock *lock, int64_t timeout_ns) {
    return shmipc_rwlock_read_lock(region, lock, timeout_ns);
  }
  static int Leave(shmipc_region_t *region, Lock *lock) {
    return shmipc_rwlock_unlock(region, lock);
  }
};

struct WriteKind {
  using Lock = shmipc_rwlock_t;
  static constexpr const char *kTake = "shmipc_rwlock_write_lock";
  static int Take(shmipc_region_t *region, Lock *lock, int64_t timeout_ns) {
    return shmipc_rwlock_write_lock(region, lock, timeout_ns);
  }
  static int Leave(shmipc_region_t *region, Lock *lock) {
    return shmipc_rwlock_unlock(region, lock);
  }
  static int MakeConsistent(shmipc_region_t *region, Lock *lock) {
    return shmipc_rwlock_consistent(region, lock);
  }
};

using MutexGuard = Guard<MutexKind>;
using ReadGuard = Guard<ReadKind>;
using WriteGuard = Guard<WriteKind>;

}  // namespace shmipc

#endif  // MY_ALLOC_SHMIPC_SHMIPC_HPP_
