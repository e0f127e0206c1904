// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// A private heap is one range of addresses, so everything about a pointer is
// arithmetic:
//
//   kernel:  | heap_t, bitmaps |    | granule 0 | 1 | ... count | ... capacity
//              a mapping              a reservation, made usable when needed
//
//   buffer:  | heap_t, bitmaps | granule 0 | 1 | ... count = capacity |
//
// The tables come first, where no write past the end of a block leads to.

#include "heap/private_heap.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "heap/fatal.h"
#include "heap/kernel.h"
#include "heap/piece.h"

enum {
  GRANULE_MIN_BYTES = 16,
  GRANULE_MAX_BYTES = 65536,
  TLSF_LISTS_LOG2 = 4,
  TLSF_LISTS_LOG2_MAX = 5,
  // Ranges of the kernel's memory are multiples of this.
  GROWTH_MIN_BYTES = 65536,
  GROWTH_SHARE = 8,  // Of what there is.
};

#define DEFAULT_LIMIT_BYTES ((size_t)4 << 30)
#define LIMIT_MIN_BYTES ((size_t)GROWTH_MIN_BYTES)
// No block is aligned to more.
#define ALIGN_MAX_BYTES ((size_t)1 << 46)

static const heap_fit_t *const fits[HEAP_STRATEGY_COUNT] = {
    [HEAP_FIRST_FIT] = &heap_fit_first, [HEAP_NEXT_FIT] = &heap_fit_next,
    [HEAP_BEST_FIT] = &heap_fit_best,   [HEAP_TLSF] = &heap_fit_tlsf,
    [HEAP_BUDDY] = &heap_fit_buddy,
};

static uintptr_t round_up(uintptr_t value, uintptr_t align) {
  return (value + align - 1) & ~(align - 1);
}

static bool is_power_of_two(size_t value) {
  return value != 0 && (value & (value - 1)) == 0;
}

// Completes the options; false: one is out of its range.
static bool set_defaults(heap_options_t *options) {
  if (options->granule_bytes == 0) {
    options->granule_bytes = GRANULE_MIN_BYTES;
  }
  if (options->split_bytes == 0) {
    options->split_bytes = options->granule_bytes;
  }
  if (options->tlsf_lists_log2 == 0) {
    options->tlsf_lists_log2 = TLSF_LISTS_LOG2;
  }
  return (unsigned)options->strategy < HEAP_STRATEGY_COUNT &&
         is_power_of_two(options->granule_bytes) &&
         options->granule_bytes >= GRANULE_MIN_BYTES &&
         options->granule_bytes <= GRANULE_MAX_BYTES &&
         options->tlsf_lists_log2 <= TLSF_LISTS_LOG2_MAX &&
         (options->buffer == NULL || !options->use_file) &&
         (options->limit_bytes == 0 || options->buffer != NULL ||
          options->limit_bytes >= LIMIT_MIN_BYTES);
}

static size_t tables_bytes(uint32_t capacity) {
  return round_up(sizeof(heap_t), _Alignof(max_align_t)) +
         2 * heap_bit_tree_bytes(capacity + 1);
}

// Returns the most that the first block in a buffer can be aligned to at the
// price of 1/64 of it.
static size_t base_align_in_buffer(const heap_options_t *options) {
  size_t align_bytes = options->granule_bytes;
  while (align_bytes < GROWTH_MIN_BYTES &&
         align_bytes * 2 <= options->buffer_bytes / 64) {
    align_bytes *= 2;
  }
  return align_bytes;
}

// Returns the most that blocks of a buddy heap can be aligned to.
static size_t base_align(const heap_options_t *options, uintptr_t base) {
  // A reservation may be better aligned, but not always.
  return options->buffer != NULL ? base & (~base + 1) : GROWTH_MIN_BYTES;
}

