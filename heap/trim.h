// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// Memory that nobody uses goes back, when it is asked for or wanted elsewhere.

#ifndef MY_ALLOC_HEAP_TRIM_H_
#define MY_ALLOC_HEAP_TRIM_H_

#include <stdbool.h>
#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

// Empties bins and spans, `with_pages` also of pages that only free blocks lie
// in, and gives back what is idle then. Returns how many bytes. Takes the
// central lock for a class or a few megabytes at a time.
size_t heap_trim_all(size_t keep_bytes, bool with_pages);

#ifdef __cplusplus
}  // extern "C"
#endif

#endif  // MY_ALLOC_HEAP_TRIM_H_
