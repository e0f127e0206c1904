// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0
//
// heap: a general-purpose allocator on the program break.
//
// For: any program that calls malloc, and code that wants the same allocator
// under a name of its own. Not for: memory shared between processes (shmipc),
// or millions of objects of one size (slab is faster).
//
//   #include "heap/heap.h"
//
//   char *name = heap_alloc(64);
//   if (name == NULL) {
//     return -errno;  // ENOMEM
//   }
//   name = ...;
//   heap_free(name);
//
// The state of every block is kept outside the blocks and is found from the
// address by arithmetic, so each call that takes a block checks it exactly:
// a pointer that is not the start of a live block (foreign, interior, already
// freed) is reported on stderr and the process aborts. There is no "unchecked"
// build. A write past the end of a block cannot reach the allocator's tables.
//
// Threads: every function may be called from any thread at any time; a block
// may be freed by another thread than the one that got it.
// Signals: not from a signal handler, as with malloc.
// fork: the child of a multithreaded process may allocate and free at once;
// blocks of threads that do not exist in the child stay valid there.
//
// Environment, not heeded by set-user-ID programs. Read when the heap first
// needs memory from the kernel:
//   HEAP_SOURCE=brk|mmap  where small and medium blocks come from: the program
//                         break (default; mmap where the break cannot grow),
//                         or mapped reservations only.
// Read when a misuse is found:
//   HEAP_ON_ERROR=report  report and go on; the bad call has no effect (a free
//                         with a wrong size is a free).
// Read by programs whose malloc this is (//heap:malloc, libheap.so):
//   HEAP_STATS=1|json     print heap_stats_get() to stderr at exit.
//   HEAP_HELP=1           list these variables on stderr at start.
// Read by the hardened variant (//heap:malloc_hardened, libheap_hardened.so)
// when it first allocates; its HEAP_SOURCE is mmap where nothing is said:
//   HEAP_HARDEN=LIST      defences, from the left: all, none, and the words
//   that
//                         HEAP_HELP lists, a - before one takes it away.
// Other values are ignored; these programs say so on stderr at start.

#ifndef MY_ALLOC_HEAP_HEAP_H_
#define MY_ALLOC_HEAP_HEAP_H_

#include <stdbool.h>
#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

#define HEAP_API __attribute__((visibility("default")))
#define HEAP_MUST_USE __attribute__((warn_unused_result))

// Every block starts at a multiple of this.
#define HEAP_MIN_ALIGN_BYTES 16

// Frees one block. NULL is a no-op. `errno` is preserved. A pointer that is
// not the start of a live block is a misuse: reported, then abort.
HEAP_API void heap_free(void *ptr);

// Like `heap_free`, for a block whose size and alignment the caller knows, as
// C++'s sized delete does: those that the allocation was asked for, alignment 0
// when for none. A size that such a block could not have is a misuse as well
// (with HEAP_ON_ERROR=report the block is freed, as it is one).
// Not for blocks that `heap_realloc` made smaller.
HEAP_API void heap_free_sized(void *ptr, size_t align_bytes, size_t size_bytes);

// Returns a block of at least `size_bytes`, contents undefined, aligned to
// `HEAP_MIN_ALIGN_BYTES`. Size 0 gives a block of its own that can be freed.
// NULL with `errno` ENOMEM when no memory is to be had or the size is above
// PTRDIFF_MAX; the heap is then as before the call.
HEAP_API void *heap_alloc(size_t size_bytes) HEAP_MUST_USE
    __attribute__((malloc, alloc_size(1)));

// Like `heap_alloc(count * size_bytes)`, all bytes zero; a product that
// overflows is ENOMEM. Memory that is known to be fresh is not written.
HEAP_API void *heap_calloc(size_t count, size_t size_bytes) HEAP_MUST_USE
    __attribute__((malloc, alloc_size(1, 2)));

