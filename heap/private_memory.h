// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// How a private heap's memory grows.
//
// All functions: the heap's lock held.

#ifndef MY_ALLOC_HEAP_PRIVATE_MEMORY_H_
#define MY_ALLOC_HEAP_PRIVATE_MEMORY_H_

#include <stdbool.h>
#include <stddef.h>

#include "heap/fit.h"

#ifdef __cplusplus
extern "C" {
#endif

// Adds `missing` granules at least, more if there is no need to save. False:
// there is no more, or the heap is in a buffer.
bool heap_private_extend(heap_t *heap, size_t missing);

#ifdef __cplusplus
}  // extern "C"
#endif

#endif  // MY_ALLOC_HEAP_PRIVATE_MEMORY_H_
