// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// From Linux 6.13 on a page is made a guard without a mapping of its own, by a
// mark in the page table. Where the kernel does not know that, or does not do
// it (memory that is locked: mlockall), the page is forbidden by mprotect,
// which splits the mapping that it lies in. A process may have vm.max_map_count
// mappings, 65530 by default, and the program has a right to most of them: at
// most GUARDS_MAX guards are made so, each of which makes two more mappings of
// one. When these are used up, or the kernel refuses, the page is there all the
// same, but does not fault. The end of such a page is zero: the free of the
// block behind it looks whether it still is. That the page is one to be read is
// certain only in a process in which no guard was ever made by a mark, of which
// there is no table.
//
// Which pages were forbidden is in a table, open addressing with linear probes:
// they are few, and there is no room in the descriptors.
//
// A page that cannot be allowed again, because the kernel is out of memory for
// a mapping, would be a fault in the next block that has it. That is not to be
// survived, since the block that was freed is not any more.

#include "heap/guard.h"

#include <assert.h>

#include "heap/canary.h"
#include "heap/central.h"
#include "heap/fatal.h"
#include "heap/kernel.h"
#include "heap/metadata.h"

enum {
  GUARDS_MAX = 8192,
  TABLE_SLOTS = 2 * GUARDS_MAX,
};

static_assert((TABLE_SLOTS & (TABLE_SLOTS - 1)) == 0, "masked, not divided");

// All guarded by the central lock.
static bool is_advice_refused;
static uintptr_t *forbidden;  // TABLE_SLOTS; 0: empty.
static size_t forbidden_count;
static size_t refused_count;
static bool has_marks;  // Some guard was made so.
// Atomic, relaxed: some guard is not there. A thread that has a block behind
// such a guard reads true, as it has got the block after that.
static bool is_any_missing;

static size_t home_of(uintptr_t address) {
  return (address / HEAP_GUARD_BYTES * UINT64_C(0x9e3779b97f4a7c15) >> 32) &
         (TABLE_SLOTS - 1);
}

// Returns the slot of `address`, or the empty one where it would be.
static size_t find(uintptr_t address) {
  size_t slot = home_of(address);
  while (forbidden[slot] != 0 && forbidden[slot] != address) {
    slot = (slot + 1) & (TABLE_SLOTS - 1);
  }
  return slot;
}

// Empties a slot, and moves those behind it up that would not be found else.
static void empty(size_t slot) {
  size_t next = slot;
  for (;;) {
    next = (next + 1) & (TABLE_SLOTS - 1);
    if (forbidden[next] == 0) {
      break;
    }
    size_t distance = (next - home_of(forbidden[next])) & (TABLE_SLOTS - 1);
    if (distance >= ((next - slot) & (TABLE_SLOTS - 1))) {
      forbidden[slot] = forbidden[next];
      slot = next;
    }
  }
  forbidden[slot] = 0;
}

static bool forbid(uintptr_t address) {
  if (forbidden == NULL) {
    forbidden = heap_metadata_map(TABLE_SLOTS * sizeof(*forbidden));
  }
  if (forbidden == NULL || forbidden_count == GUARDS_MAX) {
    return false;
  }
  heap_central_count_kernel_call();
  if (!heap_kernel->forbid((void *)address, HEAP_GUARD_BYTES)) {
    return false;
  }
  forbidden[find(address)] = address;
  ++forbidden_count;
  return true;
}

static bool is_possible(void) {
  return heap_harden_has(HEAP_HARDEN_GUARD) &&
         heap_kernel->page_bytes() <= HEAP_GUARD_BYTES;
}

// Reads first, as that does not take memory where none is.
static void do_without(uintptr_t address) {
  uintptr_t at = address + HEAP_GUARD_BYTES - HEAP_CANARY_BYTES;
  __atomic_store_n(&is_any_missing, true, __ATOMIC_RELAXED);
  if (heap_canary_load(at) != 0) {
    heap_canary_store(at, 0);
  }
}

bool heap_guard_may_be_missing(void) {
  return __atomic_load_n(&is_any_missing, __ATOMIC_RELAXED);
}

bool heap_guard_is_missing(uintptr_t address) {
  if (!is_possible()) {
    return true;
  }
  return heap_guard_may_be_missing() && !has_marks &&
         (forbidden == NULL || forbidden[find(address)] != address);
}

void heap_guard_set(uintptr_t address) {
  if (!is_possible()) {
    do_without(address);
    return;
  }
  if (!is_advice_refused) {
    heap_central_count_kernel_call();
    if (heap_kernel->guard((void *)address, HEAP_GUARD_BYTES, true)) {
      has_marks = true;
      return;
    }
    is_advice_refused = true;
  }
  if (!forbid(address)) {
    ++refused_count;
    do_without(address);
  }
}

void heap_guard_clear(uintptr_t address) {
  if (!is_possible()) {
    return;
  }
  size_t slot = forbidden == NULL ? 0 : find(address);
  if (forbidden != NULL && forbidden[slot] == address) {
    heap_central_count_kernel_call();
    if (!heap_kernel->commit((void *)address, HEAP_GUARD_BYTES)) {
      HEAP_DIE("the kernel does not give a guard page back");
    }
    empty(slot);
    --forbidden_count;
    return;
  }
  // Succeeds where there is none, in kernels that know it.
  heap_central_count_kernel_call();
  heap_kernel->guard((void *)address, HEAP_GUARD_BYTES, false);
}

void heap_guard_set_ends(uintptr_t run, size_t run_bytes) {
  heap_guard_set(run);
  heap_guard_set(run + HEAP_GUARD_BYTES + heap_guarded_bytes(run_bytes));
}

void heap_guard_clear_ends(uintptr_t run, size_t run_bytes) {
  heap_guard_clear(run);
  heap_guard_clear(run + HEAP_GUARD_BYTES + heap_guarded_bytes(run_bytes));
}

size_t heap_guard_refused_count(void) {
  return refused_count;
}

size_t heap_guard_mapping_count(void) {
  return forbidden_count;
}
