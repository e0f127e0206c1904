// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// Where a private heap's memory comes from, and how it is laid out in it:
//
//   kernel:  | heap_t, bitmaps |    | granule 0 | 1 | ... count | ... capacity
//              a mapping              a reservation, made usable when needed
//
//   buffer:  | heap_t, bitmaps | granule 0 | 1 | ... count = capacity |
//
// A segregated heap's tables are others (segregated.c) and longer, so they are
// addresses only as well, made usable together with the memory.
//
// The tables come first, where no write past the end of a block leads to.

#include "heap/private_heap.h"

#include <assert.h>
#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "heap/fatal.h"
#include "heap/kernel.h"
#include "heap/piece.h"
#include "heap/private_file.h"
#include "heap/private_heap_list.h"
#include "heap/segregated.h"

enum {
  GRANULE_MIN_BYTES = 8,
  GRANULE_BYTES = 1 << HEAP_FIT_GRANULE_SHIFT,
  GRANULE_MAX_BYTES = 65536,
  TLSF_LISTS_LOG2 = HEAP_FIT_TLSF_LISTS_LOG2,
  TLSF_LISTS_LOG2_MAX = 5,
  TABLE_ALIGN_BYTES = 64,  // In a buffer.
};

static_assert(sizeof(heap_fit_links_t) <= GRANULE_MIN_BYTES,
              "a free piece has room for links");

#define DEFAULT_LIMIT_BYTES ((size_t)4 << 30)
#define LIMIT_MIN_BYTES ((size_t)HEAP_FIT_GROWTH_BYTES)

static const heap_fit_t *const fits[HEAP_STRATEGY_COUNT] = {
    [HEAP_FIRST_FIT] = &heap_fit_first, [HEAP_NEXT_FIT] = &heap_fit_next,
    [HEAP_BEST_FIT] = &heap_fit_best,   [HEAP_TLSF] = &heap_fit_tlsf,
    [HEAP_BUDDY] = &heap_fit_buddy,     [HEAP_SEGREGATED] = NULL,
};

static bool is_segregated(const heap_options_t *options) {
  return options->strategy == HEAP_SEGREGATED;
}

// Tells whether what concerns one strategy only is within its range.
static bool are_own_options_right(const heap_options_t *options) {
  if (!is_segregated(options)) {
    return options->tlsf_lists_log2 <= TLSF_LISTS_LOG2_MAX;
  }
  return options->granule_bytes == GRANULE_BYTES &&
         (options->span_bytes == 0 ||
          (heap_fit_is_power_of_two(options->span_bytes) &&
           options->span_bytes >= HEAP_SEGREGATED_SPAN_MIN_BYTES &&
           options->span_bytes <= HEAP_PAGE_BYTES));
}

// Completes the options; false: one is out of its range.
static bool set_defaults(heap_options_t *options) {
  if (options->granule_bytes == 0) {
    options->granule_bytes = GRANULE_BYTES;
  }
  if (options->split_bytes == 0) {
    options->split_bytes = options->granule_bytes;
  }
  if (options->tlsf_lists_log2 == 0) {
    options->tlsf_lists_log2 = TLSF_LISTS_LOG2;
  }
  return (unsigned)options->strategy < HEAP_STRATEGY_COUNT &&
         heap_fit_is_power_of_two(options->granule_bytes) &&
         options->granule_bytes >= GRANULE_MIN_BYTES &&
         options->granule_bytes <= GRANULE_MAX_BYTES &&
         are_own_options_right(options) &&
         (options->buffer == NULL || !options->use_file) &&
         (options->limit_bytes == 0 || options->buffer != NULL ||
          options->limit_bytes >= LIMIT_MIN_BYTES);
}

static size_t tables_bytes(const heap_options_t *options, uint32_t capacity) {
  if (is_segregated(options)) {
    return heap_segregated_tables_bytes(options->span_bytes, capacity,
                                        TABLE_ALIGN_BYTES, NULL);
  }
  return heap_fit_round_up(sizeof(heap_t), _Alignof(max_align_t)) +
         2 * heap_bit_tree_bytes(capacity + 1);
}

// Returns what the first block must be aligned to.
static size_t base_align_min(const heap_options_t *options) {
  return is_segregated(options)
             ? heap_segregated_unit_bytes_of(options->span_bytes)
             : options->granule_bytes;
}

