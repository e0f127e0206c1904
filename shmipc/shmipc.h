// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0
//
// shmipc: memory shared by processes; what its headers have in common.
//
// For: processes on one machine that work on the same memory and may be killed
// at any instruction. Not for: threads of one process only (pthreads are
// simpler), several machines, processes that must be kept from harming each
// other's *data*: whoever may write a region may write all of it.
//
//   region.h         regions: POSIX shared memory, System V, memfd
//   mutex.h          a robust mutex
//   rwlock.h         a robust reader-writer lock
//   semaphore.h      a counting semaphore, and System V ones that are undone
//   event.h          events and condition variables
//   channel.h        messages: one to one, many to many
//   ref.h            pointers into a region
//   block.h          memory allocated in a region
//   root.h           blocks found by name
//   shared_heap.h    all blocks of a region: walk, statistics, the dead's
//   registry.h       finds regions, and removes those that nobody uses
//
// Failure: functions return 0 or a negative errno and leave `errno` alone (the
// three that allocate memory return NULL and set it);
// `shmipc_strerror` says what it means here and what to do. Bytes of a region
// are never believed: damage is an error or without effect.
//
// Threads: everything but close may be called by any thread at any time.
// Signals: nothing here may be called in a signal handler.
// fork: the child has the memory but is not attached. Every call on a region of
// the parent returns -ECHILD there, but for `shmipc_region_close`; the child
// opens the region anew. (By handlers of `pthread_atfork`: `_Fork`, a raw
// `clone` and `vfork` do not run them. Such a child must not use the region: it
// would pass for its parent, which it keeps alive, in the eyes of others, until
// it ends or calls exec.)
// exec: ends the attachment, like death. But a System V region counts the
// process as attached until it ends: the kernel keeps SEM_UNDO across exec.
//
// Linux 5.1 or later, 64-bit.

#ifndef MY_ALLOC_SHMIPC_SHMIPC_H_
#define MY_ALLOC_SHMIPC_SHMIPC_H_

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define SHMIPC_API __attribute__((visibility("default")))
#define SHMIPC_MUST_USE __attribute__((warn_unused_result))

// Timeouts are in nanoseconds of CLOCK_MONOTONIC from now. 0 only tries.
#define SHMIPC_FOREVER ((int64_t)-1)

// Returns what a status (0 or a negative errno) of this library means and what
// to do about it. Static text, never NULL.
SHMIPC_API const char *shmipc_strerror(int status);

#ifdef __cplusplus
}  // extern "C"
#endif

#endif  // MY_ALLOC_SHMIPC_SHMIPC_H_
