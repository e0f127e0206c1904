// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// What the files of the ring share.

#ifndef MY_ALLOC_BUFIO_RING_INTERNAL_H_
#define MY_ALLOC_BUFIO_RING_INTERNAL_H_

#include "bufio/ring.h"

#ifdef __cplusplus
extern "C" {
#endif

#define BUFIO_RING_OVERWRITE 1u
#define BUFIO_RING_BLOCKING 2u

// Looks at the other side's counter. Producer: bytes of room. Consumer: bytes
// that are there.
uint64_t bufio_ring_room(bufio_ring_t *ring);
uint64_t bufio_ring_available(bufio_ring_t *ring);

// Wakes the sleeper if there is one, after a counter was stored.
void bufio_ring_wake(uint32_t *asleep, uint32_t *signal);

#ifdef __cplusplus
}  // extern "C"
#endif

#endif  // MY_ALLOC_BUFIO_RING_INTERNAL_H_
