// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// The private heaps of the process but for those in buffers, in the order in
// which they were created: so that fork finds their locks, and no two are in
// one file.

#ifndef MY_ALLOC_HEAP_PRIVATE_HEAP_LIST_H_
#define MY_ALLOC_HEAP_PRIVATE_HEAP_LIST_H_

#include <stdbool.h>

#include "heap/fit.h"

#ifdef __cplusplus
extern "C" {
#endif

// Appends a heap that nobody else knows yet; false: another one is in its file.
bool heap_private_list_add(heap_t *heap);

// Takes a heap out that nobody uses any more.
void heap_private_list_remove(heap_t *heap);

#ifdef __cplusplus
}  // extern "C"
#endif

#endif  // MY_ALLOC_HEAP_PRIVATE_HEAP_LIST_H_
