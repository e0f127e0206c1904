// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0
//
// shared_heap: what can be asked of all blocks of a region at once.
//
// For: taking back what dead processes owned, statistics, tools. Not for:
// single blocks (block.h). shmipc_region_verify checks the heap, too.
//
//   if (shmipc_heap_reclaim(region, 0) > 0) {
//     puts("a process had died");
//   }
//
// All of these look at every page; others may be at work meanwhile, so that a
// count is one of some moment only when they are not.

#ifndef MY_ALLOC_SHMIPC_SHARED_HEAP_H_
#define MY_ALLOC_SHMIPC_SHARED_HEAP_H_

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "shmipc/ref.h"
#include "shmipc/region.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef enum shmipc_block_state {
  SHMIPC_BLOCK_OWNED,      // By an attachment.
  SHMIPC_BLOCK_IN_FLIGHT,  // Given by an attachment, not taken.
  SHMIPC_BLOCK_SHARED,     // The region's.
} shmipc_block_state_t;

typedef struct shmipc_block_info {
  shmipc_ref_t ref;
  size_t usable_bytes;
  shmipc_block_state_t state;
  uint32_t slot;  // Of the owner or giver; UINT32_MAX for the region's.
  bool is_dead;   // The owner or giver is.
} shmipc_block_info_t;

// Called for each live block. A negative result ends the walk. May free, give
// and take blocks, but not allocate.
typedef int shmipc_block_fn_t(void *context, const shmipc_block_info_t *block);

// Calls `visit` for each live block. Returns 0, the negative result that ended
// it, -EOPNOTSUPP (no heap), -ENOMEM or -ECHILD.
SHMIPC_API int shmipc_heap_walk(shmipc_region_t *region,
                                shmipc_block_fn_t *visit, void *context);

typedef struct shmipc_heap_stats {
  size_t heap_bytes;       // Of pages that there are now.
  size_t capacity_bytes;   // Of pages that there may be.
  size_t free_page_bytes;  // Of pages that nobody has.
  size_t free_bytes;       // Of free blocks in pages that a thread has.
  size_t live_bytes;       // Usable bytes of live blocks.
  uint64_t num_live;       // All that follow are among these.
  uint64_t num_shared;
  uint64_t num_in_flight;
  uint64_t num_dead;  // Owned by or given by dead processes.
} shmipc_heap_stats_t;

SHMIPC_API SHMIPC_MUST_USE int shmipc_heap_stats_get(
    shmipc_region_t *region, shmipc_heap_stats_t *out_stats);

// Also blocks in flight whose giver is dead. Only when nobody can find and take
// them any more.
#define SHMIPC_RECLAIM_IN_FLIGHT 1u

// Frees the blocks of dead processes. Blocks that are roots (root.h) become the
// region's instead. Returns how many were freed, or -EBUSY (roots are being
// changed by a process that is stopped), -EOPNOTSUPP, -EROFS, -ECHILD, -ENFILE,
// -ENOMEM, -ENOLCK (the thread holds SHMIPC_HOLDS_MAX locks), -EPROTO, -EDEADLK
// (the mutex is damaged). Killed in between, the next call does the rest.
// While it is at work no page of small blocks goes back: stopped in between, it
// keeps others from using empty pages for other sizes and large blocks until it
// goes on or dies.
SHMIPC_API int shmipc_heap_reclaim(shmipc_region_t *region, unsigned int flags);

// Gives back pages that the calling thread has and that have no live block,
// those of dead processes and ended threads as well. Returns how many, or
// -EOPNOTSUPP, -EROFS, -ECHILD, -ENFILE, -ENOMEM. (It happens by itself, little
// by little, in a thread that allocates more than it frees or the other way
// round; not in one that does nothing, or nothing but free what it has just
// allocated.)
SHMIPC_API int shmipc_heap_trim(shmipc_region_t *region);

#ifdef __cplusplus
}  // extern "C"
#endif

#endif  // MY_ALLOC_SHMIPC_SHARED_HEAP_H_
