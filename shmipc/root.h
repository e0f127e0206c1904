// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0
//
// root: blocks of a region that are found by name.
//
// For: the few objects from which all others are reached. Not for: a
// dictionary; there are SHMIPC_ROOTS_MAX of them.
//
//   queue_t *queue;
//   int status = shmipc_root_create(region, "queue", sizeof(*queue),
//   queue_init,
//                                   NULL, &queue_ref);
//   // -EEXIST: it was there, and queue_ref is it.
//
// A root is there whole or not at all: its block is filled before its name is
// there. A process killed in any of these calls leaves the root or not, and no
// block that shmipc_heap_reclaim does not find.
//
// Threads: any thread of any attached process. Changes exclude each other by a
// robust mutex of the region; finding takes no lock.

#ifndef MY_ALLOC_SHMIPC_ROOT_H_
#define MY_ALLOC_SHMIPC_ROOT_H_

#include <stddef.h>

#include "shmipc/ref.h"
#include "shmipc/region.h"

#ifdef __cplusplus
extern "C" {
#endif

#define SHMIPC_ROOTS_MAX 128u
// Bytes of a name; 1 or more, none of them NUL.
#define SHMIPC_ROOT_NAME_MAX 103u

// Fills a new block that nobody else sees. A negative result is returned by
// create, and nothing remains.
typedef int shmipc_root_fn_t(void *context, void *block, size_t size_bytes);

// Allocates a zeroed block of `size_bytes`, has it filled (`initialize` may be
// NULL), and gives it the name; it is the region's then. -EEXIST, with the ref
// of the block that has the name: of any number that call it at once, one
// creates. -EINVAL, -ENAMETOOLONG (name), -ENOSPC (SHMIPC_ROOTS_MAX), -EBUSY
// (a stopped process is changing roots), -ENOLCK, -EPROTO (the mutex is
// damaged), and as shmipc_block_alloc.
SHMIPC_API SHMIPC_MUST_USE int shmipc_root_create(
    shmipc_region_t *region, const char *name, size_t size_bytes,
    shmipc_root_fn_t *initialize, void *context, shmipc_ref_t *out_ref);

// Gives a name to a block of this process; it is the region's then, and must
// not be freed or taken while it has the name. -EPERM if it is not this
// process's, -EALREADY if it is free, -EINVAL if no block starts there, and as
// create, but for -EEXIST: without a ref.
SHMIPC_API SHMIPC_MUST_USE int shmipc_root_add(shmipc_region_t *region,
                                               const char *name, void *block);

// Finds a block by name; also in read-only attachments. -ENOENT, -EINVAL,
// -ENAMETOOLONG, -EOPNOTSUPP (no heap), -ECHILD; -EBUSY if it was changed at
// each of many looks.
SHMIPC_API SHMIPC_MUST_USE int shmipc_root_find(shmipc_region_t *region,
                                                const char *name,
                                                shmipc_ref_t *out_ref);

// Takes the name away. The block is this process's then, to be freed when
// nobody uses it any more. -ENOENT, -EBUSY, -EINVAL, -ENAMETOOLONG, -ENOLCK,
// -EROFS, -EOPNOTSUPP, -ECHILD, -ENFILE, -ENOMEM, -EPROTO (the mutex is
// damaged). -ESTALE: the name is gone, but its block had been freed, or taken
// by a process that lives; it stays whosever it is.
SHMIPC_API SHMIPC_MUST_USE int shmipc_root_remove(shmipc_region_t *region,
                                                  const char *name,
                                                  shmipc_ref_t *out_ref);

typedef void shmipc_root_list_fn_t(void *context, const char *name,
                                   shmipc_ref_t ref);

// Calls `visit` for each root; returns how many, -EOPNOTSUPP or -ECHILD. Takes
// no lock: what is changed meanwhile may be missing.
SHMIPC_API int shmipc_root_list(shmipc_region_t *region,
                                shmipc_root_list_fn_t *visit, void *context);

#ifdef __cplusplus
}  // extern "C"
#endif

#endif  // MY_ALLOC_SHMIPC_ROOT_H_
