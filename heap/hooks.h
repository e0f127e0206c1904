// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// The hooks in force, NULL when there are none.

#ifndef MY_ALLOC_HEAP_HOOKS_H_
#define MY_ALLOC_HEAP_HOOKS_H_

#include <stddef.h>

#include "heap/heap.h"

#ifdef __cplusplus
extern "C" {
#endif

static inline const heap_hooks_t *heap_hooks(void) {
  return &heap_initial_hooks;
}

static inline void heap_hook_alloc(void *ptr, size_t size_bytes,
                                   size_t usable_bytes) {
  const heap_hooks_t *hooks = heap_hooks();
  if (hooks != NULL && hooks->on_alloc != NULL) {
    hooks->on_alloc(ptr, size_bytes, usable_bytes);
  }
}

static inline void heap_hook_free(void *ptr) {
  const heap_hooks_t *hooks = heap_hooks();
  if (hooks != NULL && hooks->on_free != NULL) {
    hooks->on_free(ptr);
  }
}

static inline void heap_hook_resize(void *ptr, size_t size_bytes,
                                    size_t usable_bytes) {
  const heap_hooks_t *hooks = heap_hooks();
  if (hooks != NULL && hooks->on_resize != NULL) {
    hooks->on_resize(ptr, size_bytes, usable_bytes);
  }
}

static inline void heap_hook_misuse(heap_misuse_t misuse, const void *ptr) {
  const heap_hooks_t *hooks = heap_hooks();
  if (hooks != NULL && hooks->on_misuse != NULL) {
    hooks->on_misuse(misuse, ptr);
  }
}

static inline void heap_hook_map(void *ptr, size_t size_bytes) {
  const heap_hooks_t *hooks = heap_hooks();
  if (hooks != NULL && hooks->on_map != NULL) {
    hooks->on_map(ptr, size_bytes);
  }
}

static inline void heap_hook_unmap(void *ptr, size_t size_bytes) {
  const heap_hooks_t *hooks = heap_hooks();
  if (hooks != NULL && hooks->on_unmap != NULL) {
    hooks->on_unmap(ptr, size_bytes);
  }
}

#ifdef __cplusplus
}  // extern "C"
#endif

#endif  // MY_ALLOC_HEAP_HOOKS_H_
