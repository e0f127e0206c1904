// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// A floor that the benchmark compares with: free objects as a stack of
// pointers, for one thread, with no check of anything. Objects are never looked
// at, so this is what the calls themselves cost, and the benchmark's own
// memory.

#ifndef MY_ALLOC_SLAB_POINTER_STACK_H_
#define MY_ALLOC_SLAB_POINTER_STACK_H_

#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct pointer_stack {
  void **top;  // The next free slot.
  void **bottom;
} pointer_stack_t;

// All objects are in it. Exits if there is no memory; there is no way to end
// it.
pointer_stack_t pointer_stack_create(size_t object_bytes, size_t count);

void *pointer_stack_alloc(pointer_stack_t *stack);
void pointer_stack_free(pointer_stack_t *stack, void *object);

static inline void *pointer_stack_alloc_inline(pointer_stack_t *stack) {
  return stack->top == stack->bottom ? NULL : *--stack->top;
}

static inline void pointer_stack_free_inline(pointer_stack_t *stack,
                                             void *object) {
  *stack->top++ = object;
}

#ifdef __cplusplus
}  // extern "C"
#endif

#endif  // MY_ALLOC_SLAB_POINTER_STACK_H_
