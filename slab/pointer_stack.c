// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

#include "slab/pointer_stack.h"

#include <stdlib.h>

pointer_stack_t pointer_stack_create(size_t object_bytes, size_t count) {
  unsigned char *objects = malloc(object_bytes * count);
  pointer_stack_t stack;
  stack.bottom = malloc(count * sizeof(*stack.bottom));
  if (objects == NULL || stack.bottom == NULL) {
    exit(1);
  }
  // The one at the lowest address goes out first.
  for (size_t i = 0; i < count; ++i) {
    stack.bottom[i] = objects + (count - 1 - i) * object_bytes;
  }
  stack.top = stack.bottom + count;
  return stack;
}

void *pointer_stack_alloc(pointer_stack_t *stack) {
  return pointer_stack_alloc_inline(stack);
}

void pointer_stack_free(pointer_stack_t *stack, void *object) {
  pointer_stack_free_inline(stack, object);
}
