// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// A hash map from non-zero 64-bit keys to small values, for tables that see
// one lookup an event. Open addressing with linear probing; erasing moves later
// entries back, so there are no tombstones and lookups stay short however many
// blocks came and went. The hash is seeded, since keys come from files that may
// be hostile; nothing that is printed may depend on the order of ForEach().
//
//   AddressMap<Block> live;
//   live.Insert(address) = block;  // A new value is value-initialised.
//   if (Block *block = live.Find(address)) { ... live.Erase(address); }

#ifndef MY_ALLOC_VIZ_ADDRESS_MAP_H_
#define MY_ALLOC_VIZ_ADDRESS_MAP_H_

#include <cassert>
#include <cstddef>
#include <cstdint>
#include <random>
#include <type_traits>
#include <utility>
#include <vector>

namespace viz {

template <typename Value>
class AddressMap {
  static_assert(std::is_trivially_copyable<Value>::value,
                "values are moved about by erasing");

 public:
  AddressMap() : seed_(std::random_device()() | uint64_t{1}) {
    Resize(10);
  }

  size_t size() const {
    return size_;
  }

  // Returns the value of `key`, or nullptr. Valid until the next change.
  Value *Find(uint64_t key) {
    assert(key != 0);
    for (size_t i = Home(key);; i = (i + 1) & mask_) {
      if (slots_[i].key == key) {
        return &slots_[i].value;
      }
      if (slots_[i].key == 0) {
        return nullptr;
      }
    }
  }

  // Returns the value of `key`, which is new if the map did not have it. Valid
  // until the next change.
  Value &Insert(uint64_t key) {
    assert(key != 0);
    size_t i = Home(key);
    for (; slots_[i].key != 0; i = (i + 1) & mask_) {
      if (slots_[i].key == key) {
        return slots_[i].value;
      }
    }
    if ((size_ + 1) * 8 > slots_.size() * 5) {
      Resize(65 - shift_);
      return Insert(key);
    }
    ++size_;
    slots_[i].key = key;
    slots_[i].value = Value();
    return slots_[i].value;
  }

  // Returns false if the map did not have `key`.
  bool Erase(uint64_t key) {
    Value *value = Find(key);
    if (value == nullptr) {
      return false;
    }
    EraseFound(value);
    return true;
  }

  // Erases what Find() or Insert() has just returned.
  void EraseFound(Value *value) {
    size_t hole = static_cast<size_t>(
        reinterpret_cast<Slot *>(reinterpret_cast<char *>(value) -
                                 offsetof(Slot, value)) -
        slots_.data());
    // Fill the hole with the next entry that may live there: one whose home is
    // not between the hole and itself.
    for (size_t i = (hole + 1) & mask_; slots_[i].key != 0;
         i = (i + 1) & mask_) {
      if (((i - Home(slots_[i].key)) & mask_) >= ((i - hole) & mask_)) {
        slots_[hole] = slots_[i];
        hole = i;
      }
    }
    slots_[hole].key = 0;
    --size_;
  }

  // Starts loading the slot of `key` into the cache.
  void Prefetch(uint64_t key) const {
    __builtin_prefetch(&slots_[Home(key)]);
  }

  // Calls visit(key, value) for each entry, in no particular order.
  template <typename Visit>
  void ForEach(Visit visit) const {
    for (const Slot &slot : slots_) {
      if (slot.key != 0) {
        visit(slot.key, slot.value);
      }
    }
  }

 private:
  struct Slot {
    uint64_t key;
    Value value;
  };

  size_t Home(uint64_t key) const {
    uint64_t hash = (key ^ seed_) * 0x9e3779b97f4a7c15u;
    hash = (hash ^ (hash >> 32)) * 0xd6e8feb86659fd93u;
    return static_cast<size_t>(hash >> shift_);
  }

  void Resize(unsigned log2_slots) {
    std::vector<Slot> old(size_t{1} << log2_slots);
    old.swap(slots_);
    shift_ = 64 - log2_slots;
    mask_ = slots_.size() - 1;
    for (const Slot &slot : old) {
      if (slot.key != 0) {
        size_t i = Home(slot.key);
        while (slots_[i].key != 0) {
          i = (i + 1) & mask_;
        }
        slots_[i] = slot;
      }
    }
  }

  uint64_t seed_;
  std::vector<Slot> slots_;
  size_t size_ = 0;
  size_t mask_ = 0;
  unsigned shift_ = 64;
};

}  // namespace viz

#endif  // MY_ALLOC_VIZ_ADDRESS_MAP_H_
