// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0
//
// block: memory allocated in a region, by any process, freed by any process.
//
// For: data of any size that processes make, share and hand over. Not for:
// memory of one process (malloc), pages that are to go back to the kernel.
//
//   shmipc_region_options_t options = {
//       .size_bytes = sizeof(board_t),
//       .heap_bytes = 64 << 20,
//   };
//   ... shmipc_region_create_or_open ...
//   job_t *job = shmipc_block_alloc(region, sizeof(*job));
//   if (job == NULL) {
//     return puts(shmipc_strerror(-errno));
//   }
//   (void)shmipc_block_give(region, job);          // in flight
//   board->next = shmipc_ref_of(region, job);      // under a lock
//   ...                                            // and in another process:
//   job_t *job = shmipc_block_get(region, board->next, sizeof(*job));
//   (void)shmipc_block_take(region, job);          // now this one's
//   (void)shmipc_block_free(region, job);
//
// A block is from its first moment somebody's, and says so outside of its own
// bytes:
//
//   the process's    as allocated. When that process is dead,
//                    shmipc_heap_reclaim frees it.
//   in flight        given away and not taken yet. Reclaimed only when asked
//                    for, as somebody may still find it.
//   the region's     shared for good; only `free` ends it.
//
// A process may be killed at any instruction of any of these calls. A block is
// then free or somebody's as above, and none is lost. Nobody waits for anybody:
// not for the dead, not for a stopped process. Two exceptions: a block beyond
// 32 KiB may cost a millisecond when a process was stopped while it looked for
// pages, once in many of them. Growing the region, which is done when nothing
// else helps, may take a second if a stopped process is at it; then it is as if
// it could not grow. And shared_heap.h says what one does that was stopped
// while it reclaimed.
//
// Each thread that allocates takes pages of 64 KiB for each of 40 sizes, which
// others can use once nothing in them is live and the thread gives them back,
// or has ended: make the heap larger than what is live by 64 KiB for each
// thread and size in use.
//
// Threads: any thread of any attached process, at any time. Two that free or
// give the same block at the same time have a bug: it is without effect on the
// heap, but both may be told that it went well.

#ifndef MY_ALLOC_SHMIPC_BLOCK_H_
#define MY_ALLOC_SHMIPC_BLOCK_H_

#include <stddef.h>
#include <stdint.h>

#include "shmipc/ref.h"
#include "shmipc/region.h"

#ifdef __cplusplus
extern "C" {
#endif

// The largest alignment. Smaller than a block's own for large ones.
#define SHMIPC_BLOCK_ALIGNMENT_MAX 4096u

// Returns `size_bytes` or more of uninitialised memory, aligned to 16, of this
// process; 0 bytes are 1. NULL, with errno: ENOMEM, ENFILE (too many threads),
// EROFS, ECHILD, EOPNOTSUPP (the region has no heap). When there is no page
// left, pages of dead processes and threads are taken, and the region grows.
SHMIPC_API SHMIPC_MUST_USE void *shmipc_block_alloc(shmipc_region_t *region,
                                                    size_t size_bytes);

// The same, aligned to a power of two up to SHMIPC_BLOCK_ALIGNMENT_MAX; also
// EINVAL.
SHMIPC_API SHMIPC_MUST_USE void *shmipc_block_alloc_aligned(
    shmipc_region_t *region, size_t alignment, size_t size_bytes);

// Changes the size of a block of this process, keeping its bytes; it may move.
// NULL is an allocation. Blocks beyond 32 KiB grow in place where pages behind
// them are free. The alignment is kept only in place. NULL, with errno, and the
// block as before: as for alloc, EPERM (in flight, or somebody else's), and as
// free has them. One that is to become smaller is never ENOMEM; where nothing
// smaller is free it stays as it is.
SHMIPC_API SHMIPC_MUST_USE void *shmipc_block_realloc(shmipc_region_t *region,
                                                      void *block,
                                                      size_t size_bytes);

// Frees a block, whosever it is. NULL is a no-op. -EALREADY if it is free
// (freed twice), -EINVAL if no block starts there; and as for alloc. A freed
// one whose memory is in use again for blocks of another size may be -EINVAL,
// too.
SHMIPC_API int shmipc_block_free(shmipc_region_t *region, void *block);

// Bytes that may be used from `block` on; 0 if it is not a live block.
SHMIPC_API size_t shmipc_block_usable_size(shmipc_region_t *region,
                                           const void *block);

// Returns the live block that starts at the ref, if it has `len` bytes or more;
// otherwise NULL.
SHMIPC_API void *shmipc_block_get(shmipc_region_t *region, shmipc_ref_t ref,
                                  size_t len);

// Makes a block of this process one in flight. -EPERM if it is not this
// process's; -EALREADY, -EINVAL as of free.
SHMIPC_API int shmipc_block_give(shmipc_region_t *region, void *block);

// Makes a block in flight, or of the region, this process's. Of any number that
// call it at once for one block, one gets it. -EPERM if it is a process's. The
// block must not be freed at the same time, by one who got it before: where
// that can be, look for it and take it under a lock.
SHMIPC_API SHMIPC_MUST_USE int shmipc_block_take(shmipc_region_t *region,
                                                 void *block);

// Makes a block of this process, or one in flight, the region's. -EPERM.
SHMIPC_API int shmipc_block_share(shmipc_region_t *region, void *block);

#ifdef __cplusplus
}  // extern "C"
#endif

#endif  // MY_ALLOC_SHMIPC_BLOCK_H_