// Starts a heap without granules in zeroed memory of tables_bytes(capacity).
static heap_t *start(void *tables, const heap_options_t *options,
                     uintptr_t base, uint32_t capacity) {
  heap_t *heap = tables;
  unsigned char *trees =
      (unsigned char *)tables + round_up(sizeof(heap_t), _Alignof(max_align_t));
  heap->fit = fits[options->strategy];
  heap->options = *options;
  heap->base = base;
  heap->granule_shift = (uint32_t)__builtin_ctzll(options->granule_bytes);
  heap->is_buddy = options->strategy == HEAP_BUDDY;
  heap->has_lists = heap->is_buddy || options->strategy == HEAP_TLSF;
  heap->capacity = capacity;
  heap->broken_at = HEAP_FIT_NONE;
  heap->base_align_bytes = base_align(options, base);
  size_t split_length = options->split_bytes / options->granule_bytes +
                        (options->split_bytes % options->granule_bytes != 0);
  heap->split_length =
      split_length < UINT32_MAX ? (uint32_t)split_length : UINT32_MAX;
  heap->metadata_bytes = tables_bytes(capacity);
  heap_bit_tree_init(&heap->starts, trees, capacity + 1, &heap->steps);
  bool is_searched =
      heap->fit == &heap_fit_first || heap->fit == &heap_fit_next;
  (is_searched ? heap_bit_tree_init : heap_bit_tree_init_flat)(
      &heap->frees, trees + heap_bit_tree_bytes(capacity + 1), capacity + 1,
      &heap->steps);
  pthread_mutex_init(&heap->lock, NULL);
  heap_piece_free_all(heap);
  return heap;
}

// Returns how many granules fit behind the tables for them, and where.
static uint32_t fit_in_buffer(const heap_options_t *options, uintptr_t tables,
                              uintptr_t end, uintptr_t *out_base) {
  size_t granule = options->granule_bytes;
  size_t align_bytes = base_align_in_buffer(options);
  size_t most = (end - tables) / granule;
  uint32_t capacity = most < UINT32_MAX - 2 ? (uint32_t)most : UINT32_MAX - 2;
  while (capacity > 0) {
    size_t used_bytes = tables_bytes(capacity);
    uintptr_t base = round_up(tables + used_bytes, align_bytes);
    if (used_bytes <= end - tables && base <= end &&
        (end - base) / granule >= capacity) {
      *out_base = base;
      return capacity;
    }
    uint32_t excess = capacity / 4096 + 1;
    capacity -= excess;
  }
  return 0;
}

static heap_t *create_in_buffer(const heap_options_t *options) {
  uintptr_t tables =
      round_up((uintptr_t)options->buffer, _Alignof(max_align_t));
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
  memset((void *)tables, 0, tables_bytes(capacity));
  heap_t *heap = start((void *)tables, options, base, capacity);
  heap_piece_append(heap, capacity);
  return heap;
}

// Maps the file over addresses that are reserved; false with `errno`.
static bool map_file(const heap_options_t *options, void *base,
                     size_t limit_bytes) {
  return mmap(base, limit_bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED,
              options->file, 0) != MAP_FAILED;
}

// Makes a heap of at most `limit_bytes`; NULL with `errno`.
static heap_t *create_limited(const heap_options_t *options,
                              size_t limit_bytes) {
  limit_bytes &= ~(size_t)(GROWTH_MIN_BYTES - 1);
  size_t granules = limit_bytes / options->granule_bytes;
  if (granules > UINT32_MAX - 2) {
    granules = (UINT32_MAX - 2) & ~(size_t)(GROWTH_MIN_BYTES - 1);
    limit_bytes = granules * options->granule_bytes;
  }
  // The first block starts at a multiple of the growth.
  size_t reservation_bytes = limit_bytes + GROWTH_MIN_BYTES;
  void *reservation = heap_kernel->map(reservation_bytes, true);
  if (reservation == NULL) {
    errno = ENOMEM;
    return NULL;
  }
  uintptr_t base = round_up((uintptr_t)reservation, GROWTH_MIN_BYTES);
  size_t page_bytes = (size_t)sysconf(_SC_PAGESIZE);
  size_t metadata_bytes =
      round_up(tables_bytes((uint32_t)granules), page_bytes);
  void *tables = NULL;
  int error = ENOMEM;
  if (options->use_file && !map_file(options, (void *)base, limit_bytes)) {
    error = errno;
  } else {
    tables = heap_kernel->map(metadata_bytes, false);
  }
  if (tables == NULL) {
    heap_kernel->unmap(reservation, reservation_bytes);
    errno = error;
    return NULL;
  }
  heap_t *heap = start(tables, options, base, (uint32_t)granules);
  heap->reservation = reservation;
  heap->reservation_bytes = reservation_bytes;
  heap->metadata_bytes = metadata_bytes;
  heap->page_bytes = page_bytes;
  return heap;
}

