// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// Ranges of addresses in which SIGBUS is survived. Internal.

#ifndef MY_ALLOC_BUFIO_FAULT_GUARD_H_
#define MY_ALLOC_BUFIO_FAULT_GUARD_H_

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "bufio/bufio.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct bufio_fault_slot bufio_fault_slot_t;

// Takes a slot that guards nothing yet, and installs the handler. NULL: no
// memory.
bufio_fault_slot_t *bufio_fault_guard_add(void) BUFIO_MUST_USE;

// Guards [start, start + len), whole pages, instead of what was guarded before.
// NULL: nothing.
void bufio_fault_guard_set(bufio_fault_slot_t *slot, void *start, size_t len);

// Returns how many faults the slot has survived since it was taken.
uint64_t bufio_fault_guard_count(const bufio_fault_slot_t *slot);

// Gives it back. NULL is a no-op.
void bufio_fault_guard_remove(bufio_fault_slot_t *slot);

#ifdef __cplusplus
}  // extern "C"
#endif

#endif  // MY_ALLOC_BUFIO_FAULT_GUARD_H_
