// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// The central lock: everything that is not one thread's own (the arenas, the
// page table's growth, metadata, mappings, orphaned spans) is behind it.
// It is the only lock of the heap.

#ifndef MY_ALLOC_HEAP_CENTRAL_H_
#define MY_ALLOC_HEAP_CENTRAL_H_

#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

// Not recursive. Held for short, bounded work and single kernel calls.
void heap_central_lock(void);
void heap_central_unlock(void);

// A statistic. Central lock held.
void heap_central_count_kernel_call(void);
size_t heap_central_kernel_calls(void);

// Makes fork hold the lock; by the first to come.
void heap_central_register_fork(void);

#ifdef __cplusplus
}  // extern "C"
#endif

#endif  // MY_ALLOC_HEAP_CENTRAL_H_
