// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0
//
// private_heap: heaps of their own, each with its memory, its limit and its
// placement strategy.
//
// For: memory that is freed all at once, is bounded, or must be predictable;
// code without a kernel (a static buffer is enough); and for comparing
// strategies. Not for: replacing malloc (heap.h scales with threads; a private
// heap has one lock).
//
//   #include "heap/private_heap.h"
//
//   static unsigned char memory[1 << 20];
//   const heap_options_t options = {
//       .strategy = HEAP_TLSF, .buffer = memory, .buffer_bytes =
//       sizeof(memory)};
//   heap_t *heap = heap_create(&options);
//   if (heap == NULL) {
//     return -errno;
//   }
//   char *name = heap_alloc_in(heap, 64);
//   ...
//   heap_free_in(heap, name);
//   heap_destroy(heap);
//
// A block has no header. Which bytes are blocks, and which of them are free, is
// in bitmaps outside of them, so each call that takes a block checks it exactly
// and reports what is not the start of a live block of this heap like heap.h
// does (HEAP_ON_ERROR). Lists and trees of free blocks do lie in free blocks;
// they are checked against the bitmaps where they are used: a write after free
// is reported when it is met, and the heap is whole again after that.
//
// Threads: any thread may call any function but heap_destroy at any time,
// unless the heap is `single_threaded`. Signals: no function may be called from
// a signal handler. fork: the child has a copy, which is whole whatever other
// threads do: fork waits for them. Not so with a heap in a buffer or without a
// lock: if another thread is inside it then, the child must not use it. Of
// memory in a shared file or buffer there is no copy, so only one of the two
// may go on with such a heap. Handlers of pthread_atfork that run while fork
// has the locks, those of libraries that were initialised before this one, must
// not use a private heap.

#ifndef MY_ALLOC_HEAP_PRIVATE_HEAP_H_
#define MY_ALLOC_HEAP_PRIVATE_HEAP_H_

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "heap/heap.h"

