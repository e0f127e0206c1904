// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// Pages of HEAP_GUARD_BYTES that fault when they are read or written, at both
// ends of each span and of each larger block (hardened variant).
//
//   run:  | guard | blocks of a span, or one block | rest | guard | < 4 KiB |

#ifndef MY_ALLOC_HEAP_GUARD_H_
#define MY_ALLOC_HEAP_GUARD_H_

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "heap/harden.h"

#ifdef __cplusplus
extern "C" {
#endif

// Returns the bytes between the two guards of a run, a multiple of the guard's
// size; the run starts at one.
static inline size_t heap_guarded_bytes(size_t run_bytes) {
  return (run_bytes & ~(size_t)(HEAP_GUARD_BYTES - 1)) -
         2 * (size_t)HEAP_GUARD_BYTES;
}

// Makes the page at `address` a guard, unless that is switched off or refused:
// then it is a page that nobody uses. Central lock held.
void heap_guard_set(uintptr_t address);

// Makes it a page again, all zero or as it was. Central lock held.
void heap_guard_clear(uintptr_t address);

// As above, for both guards of a run.
void heap_guard_set_ends(uintptr_t run, size_t run_bytes);
void heap_guard_clear_ends(uintptr_t run, size_t run_bytes);

// Guards that were refused, and those that are mappings of their own, now.
// Central lock held.
size_t heap_guard_refused_count(void);
size_t heap_guard_mapping_count(void);

// Tells whether there may be a guard that does not fault. No lock needed.
bool heap_guard_may_be_missing(void);

// Tells whether the guard at `address`, which was set, is certain not to fault;
// its last 8 bytes are zero then, unless the program wrote there.
bool heap_guard_is_missing(uintptr_t address);

#ifdef __cplusplus
}  // extern "C"
#endif

#endif  // MY_ALLOC_HEAP_GUARD_H_
