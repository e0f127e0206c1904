// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// What the strategies of private heaps share: the heap's pieces, which are
// numbered by their first granule, and the face of a strategy.
//
// All functions: the heap's lock held.

#ifndef MY_ALLOC_HEAP_FIT_H_
#define MY_ALLOC_HEAP_FIT_H_

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "heap/bit_tree.h"
#include "heap/private_heap.h"

#ifdef __cplusplus
extern "C" {
#endif

enum {
  // Lists of free pieces: of a TLSF at most 32 doublings of 32, of a buddy heap
  // one an order.
  HEAP_FIT_LISTS_MAX = 32 * 32,
  // Defaults.
  HEAP_FIT_GRANULE_SHIFT = 4,
  HEAP_FIT_TLSF_LISTS_LOG2 = 4,
  // Ranges of the kernel's memory are multiples of this.
  HEAP_FIT_GROWTH_BYTES = 65536,
};

#define HEAP_FIT_NONE UINT32_MAX
// What a free piece holds is not what was put there.
#define HEAP_FIT_BROKEN (UINT32_MAX - 1)

// A strategy. It knows the free pieces: those in which it placed links, which
// are not to be trusted.
typedef struct heap_fit {
  // Forgets all pieces.
  void (*reset)(heap_t *heap);
  // A free piece is there, or is not any more. False: broken, and its pieces
  // must be told to it anew.
  bool (*insert)(heap_t *heap, uint32_t start, uint32_t length);
  bool (*remove)(heap_t *heap, uint32_t start, uint32_t length);
  // Returns a free piece in which a block of `length` granules can start at a
  // multiple of `align_bytes`, and its length; or NONE, BROKEN.
  uint32_t (*find)(heap_t *heap, uint32_t length, size_t align_bytes,
                   uint32_t *out_piece_length);
  // Returns the length that a free piece must have to be found surely, 0 when
  // there can be none.
  uint64_t (*sure_length)(const heap_t *heap, uint32_t length,
                          size_t align_bytes);
  // Returns the first broken invariant's name, or NULL.
  const char *(*check)(heap_t *heap);
} heap_fit_t;

extern const heap_fit_t heap_fit_first;
extern const heap_fit_t heap_fit_next;
extern const heap_fit_t heap_fit_best;
extern const heap_fit_t heap_fit_tlsf;
extern const heap_fit_t heap_fit_buddy;

struct heap_segregated;

// Heaps without a lock whose calls begin with a short way of their own.
typedef enum heap_fit_plain {
  HEAP_FIT_PLAIN_NONE,
  HEAP_FIT_PLAIN_TLSF,  // With the default granules and lists.
  HEAP_FIT_PLAIN_SEGREGATED,
} heap_fit_plain_t;

// Tells a file from others.
typedef struct heap_file_id {
  uint64_t device;
  uint64_t inode;
} heap_file_id_t;

struct heap {
  const heap_fit_t *fit;               // Not of a segregated heap, which has
  struct heap_segregated *segregated;  // this instead.
  heap_options_t options;
  uintptr_t base;  // Of granule 0.
  uint32_t granule_shift;
  uint32_t split_length;
  uint32_t count;     // Granules that there are now.
  uint32_t capacity;  // At most.
  bool is_buddy;
  bool is_tlsf;
  bool has_lists;  // TLSF and buddy.
  heap_fit_plain_t plain;
  // A heap in a buffer, which is still there: it is not single-threaded then.
  bool is_destroyed;
  // Not of a segregated heap. Pieces tile [0, count): `starts` has the first
  // granule of each, and `count`; `frees` has the first and the last of each
  // free one. Only those who search `frees` have it with summaries.
  heap_bit_tree_t starts;
  heap_bit_tree_t frees;
  uint32_t live_length;
  uint32_t live_count;  // Of a segregated heap only.
  uint32_t peak_length;
  uint64_t steps;      // In all.
  uint64_t max_steps;  // Of one call.
  uint32_t broken_at;  // A piece whose links were found broken, or NONE.
  size_t base_align_bytes;
  size_t page_bytes;  // The kernel's; with a reservation only.
  void *reservation;  // NULL: a buffer.
  size_t reservation_bytes;
  size_t metadata_bytes;
  pthread_mutex_t lock;
  // Guarded by private_heap_list.c's lock.
  heap_t *next_heap;
  heap_t *prev_heap;
  heap_file_id_t file_id;
  pid_t file_owner;  // Has the lock of the file; 0: nobody.
  // Of the strategies.
  uint32_t rover;       // Next fit: where the next search starts.
  uint32_t root;        // Best fit: a link,
  uint32_t tree_count;  // and how many pieces it leads to.
  uint32_t lists_log2;  // TLSF: lists a doubling.
  uint32_t word_bits;   // Words of the next that are not 0.
  // A segregated heap ends here.
  uint64_t list_bits[HEAP_FIT_LISTS_MAX / 64];  // Lists that are not empty.
  uint32_t lists[HEAP_FIT_LISTS_MAX];           // Links.
};

static inline uintptr_t heap_fit_round_up(uintptr_t value, uintptr_t align) {
  return (value + align - 1) & ~(align - 1);
}

static inline bool heap_fit_is_power_of_two(size_t value) {
  return value != 0 && (value & (value - 1)) == 0;
}

// In a free piece. A link is the number of a piece plus 1, or 0.
typedef struct heap_fit_links {
  uint32_t first;
  uint32_t second;
} heap_fit_links_t;

static inline heap_fit_links_t *heap_fit_links_of(const heap_t *heap,
                                                  uint32_t start) {
  return (heap_fit_links_t *)(heap->base +
                              ((uintptr_t)start << heap->granule_shift));
}

// Tells whether a link, which is not 0, leads to a free piece.
static inline bool heap_fit_is_free(const heap_t *heap, uint32_t link) {
  return link - 1 < heap->count && heap_bit_tree_has(&heap->starts, link - 1) &&
         heap_bit_tree_has(&heap->frees, link - 1);
}

static inline uint32_t heap_fit_length(const heap_t *heap, uint32_t start) {
  ++*heap->starts.steps;
  return heap_bit_tree_next(&heap->starts, start + 1) - start;
}

// Returns the first free piece from the piece `start` on, or NONE.
static inline uint32_t heap_fit_next_free(const heap_t *heap, uint32_t start) {
  while (start < heap->count && !heap_bit_tree_has(&heap->frees, start)) {
    start += heap_fit_length(heap, start);
  }
  return start < heap->count ? start : HEAP_FIT_NONE;
}

// A piece whose links were found broken, to be reported when the lock is free.
static inline void heap_fit_note_broken(heap_t *heap, uint32_t start) {
  if (heap->broken_at == HEAP_FIT_NONE) {
    heap->broken_at = start;
  }
}

// Returns the first granule from `start` on that is a multiple of
// `align_bytes`.
static inline uint64_t heap_fit_align(const heap_t *heap, uint32_t start,
                                      size_t align_bytes) {
  uintptr_t address = heap->base + ((uintptr_t)start << heap->granule_shift);
  uintptr_t aligned = (address + align_bytes - 1) & ~(align_bytes - 1);
  return start + ((uint64_t)(aligned - address) >> heap->granule_shift);
}

#ifdef __cplusplus
}  // extern "C"
#endif

#endif  // MY_ALLOC_HEAP_FIT_H_