// Makes a heap of the limit asked for, or of the highest there can be.
static heap_t *create_in_kernels(const heap_options_t *options) {
  if (options->limit_bytes != 0) {
    return create_limited(options, options->limit_bytes);
  }
  size_t limit_bytes = DEFAULT_LIMIT_BYTES;
  heap_t *heap = create_limited(options, limit_bytes);
  while (heap == NULL && errno == ENOMEM && limit_bytes > LIMIT_MIN_BYTES) {
    limit_bytes /= 2;
    heap = create_limited(options, limit_bytes);
  }
  return heap;
}

heap_t *heap_create(const heap_options_t *given) {
  heap_options_t options = *given;
  if (!set_defaults(&options)) {
    errno = EINVAL;
    return NULL;
  }
  if (options.buffer != NULL) {
    return create_in_buffer(&options);
  }
  if (!options.use_file) {
    return create_in_kernels(&options);
  }
  options.file = fcntl(options.file, F_DUPFD_CLOEXEC, 0);
  if (options.file < 0) {
    return NULL;
  }
  heap_t *heap = create_in_kernels(&options);
  if (heap == NULL) {
    int error = errno;
    close(options.file);
    errno = error;
  }
  return heap;
}

void heap_destroy(heap_t *heap) {
  if (heap == NULL) {
    return;
  }
  int saved_errno = errno;
  pthread_mutex_destroy(&heap->lock);
  if (heap->options.use_file) {
    close(heap->options.file);
  }
  if (heap->reservation != NULL) {
    heap_kernel->unmap(heap->reservation, heap->reservation_bytes);
    heap_kernel->unmap(heap, heap->metadata_bytes);
  }
  errno = saved_errno;
}

static inline uint64_t enter(heap_t *heap) {
  if (!heap->options.single_threaded) {
    pthread_mutex_lock(&heap->lock);
  }
  return heap->steps;
}

// Ends a call that began with `steps`, and reports what it met.
static inline void leave(heap_t *heap, uint64_t steps,
                         const heap_call_t *call) {
  if (heap->steps - steps > heap->max_steps) {
    heap->max_steps = heap->steps - steps;
  }
  uint32_t broken_at = heap->broken_at;
  heap->broken_at = HEAP_FIT_NONE;
  if (!heap->options.single_threaded) {
    pthread_mutex_unlock(&heap->lock);
  }
  if (broken_at != HEAP_FIT_NONE) {
    uintptr_t piece =
        broken_at == HEAP_FIT_NONE - 1
            ? 0
            : heap->base + ((uintptr_t)broken_at << heap->granule_shift);
    heap_report_misuse(HEAP_MISUSE_WRITTEN, call, (void *)piece, 0, 0);
  }
}

// What a call that takes a block found.
typedef struct finding {
  bool is_live;
  heap_misuse_t misuse;  // Unless it is.
  uint32_t start;        // Of the piece concerned.
  uint32_t length;       // 0: none.
} finding_t;

// What is at a pointer that is not the start of a live block.
static finding_t locate_wrong(const heap_t *heap, uintptr_t offset) {
  finding_t finding = {.misuse = HEAP_MISUSE_FOREIGN};
  if (offset >> heap->granule_shift >= heap->count) {
    return finding;
  }
  ++*heap->starts.steps;
  finding.start = heap_bit_tree_prev(&heap->starts,
                                     (uint32_t)(offset >> heap->granule_shift));
  finding.misuse = HEAP_MISUSE_FREED;
  if (!heap_bit_tree_has(&heap->frees, finding.start)) {
    finding.misuse = HEAP_MISUSE_INTERIOR;
    finding.length = heap_fit_length(heap, finding.start);
  }
  return finding;
}

