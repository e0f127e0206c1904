// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// What the units that deal with System V objects share. Internal.

#ifndef MY_ALLOC_SHMIPC_SYSV_INTERNAL_H_
#define MY_ALLOC_SHMIPC_SYSV_INTERNAL_H_

#include <stdbool.h>
#include <stdint.h>
#include <sys/ipc.h>
#include <sys/shm.h>

#include "shmipc/region_layout.h"

#ifdef __cplusplus
extern "C" {
#endif

// A set: these, then a semaphore for each slot, then the caller's. So a set
// tells by itself which of its semaphores are slots.
#define SHMIPC_SYSV_SEM_GATE 0
#define SHMIPC_SYSV_SEM_READERS 1
#define SHMIPC_SYSV_SEM_MARK 2
#define SHMIPC_SYSV_SEM_NUM_UNDO 3
#define SHMIPC_SYSV_CONTROLS 4u
#define SHMIPC_SYSV_MARK 0x5368

key_t shmipc_sysv_key(const char *name);
key_t shmipc_sysv_set_key(int shm_id);
int shmipc_sysv_read_header(int shm_id, shmipc_header_t *out_header,
                            struct shmid_ds *out_status);
// Returns the id of a segment's set, or -EPROTO.
int shmipc_sysv_open_set(int shm_id, uint32_t num_slots, uint32_t num_undo);
// Whether any slot, reader or gate of a set is taken.
bool shmipc_sysv_set_is_used(int semaphore_id);
// Whether a set is one of ours and nobody uses it.
bool shmipc_sysv_set_is_left(int semaphore_id);
// Live attachments by slot, or -errno.
int shmipc_sysv_set_count(int semaphore_id);
// Number of the caller's semaphore.
static inline unsigned short shmipc_sysv_undo_number(uint32_t num_slots,
                                                     uint32_t index) {
  return (unsigned short)(num_slots + SHMIPC_SYSV_CONTROLS + index);
}

#ifdef __cplusplus
}  // extern "C"
#endif

#endif  // MY_ALLOC_SHMIPC_SYSV_INTERNAL_H_
