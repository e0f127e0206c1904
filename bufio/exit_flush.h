// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// The writers whose bytes are to be written when the process ends, and the
// handlers that do it. Internal.

#ifndef MY_ALLOC_BUFIO_EXIT_FLUSH_H_
#define MY_ALLOC_BUFIO_EXIT_FLUSH_H_

#include <signal.h>

#include "bufio/writer.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct bufio_exit_slot bufio_exit_slot_t;

// Enters a writer; installs the handlers for signals if `on_signals`. Returns
// NULL when there is no memory.
bufio_exit_slot_t *bufio_exit_add(bufio_writer_t *writer,
                                  bool on_signals) BUFIO_MUST_USE;

// Takes it out; waits while a handler in another thread is writing it. NULL is
// a no-op.
void bufio_exit_remove(bufio_exit_slot_t *slot);

// What a thread gets back when it unlocks.
typedef struct bufio_exit_hold {
  sigset_t mask;
  int cancel_state;
} bufio_exit_hold_t;

// Brackets whatever moves `written`, `buffer` or `commit_bias`: handlers keep
// away, and the calling thread is neither interrupted by a signal nor
// cancelled. NULL, of a writer without a slot: it is not cancelled, no more.
void bufio_exit_lock(bufio_exit_slot_t *slot, bufio_exit_hold_t *out_hold);
void bufio_exit_unlock(bufio_exit_slot_t *slot, const bufio_exit_hold_t *hold);

// What a handler does before the signal kills: as `bufio_exit_flush_all`, and
// nobody writes any more. Async-signal-safe.
void bufio_exit_flush_fatal(void);

// And what it does if the signal did not: writers go on. The same thread.
void bufio_exit_live_on(void);

// What one write hands over to a descriptor that may block: what a pipe that
// poll(2) calls writable takes without waiting.
#define BUFIO_EXIT_PIECE_BYTES ((size_t)4096)

// Whether a write to the slot's descriptor may block for ever, so that it must
// be waited for without the lock and written in pieces. NULL is false.
bool bufio_exit_may_block(const bufio_exit_slot_t *slot);

// Finds out. The slot is locked, or nobody's yet.
void bufio_exit_look(bufio_exit_slot_t *slot, int descriptor);

// In the child of a fork, when all writers are in order: the locks are free,
// whoever held them, and what the child accepts is written when it ends.
void bufio_exit_after_fork(void);

#ifdef __cplusplus
}  // extern "C"
#endif

#endif  // MY_ALLOC_BUFIO_EXIT_FLUSH_H_