// Lock held.
static inline finding_t locate(const heap_t *heap, const void *ptr) {
  uintptr_t offset = (uintptr_t)ptr - heap->base;
  uint32_t granule = (uint32_t)(offset >> heap->granule_shift);
  if (offset >> heap->granule_shift < heap->count &&
      (offset & (heap->options.granule_bytes - 1)) == 0 &&
      heap_bit_tree_has(&heap->starts, granule) &&
      !heap_bit_tree_has(&heap->frees, granule)) {
    return (finding_t){.is_live = true,
                       .start = granule,
                       .length = heap_fit_length(heap, granule)};
  }
  return locate_wrong(heap, offset);
}

static void *address_of(const heap_t *heap, uint32_t granule) {
  return (void *)(heap->base + ((uintptr_t)granule << heap->granule_shift));
}

static void report(const heap_t *heap, const void *ptr,
                   const finding_t *finding, const heap_call_t *call) {
  heap_report_misuse(finding->misuse, call, ptr,
                     (uintptr_t)address_of(heap, finding->start),
                     (size_t)finding->length << heap->granule_shift);
}

// Makes the next `size_bytes` of the reservation usable.
static bool commit(heap_t *heap, size_t size_bytes) {
  size_t used_bytes = (size_t)heap->count << heap->granule_shift;
  if (heap->options.use_file) {
    // A hole in the file would be a SIGBUS when the disk is full.
    int error;
    do {
      error = posix_fallocate(heap->options.file, (off_t)used_bytes,
                              (off_t)size_bytes);
    } while (error == EINTR);
    return error == 0;
  }
  return heap_kernel->commit(address_of(heap, heap->count), size_bytes);
}

// Adds `missing` granules at least, more if there is no need to save.
static bool extend(heap_t *heap, size_t missing) {
  size_t room = (size_t)(heap->capacity - heap->count) << heap->granule_shift;
  if (missing > room >> heap->granule_shift) {
    return false;
  }
  size_t missing_bytes =
      round_up(missing << heap->granule_shift, GROWTH_MIN_BYTES);
  size_t step_bytes =
      round_up(((size_t)heap->count << heap->granule_shift) / GROWTH_SHARE,
               GROWTH_MIN_BYTES);
  step_bytes = step_bytes < missing_bytes ? missing_bytes : step_bytes;
  step_bytes = step_bytes < room ? step_bytes : room;
  if (!commit(heap, step_bytes)) {
    step_bytes = missing_bytes;
    if (!commit(heap, step_bytes)) {
      return false;
    }
  }
  heap_piece_append(heap, (uint32_t)(step_bytes >> heap->granule_shift));
  return true;
}

// Returns where the granules that are free up to the end start.
static uint32_t free_end(const heap_t *heap) {
  uint32_t end = heap->count;
  while (end > 0 && heap_bit_tree_has(&heap->frees, end - 1)) {
    end = heap_bit_tree_prev(&heap->starts, end - 1);
  }
  return end;
}

// Adds memory so that a free piece of `wanted` granules is at the end.
static bool grow(heap_t *heap, uint64_t wanted) {
  uint64_t start = free_end(heap);
  if (heap->is_buddy) {
    // At a multiple of its length.
    start = (start + wanted - 1) / wanted * wanted;
  }
  uint64_t end = start + wanted;
  uint64_t steps = heap->steps;
  // It may be there but in a list that was not looked at: one granule more.
  bool has_grown = heap->reservation != NULL &&
                   extend(heap, end > heap->count ? end - heap->count : 1);
  heap->steps = steps;  // See piece.c.
  return has_grown;
}

// Returns the granules of a block, or 0: more than there can be.
static inline uint32_t length_of(const heap_t *heap, size_t size_bytes) {
  if (size_bytes > (size_t)heap->capacity << heap->granule_shift) {
    return 0;
  }
  size_t length =
      (size_bytes + heap->options.granule_bytes - 1) >> heap->granule_shift;
  return length == 0 ? 1 : (uint32_t)length;
}