// Returns a block of at least `size_bytes` that starts with the old block's
// first min(old, new) bytes; the old block is gone unless it is the one
// returned. NULL `ptr` is `heap_alloc`. Size 0 gives a smallest block, it does
// not free. On failure NULL with ENOMEM, and the old block is untouched; to
// make a block smaller never fails.
HEAP_API void *heap_realloc(void *ptr, size_t size_bytes) HEAP_MUST_USE
    __attribute__((alloc_size(2)));

// Like `heap_alloc`, at a multiple of `align_bytes`: any power of two. NULL
// with EINVAL when it is not one, with ENOMEM as above.
HEAP_API void *heap_aligned_alloc(size_t align_bytes,
                                  size_t size_bytes) HEAP_MUST_USE
    __attribute__((malloc, alloc_align(1), alloc_size(2)));

// Returns how many bytes the caller may use from `ptr` on, at least what was
// asked for; 0 for NULL. Bytes above the requested size are the caller's too,
// and `heap_realloc` keeps them.
HEAP_API size_t heap_usable_size(void *ptr);

// Gives memory back to the kernel that holds no block, but for `keep_bytes` at
// the end of the break, and for what other threads that still run have cached.
// Returns how many bytes went back. The heap does so by itself when much of it
// is free; this is for a program that knows better, and goes further: the
// kernel's pages among small blocks go back as well. What other running threads
// own of spans that are empty now they give back themselves, when they next
// need memory.
HEAP_API size_t heap_trim(size_t keep_bytes);

// Gives the process heap memory of the program's own, readable, writable and
// private to the process, for ever: a static buffer, huge pages, memory of one
// node. Small and medium blocks come from it as from the heap's other memory,
// before the kernel is asked for more; it is never unmapped or discarded.
// `is_zeroed`: all bytes are zero, and calloc may rely on that. Returns how
// many bytes are used, whole pages of 64 KiB. 0 with `errno` EINVAL when there
// is none in it, or when some of it is a block, the heap's already, or in the
// program break above the heap's lowest block, where the heap grows; with
// ENOMEM without memory for tables, or after 16 calls.
HEAP_API size_t heap_add_memory(void *memory, size_t size_bytes,
                                bool is_zeroed);

// Verifies every invariant of the process heap that can be seen while no other
// thread is inside it. Returns NULL, or a text naming the first broken one.
// Slow: proportional to the heap. For tests and debuggers. Not in the child of
// a process that had other threads when it forked: what these were in the midst
// of stays undone there, which harms nobody.
HEAP_API const char *heap_check(void);

// Called with each live block; false ends the walk.
typedef bool (*heap_visit_t)(void *context, void *ptr, size_t usable_bytes);

// Visits every live block of all threads, in no order. Returns false when
// `visit` did. Other threads may go on: blocks that they get or free meanwhile
// may or may not be visited. `visit` runs with the central lock held and must
// not call the heap, nor a private one.
HEAP_API bool heap_walk(heap_visit_t visit, void *context);

#define HEAP_STATS_CLASS_COUNT 72

// The blocks of one size class.
typedef struct heap_class_stats {
  size_t block_bytes;
  size_t num_spans;
  size_t num_live;
  size_t num_free;  // In these spans, those cached for reuse included.
} heap_class_stats_t;

