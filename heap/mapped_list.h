// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// The mapped blocks that there are, of both variants; heap_mapped_check(),
// heap_mapped_walk() and heap_mapped_total_bytes() (mapped.h) are of this list.
//
// All functions: central lock held.

#ifndef MY_ALLOC_HEAP_MAPPED_LIST_H_
#define MY_ALLOC_HEAP_MAPPED_LIST_H_

#include <stddef.h>

#include "heap/page_table.h"

#ifdef __cplusplus
extern "C" {
#endif

// Makes a descriptor with a start and a mapping that of a mapped block.
void heap_mapped_list_add(heap_page_t *page);

// Makes it one of kind NONE.
void heap_mapped_list_remove(heap_page_t *page);

// The length of a block's mapping changed.
void heap_mapped_list_set_bytes(heap_page_t *page, size_t mapping_bytes);

#ifdef __cplusplus
}  // extern "C"
#endif

#endif  // MY_ALLOC_HEAP_MAPPED_LIST_H_