// Lock held.
static void *take(heap_t *heap, size_t align_bytes, size_t size_bytes) {
  uint32_t length = length_of(heap, size_bytes);
  if (length == 0 || align_bytes > ALIGN_MAX_BYTES) {
    return NULL;
  }
  if (align_bytes < heap->options.granule_bytes) {
    align_bytes = heap->options.granule_bytes;
  }
  uint32_t start = heap_piece_take(heap, length, align_bytes);
  if (start == HEAP_FIT_NONE) {
    uint64_t wanted = heap->fit->sure_length(heap, length, align_bytes);
    if (wanted == 0 || !grow(heap, wanted)) {
      return NULL;
    }
    start = heap_piece_take(heap, length, align_bytes);
  }
  return start == HEAP_FIT_NONE ? NULL : address_of(heap, start);
}

static void *alloc(heap_t *heap, size_t align_bytes, size_t size_bytes,
                   const heap_call_t *call) {
  uint64_t steps = enter(heap);
  void *ptr = take(heap, align_bytes, size_bytes);
  leave(heap, steps, call);
  if (ptr == NULL) {
    errno = ENOMEM;
  }
  return ptr;
}

void *heap_alloc_in(heap_t *heap, size_t size_bytes) {
  const heap_call_t call = {"alloc", __builtin_return_address(0)};
  return alloc(heap, 1, size_bytes, &call);
}

void *heap_calloc_in(heap_t *heap, size_t count, size_t size_bytes) {
  const heap_call_t call = {"calloc", __builtin_return_address(0)};
  size_t total_bytes;
  if (__builtin_mul_overflow(count, size_bytes, &total_bytes)) {
    errno = ENOMEM;
    return NULL;
  }
  void *ptr = alloc(heap, 1, total_bytes, &call);
  return ptr == NULL ? NULL : memset(ptr, 0, total_bytes);
}

void *heap_aligned_alloc_in(heap_t *heap, size_t align_bytes,
                            size_t size_bytes) {
  const heap_call_t call = {"aligned_alloc", __builtin_return_address(0)};
  if (!is_power_of_two(align_bytes)) {
    errno = EINVAL;
    return NULL;
  }
  return alloc(heap, align_bytes, size_bytes, &call);
}

void heap_free_in(heap_t *heap, void *ptr) {
  const heap_call_t call = {"free", __builtin_return_address(0)};
  if (ptr == NULL) {
    return;
  }
  int saved_errno = errno;
  uint64_t steps = enter(heap);
  finding_t finding = locate(heap, ptr);
  if (finding.is_live) {
    heap_piece_free(heap, finding.start, finding.length);
  }
  leave(heap, steps, &call);
  if (!finding.is_live) {
    report(heap, ptr, &finding, &call);
  }
  errno = saved_errno;
}

// Moves a live block to another piece; NULL: there is none. Lock held.
static void *move(heap_t *heap, const finding_t *old, size_t size_bytes) {
  size_t old_bytes = (size_t)old->length << heap->granule_shift;
  void *copy = take(heap, 1, size_bytes);
  if (copy != NULL) {
    memcpy(copy, address_of(heap, old->start),
           size_bytes < old_bytes ? size_bytes : old_bytes);
    heap_piece_free(heap, old->start, old->length);
  }
  return copy;
}

void *heap_realloc_in(heap_t *heap, void *ptr, size_t size_bytes) {
  const heap_call_t call = {"realloc", __builtin_return_address(0)};
  if (ptr == NULL) {
    return alloc(heap, 1, size_bytes, &call);
  }
  uint64_t steps = enter(heap);
  finding_t finding = locate(heap, ptr);
  void *result = NULL;
  if (finding.is_live) {
    uint32_t length = length_of(heap, size_bytes);
    if (length != 0 &&
        heap_piece_resize(heap, finding.start, finding.length, length)) {
      result = ptr;
    } else if (length != 0) {
      result = move(heap, &finding, size_bytes);
    }
  }
  leave(heap, steps, &call);
  if (!finding.is_live) {
    report(heap, ptr, &finding, &call);
    errno = EINVAL;
  } else if (result == NULL) {
    errno = ENOMEM;
  }
  return result;
}