#ifdef __cplusplus
extern "C" {
#endif

// Where a block goes among the free ones. docs/heap.md has the source, the cost
// and the worst case of each.
typedef enum heap_strategy {
  HEAP_FIRST_FIT,   // The lowest that is large enough.
  HEAP_NEXT_FIT,    // The same, from where the last search ended.
  HEAP_BEST_FIT,    // The smallest, of these the lowest.
  HEAP_TLSF,        // One of nearly the smallest, in bounded time.
  HEAP_BUDDY,       // Powers of two that split and join, in bounded time.
  HEAP_SEGREGATED,  // The default heap's: size classes in spans, the fastest.
  HEAP_STRATEGY_COUNT,
} heap_strategy_t;

// All zero is a good choice: first fit, thread-safe, memory from the kernel.
typedef struct heap_options {
  heap_strategy_t strategy;
  // Memory for blocks at most, rounded down to 64 KiB, and to less than 2^32
  // granules when it is more; only addresses are taken at once. 0: 4 GiB, or
  // less where addresses are limited. Not heeded with `buffer`.
  size_t limit_bytes;
  // Memory of the caller's for everything, the heap's own tables included,
  // until heap_destroy. NULL: the kernel's.
  void *buffer;
  size_t buffer_bytes;
  // Blocks lie in this regular file, from its start on, which is opened for
  // reading and writing and grows as needed; it may be closed after
  // heap_create, which opens it again for itself. It is this heap's alone until
  // heap_destroy, which heaps of other processes see by a lock (F_OFD_SETLK),
  // where the file system has locks; what is in it after that is of no use.
  // That the file cannot grow, for want of space or by RLIMIT_FSIZE, is ENOMEM.
  // Nobody may make it shorter meanwhile: that is SIGBUS. Not with `buffer`.
  bool use_file;
  int file;
  // The unit of sizes and the smallest block, a power of two from 8 to 65536
  // bytes; blocks are aligned to it, with 8 to less than malloc's. 0: 16.
  // HEAP_SEGREGATED has 16 and its size classes: any other is out of range.
  size_t granule_bytes;
  // What would be left of a free block is split off if it is at least this
  // long; otherwise the block gets it. 0: a granule. Not heeded by HEAP_BUDDY
  // and HEAP_SEGREGATED.
  size_t split_bytes;
  // HEAP_TLSF: 2^n lists for each doubling of the size, n from 1 to 5; 0: 4.
  unsigned tlsf_lists_log2;
  // HEAP_SEGREGATED: the heap is given to size classes in pages of this length,
  // a power of two from 1024 to 65536 bytes; blocks of up to half of it have a
  // class. 0: 1/256 of the limit or of the buffer, within that range.
  size_t span_bytes;
  // No lock: the caller sees to it that calls do not overlap.
  bool single_threaded;
} heap_options_t;

typedef struct heap heap_t;

// Returns a new heap; NULL with `errno` EINVAL for options out of their range
// or a buffer that is too small for one granule, or for a page of
// HEAP_SEGREGATED; EBUSY: another heap is in the file; ENODEV: it is no regular
// one; ENOMEM, or what its mapping failed with.
HEAP_API heap_t *heap_create(const heap_options_t *options) HEAP_MUST_USE;

// Frees all blocks and the heap. NULL is a no-op. No other call is in progress,
// none comes after it: one with a heap in a buffer aborts as long as nobody has
// written to the buffer, others have no memory to look at.
HEAP_API void heap_destroy(heap_t *heap);

// Frees all blocks. The heap's memory stays its own.
HEAP_API void heap_reset(heap_t *heap);

// The same as the functions of heap.h, with blocks of `heap`, which are aligned
// to its granule. A size of 0 gives a smallest block. NULL with ENOMEM when
// nothing fits within the limit; the heap is as before then. HEAP_SEGREGATED
// gives pages in which a size class has no live block to others before, but no
// place between a class's live blocks; where no page is free, a small block
// takes the place of a large one, 4 KiB or a page. HEAP_TLSF may miss a free
// piece that is long enough by less than 1/2^tlsf_lists_log2; so may HEAP_TLSF
// and HEAP_BEST_FIT one in which only the alignment makes the block fit. All
// but HEAP_SEGREGATED ask for as much more than an aligned block as could be
// before it; the limit must have that. A block that becomes longer stays where
// it is if what is behind it is free, or new memory is; otherwise there must be
// room for both. heap_realloc_in never fails to make a block smaller.
// heap_aligned_alloc_in: EINVAL when the alignment is no power of two;
// HEAP_BUDDY has none beyond 64 KiB, in a buffer beyond that of the first
// block. HEAP_SEGREGATED takes memory that it never handed out, or gave back,
// for zero: a write there, by an overrun or after a free, comes to light in
// what heap_calloc_in returns. Of the hooks of heap.h only that of misuse is
// called.
HEAP_API void *heap_alloc_in(heap_t *heap, size_t size_bytes) HEAP_MUST_USE;
HEAP_API void *heap_calloc_in(heap_t *heap, size_t count,
                              size_t size_bytes) HEAP_MUST_USE;
HEAP_API void *heap_realloc_in(heap_t *heap, void *ptr,
                               size_t size_bytes) HEAP_MUST_USE;
HEAP_API void *heap_aligned_alloc_in(heap_t *heap, size_t align_bytes,
                                     size_t size_bytes) HEAP_MUST_USE;
HEAP_API void heap_free_in(heap_t *heap, void *ptr);
HEAP_API size_t heap_usable_size_in(heap_t *heap, const void *ptr);

// Gives the kernel's pages that lie in free blocks back, but for each block's
// first; returns how many bytes of addresses, the same again when nothing was
// used in between. 0 with a buffer or a file. HEAP_SEGREGATED first takes all
// pages back from size classes that have no live block in them.
HEAP_API size_t heap_trim_in(heap_t *heap);

// Visits every live block, lowest address first; false when `visit` was. It
// must not fork, create or destroy heaps, wait for a thread that does, nor call
// this heap or one that was created before it.
HEAP_API bool heap_walk_in(heap_t *heap, heap_visit_t visit, void *context);

// Returns NULL, or a text naming the first broken invariant; what a write after
// free broke is one. Proportional to the heap.
HEAP_API const char *heap_check_in(heap_t *heap);

// No alloc, free or realloc takes more steps (below), however large the heap
// and whatever was done before; piece.c derives the figures. Not counted are
// the copying of a move, memory asked of the kernel (a buffer has all it will
// have), and the repair after a write into free blocks.
#define HEAP_TLSF_STEPS_MAX 104
#define HEAP_BUDDY_STEPS_MAX 1707

typedef struct heap_private_stats {
  size_t mapped_bytes;  // For blocks, so far.
  size_t live_bytes;    // Usable sizes of all live blocks.
  size_t num_live;
  size_t free_bytes;  // mapped_bytes - live_bytes.
  size_t num_free;    // Pieces of these.
  size_t largest_free_bytes;
  size_t peak_live_bytes;  // Highest live_bytes since heap_create; while a
                           // block moves both its places count.
  size_t metadata_bytes;   // Addresses of tables, beside mapped_bytes.
  // Blocks looked at, list and tree links followed, words of bitmaps or of
  // HEAP_SEGREGATED's states read or changed: what calls took in all, and the
  // longest one.
  uint64_t num_steps;
  uint64_t max_steps;
} heap_private_stats_t;

// Looks at each free block, and at a bit of each granule.
HEAP_API void heap_stats_get_in(heap_t *heap, heap_private_stats_t *out_stats);

#ifdef __cplusplus
}  // extern "C"
#endif

#endif  // MY_ALLOC_HEAP_PRIVATE_HEAP_H_
