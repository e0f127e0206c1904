// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0
//
// mutex: a lock in a region that survives the death of its owner.
//
// For: data that several processes change. Not for: sharing between threads of
// one process only; recursion; priorities.
//
//   switch (shmipc_mutex_lock(region, &board->mutex, SHMIPC_FOREVER)) {
//     case -EOWNERDEAD:       // Held, but the last owner died with it.
//       board_repair(board);
//       (void)shmipc_mutex_consistent(region, &board->mutex);
//       break;                // Held.
//     case 0:
//       break;                // Held.
//     default:
//       return ...;           // Not held.
//   }
//   board->score++;
//   (void)shmipc_mutex_unlock(region, &board->mutex);
//
// Owners are threads. One that ends while it holds the lock, or whose process
// dies, execs or closes the region, leaves it to the next with -EOWNERDEAD. A
// stopped process is alive: nobody takes a lock from it.
//
// A waiter sees the death of an owner after about 2 ms. Without contention
// neither call enters the kernel, but for one case: a mutex is biased to the
// first thread that takes it, and the next one, or the next ones if they come
// at the same time, have to call membarrier(2), some 16 us (docs/shmipc.md);
// where that is refused they wait for 1 ms, whatever the timeout. Until then a
// pair of calls is a fifth of what it is from then on.
//
// The mutex lies in the region's data, aligned to 4 bytes; the pointer may
// differ from process to process.

#ifndef MY_ALLOC_SHMIPC_MUTEX_H_
#define MY_ALLOC_SHMIPC_MUTEX_H_

#include <stdint.h>

#include "shmipc/region.h"

#ifdef __cplusplus
extern "C" {
#endif

// All zero is free. Written by whoever takes or leaves it.
typedef struct shmipc_mutex {
  uint32_t word;  // Offset 0.
} shmipc_mutex_t;

// Makes a mutex free and whole, whatever it was. Nobody may be using it: its
// memory is free for other use once each call to unlock it has returned.
SHMIPC_API void shmipc_mutex_init(shmipc_mutex_t *mutex);

// Takes the mutex. Returns 0 or -EOWNERDEAD: held. Otherwise it is not held:
// -ETIMEDOUT (at once, if `timeout_ns` is 0), -EDEADLK (this thread has it),
// -ENOTRECOVERABLE, -ENOLCK (SHMIPC_HOLDS_MAX), -ENFILE (too many threads),
// -EROFS, -ECHILD, -EINVAL (not in the region).
SHMIPC_API SHMIPC_MUST_USE int shmipc_mutex_lock(shmipc_region_t *region,
                                                 shmipc_mutex_t *mutex,
                                                 int64_t timeout_ns);

// Says that the data is whole again, after -EOWNERDEAD. -EPERM if this thread
// does not hold the mutex; -EINVAL if nobody had died.
SHMIPC_API int shmipc_mutex_consistent(shmipc_region_t *region,
                                       shmipc_mutex_t *mutex);

// Gives the mutex up. After -EOWNERDEAD without `consistent` it can never be
// taken again. -EPERM if this thread does not hold it.
SHMIPC_API int shmipc_mutex_unlock(shmipc_region_t *region,
                                   shmipc_mutex_t *mutex);

#ifdef __cplusplus
}  // extern "C"
#endif

#endif  // MY_ALLOC_SHMIPC_MUTEX_H_