size_t heap_usable_size_in(heap_t *heap, const void *ptr) {
  const heap_call_t call = {"usable_size", __builtin_return_address(0)};
  if (ptr == NULL) {
    return 0;
  }
  uint64_t steps = enter(heap);
  finding_t finding = locate(heap, ptr);
  leave(heap, steps, &call);
  if (!finding.is_live) {
    report(heap, ptr, &finding, &call);
    return 0;
  }
  return (size_t)finding.length << heap->granule_shift;
}

void heap_reset(heap_t *heap) {
  const heap_call_t call = {"reset", __builtin_return_address(0)};
  uint64_t steps = enter(heap);
  heap_piece_free_all(heap);
  heap->steps = steps;
  leave(heap, steps, &call);
}

// Gives back the pages of a free piece that hold nothing.
static size_t trim(const heap_t *heap, uint32_t start, uint32_t length) {
  uintptr_t first = (uintptr_t)address_of(heap, start);
  uintptr_t end = first + ((uintptr_t)length << heap->granule_shift);
  // The kernel would round up to its pages, into the next block.
  first = round_up(first + sizeof(heap_fit_links_t), heap->page_bytes);
  end &= ~(uintptr_t)(heap->page_bytes - 1);
  bool is_trimmed =
      first < end && heap_kernel->discard((void *)first, end - first);
  return is_trimmed ? end - first : 0;
}

size_t heap_trim_in(heap_t *heap) {
  const heap_call_t call = {"trim", __builtin_return_address(0)};
  size_t trimmed_bytes = 0;
  uint64_t steps = enter(heap);
  bool is_kernels = heap->reservation != NULL && !heap->options.use_file;
  uint32_t start = is_kernels ? heap_fit_next_free(heap, 0) : HEAP_FIT_NONE;
  while (start != HEAP_FIT_NONE) {
    uint32_t length = heap_fit_length(heap, start);
    trimmed_bytes += trim(heap, start, length);
    start = heap_fit_next_free(heap, start + length);
  }
  heap->steps = steps;
  leave(heap, steps, &call);
  return trimmed_bytes;
}

bool heap_walk_in(heap_t *heap, heap_visit_t visit, void *context) {
  const heap_call_t call = {"walk", __builtin_return_address(0)};
  bool goes_on = true;
  uint64_t steps = enter(heap);
  for (uint32_t start = 0; goes_on && start < heap->count;) {
    uint32_t length = heap_fit_length(heap, start);
    if (!heap_bit_tree_has(&heap->frees, start)) {
      goes_on = visit(context, address_of(heap, start),
                      (size_t)length << heap->granule_shift);
    }
    start += length;
  }
  heap->steps = steps;
  leave(heap, steps, &call);
  return goes_on;
}

const char *heap_check_in(heap_t *heap) {
  const heap_call_t call = {"check", __builtin_return_address(0)};
  uint64_t steps = enter(heap);
  const char *broken = heap_piece_check(heap);
  heap->steps = steps;
  leave(heap, steps, &call);
  return broken;
}

void heap_stats_get_in(heap_t *heap, heap_private_stats_t *out_stats) {
  uint32_t largest = 0;
  memset(out_stats, 0, sizeof(*out_stats));
  enter(heap);
  out_stats->num_steps = heap->steps;
  out_stats->max_steps = heap->max_steps;
  uint32_t start = heap_fit_next_free(heap, 0);
  while (start != HEAP_FIT_NONE) {
    uint32_t length = heap_fit_length(heap, start);
    largest = length > largest ? length : largest;
    ++out_stats->num_free;
    start = heap_fit_next_free(heap, start + length);
  }
  heap->steps = out_stats->num_steps;
  out_stats->mapped_bytes = (size_t)heap->count << heap->granule_shift;
  out_stats->live_bytes = (size_t)heap->live_length << heap->granule_shift;
  out_stats->num_live = heap->live_count;
  out_stats->free_bytes = out_stats->mapped_bytes - out_stats->live_bytes;
  out_stats->largest_free_bytes = (size_t)largest << heap->granule_shift;
  out_stats->peak_live_bytes = (size_t)heap->peak_length << heap->granule_shift;
  out_stats->metadata_bytes = heap->metadata_bytes;
  if (!heap->options.single_threaded) {
    pthread_mutex_unlock(&heap->lock);
  }
}
