// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// Definitions go into the stream of the thread that makes them, and before the
// table tells anybody the number: the module that holds an address, then the
// node. A thread that is told the number by the table appends its event after
// that, so no committed event refers to a node that is not in the file.

#include "leakcheck/recorder_stack.h"

#include <stdatomic.h>

// The address that stands for the outer frames that are not known.
#define CUT_ADDRESS ((uintptr_t)0)

typedef struct definition {
  recorder_process_t *process;
  recorder_thread_t *thread;
} definition_t;

static void define_module(void *context, const heaplog_module_t *module) {
  definition_t *definition = context;
  heaplog_module_t timed = *module;
  timed.load_time_ns = recorder_process_now_ns();
  (void)heaplog_append_module_load(definition->thread->stream, &timed);
}

static void forget_module(void *context, uint32_t id, uintptr_t start,
                          uintptr_t end) {
  definition_t *definition = context;
  (void)heaplog_append_module_unload(definition->thread->stream,
                                     recorder_process_now_ns(), id);
  unwind_cache_forget(recorder_static.unwind_cache, start, end);
  stack_table_forget(recorder_static.stacks, start, end);
  atomic_fetch_add_explicit(&definition->process->epoch, 1,
                            memory_order_relaxed);
}

static void define_stack(void *context, uint32_t id, uint32_t parent_id,
                         uintptr_t address) {
  definition_t *definition = context;
  if (address != CUT_ADDRESS) {
    module_table_sink_t sink = {define_module, forget_module, definition};
    // One less: a call that does not return may be an object's last byte.
    module_table_note(&definition->process->modules, address - 1, &sink);
  }
  (void)heaplog_append_stack(definition->thread->stream, id, parent_id,
                             address);
}

static uint32_t intern_stack(recorder_process_t *process,
                             recorder_thread_t *thread,
                             const unwind_stack_t *stack) {
  definition_t definition = {process, thread};
  uint32_t id = STACK_TABLE_NONE;
  size_t depth =
      stack->num_same < thread->num_last ? stack->num_same : thread->num_last;
  if (stack->cut) {
    // One more root stands for the outer frames; ids of less are no use.
    depth = 0;
    id = stack_table_intern(recorder_static.stacks, id, CUT_ADDRESS,
                            define_stack, &definition);
    if (id == STACK_TABLE_NONE) {
      thread->num_last = 0;
      return STACK_TABLE_NONE;
    }
  } else if (depth != 0) {
    id = thread->last_ids[depth - 1];
  }
  for (; depth < stack->num_frames; depth++) {
    id = stack_table_intern(recorder_static.stacks, id,
                            stack->frames[stack->num_frames - 1 - depth].ip,
                            define_stack, &definition);
    if (id == STACK_TABLE_NONE) {
      break;  // Full: the whole stack is unknown.
    }
    thread->last_ids[depth] = id;
  }
  thread->num_last = stack->cut ? 0 : (uint32_t)depth;
  return id;
}

uint32_t recorder_stack_capture(recorder_process_t *process,
                                recorder_thread_t *thread) {
  unwind_stack_t stack;
  uint32_t epoch = atomic_load_explicit(&process->epoch, memory_order_relaxed);
  if (thread->last_epoch != epoch) {
    thread->last_epoch = epoch;
    thread->num_last = 0;
    unwind_thread_forget(&thread->unwind);
  }
  unwind_capture(recorder_static.unwind_cache, &thread->unwind,
                 recorder_static.own_code, recorder_static.options.max_frames,
                 &stack);
  return intern_stack(process, thread, &stack);
}

void recorder_stack_sweep(recorder_process_t *process,
                          recorder_thread_t *thread) {
  definition_t definition = {process, thread};
  module_table_sink_t sink = {define_module, forget_module, &definition};
  module_table_sweep(&process->modules, &sink);
}
