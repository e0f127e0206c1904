// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0
//
// stack_memory: which memory of the stacks that a thread runs on (its own, its
// signal handlers', its coroutines') is known to be readable. Found out by
// asking the kernel once a page, so that walking a stack costs no system call
// in the long run.

#ifndef MY_ALLOC_LEAKCHECK_STACK_MEMORY_H_
#define MY_ALLOC_LEAKCHECK_STACK_MEMORY_H_

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#ifdef __cplusplus
extern "C" {
#endif

#define STACK_MEMORY_NUM_STACKS 4
// User space on x86-64 and AArch64 ends below this (four-level page tables).
#define STACK_MEMORY_ADDRESS_MAX ((uintptr_t)1 << 47)

// [low, high) of each stack. One a thread; zero it to begin with.
typedef struct stack_memory {
  struct {
    uintptr_t low;
    uintptr_t high;
  } stacks[STACK_MEMORY_NUM_STACKS];
  uint32_t next_stack;  // The one to be replaced.
} stack_memory_t;

// Asks the kernel whether the page at `address` can be read. Changes errno.
bool stack_memory_is_readable(uintptr_t address);

// Returns up to where the stack that holds `sp`, which is readable, is known to
// be readable.
uintptr_t stack_memory_enter(stack_memory_t *memory, uintptr_t sp);

// Makes `*inout_high` of an entered stack at least `end`; false when the memory
// up to there is not readable, or too far away to be of this stack.
bool stack_memory_extend(stack_memory_t *memory, uintptr_t *inout_high,
                         uintptr_t end);

// Loads the word at `address` of an entered stack, where `sp` is its pointer;
// false when it is not on that stack.
static inline bool stack_memory_load(stack_memory_t *memory,
                                     uintptr_t *inout_high, uintptr_t sp,
                                     uintptr_t address, uintptr_t *out_word) {
  if (address < sp || (address & 7) != 0 ||
      (address + 8 > *inout_high &&
       !stack_memory_extend(memory, inout_high, address + 8))) {
    return false;
  }
  memcpy(out_word, (const void *)address, sizeof(*out_word));
  return true;
}

#ifdef __cplusplus
}  // extern "C"
#endif

#endif  // MY_ALLOC_LEAKCHECK_STACK_MEMORY_H_
