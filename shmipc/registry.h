// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0
//
// registry: which regions there are on this machine, and those nobody uses.
//
// For: tools (shmipc_tool) and programs that clean up after crashes. Not for:
// finding a region to open; names do that.
//
//   static void print(void *context, const shmipc_entry_t *entry) {
//     printf("%s %u alive\n", entry->name, entry->num_live);
//   }
//   int status = shmipc_registry_list(print, NULL);
//
// Only what has the header of this library is listed or removed. What the
// caller may not read is not listed. Regions of memfd have no name and need
// nothing.
//
// Threads: any; forks of other threads wait while a region is looked at.

#ifndef MY_ALLOC_SHMIPC_REGISTRY_H_
#define MY_ALLOC_SHMIPC_REGISTRY_H_

#include <stdbool.h>
#include <stdint.h>

#include "shmipc/region.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct shmipc_entry {
  shmipc_backend_t backend;
  const char *name;      // Until the callback returns.
  uint64_t size_bytes;   // Of the whole region.
  uint32_t num_live;     // Attachments of live processes with a slot.
  uint32_t num_dead;     // Of dead ones, not recovered.
  bool has_readers;      // Someone is attached read-only.
  bool is_unfinished;    // What a killed creator left, or one at work makes.
  uint32_t creator_pid;  // As the creator's pid namespace had it.
  uint64_t created_s;    // Seconds since 1970.
  uint32_t owner_uid;
  uint32_t mode;
} shmipc_entry_t;

typedef void shmipc_entry_fn_t(void *context, const shmipc_entry_t *entry);

// Calls `visit` for each region. Returns how many, or -errno.
SHMIPC_API int shmipc_registry_list(shmipc_entry_fn_t *visit, void *context);

// Removes the regions that no live process is attached to, read-only or not,
// and what killed creators left; calls `visit`, which may be NULL, for each one
// that was removed. One that somebody is just attaching to stays. Returns how
// many, or -errno; those that may not be removed (-EACCES) are passed over.
SHMIPC_API int shmipc_registry_collect(shmipc_entry_fn_t *visit, void *context);

#ifdef __cplusplus
}  // extern "C"
#endif

#endif  // MY_ALLOC_SHMIPC_REGISTRY_H_