// Returns the most that the first block in a buffer can be aligned to at the
// price of 1/64 of it.
static size_t base_align_in_buffer(const heap_options_t *options) {
  size_t align_bytes = base_align_min(options);
  while (align_bytes < HEAP_FIT_GROWTH_BYTES &&
         align_bytes * 2 <= options->buffer_bytes / 64) {
    align_bytes *= 2;
  }
  return align_bytes;
}

// Returns the most that blocks of a buddy heap can be aligned to.
static size_t base_align(const heap_options_t *options, uintptr_t base) {
  // A reservation may be better aligned, but not always.
  return options->buffer != NULL ? base & (~base + 1) : HEAP_FIT_GROWTH_BYTES;
}

static void start_bitmaps(heap_t *heap) {
  unsigned char *trees =
      (unsigned char *)heap +
      heap_fit_round_up(sizeof(heap_t), _Alignof(max_align_t));
  uint32_t end = heap->capacity + 1;
  heap_bit_tree_init(&heap->starts, trees, end, &heap->steps);
  bool is_searched =
      heap->fit == &heap_fit_first || heap->fit == &heap_fit_next;
  (is_searched ? heap_bit_tree_init : heap_bit_tree_init_flat)(
      &heap->frees, trees + heap_bit_tree_bytes(end), end, &heap->steps);
  heap_piece_free_all(heap);
}

static heap_fit_plain_t plain_of(const heap_options_t *options) {
  if (!options->single_threaded) {
    return HEAP_FIT_PLAIN_NONE;
  }
  if (is_segregated(options)) {
    return HEAP_FIT_PLAIN_SEGREGATED;
  }
  return options->strategy == HEAP_TLSF &&
                 options->granule_bytes == GRANULE_BYTES &&
                 options->tlsf_lists_log2 == TLSF_LISTS_LOG2
             ? HEAP_FIT_PLAIN_TLSF
             : HEAP_FIT_PLAIN_NONE;
}

// Starts a heap without granules in zeroed memory for its tables, of which
// those that grow start at multiples of `table_align_bytes`.
static heap_t *start(void *tables, const heap_options_t *options,
                     uintptr_t base, uint32_t capacity,
                     size_t table_align_bytes) {
  heap_t *heap = tables;
  heap->fit = fits[options->strategy];
  heap->options = *options;
  heap->base = base;
  heap->granule_shift = (uint32_t)__builtin_ctzll(options->granule_bytes);
  heap->is_buddy = options->strategy == HEAP_BUDDY;
  heap->is_tlsf = options->strategy == HEAP_TLSF;
  heap->has_lists = heap->is_buddy || heap->is_tlsf;
  heap->lists_log2 = options->tlsf_lists_log2;
  heap->plain = plain_of(options);
  heap->capacity = capacity;
  heap->broken_at = HEAP_FIT_NONE;
  heap->base_align_bytes = base_align(options, base);
  size_t split_length = options->split_bytes / options->granule_bytes +
                        (options->split_bytes % options->granule_bytes != 0);
  heap->split_length =
      split_length < UINT32_MAX ? (uint32_t)split_length : UINT32_MAX;
  heap->metadata_bytes = tables_bytes(options, capacity);
  pthread_mutex_init(&heap->lock, NULL);
  if (is_segregated(options)) {
    bool is_zeroed = options->buffer == NULL && !options->use_file;
    heap_segregated_init(heap, options->span_bytes, table_align_bytes,
                         is_zeroed);
  } else {
    start_bitmaps(heap);
  }
  return heap;
}

// Returns the granules of whole units among them, or 0 when there is no page.
static uint32_t whole_units(const heap_options_t *options, uint32_t capacity) {
  size_t page_length = options->span_bytes / options->granule_bytes;
  size_t unit_bytes = heap_segregated_unit_bytes_of(options->span_bytes);
  uint32_t unit_length = (uint32_t)(unit_bytes / options->granule_bytes);
  return capacity < page_length ? 0 : capacity / unit_length * unit_length;
}

