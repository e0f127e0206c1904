// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// What the units of a thread's heap share: thread_heap.c (blocks in and out)
// and thread_life.c (heaps for threads that start, and of those that exited).

#ifndef MY_ALLOC_HEAP_THREAD_INTERNAL_H_
#define MY_ALLOC_HEAP_THREAD_INTERNAL_H_

#include "heap/span.h"
#include "heap/thread_heap.h"

#ifdef __cplusplus
extern "C" {
#endif

// Owns the spans that exited threads left; only `partial` is used. Central
// lock, but for the hints. The first of all heaps.
extern heap_thread_t heap_orphanage;

#ifdef __cplusplus
}  // extern "C"
#endif

#endif  // MY_ALLOC_HEAP_THREAD_INTERNAL_H_
