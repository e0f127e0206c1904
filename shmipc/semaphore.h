// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0
//
// semaphore: a counter that waits at zero; and one that the kernel corrects.
//
// For: `shmipc_semaphore_...`, counting things that are there, as sem_wait and
// sem_post. Units belong to nobody: one that a process took before it died is
// gone, if what it stands for is. `shmipc_undo_semaphore_...`, permits that are
// given back: the kernel undoes what a dead process did, at the price of a
// system call for each operation. Not for: guarding data (mutex.h).
//
//   int status = shmipc_semaphore_wait(region, &queue->filled, 50 * 1000000);
//   if (status == 0) {
//     take_one(queue);
//     (void)shmipc_semaphore_post(region, &queue->free);
//   }
//
// A waiter that dies harms nobody. Without waiters neither call of the first
// kind enters the kernel.

#ifndef MY_ALLOC_SHMIPC_SEMAPHORE_H_
#define MY_ALLOC_SHMIPC_SEMAPHORE_H_

#include <stdint.h>

#include "shmipc/region.h"

#ifdef __cplusplus
extern "C" {
#endif

#define SHMIPC_SEMAPHORE_VALUE_MAX 0x7fffffffu
#define SHMIPC_UNDO_SEMAPHORE_VALUE_MAX 32767

// In the region's data, aligned to 4 bytes. All zero has the value 0.
typedef struct shmipc_semaphore {
  uint32_t word;  // Offset 0. Value; bit 31: somebody may be waiting.
} shmipc_semaphore_t;

// -EINVAL if the value is too large. Nobody may be using it.
SHMIPC_API SHMIPC_MUST_USE int shmipc_semaphore_init(
    shmipc_semaphore_t *semaphore, uint32_t value);

// Takes one. -ETIMEDOUT (at once, if `timeout_ns` is 0), -EROFS, -ECHILD,
// -EINVAL (not in the region).
SHMIPC_API SHMIPC_MUST_USE int shmipc_semaphore_wait(
    shmipc_region_t *region, shmipc_semaphore_t *semaphore, int64_t timeout_ns);

// Adds one and wakes a waiter. -EOVERFLOW, -EROFS, -ECHILD, -EINVAL.
SHMIPC_API int shmipc_semaphore_post(shmipc_region_t *region,
                                     shmipc_semaphore_t *semaphore);

// The value now.
SHMIPC_API uint32_t shmipc_semaphore_value(const shmipc_semaphore_t *semaphore);

// System V semaphores of a region created with `num_undo_semaphores`; `index`
// is below that. The kernel undoes the waits and posts of a process when it
// ends (exec does not end it), whether it is still attached or not. Their value
// is 0 until set. All: -EOPNOTSUPP (not a System V region), -EINVAL, -ECHILD,
// -EROFS, -EIDRM (the region's semaphores were removed).

// Sets the value, 0 to SHMIPC_UNDO_SEMAPHORE_VALUE_MAX, and forgets what there
// is to undo.
SHMIPC_API SHMIPC_MUST_USE int shmipc_undo_semaphore_set(
    shmipc_region_t *region, uint32_t index, int value);
// Takes one; given back when this process ends. -ETIMEDOUT.
SHMIPC_API SHMIPC_MUST_USE int shmipc_undo_semaphore_wait(
    shmipc_region_t *region, uint32_t index, int64_t timeout_ns);
// Gives one back. -EOVERFLOW.
SHMIPC_API int shmipc_undo_semaphore_post(shmipc_region_t *region,
                                          uint32_t index);
// Returns the value.
SHMIPC_API int shmipc_undo_semaphore_value(shmipc_region_t *region,
                                           uint32_t index);

#ifdef __cplusplus
}  // extern "C"
#endif

#endif  // MY_ALLOC_SHMIPC_SEMAPHORE_H_