// Returns how many granules fit behind the tables for them, and where.
static uint32_t fit_in_buffer(const heap_options_t *options, uintptr_t tables,
                              uintptr_t end, uintptr_t *out_base) {
  size_t granule = options->granule_bytes;
  size_t align_bytes = base_align_in_buffer(options);
  size_t most = (end - tables) / granule;
  uint32_t capacity = most < UINT32_MAX - 2 ? (uint32_t)most : UINT32_MAX - 2;
  while (capacity > 0) {
    size_t used_bytes = tables_bytes(options, capacity);
    uintptr_t base = heap_fit_round_up(tables + used_bytes, align_bytes);
    if (used_bytes <= end - tables && base <= end &&
        (end - base) / granule >= capacity) {
      *out_base = base;
      return is_segregated(options) ? whole_units(options, capacity) : capacity;
    }
    uint32_t excess = capacity / 4096 + 1;
    capacity -= excess;
  }
  return 0;
}

static heap_t *create_in_buffer(const heap_options_t *options) {
  uintptr_t tables = heap_fit_round_up(
      (uintptr_t)options->buffer,
      is_segregated(options) ? TABLE_ALIGN_BYTES : _Alignof(max_align_t));
  uintptr_t end;
  uintptr_t base = 0;
  if (__builtin_add_overflow((uintptr_t)options->buffer, options->buffer_bytes,
                             &end) ||
      tables < (uintptr_t)options->buffer || tables > end) {
    errno = EINVAL;
    return NULL;
  }
  uint32_t capacity = fit_in_buffer(options, tables, end, &base);
  if (capacity == 0) {
    errno = EINVAL;
    return NULL;
  }
  memset((void *)tables, 0, tables_bytes(options, capacity));
  heap_t *heap =
      start((void *)tables, options, base, capacity, TABLE_ALIGN_BYTES);
  if (heap->segregated != NULL) {
    heap_segregated_append(heap, capacity);
  } else {
    heap_piece_append(heap, capacity);
  }
  return heap;
}

// Maps the file over addresses that are reserved; false with `errno`.
static bool map_file(const heap_options_t *options, void *base,
                     size_t limit_bytes) {
  return mmap(base, limit_bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED,
              options->file, 0) != MAP_FAILED;
}

// Maps tables of `size_bytes`, of which only the first `fixed_bytes` need be
// usable; NULL: no memory.
static void *map_tables(size_t size_bytes, size_t fixed_bytes) {
  bool is_all = fixed_bytes == size_bytes;
  void *tables = heap_kernel->map(size_bytes, !is_all);
  if (tables != NULL && !is_all && !heap_kernel->commit(tables, fixed_bytes)) {
    heap_kernel->unmap(tables, size_bytes);
    return NULL;
  }
  return tables;
}

// Makes a heap in a reservation; NULL with `errno`.
static heap_t *create_at(const heap_options_t *options, uintptr_t base,
                         uint32_t capacity) {
  size_t page_bytes = (size_t)sysconf(_SC_PAGESIZE);
  size_t size_bytes;
  size_t fixed_bytes;
  if (is_segregated(options)) {
    size_bytes = heap_segregated_tables_bytes(options->span_bytes, capacity,
                                              page_bytes, &fixed_bytes);
    size_bytes = heap_fit_round_up(size_bytes, page_bytes);
    fixed_bytes = heap_fit_round_up(fixed_bytes, page_bytes);
  } else {
    size_bytes = heap_fit_round_up(tables_bytes(options, capacity), page_bytes);
    fixed_bytes = size_bytes;
  }
  size_t limit_bytes = (size_t)capacity * options->granule_bytes;
  if (options->use_file && !map_file(options, (void *)base, limit_bytes)) {
    return NULL;
  }
  void *tables = map_tables(size_bytes, fixed_bytes);
  if (tables == NULL) {
    errno = ENOMEM;
    return NULL;
  }
  heap_t *heap = start(tables, options, base, capacity, page_bytes);
  heap->metadata_bytes = size_bytes;
  heap->page_bytes = page_bytes;
  return heap;
}

