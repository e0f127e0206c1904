// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0
//
// unwind: the call stack of the calling thread, from inside malloc.
//
//   static unwind_cache_t *cache = ...;   // Zeroed memory, one a process.
//   static unwind_thread_t *thread = ...;  // Zeroed memory, one a thread.
//   unwind_stack_t stack;
//   unwind_capture(cache, thread, own_code, 64, &stack);
//   for (size_t i = 0; i < stack.num_frames; i++) {
//     ... stack.frames[i].ip ...
//   }
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

#include "leakcheck/stack_memory.h"

#ifdef __cplusplus
extern "C" {
#endif

// What is remembered of instruction addresses met before: shared by all
// threads, updated without locks. `unwind_cache_bytes()` zeroed bytes.
typedef struct unwind_cache unwind_cache_t;
size_t unwind_cache_bytes(void);

// Makes the cache forget what it knows of [start, end): an object was unloaded
// there. Stacks being captured at this moment by other threads do not contain
// it. Costs a pass over the cache. See unwind_thread_forget() too.
void unwind_cache_forget(unwind_cache_t *cache, uintptr_t start, uintptr_t end);

#define UNWIND_CAPACITY_MAX 256u
#define UNWIND_FRAMES_MAX 288u

// A frame: the registers, and in `link` where the caller's rbp was loaded from,
// with flags in the low bits. For others only `ip` is of interest.
typedef struct unwind_frame {
  uintptr_t ip;  // A return address, or where a signal interrupted.
  uintptr_t sp;
  uintptr_t bp;
  uintptr_t link;
} unwind_frame_t;

// What is known of a thread. Zeroed memory, then unwind_thread_forget().
typedef struct unwind_thread {
  stack_memory_t memory;
  uint32_t first_kept;
  unwind_frame_t kept[UNWIND_FRAMES_MAX];   // The stack captured last.
  unwind_frame_t fresh[UNWIND_FRAMES_MAX];  // What is new of the current one.
} unwind_thread_t;

typedef struct unwind_stack {
  const unwind_frame_t *frames;  // Innermost first; until the next capture.
  size_t num_frames;
  // That many outermost frames are those of the thread's last capture, if
  // neither that one nor this one is cut. May be less than there are.
  size_t num_same;
  // The stack goes on but could not be followed: no room left, code without
  // information, or memory that looks damaged.
  bool cut;
} unwind_stack_t;

// Makes the thread forget the stack captured last. To be called before its next
// capture when code was unloaded.
void unwind_thread_forget(unwind_thread_t *thread);

// Frames in [start, end) are left out at the inner end of a stack.
typedef struct unwind_skip {
  uintptr_t start;
  uintptr_t end;
} unwind_skip_t;

// Captures the calling thread's stack: at most `capacity` frames, which is at
// most UNWIND_CAPACITY_MAX, the innermost ones if there are more.
void unwind_capture(unwind_cache_t *cache, unwind_thread_t *thread,
                    unwind_skip_t skip, size_t capacity,
                    unwind_stack_t *out_stack);

#ifdef __cplusplus
}  // extern "C"
#endif

#endif  // MY_ALLOC_LEAKCHECK_UNWIND_H_