// Where the memory is. Of one moment as far as other threads hold still.
typedef struct heap_stats {
  size_t live_bytes;      // Usable sizes of all live blocks.
  size_t num_live;        // Live blocks.
  size_t mapped_bytes;    // From the kernel: break, reservations in use,
                          // mappings of big blocks; and heap_add_memory's.
  size_t dirty_bytes;     // Of these, used and not given back since: at most
                          // this much is resident (and, of memory that the
                          // program added, what it touched itself).
  size_t idle_bytes;      // Of dirty, in no block and no span.
  size_t free_run_bytes;  // Of mapped, in no block and no span.
  size_t largest_free_run_bytes;  // The longest piece of these.
  size_t span_free_bytes;         // Of mapped, free blocks of spans.
  size_t huge_bytes;      // Of mapped, blocks with mappings of their own.
  size_t num_huge;        // These.
  size_t metadata_bytes;  // Addresses of tables, beside mapped_bytes.
  size_t num_spans;
  size_t num_refills;  // Small allocations that found nothing cached.
  // What these asked for, and what their blocks have: a sample of what is lost
  // inside of small blocks. (A run loses less than 1 KiB, a mapping 64.)
  size_t sampled_request_bytes;
  size_t sampled_block_bytes;
  size_t num_kernel_calls;  // That moved, mapped, unmapped or gave back memory.
  size_t num_misuses;       // Reported and survived (HEAP_ON_ERROR=report).
  heap_class_stats_t classes[HEAP_STATS_CLASS_COUNT];
} heap_stats_t;

// Fills `out_stats`. Looks at one byte a small block, under the central lock:
// some milliseconds for each GiB of the smallest blocks, far less otherwise.
HEAP_API void heap_stats_get(heap_stats_t *out_stats);

typedef enum heap_stats_format {
  HEAP_STATS_TEXT,
  HEAP_STATS_JSON,
} heap_stats_format_t;

// Writes `stats` into `buffer`, with a terminating NUL, cut to
// `capacity_bytes`. Returns the length of the whole text; a capacity of 0
// writes nothing.
HEAP_API size_t heap_stats_format(const heap_stats_t *stats,
                                  heap_stats_format_t format, char *buffer,
                                  size_t capacity_bytes);

// What is wrong with a pointer that was passed in.
typedef enum heap_misuse {
  HEAP_MISUSE_FOREIGN,   // No block of this heap starts or lies there.
  HEAP_MISUSE_INTERIOR,  // Inside a live block, not at its start.
  HEAP_MISUSE_FREED,     // A block that is free (or was never handed out).
  HEAP_MISUSE_SIZE,      // A sized free of a block of another size.
  HEAP_MISUSE_WRITTEN,   // A free block's links were overwritten
                         // (private_heap.h); one was (hardened variant).
  // Hardened variant:
  HEAP_MISUSE_OVERFLOW,   // A block was written to past the requested size.
  HEAP_MISUSE_UNDERFLOW,  // What lies before a block was written to.
} heap_misuse_t;

// Callbacks around the life of blocks. Members may be NULL. They run in the
// thread that made the call, may allocate (and are then entered recursively),
// and cost the fast paths nothing where no hooks are set.
typedef struct heap_hooks {
  // A block was handed out; the caller does not have it yet. No lock held.
  void (*on_alloc)(void *ptr, size_t size_bytes, size_t usable_bytes);
  // A live block is about to become free; nobody else can get it before this
  // returns. No lock held.
  void (*on_free)(void *ptr);
  // The requested size of a live block changed in place. A realloc that moves
  // is `on_alloc` of the new block, then `on_free` of the old one; only for
  // mappings moved by the kernel it is `on_free` first.
  void (*on_resize)(void *ptr, size_t size_bytes, size_t usable_bytes);
  // The heap got [ptr, ptr + size_bytes) from the kernel or the program, or is
  // about to give it back. The central lock is held: these two must not
  // allocate or free.
  void (*on_map)(void *ptr, size_t size_bytes);
  void (*on_unmap)(void *ptr, size_t size_bytes);
  // A misuse was found, and is reported next. No lock held.
  void (*on_misuse)(heap_misuse_t misuse, const void *ptr);
} heap_hooks_t;

// Weak: a program or preload object that defines it has its hooks set from the
// first allocation of the process on, for ever. Must be constant.
extern const heap_hooks_t heap_initial_hooks __attribute__((weak));

#ifdef __cplusplus
}  // extern "C"
#endif

#endif  // MY_ALLOC_HEAP_HEAP_H_
