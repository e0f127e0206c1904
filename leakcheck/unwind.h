// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0
//
// unwind: the call stack of the calling thread, from inside malloc.
//
//   static unwind_cache_t *cache = ...;        // Zeroed memory, one a process.
//   unwind_thread_t thread = {0};              // One a thread.
//   uintptr_t frames[64];
//   bool cut;
//   size_t n = unwind_capture(cache, &thread, skip, frames, 64, &cut);
//
// Takes no lock, allocates nothing, calls nothing but `_dl_find_object` and,
// for memory it has not seen yet, one harmless system call a page. It may run
// in a signal handler and while another thread is in dlopen, dlclose or fork.
// It reads only memory of the stack it runs on, and checks that it is mapped.
//
// x86-64: follows call frame information, so code without frame pointers gives
// full stacks; generated code without it (JIT) is passed by frame pointers
// where it keeps them. Other processors: frame pointers only.

#ifndef MY_ALLOC_LEAKCHECK_UNWIND_H_
#define MY_ALLOC_LEAKCHECK_UNWIND_H_

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

// What is remembered of instruction addresses met before: shared by all
// threads, updated without locks. `unwind_cache_bytes()` zeroed bytes.
typedef struct unwind_cache unwind_cache_t;
size_t unwind_cache_bytes(void);

// Makes the cache forget what it knows of [start, end): an object was unloaded
// there. Stacks being captured at this moment by other threads do not contain
// it. Costs a pass over the cache.
void unwind_cache_forget(unwind_cache_t *cache, uintptr_t start, uintptr_t end);

#define UNWIND_NUM_STACKS 4

// Stack memory known to be readable, [low, high): a thread's own stack, and
// those of its signal handlers and coroutines. Zero it to begin with.
typedef struct unwind_thread {
  struct {
    uintptr_t low;
    uintptr_t high;
  } stacks[UNWIND_NUM_STACKS];
  uint32_t next_stack;  // The one to be replaced.
} unwind_thread_t;

// Frames in [start, end) are left out at the inner end of a stack.
typedef struct unwind_skip {
  uintptr_t start;
  uintptr_t end;
} unwind_skip_t;

// Stores the return addresses of the calling thread's stack, innermost first,
// at most `capacity`, and returns how many. `*out_cut` says that the stack goes
// on but could not be followed: no room left, code without information, or
// memory that looks damaged.
size_t unwind_capture(unwind_cache_t *cache, unwind_thread_t *thread,
                      unwind_skip_t skip, uintptr_t *out_frames,
                      size_t capacity, bool *out_cut);

#ifdef __cplusplus
}  // extern "C"
#endif

#endif  // MY_ALLOC_LEAKCHECK_UNWIND_H_
