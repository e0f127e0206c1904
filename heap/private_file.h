// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// The file that a private heap's blocks lie in.

#ifndef MY_ALLOC_HEAP_PRIVATE_FILE_H_
#define MY_ALLOC_HEAP_PRIVATE_FILE_H_

#include <stdbool.h>
#include <stddef.h>

#include "heap/fit.h"

#ifdef __cplusplus
extern "C" {
#endif

// Returns a descriptor of its own for the file and what tells it from others;
// or -1 with `errno`.
int heap_private_file_open(int file, heap_file_id_t *out_id);

// Keeps other processes' heaps out of the file, in which no other heap of this
// one is. Returns 0 or an errno.
int heap_private_file_lock(int file);

void heap_private_file_unlock(int file);

// Makes the file as long as this with no hole in what is added; false: it
// cannot grow.
bool heap_private_file_grow(int file, size_t from_bytes, size_t to_bytes);

#ifdef __cplusplus
}  // extern "C"
#endif

#endif  // MY_ALLOC_HEAP_PRIVATE_FILE_H_
