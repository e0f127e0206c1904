// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// The recorder's state of a process: its log, its tables, its pool of
// per-thread states; how recording starts, forks and ends.

#ifndef MY_ALLOC_LEAKCHECK_RECORDER_PROCESS_H_
#define MY_ALLOC_LEAKCHECK_RECORDER_PROCESS_H_

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "leakcheck/heaplog_writer.h"
#include "leakcheck/module_table.h"
#include "leakcheck/recorder_extent.h"
#include "leakcheck/recorder_options.h"
#include "leakcheck/stack_table.h"
#include "leakcheck/unwind.h"

// One thread's part. In memory that a forked child finds zeroed.
typedef struct recorder_thread {
  // NULL: not open; so also in a forked child.
  heaplog_stream_t *stream;
  struct recorder_thread *next_free;
  unwind_thread_t unwind;
  // Ids of the nodes of the stack recorded last, outermost frame first: most of
  // the next one's frames are the same.
  uint32_t last_ids[RECORDER_FRAMES_MAX];
  uint32_t num_last;     // 0 after a cut stack.
  uint32_t last_epoch;   // When they were true.
  uint32_t exit_rounds;  // Of the thread's key destructors.
} recorder_thread_t;

// What survives a fork: the child's copy stays true.
typedef struct recorder_static {
  _Atomic uint32_t off;  // 1: not recording, for ever.
  recorder_options_t options;
  unwind_skip_t own_code;
  stack_table_t *stacks;  // Empties itself in a child.
  unwind_cache_t *unwind_cache;
  recorder_extent_t *extent;  // Guarded by the heap's central lock.
  heaplog_writer_t *writer;   // The last one opened; in a child, the parent's.
  bool started;               // Once: a process that starts again is a child.
} recorder_static_t;

// What a forked child finds zeroed, and so starts anew.
typedef struct recorder_process {
  _Atomic uint32_t phase;  // recorder_phase_t. Release publishes the rest.
  // Changes when addresses may mean other code; threads then forget their
  // `last_` stacks.
  _Atomic uint32_t epoch;
  heaplog_writer_t *writer;
  uint64_t pid;
  bool is_child;  // Forked, not executed.
  _Atomic uint64_t next_sample_ns;
  _Atomic uint64_t lost_count;  // Not yet in the log.
  _Atomic uint32_t ended;       // 1: END is in the log.

  // Of threads that are past their own stream, and of signal handlers that
  // interrupted a thread inside the recorder.
  _Atomic uint32_t shared_lock;
  heaplog_stream_t *shared_stream;  // Guarded by shared_lock.

  _Atomic uint32_t pool_lock;
  recorder_thread_t *free_threads;  // Guarded by pool_lock.

  module_table_t modules;
  _Atomic uint32_t described;
  // Of the thread that starts recording, then of the one that describes.
  char scratch[HEAPLOG_COMMAND_LINE_BYTES_MAX];
} recorder_process_t;

extern recorder_static_t recorder_static;
extern _Atomic(recorder_process_t *) recorder_process_state;

// Returns the state with recording under way, starting it if need be; NULL when
// this process is not recorded. Allocates nothing, changes errno.
recorder_process_t *recorder_process_start(void);

// Returns a state for a thread, zeroed but for `unwind`, NULL when there is no
// memory. To be given back with recorder_process_put_thread().
recorder_thread_t *recorder_process_get_thread(recorder_process_t *process);
void recorder_process_put_thread(recorder_process_t *process,
                                 recorder_thread_t *thread);

// True in a forked child that has not begun its log. It must not do so where
// the heap's central lock is held, since the log begins with a walk of the
// heap.
bool recorder_process_is_new_child(void);

// At the first call, appends what the log says about the process as a whole,
// and, in a forked child, all that it inherited: the heap's memory, and every
// live block but `fresh_block`, whose allocation is about to be appended.
void recorder_process_describe(recorder_process_t *process,
                               heaplog_stream_t *stream, uintptr_t fresh_block);

// Spins for the lock; false when it is held for so long that its holder may be
// the code this thread has interrupted.
bool recorder_process_try_lock(_Atomic uint32_t *lock);
void recorder_process_unlock(_Atomic uint32_t *lock);

uint64_t recorder_process_now_ns(void);

#endif  // MY_ALLOC_LEAKCHECK_RECORDER_PROCESS_H_