// Makes a heap of at most `limit_bytes`; NULL with `errno`.
static heap_t *create_limited(heap_options_t options, size_t limit_bytes) {
  limit_bytes &= ~(size_t)(HEAP_FIT_GROWTH_BYTES - 1);
  size_t granules = limit_bytes / options.granule_bytes;
  if (granules > UINT32_MAX - 2) {
    granules = (UINT32_MAX - 2) & ~(size_t)(HEAP_FIT_GROWTH_BYTES - 1);
    limit_bytes = granules * options.granule_bytes;
  }
  if (options.span_bytes == 0) {
    options.span_bytes = heap_segregated_span_bytes(limit_bytes);
  }
  // The first block starts at a multiple of the growth.
  size_t reservation_bytes = limit_bytes + HEAP_FIT_GROWTH_BYTES;
  void *reservation = heap_kernel->map(reservation_bytes, true);
  if (reservation == NULL) {
    errno = ENOMEM;
    return NULL;
  }
  uintptr_t base =
      heap_fit_round_up((uintptr_t)reservation, HEAP_FIT_GROWTH_BYTES);
  heap_t *heap = create_at(&options, base, (uint32_t)granules);
  if (heap == NULL) {
    int error = errno;
    heap_kernel->unmap(reservation, reservation_bytes);
    errno = error;
    return NULL;
  }
  heap->reservation = reservation;
  heap->reservation_bytes = reservation_bytes;
  return heap;
}

// Makes a heap of the limit asked for, or of the highest there can be.
static heap_t *create_in_kernels(const heap_options_t *options) {
  if (options->limit_bytes != 0) {
    return create_limited(*options, options->limit_bytes);
  }
  size_t limit_bytes = DEFAULT_LIMIT_BYTES;
  heap_t *heap = create_limited(*options, limit_bytes);
  while (heap == NULL && errno == ENOMEM && limit_bytes > LIMIT_MIN_BYTES) {
    limit_bytes /= 2;
    heap = create_limited(*options, limit_bytes);
  }
  return heap;
}

// Makes a heap in a file; NULL with `errno`.
static heap_t *create_in_file(heap_options_t *options) {
  heap_file_id_t id;
  options->file = heap_private_file_open(options->file, &id);
  if (options->file < 0) {
    return NULL;
  }
  heap_t *heap = create_in_kernels(options);
  if (heap == NULL) {
    int error = errno;
    close(options->file);
    errno = error;
    return NULL;
  }
  heap->file_id = id;
  return heap;
}

static heap_t *create(heap_options_t *options) {
  if (options->buffer != NULL) {
    if (options->span_bytes == 0) {
      options->span_bytes = heap_segregated_span_bytes(options->buffer_bytes);
    }
    return create_in_buffer(options);
  }
  return options->use_file ? create_in_file(options)
                           : create_in_kernels(options);
}

// Gives back what the heap has, which is in no list.
static void release(heap_t *heap) {
  pthread_mutex_destroy(&heap->lock);
  if (heap->options.use_file) {
    close(heap->options.file);
  }
  if (heap->reservation != NULL) {
    heap_kernel->unmap(heap->reservation, heap->reservation_bytes);
    heap_kernel->unmap(heap, heap->metadata_bytes);
  } else {
    // No fault stops who goes on with it, so each call looks here.
    heap->options.single_threaded = false;
    heap->plain = HEAP_FIT_PLAIN_NONE;
    heap->is_destroyed = true;
  }
}

// Makes the heap known; returns 0 or an errno.
static int publish(heap_t *heap) {
  if (!heap_private_list_add(heap)) {
    return EBUSY;
  }
  int error =
      heap->options.use_file ? heap_private_file_lock(heap->options.file) : 0;
  if (error != 0) {
    heap_private_list_remove(heap);
  } else if (heap->options.use_file) {
    heap->file_owner = getpid();
  }
  return error;
}

heap_t *heap_create(const heap_options_t *given) {
  heap_options_t options = *given;
  if (!set_defaults(&options)) {
    errno = EINVAL;
    return NULL;
  }
  heap_t *heap = create(&options);
  int error = heap == NULL ? 0 : publish(heap);
  if (error != 0) {
    release(heap);
    errno = error;
    return NULL;
  }
  return heap;
}

void heap_destroy(heap_t *heap) {
  if (heap == NULL) {
    return;
  }
  if (heap->is_destroyed) {
    HEAP_DIE("private heap: destroyed twice");
  }
  int saved_errno = errno;
  if (heap->file_owner != 0 && heap->file_owner == getpid()) {
    // The caller's descriptor would keep the lock; a forked child leaves its
    // parent's alone.
    heap_private_file_unlock(heap->options.file);
  }
  heap_private_list_remove(heap);
  release(heap);
  errno = saved_errno;
}
