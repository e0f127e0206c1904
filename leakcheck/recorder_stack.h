// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// From the calling thread's stack to its number in the log, with all that the
// log needs to know of it.

#ifndef MY_ALLOC_LEAKCHECK_RECORDER_STACK_H_
#define MY_ALLOC_LEAKCHECK_RECORDER_STACK_H_

#include <stdint.h>

#include "leakcheck/recorder_process.h"

// Returns the number of the calling thread's stack, STACK_TABLE_NONE when the
// table is full. `thread` is the caller's state, with an open stream. Changes
// errno.
uint32_t recorder_stack_capture(recorder_process_t *process,
                                recorder_thread_t *thread);

// Appends which objects are not loaded any more, and forgets what was known of
// their addresses.
void recorder_stack_sweep(recorder_process_t *process,
                          recorder_thread_t *thread);

#endif  // MY_ALLOC_LEAKCHECK_RECORDER_STACK_H_
