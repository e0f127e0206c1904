// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

#include "slab/intrusive_list.h"

#include <stdlib.h>

enum {
  CHUNK_BYTES = 1 << 20,
};

// Not inlined, so that `intrusive_list_alloc` needs no registers saved.
__attribute__((noinline)) static void *carve(intrusive_list_t *list) {
  if (list->next == list->end) {
    size_t bytes = CHUNK_BYTES / list->object_bytes * list->object_bytes;
    list->next = malloc(bytes);
    list->end = list->next == NULL ? NULL : list->next + bytes;
    if (list->next == NULL) {
      return NULL;
    }
  }
  void *object = list->next;
  list->next += list->object_bytes;
  return object;
}

void *intrusive_list_alloc(intrusive_list_t *list) {
  void *object = list->first;
  if (__builtin_expect(object == NULL, 0)) {
    return carve(list);
  }
  list->first = *(void **)object;
  return object;
}

void intrusive_list_free(intrusive_list_t *list, void *object) {
  *(void **)object = list->first;
  list->first = object;
}
