// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0
//
// rwlock: many readers or one writer, any of whom may die.
//
// For: data that is read far more often than changed: readers write to no
// shared cache line, so they do not slow each other down. Not for: data written
// often; a writer looks at every thread that uses locks in the region.
//
//   if (shmipc_rwlock_read_lock(region, &table->lock, SHMIPC_FOREVER) == 0) {
//     ...
//     (void)shmipc_rwlock_unlock(region, &table->lock);
//   }
//
// A reader that dies is as one that unlocked. After a writer that died, the
// next who takes the lock gets -EOWNERDEAD: a writer repairs the data and calls
// `consistent`; a reader has the lock, too, and may read what may be half
// written, or unlock. (A writer that died while it waited for readers has
// changed nothing, but is reported all the same.)
//
// A waiting writer keeps new readers out. A thread that reads may take the lock
// for reading again, never for writing. Deaths are seen within about 2 ms;
// stopped processes are alive.

#ifndef MY_ALLOC_SHMIPC_RWLOCK_H_
#define MY_ALLOC_SHMIPC_RWLOCK_H_

#include <stdint.h>

#include "shmipc/region.h"

#ifdef __cplusplus
extern "C" {
#endif

// All zero is free.
typedef struct shmipc_rwlock {
  uint32_t word;   // Offset 0. The writer's, as in a mutex.
  uint32_t drain;  // 4. Counts readers that left while a writer was waiting.
} shmipc_rwlock_t;

// Makes a lock free and whole, whatever it was. Nobody may be using it.
SHMIPC_API void shmipc_rwlock_init(shmipc_rwlock_t *lock);

// Takes the lock for reading. Results as of shmipc_mutex_lock; -EDEADLK: this
// thread has it for writing.
SHMIPC_API SHMIPC_MUST_USE int shmipc_rwlock_read_lock(shmipc_region_t *region,
                                                       shmipc_rwlock_t *lock,
                                                       int64_t timeout_ns);

// Takes the lock for writing. Results as of shmipc_mutex_lock; -EDEADLK: this
// thread has it already, for either.
SHMIPC_API SHMIPC_MUST_USE int shmipc_rwlock_write_lock(shmipc_region_t *region,
                                                        shmipc_rwlock_t *lock,
                                                        int64_t timeout_ns);

// As shmipc_mutex_consistent; by the writer.
SHMIPC_API int shmipc_rwlock_consistent(shmipc_region_t *region,
                                        shmipc_rwlock_t *lock);

// Gives up what this thread has. -EPERM if that is nothing.
SHMIPC_API int shmipc_rwlock_unlock(shmipc_region_t *region,
                                    shmipc_rwlock_t *lock);

#ifdef __cplusplus
}  // extern "C"
#endif

#endif  // MY_ALLOC_SHMIPC_RWLOCK_H_
