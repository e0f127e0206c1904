// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// The floor that the benchmark compares with: free objects linked through
// their first word, for one thread, with no check of anything. In a unit of
// its own, so that its functions are called as those of slab are.

#ifndef MY_ALLOC_SLAB_INTRUSIVE_LIST_H_
#define MY_ALLOC_SLAB_INTRUSIVE_LIST_H_

#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct intrusive_list {
  void *first;
  unsigned char *next;  // Memory never used, up to `end`.
  unsigned char *end;
  size_t object_bytes;
} intrusive_list_t;

void *intrusive_list_alloc(intrusive_list_t *list);
void intrusive_list_free(intrusive_list_t *list, void *object);

#ifdef __cplusplus
}  // extern "C"
#endif

#endif  // MY_ALLOC_SLAB_INTRUSIVE_LIST_H_
