// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0
//
// event: sleep until something changed; and the condition variable made of it.
//
// For: waiting for a state that others change with atomics (event) or under a
// mutex (condition). Not for: counting (semaphore.h).
//
//   for (;;) {                                       // waits
//     uint32_t key = shmipc_event_key(&board->changed);
//     if (has_work(board)) break;
//     status = shmipc_event_wait(region, &board->changed, key, timeout_ns);
//   }
//
//   add_work(board);                                 // wakes
//   (void)shmipc_event_notify_all(region, &board->changed);
//
// Whatever is notified after the key was read ends the wait: no wake-up is lost
// between the look and the sleep. A waiter or notifier that dies harms nobody.
// With nobody waiting, notifying does not enter the kernel.

#ifndef MY_ALLOC_SHMIPC_EVENT_H_
#define MY_ALLOC_SHMIPC_EVENT_H_

#include <stdint.h>

#include "shmipc/mutex.h"
#include "shmipc/region.h"

#ifdef __cplusplus
extern "C" {
#endif

// In the region's data, aligned to 4 bytes. All zero is initialised.
typedef struct shmipc_event {
  uint32_t word;  // Offset 0. Bit 0: somebody may be waiting; then a count.
} shmipc_event_t;

typedef struct shmipc_condition {
  shmipc_event_t event;  // Offset 0.
} shmipc_condition_t;

// Returns what to wait with. Acquires: what was written before the latest
// notification is seen after it.
SHMIPC_API uint32_t shmipc_event_key(const shmipc_event_t *event);

// Waits until there was a notification since the key was read; may also return
// 0 for no reason. -ETIMEDOUT, -EROFS, -ECHILD, -EINVAL (not in the region).
SHMIPC_API SHMIPC_MUST_USE int shmipc_event_wait(shmipc_region_t *region,
                                                 shmipc_event_t *event,
                                                 uint32_t key,
                                                 int64_t timeout_ns);

// Wakes at least one of those waiting, maybe more. -EROFS, -ECHILD, -EINVAL.
SHMIPC_API int shmipc_event_notify_one(shmipc_region_t *region,
                                       shmipc_event_t *event);

// Wakes all.
SHMIPC_API int shmipc_event_notify_all(shmipc_region_t *region,
                                       shmipc_event_t *event);

// Unlocks the mutex, waits for a notification and locks it again. The state
// that is waited for has to be looked at again after each return. Returns 0,
// -EOWNERDEAD (the mutex is held; as from shmipc_mutex_lock) or -ETIMEDOUT
// (held too). Not held: -EPERM (it was not, before), -ENOTRECOVERABLE. After a
// timeout, the mutex is waited for without one.
SHMIPC_API SHMIPC_MUST_USE int shmipc_condition_wait(
    shmipc_region_t *region, shmipc_condition_t *condition,
    shmipc_mutex_t *mutex, int64_t timeout_ns);

// Wake one or all of those waiting. The mutex may be held, and need not be.
SHMIPC_API int shmipc_condition_signal(shmipc_region_t *region,
                                       shmipc_condition_t *condition);
SHMIPC_API int shmipc_condition_broadcast(shmipc_region_t *region,
                                          shmipc_condition_t *condition);

#ifdef __cplusplus
}  // extern "C"
#endif

#endif  // MY_ALLOC_SHMIPC_EVENT_H_
