// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// How the heap stops when its own state is impossible, and how it reports what
// a caller did wrong. Nothing here allocates, locks or uses stdio.

#ifndef MY_ALLOC_HEAP_FATAL_H_
#define MY_ALLOC_HEAP_FATAL_H_

#include <stddef.h>
#include <stdint.h>

#include "heap/heap.h"

#ifdef __cplusplus
extern "C" {
#endif

// Writes `message` (with its newline) to stderr and aborts.
_Noreturn void heap_die(const char *message);

// The call in which something is found wrong.
typedef struct heap_call {
  const char *function;  // "free", "realloc", ...
  const void *caller;    // Where it returns to.
} heap_call_t;

// Tells the hooks of the misuse of `ptr` and reports it as one line on stderr;
// `block` and `block_bytes` are the block concerned, 0 when there is none.
// Aborts, or returns when HEAP_ON_ERROR=report.
void heap_report_misuse(heap_misuse_t misuse, const heap_call_t *call,
                        const void *ptr, uintptr_t block, size_t block_bytes);

// Counts the misuses that were reported and survived.
uint64_t heap_misuse_count(void);

#define HEAP_STRING_(x) #x
#define HEAP_STRING(x) HEAP_STRING_(x)
#define HEAP_DIE(text) heap_die("heap: " text "\n")

// An assertion that may fail inside malloc: no stdio, no allocation.
#ifdef NDEBUG
#define HEAP_ASSERT(condition) ((void)sizeof(condition))
#else
#define HEAP_ASSERT(condition) \
  ((condition)                 \
       ? (void)0               \
       : HEAP_DIE(__FILE__ ":" HEAP_STRING(__LINE__) ": broken: " #condition))
#endif

#ifdef __cplusplus
}  // extern "C"
#endif

#endif  // MY_ALLOC_HEAP_FATAL_H_
