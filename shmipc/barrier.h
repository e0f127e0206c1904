// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// Barriers between a store and a load: of this thread, or of others on their
// behalf (membarrier(2), Linux 4.16). Internal.

#ifndef MY_ALLOC_SHMIPC_BARRIER_H_
#define MY_ALLOC_SHMIPC_BARRIER_H_

#include <errno.h>
#include <linux/membarrier.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <unistd.h>

static inline bool shmipc_membarrier(int command) {
  int saved = errno;
  long result = syscall(SYS_membarrier, command, 0, 0);
  errno = saved;
  return result == 0;
}

// From now on others can make this process's threads have a barrier. False: its
// kernel, or a filter of system calls, refuses. Costs 0.1 us if it was done
// before; the first time some milliseconds if there are several threads.
static inline bool shmipc_barrier_register(void) {
  return shmipc_membarrier(MEMBARRIER_CMD_REGISTER_GLOBAL_EXPEDITED);
}

// A full barrier in this thread and in each one, of whatever process that has
// registered, somewhere between the call and its return. False: refused.
// Costs 0.2 us, or some 16 us if such a thread is running on another CPU
// (measured in a virtual machine).
static inline bool shmipc_barrier_in_all(void) {
  return shmipc_membarrier(MEMBARRIER_CMD_GLOBAL_EXPEDITED);
}

// This thread's stores before it are seen by all before its loads after it.
static inline void shmipc_barrier_own(void) {
#if defined(__SANITIZE_THREAD__)
  // TSan knows no fences. It orders by what is read and written, so this is as
  // good for it, and on x86 for the processor.
  uint32_t nothing = 0;
  (void)__atomic_exchange_n(&nothing, 1, __ATOMIC_SEQ_CST);
#else
  __atomic_thread_fence(__ATOMIC_SEQ_CST);
#endif
}

// The compiler leaves the order of what is before and after it. The processor
// may take a later load first, unless somebody calls `shmipc_barrier_in_all`.
static inline void shmipc_barrier_by_others(void) {
  __atomic_signal_fence(__ATOMIC_SEQ_CST);
}

#endif  // MY_ALLOC_SHMIPC_BARRIER_H_
