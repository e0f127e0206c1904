// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// What a pointer is that should have been a block.

#ifndef MY_ALLOC_HEAP_DIAGNOSE_H_
#define MY_ALLOC_HEAP_DIAGNOSE_H_

#include "heap/fatal.h"

#ifdef __cplusplus
extern "C" {
#endif

// Reports what is wrong with `ptr`, which is not the start of a live block.
void heap_report_pointer(const void *ptr, const heap_call_t *call);

#ifdef __cplusplus
}  // extern "C"
#endif

#endif  // MY_ALLOC_HEAP_DIAGNOSE_H_
