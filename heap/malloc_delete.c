// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// C++'s operators delete, under the names that the Itanium C++ ABI gives them
// (5.1.4): that of one object and that of an array, each with size, alignment,
// nothrow. The sizes, which compilers pass since C++14, are checked.
//
// The hard problem: a program may have operators of its own, and then most
// often only the plain form, in which all others must end (C++17
// [new.delete.single], [new.delete.array]); its blocks need not be ours at all.
// So these are weak, and the others look whether the plain form is still the
// one of this file.

#include <stddef.h>

#include "heap/fast_path.h"

static void own_delete(void *ptr) {
  heap_free_fast(ptr);
}

static void own_delete_aligned(void *ptr, size_t alignment) {
  (void)alignment;
  heap_free_fast(ptr);
}

#define OPERATOR(name) __attribute__((weak, visibility("default"))) void name

OPERATOR(delete_plain)
(void *ptr) __asm__("_ZdlPv") __attribute__((alias("own_delete")));
OPERATOR(delete_aligned)
(void *ptr, size_t alignment) __asm__("_ZdlPvSt11align_val_t")
    __attribute__((alias("own_delete_aligned")));

static void own_delete_array(void *ptr) {
  delete_plain(ptr);
}

static void own_delete_array_aligned(void *ptr, size_t alignment) {
  delete_aligned(ptr, alignment);
}

OPERATOR(delete_array)
(void *ptr) __asm__("_ZdaPv") __attribute__((alias("own_delete_array")));
OPERATOR(delete_array_aligned)
(void *ptr, size_t alignment) __asm__("_ZdaPvSt11align_val_t")
    __attribute__((alias("own_delete_array_aligned")));

OPERATOR(delete_nothrow)
(void *ptr, const void *tag) __asm__("_ZdlPvRKSt9nothrow_t");
OPERATOR(delete_array_nothrow)
(void *ptr, const void *tag) __asm__("_ZdaPvRKSt9nothrow_t");
OPERATOR(delete_aligned_nothrow)
(void *ptr, size_t alignment,
 const void *tag) __asm__("_ZdlPvSt11align_val_tRKSt9nothrow_t");
OPERATOR(delete_array_aligned_nothrow)
(void *ptr, size_t alignment,
 const void *tag) __asm__("_ZdaPvSt11align_val_tRKSt9nothrow_t");
OPERATOR(delete_sized)(void *ptr, size_t size) __asm__("_ZdlPvm");
OPERATOR(delete_array_sized)(void *ptr, size_t size) __asm__("_ZdaPvm");
OPERATOR(delete_sized_aligned)
(void *ptr, size_t size, size_t alignment) __asm__("_ZdlPvmSt11align_val_t");
OPERATOR(delete_array_sized_aligned)
(void *ptr, size_t size, size_t alignment) __asm__("_ZdaPvmSt11align_val_t");

void delete_nothrow(void *ptr, const void *tag) {
  (void)tag;
  delete_plain(ptr);
}

void delete_array_nothrow(void *ptr, const void *tag) {
  (void)tag;
  delete_array(ptr);
}

void delete_aligned_nothrow(void *ptr, size_t alignment, const void *tag) {
  (void)tag;
  delete_aligned(ptr, alignment);
}

void delete_array_aligned_nothrow(void *ptr, size_t alignment,
                                  const void *tag) {
  (void)tag;
  delete_array_aligned(ptr, alignment);
}

void delete_sized(void *ptr, size_t size) {
  if (delete_plain == own_delete) {
    heap_free_sized_fast(ptr, 0, size, false);
  } else {
    delete_plain(ptr);
  }
}

void delete_array_sized(void *ptr, size_t size) {
  if (delete_array == own_delete_array && delete_plain == own_delete) {
    heap_free_sized_fast(ptr, 0, size, false);
  } else {
    delete_array(ptr);
  }
}

void delete_sized_aligned(void *ptr, size_t size, size_t alignment) {
  if (delete_aligned == own_delete_aligned) {
    heap_free_sized_fast(ptr, alignment, size, false);
  } else {
    delete_aligned(ptr, alignment);
  }
}

void delete_array_sized_aligned(void *ptr, size_t size, size_t alignment) {
  if (delete_array_aligned == own_delete_array_aligned &&
      delete_aligned == own_delete_aligned) {
    heap_free_sized_fast(ptr, alignment, size, false);
  } else {
    delete_array_aligned(ptr, alignment);
  }
}
